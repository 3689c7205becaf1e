// Pakyow's door on two nodes over a real Redis: what happens to subscriptions when nodes or Redis go, what a
// reload replaces, and the registry that nodes share with processes of Pakyow. ROOMCAST is the program.

"use strict";

const assert = require("node:assert/strict");
const { createServer } = require("node:http");
const { test } = require("node:test");
const { io } = require("socket.io-client");
const WebSocket = require("ws");

const { PATIENCE } = require("./support/browser");
const { useNodes } = require("./support/nodes");
const { APPLICATION_KEY, PAIR, call, connect, push, subscribe, tryCall, unsubscribe } = require("./support/pakyow");
const { digestOf, startProcess } = require("./support/pakyow-process");
const { ask, deadline, next, until } = require("./support/wait");

const DIGEST = digestOf(PAIR.connection_id, PAIR.socket_key);
const TIME = { timeout: 240_000 };

const settings = (redis, door = "", rest = "") => `
  redis = "${redis.url}"
  client_rooms = true
  [namespaces."/pakyow"]
  access = "open"
  [doors.pakyow]
  lifetime = "3s"
  ${door}
  ${APPLICATION_KEY}
  ${rest}
`;
const registry = (redis) => `
  [doors.pakyow.registry]
  url = "${redis.url}"
  refresh = "200ms"
  max_push = "1KiB"
`;

// The rights that the book names.
const OF_NODES = "&socket.io* ~socket.io* +@pubsub +@sortedset +time +ping +select +client|setname +eval +@set +pexpire +del";
const OF_REGISTRY = "&* ~pw:channels* +@pubsub +@hash +@set +@sortedset +time +ping +select +client|setname +eval +exists +pexpire";

/** The URL of a Redis for a user who has these rights and no others. */
async function login(redis, name, rights) {
  await redis.command("ACL", "SETUSER", name, "reset", "on", ">secret", "resetchannels", ...rights.split(" "));
  return { url: redis.url.replace("//", `//${name}:secret@`) };
}

const parts = useNodes({});
const { closing, start } = parts;

test("subscriptions in Redis are renewed as long as the connection lives", TIME, async () => {
  const { redis } = parts;
  const [node, other] = await startTwo(settings(await login(redis, "node", OF_NODES)));
  await subscribe(node, "news");
  const client = await connected(other);
  const key = `socket.io-pk:sub:${DIGEST}`;
  let [before, renewals] = [await redis.command("PTTL", key), 0];
  await until("four renewals", async () => {
    const left = await redis.command("PTTL", key);
    if (left > before) renewals += 1;
    before = left;
    return renewals === 4;
  }, 4 * PATIENCE);
  const twin = await connected(node);
  await push(other, 1, "news");
  await Promise.all([client.hears(1), twin.hears(1)]);
});

test("a reload of the lifetime holds for sockets that are connected", TIME, async () => {
  const { redis } = parts;
  const node = await start(settings(redis, "", "").replace('"3s"', '"1h"'));
  await subscribe(node, "news");
  await connected(node);
  await node.reload(settings(redis));
  const key = `socket.io-pk:sub:${DIGEST}`;
  let [before, renewals] = [await redis.command("PTTL", key), 0];
  await until("two renewals by the new lifetime", async () => {
    const left = await redis.command("PTTL", key);
    if (left <= 3000 && left > before) renewals += 1;
    before = left;
    return renewals === 2;
  }, 2 * PATIENCE);
});

test("the subscriptions of a node that dies, and of a pair that never connects, end with their time", TIME, async () => {
  const { redis } = parts;
  const [node, other] = await startTwo(settings(redis));
  await subscribe(node, "news");
  await connected(other);
  await call(node, "subscribe", { channels: ["news"], digest: digestOf("nobody", "k") });
  await other.kill();
  assert.deepEqual(await push(node, 1, "news"), {}, "the response names no listener");
  await until("the end of the subscriptions", async () => (await subscriptions(redis)).length === 0, PATIENCE);
  const again = await connected(node);
  await push(node, 2, "news");
  await again.ping();
  assert.deepEqual(again.payloads(), []);
  // As soon as the others know of its death, a call does not wait for it.
  await until("a subscription", async () => (await tryCall(node, "subscribe", { channels: ["news"], ...PAIR })).status === 200, PATIENCE);
  await push(node, 3, "news");
  await again.hears(3);
});

