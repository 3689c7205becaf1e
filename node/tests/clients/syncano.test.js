// Syncano's door with its SDKs for JavaScript, both versions, and the examples of the original guide.
// ROOMCAST is the program. With SYNCANO_PYTHON, a Python up to 3.7 that has the package `syncano`, the
// SDK for Python makes its calls, too; without it, the requests that it was seen to make are replayed.

"use strict";

const assert = require("node:assert/strict");
const { execFile } = require("node:child_process");
const { createHash } = require("node:crypto");
const { join } = require("node:path");
const { after, before, describe, test } = require("node:test");
const { promisify } = require("node:util");

const { io } = require("socket.io-client");

const { startRedis } = require("./cluster/redis");
const { startGateway } = require("./support/gateway");
const { deadline, next, until } = require("./support/wait");

const ACCOUNT = "a".repeat(39) + "2";
const FREE = "b".repeat(39) + "1";
const PLAIN = "c".repeat(39) + "1";
const USERS = ["d", "e", "f"].map((letter) => letter.repeat(39) + "1");

const hash = (key) => `sha256:${createHash("sha256").update(key).digest("hex")}`;

/** Secrets of the settings. */
const environment = { ACCOUNT_KEY: ACCOUNT, ANNA_KEY: "9".repeat(40), PASSWORD: "tea" };

const SETTINGS = `
[[doors.syncano.accounts]]
id = 1
email = "anna@example.org"
key_env = "ACCOUNT_KEY"
password_env = "PASSWORD"
[doors.syncano.instances.my-instance]
keys = [
  { id = 1, kind = "account", hash = "${hash(ACCOUNT)}" },
  { id = 2, kind = "api", hash = "${hash(FREE)}", ignore_acl = true },
  { id = 3, kind = "api", hash = "${hash(PLAIN)}" },
]
users = [
  { id = 9, key_env = "ANNA_KEY", username = "anna", password_env = "PASSWORD" },
${USERS.map((key, index) => `  { id = ${index + 1}, hash = "${hash(key)}", groups = [7] },`).join("\n")}
]
[doors.syncano.instances.my-instance.channels]
alerts = { other_permissions = "publish", custom_publish = true }
chatroom = { type = "separate_rooms", group = 7, group_permissions = "publish", custom_publish = true }
[doors.syncano.instances.my-instance.classes.book]
schema = [{ name = "title", type = "string" }, { name = "author", type = "string" }]
`;

let gateway;

before(async () => {
  gateway = await startGateway(SETTINGS, { environment });
});
after(() => gateway.stop());

const parked = (count) =>
  until(`${count} parked polls`, async () => (await gateway.metric('roomcast_door_parked{door="syncano"}')) === count);

/** The next event of a poll of the SDK, whose emitter has no `off`. */
const event = (poll, name) => deadline(new Promise((resolve) => poll.on(name, resolve)), 10_000, name);

/** A request as curl sends it. */
async function curl(method, path, body, key = FREE, more = {}) {
  const headers = { "X-API-KEY": key, ...more };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const url = `${gateway.url}/v1.1/instances/my-instance/${path}`;
  const response = await fetch(url, { method, headers, body: body && JSON.stringify(body) });
  const text = await response.text();
  return { status: response.status, body: text ? JSON.parse(text) : null };
}

describe("the examples of the guide", () => {
  test("a data object is created with a channel and a room, and a poll of the room hears of it", async () => {
    const poll = curl("GET", "channels/chatroom/poll/?room=library");
    await parked(1);
    const object = { title: "Emma", author: "Austen", channel: "chatroom", channel_room: "library" };
    const made = await curl("POST", "classes/book/objects/", object);
    assert.equal(made.status, 201);
    const { body } = await poll;
    assert.equal(body.action, "create");
    assert.deepEqual(body.metadata, { type: "object", class: "book" });
    assert.equal(body.payload.title, "Emma");
    assert.equal(body.payload.id, made.body.id);
  });

  test("a custom message is published with a payload and a room, and polled by last_id", async () => {
    const message = { payload: { text: "hello" }, room: "kitchen" };
    const { status, body } = await curl("POST", "channels/chatroom/publish/", message);
    assert.equal(status, 201);
    const polled = await curl("GET", `channels/chatroom/poll/?room=kitchen&last_id=${body.id - 1}`);
    const { links, ...wanted } = body;
    assert.match(links.self, /^\/v1\.1\/instances\/my-instance\/channels\/chatroom\/history\/\d+\/$/);
    assert.deepEqual(polled.body, wanted);
  });

  test("a private message reaches the user who polls a room of its own, and nobody else", async () => {
    const poll = (user) => curl("GET", `channels/chatroom/poll/?room=user-${user}`, undefined, PLAIN, { "X-USER-KEY": USERS[user] });
    const polls = [poll(0), poll(1)];
    await parked(2);
    const send = (user) =>
      curl("POST", "channels/chatroom/publish/", { payload: { for: user }, room: `user-${user}` }, PLAIN, { "X-USER-KEY": USERS[2] });
    assert.equal((await send(1)).status, 201);
    const { body } = await polls[1];
    assert.deepEqual(body.payload, { for: 1 });
    assert.deepEqual(body.author, { api_key: 3, user: 3 });
    await parked(1);
    await send(0);
    assert.deepEqual((await polls[0]).body.payload, { for: 0 });
  });

  test("three users poll one general room, and each hears every message", async () => {
    const heard = USERS.map(() => []);
    const polls = USERS.map(async (key, user) => {
      let last = "";
      while (heard[user].length < 3) {
        const { status, body } = await curl("GET", `channels/chatroom/poll/?room=general&last_id=${last}`, undefined, PLAIN, {
          "X-USER-KEY": key,
        });
        assert.equal(status, 200);
        heard[user].push(body.payload.n);
        last = body.id;
      }
    });
    await parked(3);
    for (const [index, key] of USERS.entries()) {
      const message = { payload: { n: index }, room: "General" };
      const { status } = await curl("POST", "channels/chatroom/publish/", message, PLAIN, { "X-USER-KEY": key });
      assert.equal(status, 201);
    }
    await Promise.all(polls);
    assert.deepEqual(heard, [
      [0, 1, 2],
      [0, 1, 2],
      [0, 1, 2],
    ]);
  });
});

for (const name of ["syncano", "syncano-1-0-1"]) {
  describe(`the SDK for JavaScript, ${name}`, () => {
    // Prefixes of names keep the versions apart.
    const room = (text) => `${name}-${text}`;
    let connection;
    let Channel;

    /** Polls a room of the channel. The old version polls from a channel that it holds. */
    function pollRoom(text) {
      const place = { instanceName: "my-instance", name: "chatroom" };
      const options = { room: room(text) };
      return name === "syncano" ? Channel.please().poll(place, options) : Channel(place).poll(options);
    }

    function publish(message, text) {
      const place = { instanceName: "my-instance", name: "chatroom" };
      return name === "syncano" ? Channel.please().publish(place, message, room(text)) : Channel(place).publish(message, room(text));
    }

    before(() => {
      const module = require(name);
      const Syncano = module.default ?? module;
      connection = Syncano({ accountKey: ACCOUNT, baseUrl: gateway.url });
      ({ Channel } = connection);
    });

    test("creates a channel, shows, changes, lists and deletes it", async () => {
      const channel = `${name}-made`;
      const made = await Channel.please().create({ instanceName: "my-instance", name: channel, type: "separate_rooms", custom_publish: true });
      assert.equal(made.name, channel);
      assert.equal(made.custom_publish, true);
      const place = { instanceName: "my-instance", name: channel };
      assert.equal((await Channel.please().get(place)).type, "separate_rooms");
      const changed = await Channel.please().update(place, { description: "changed" });
      assert.equal(changed.description, "changed");
      const list = async () => (await Channel.please().list({ instanceName: "my-instance" })).map(({ name }) => name);
      const names = await list();
      assert.ok(names.includes(channel) && names.includes("eventlog"), names.join());
      await Channel.please().delete(place);
      assert.ok(!(await list()).includes(channel));
    });

    test("publishes to a room that it polls, and reads its history", async () => {
      const poll = pollRoom("room");
      const messages = [];
      poll.on("message", (message) => messages.push(message.payload.n));
      await parked(1);
      for (const n of [1, 2, 3]) {
        await publish({ n }, "room");
      }
      await until("three messages", () => messages.length === 3);
      assert.deepEqual(messages, [1, 2, 3]);
      const stopped = event(poll, "stop");
      await parked(1);
      poll.stop();
      await publish({ n: 4 }, "room");
      await stopped;
      await parked(0);
      const { body } = await curl("GET", `channels/chatroom/history/?room=${room("room")}`);
      const { objects } = body;
      assert.deepEqual(
        objects.map((entry) => entry.payload.n),
        [4, 3, 2, 1],
      );
    });

    test("hears of the objects that it creates with a channel", async () => {
      const poll = pollRoom("books");
      const created = event(poll, "create");
      await parked(1);
      const { DataObject } = connection;
      const object = await DataObject.please().create({
        instanceName: "my-instance",
        className: "book",
        title: "Emma",
        channel: "chatroom",
        channel_room: room("books"),
      });
      const message = await created;
      assert.equal(message.payload.title, "Emma");
      assert.equal(message.payload.id, object.id);
      await parked(1);
      poll.stop();
      await DataObject.please().delete({ instanceName: "my-instance", className: "book", id: object.id });
      await parked(0);
    });
  });
}