test("without Redis, calls get the status 503, and sockets stay; what Redis has lost is written again", TIME, async () => {
  const { redis } = parts;
  const [node, other] = await startTwo(settings(redis));
  await subscribe(node, "news");
  const client = await connected(other);
  await redis.kill();
  for (const name of ["subscribe", "unsubscribe"]) {
    const { status, body } = await tryCall(node, name, { channels: ["more"], ...PAIR });
    assert.equal(status, 503, JSON.stringify(body));
    assert.match(body.type, /redis$/);
  }
  assert.equal((await tryCall(node, "push", { message: 1, channels: ["news"] })).status, 503);
  assert.equal((await tryCall(node, "push_to", { message: 1, channel: "own", digest: DIGEST })).status, 503);
  // Without its subscriptions, a client would wait in vain, so it is sent away and tries again.
  const early = new WebSocket(`${node.url.replace("http", "ws")}/?socket_connection_id=x`);
  const code = new Promise((resolve) => early.once("close", resolve));
  assert.equal(await deadline(code, PATIENCE, "the end of the socket"), 1000);
  await redis.start();
  // The node of the socket may have to write first that it has one.
  await until("a subscription", async () => (await tryCall(node, "subscribe", { channels: ["early"], ...PAIR })).status === 200, PATIENCE);
  await until("the push", async () => {
    await tryCall(node, "push", { message: "early", channels: ["early"] });
    return client.payloads().includes("early");
  }, PATIENCE);
  await until("a push", async () => (await tryCall(node, "push", { message: 2, channels: ["news"] })).status === 200, PATIENCE);
  await until("the push", async () => {
    await tryCall(node, "push", { message: 3, channels: ["news"] });
    return client.payloads().includes(3);
  }, PATIENCE);
  await until("a subscription", async () => (await tryCall(node, "subscribe", { channels: ["more"], ...PAIR })).status === 200, PATIENCE);
  await push(other, 4, "more");
  await client.hears(4);
});

test("a node that stops sends its sockets away, and those that return within the grace hear their channels", TIME, async () => {
  const { redis } = parts;
  const text = settings(redis, 'grace = "5m"');
  const [node, other] = await startTwo(text);
  await subscribe(node, "news");
  const client = await connected(other);
  assert.deepEqual(await other.stop(), { code: 0, signal: null });
  assert.equal(await client.closed(), 1001);
  const back = await connected(node);
  await push(node, 1, "news");
  await back.hears(1);
  back.close();
  await until("the end of the socket", async () => (await node.metric('roomcast_door_parked{door="pakyow"}')) === 0, PATIENCE);
  await redis.command("DEL", `socket.io-pk:sub:${DIGEST}`);
});

test("a reload replaces the application and the limits, and names what needs a restart", TIME, async () => {
  const { redis } = parts;
  const urls = [];
  for (const name of ["first", "second"]) urls.push(await application(() => name));
  const node = await start(settings(redis, `application = "${urls[0]}"`));
  const client = await connected(node);
  assert.equal((await client.call("/")).body, "first");
  const door = `application = "${urls[1]}"\nmax_channels = 1\nmax_message = "200B"\nkey_cookie = "key"\nnamespace = "/other"`;
  const line = await node.reload(settings(redis, door, `[doors.pakyow.registry]\nurl = "redis://127.0.0.1:1"`));
  assert.equal(line.message, "reloaded the settings", JSON.stringify(line));
  for (const key of ["application", "max_channels", "max_message", "key_cookie"]) {
    assert.ok(line.changed.includes(`doors.pakyow.${key}`), line.changed);
  }
  const warning = await until("the warning", () => node.lines.find(({ message }) => /need a restart/.test(message)));
  for (const key of ["doors.pakyow.namespace", "doors.pakyow.registry"]) assert.ok(warning.settings.includes(key), warning.settings);
  assert.equal((await client.call("/")).body, "second");
  assert.equal((await client.call(`/?${"x".repeat(200)}`)).status, 413);
  const { status, body } = await tryCall(node, "subscribe", { channels: ["a", "b"], ...PAIR });
  assert.equal(status, 400);
  assert.match(body.detail, /1 channels/);
  const refused = await node.reload(settings(redis, `application = "${urls[1]}/path"`));
  assert.match(refused.message, /were not reloaded/);
  assert.equal((await client.call("/")).body, "second");
});