describe("two nodes with Redis", () => {
  let redis;
  const nodes = [];

  before(async () => {
    redis = await startRedis();
    const settings = `${SETTINGS}
[namespaces."/syncano/my-instance"]
access = "open"
client_rooms = true
[[api.keys]]
name = "tests"
hash = "${hash("api-key")}"
namespaces = ["*"]
verbs = ["*"]
`;
    nodes.push(...(await Promise.all([1, 2].map(() => startGateway(settings, { environment, args: ["--redis", redis.url] })))));
  });
  after(async () => {
    await Promise.all(nodes.map((node) => node.stop()));
    await redis.stop();
  });

  /** A request to one of the nodes. */
  async function ask(node, method, path, body) {
    const headers = { "X-API-KEY": FREE, "Content-Type": "application/json" };
    const url = `${node.url}/v1.1/instances/my-instance/channels/${path}`;
    const response = await fetch(url, { method, headers, body: body && JSON.stringify(body) });
    return { status: response.status, body: await response.json() };
  }

  const parkedAt = (node) =>
    until("a parked poll", async () => (await node.metric('roomcast_door_parked{door="syncano"}')) === 1);

  test("publishers on both nodes at the same time never make a poller miss an id", async () => {
    const COUNT = 100;
    const heard = nodes.map(() => []);
    const polls = nodes.map(async (node, index) => {
      let last = 0;
      while (heard[index].length < 2 * COUNT) {
        const { status, body } = await ask(node, "GET", `chatroom/poll/?room=race&last_id=${last}`);
        assert.equal(status, 200);
        heard[index].push(body.id);
        last = body.id;
      }
    });
    const published = nodes.map(async (node) => {
      const ids = [];
      for (let n = 0; n < COUNT; n++) {
        const { status, body } = await ask(node, "POST", "chatroom/publish/", { room: "Race", payload: { n } });
        assert.equal(status, 201);
        ids.push(body.id);
      }
      return ids;
    });
    const all = (await Promise.all(published)).flat().sort((a, b) => a - b);
    assert.equal(new Set(all).size, 2 * COUNT);
    await deadline(Promise.all(polls), 60_000, "the polls");
    for (const ids of heard) assert.deepEqual(ids, all);
  });

  test("a channel and an object that one node has made are known to the other", async () => {
    const account = { "X-API-KEY": ACCOUNT, "Content-Type": "application/json" };
    const base = (node) => `${node.url}/v1.1/instances/my-instance`;
    const body = JSON.stringify({ name: "shared", type: "separate_rooms", custom_publish: true });
    const made = await fetch(`${base(nodes[0])}/channels/`, { method: "POST", headers: account, body });
    assert.equal(made.status, 201);
    const shown = await fetch(`${base(nodes[1])}/channels/shared/`, { headers: account });
    assert.deepEqual(await shown.json(), await made.json());
    const book = JSON.stringify({ title: "Emma" });
    const created = await fetch(`${base(nodes[0])}/classes/book/objects/`, { method: "POST", headers: account, body: book });
    const { id } = await created.json();
    const change = JSON.stringify({ title: "A" });
    const changed = await fetch(`${base(nodes[1])}/classes/book/objects/${id}/`, { method: "PATCH", headers: account, body: change });
    assert.equal((await changed.json()).revision, 2);
    const gone = await fetch(`${base(nodes[1])}/channels/shared/`, { method: "DELETE", headers: account });
    assert.equal(gone.status, 204);
    assert.equal((await fetch(`${base(nodes[0])}/channels/shared/`, { headers: account })).status, 404);
  });

  test("a notification reaches a Socket.IO client of the room on the other node", async () => {
    const client = io(`${nodes[1].url}/syncano/my-instance`, { forceNew: true, transports: ["websocket"] });
    try {
      await next(client, "connect");
      await client.emitWithAck("join", "chatroom#tea");
      const heard = next(client, "notification");
      const { body } = await ask(nodes[0], "POST", "chatroom/publish/", { room: "TEA", payload: { hot: true } });
      const [notification] = await heard;
      const { action, author, metadata, payload } = body;
      assert.deepEqual(notification, { action, author, metadata, payload });
    } finally {
      client.close();
    }
  });

  test("what the HTTP API emits into the room answers a poll that is parked on the other node", async () => {
    const { body: seen } = await ask(nodes[0], "POST", "chatroom/publish/", { room: "mixed", payload: {} });
    const poll = ask(nodes[1], "GET", `chatroom/poll/?room=mixed&last_id=${seen.id}`);
    await parkedAt(nodes[1]);
    const event = { namespace: "/syncano/my-instance", event: "message", args: [{ from: "api" }], rooms: ["chatroom#mixed"] };
    const headers = { Authorization: "Bearer api-key", "Content-Type": "application/json" };
    const emitted = await fetch(`${nodes[0].internal}/api/emit`, { method: "POST", headers, body: JSON.stringify(event) });
    assert.equal(emitted.status, 200, await emitted.text());
    const { body } = await poll;
    // It is not in the log, so the next poll goes on with the same id.
    assert.equal(body.id, seen.id);
    assert.equal(body.action, "custom");
    assert.deepEqual(body.payload, { from: "api" });
  });

  test("interruptions of Redis's subscriptions never make a poller miss an id", async () => {
    // The last but one, because clients that follow no history lose what a node does not hear.
    const COUNT = 120;
    const heard = [];
    const poll = async () => {
      let last = 0;
      while (heard.length < COUNT) {
        const { status, body } = await ask(nodes[1], "GET", `chatroom/poll/?room=gaps&last_id=${last}`);
        // What the node does not hear, it does not park.
        if (status === 429) continue;
        assert.equal(status, 200);
        heard.push(body.id);
        last = body.id;
      }
    };
    const polling = poll();
    const ids = [];
    for (let n = 0; n < COUNT; n++) {
      if (n % 4 === 1) await redis.command("CLIENT", "KILL", "TYPE", "pubsub");
      const { status, body } = await ask(nodes[0], "POST", "chatroom/publish/", { room: "gaps", payload: { n } });
      assert.equal(status, 201);
      ids.push(body.id);
    }
    await deadline(polling, 60_000, "the poll");
    assert.deepEqual(heard, ids);
  });

  test("without Redis, publishing and polling are refused and may be repeated", async () => {
    await redis.kill();
    const { status, body } = await ask(nodes[0], "POST", "alerts/publish/", { payload: {} });
    assert.equal(status, 503);
    assert.equal(typeof body.detail, "string");
    // Every SDK pauses after this status, and comes back with the same id.
    const poll = await ask(nodes[0], "GET", "alerts/poll/?last_id=1");
    assert.equal(poll.status, 429);
  });
});