test("nodes honour what processes of Pakyow write into their registry and publish", TIME, async () => {
  const { node, other, process } = await withRegistry();
  await process.subscribe(DIGEST, "news", "chat");
  const [client, twin] = [await connected(node), await connected(other)];
  const messages = ["text", [1, { key: "x" }], { key: DIGEST, channel: "chat", message: 1 }, null];
  for (const message of messages) await process.push(message, "news");
  // Text that is not JSON is ignored, and so are messages of another digest.
  for (const text of ["{", "1,2", '1,"channel":"chat"},{"payload":2', ""]) await process.publish("news", text);
  await process.publish(`pw:socket:${DIGEST}`, JSON.stringify({ key: "0".repeat(40), channel: "own", message: 1 }));
  await process.publish(`pw:socket:${DIGEST}`, "[]");
  await process.pushTo(["direct"], "own", DIGEST);
  for (const { heard } of [client, twin]) {
    const pushes = () => heard.filter((frame) => "payload" in frame);
    await until("the pushes", () => pushes().length === messages.length + 1, PATIENCE);
    const wanted = messages.map((payload) => ({ payload, channel: "news" }));
    assert.deepEqual(pushes(), [...wanted, { payload: ["direct"], channel: "own" }]);
  }
  const ignored = await until("the count", () => node.metric('roomcast_pakyow_registry_messages_total{outcome="ignored"}'));
  assert.equal(ignored, 6);
  await process.push("x".repeat(2000), "news");
  const large = 'roomcast_pakyow_registry_messages_total{outcome="too_large"}';
  await until("the count", async () => (await node.metric(large)) === 1, PATIENCE);

  // A process tells nobody of a change, so nodes look for it.
  await process.unsubscribe(DIGEST, "chat");
  await process.subscribe(DIGEST, "tea");
  for (const each of [client, twin]) {
    await until("the subscription", async () => {
      await process.push("tea", "tea");
      return each.payloads().includes("tea");
    }, PATIENCE);
  }
  await process.push("chat", "chat");
  await process.push("last", "news");
  for (const each of [client, twin]) {
    await each.hears("last");
    assert.ok(!each.payloads().includes("chat"));
  }
});

test("processes of Pakyow can read and hear what nodes write and publish", TIME, async () => {
  const { node, other, process } = await withRegistry();
  const theirs = digestOf("theirs", "k");
  await call(node, "subscribe", { channels: ["news", "a/b"], digest: theirs });
  assert.deepEqual((await process.channels(theirs)).sort(), ["a/b", "news", `pw:socket:${theirs}`]);
  await process.register(theirs);
  const client = await connected(other);
  // The socket is at the other node, which confirms.
  await subscribe(node, "news");
  const message = { text: "it rains", list: [1, [null]], "ü\"\\": "\u2028" };
  await push(node, message, "news", "a/b", "nobody");
  await push(node, "wild", "n*s");
  await call(node, "push_to", { digest: theirs, channel: "own", message: [2] });
  await until("the pushes", () => process.heard.length >= 3 && client.payloads().length >= 2, PATIENCE);
  const heard = process.heard.map(([channel, text]) => [channel, JSON.parse(text)]);
  const direct = { key: theirs, channel: "own", message: [2] };
  assert.deepEqual(heard.sort(), [["a/b", message], ["news", message], [`pw:socket:${theirs}`, direct]]);
  assert.deepEqual(client.payloads(), [message, "wild"]);
  await unsubscribe(node, "news");
  await push(node, "unheard", "news");
  await client.ping();
  assert.ok(!client.payloads().includes("unheard"));
  assert.deepEqual(await process.channels(DIGEST), [`pw:socket:${DIGEST}`]);
  client.close();
  await until("the end of its subscriptions", async () => (await process.channels(DIGEST)).length === 0, PATIENCE);
  assert.deepEqual((await process.channels(theirs)).length, 3);
  for (const name of ["socket.io#/pakyow#", "__keyspace@0__:a", "pw:changed"]) {
    assert.equal((await tryCall(node, "push", { message: 1, channels: [name] })).status, 400, name);
  }
});

test("what a process subscribes while a route runs is in force before its reply, and what nodes tell soon", TIME, async () => {
  const { redis } = parts;
  const process = await startProcess(redis.url, "their:channels");
  closing.push(() => process.stop());
  const url = await application(async ({ headers, url: path }) => {
    await process.subscribe(headers["x-socket-digest"], path.slice(1));
    return "subscribed";
  });
  // Nothing is read again by itself.
  const rare = registry(redis).replace("200ms", "1h");
  const text = settings(redis, `application = "${url}"`, `${rare}\nkey = "their:channels"`);
  const node = await start(text);
  const client = await connected(node);
  for (const channel of ["one", "two"]) {
    assert.equal((await client.call(`/${channel}`)).body, "subscribed");
    await process.push(channel, channel);
    await client.hears(channel);
  }
  // As the nodes of another cluster do.
  await process.subscribe(DIGEST, "three");
  await process.publish("pw:changed", DIGEST);
  await until("the push", async () => {
    await process.push("three", "three");
    return client.payloads().includes("three");
  }, PATIENCE);
  client.close();
  await until("the end", async () => (await process.channels(DIGEST)).length === 0, PATIENCE);
});

test("no push is lost or overtaken while the subscriptions of its sockets change", TIME, async () => {
  const { node, other, process } = await withRegistry();
  await subscribe(node, "news");
  const clients = [await connected(node), await connected(other)];
  const numbers = Array.from({ length: 200 }, (_, number) => number);
  const changes = (async () => {
    for (const number of numbers.slice(0, 40)) {
      await subscribe(number % 2 ? node : other, `more ${number}`);
      if (number % 3) await unsubscribe(node, `more ${number}`);
    }
  })();
  for (const number of numbers) await process.push(number, "news");
  await changes;
  await process.push("last", "news");
  for (const client of clients) {
    await client.hears("last");
    assert.deepEqual(client.payloads(), [...numbers, "last"]);
  }
});

test("clients of Socket.IO in the room hear the pushes of processes", TIME, async () => {
  const { node, other, process } = await withRegistry();
  await process.subscribe(DIGEST, "tea");
  const client = await connected(node);
  const member = io(`${other.url}/pakyow`, { forceNew: true, reconnection: false });
  closing.push(() => member.close());
  await next(member, "connect", PATIENCE);
  await ask(member, "join", "tea");
  const heard = [];
  member.on("push", (value) => heard.push(value));
  await until("the push", async () => {
    await process.push("hot", "tea");
    return heard.length > 0;
  }, PATIENCE);
  assert.deepEqual(heard[0], { payload: "hot", channel: "tea" });
  await client.hears("hot");
});

test("digests of a node that dies leave the registry, and those of processes stay", TIME, async () => {
  const { node, other, process, redis } = await withRegistry();
  const theirs = digestOf("theirs", "k");
  const waiting = digestOf("nobody", "k");
  await subscribe(node, "news");
  for (const digest of [theirs, waiting]) await call(node, "subscribe", { channels: ["news"], digest });
  await process.register(theirs);
  await connected(other);
  await other.kill();
  for (const digest of [DIGEST, waiting]) {
    await until("the end of its subscriptions", async () => (await process.channels(digest)).length === 0, PATIENCE);
  }
  assert.equal((await process.channels(theirs)).length, 2);
  await push(node, 1, "news");
  await until("the push", () => process.heard.length === 1, PATIENCE);
  await process.unregister(theirs);
  await until("nothing to be left", async () => (await redis.command("KEYS", "pw:*")).length === 0, PATIENCE);
});

test("while the registry is away, calls get the status 503, and a push is heard when it is back", TIME, async () => {
  const { node, other, process, redis } = await withRegistry();
  process.stop();
  await subscribe(node, "news");
  const client = await connected(other);
  await redis.kill();
  for (const [name, body] of [
    ["subscribe", { channels: ["more"], ...PAIR }],
    ["unsubscribe", { channels: ["more"], ...PAIR }],
    ["push", { message: 1, channels: ["news"] }],
    ["push_to", { message: 1, channel: "own", digest: DIGEST }],
  ]) {
    const result = await tryCall(node, name, body);
    assert.equal(result.status, 503, JSON.stringify(result.body));
    assert.match(result.body.type, /redis$/);
  }
  await redis.start();
  await login(redis, "registry", OF_REGISTRY);
  await until("the push", async () => {
    await tryCall(node, "push", { message: 2, channels: ["news"] });
    return client.payloads().includes(2);
  }, PATIENCE);
  await until("the subscriptions", async () => (await redis.command("HGET", "pw:channels", DIGEST))?.includes("news"), PATIENCE);
});

/** Two nodes with a registry, beside a process of Pakyow. */
async function withRegistry() {
  const { redis } = parts;
  const [node, other] = await startTwo(settings(redis, "", registry(await login(redis, "registry", OF_REGISTRY))));
  const process = await startProcess(redis.url);
  closing.push(() => process.stop());
  return { node, other, process, redis };
}

async function startTwo(text) {
  return [await start(text), await start(text)];
}

async function connected(node, query) {
  const client = await connect(node, query);
  closing.push(() => client.close());
  return client;
}

/** Starts an application whose routes respond with a text, and returns its URL. */
async function application(respond) {
  const server = createServer(async (request, response) => response.end(await respond(request)));
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  closing.push(() => {
    server.closeAllConnections();
    server.close();
  });
  return `http://127.0.0.1:${server.address().port}`;
}

function subscriptions(redis) {
  return redis.command("KEYS", "*pk:sub:*");
}