describe("the SDK for Python", { skip: process.env.SYNCANO_PYTHON === undefined && "SYNCANO_PYTHON is not set" }, () => {
  test("makes its calls: channels, objects, publish, poll, history", async () => {
    const script = join(__dirname, "python", "syncano_sdk.py");
    // The packages of the other tests are for a newer Python.
    const { PYTHONPATH: _, ...inherited } = process.env;
    const env = { ...inherited, ...environment, SYNCANO_APIROOT: `${gateway.url}/`, API_KEY: FREE };
    const { stdout } = await promisify(execFile)(process.env.SYNCANO_PYTHON, [script], { env, timeout: 60_000 });
    assert.match(stdout, /all done/);
  });
});

describe("the requests of the SDK for Python", () => {
  test("publish, poll and history as it was seen to send them", async () => {
    const python = async (method, path, body) => {
      const headers = { Authorization: `token ${FREE}`, "Content-Type": "application/json" };
      const response = await fetch(`${gateway.url}/v1.1/instances/my-instance/${path}`, { method, headers, body });
      return { status: response.status, body: await response.json() };
    };
    assert.equal((await python("GET", "channels/chatroom/")).status, 200);
    const message = JSON.stringify({ payload: JSON.stringify({ from: "python" }), room: "python" });
    const published = await python("POST", "channels/chatroom/publish/", message);
    assert.equal(published.status, 201);
    const { id } = published.body;
    const polled = await python("GET", `channels/chatroom/poll/?room=python&last_id=${id - 1}`);
    assert.deepEqual(polled.body.payload, { from: "python" });
    const all = await python("GET", "channels/chatroom/history/");
    assert.equal(all.body.objects[0].id, id);
    assert.equal((await python("GET", `channels/chatroom/history/${id}/`)).body.id, id);
    assert.equal((await python("GET", "classes/book/")).body.schema.length, 2);
    const made = await python("POST", "classes/book/objects/", JSON.stringify({ title: "A", channel: "chatroom", channel_room: "python" }));
    assert.equal(made.status, 201);
    const changed = await python("POST", `classes/book/objects/${made.body.id}/`, JSON.stringify({ title: "B" }));
    assert.equal(changed.status, 200);
    const update = await python("GET", `channels/chatroom/poll/?room=python&last_id=${id + 1}`);
    assert.ok(["create", "update"].includes(update.body.action), update.body.action);
  });
});
