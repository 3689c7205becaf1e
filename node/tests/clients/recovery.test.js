// Namespaces with a journal and recovery: official clients come back to another node with everything that they
// missed, and what a node misses of its Redis arrives late, in order and once. ROOMCAST is the program.

"use strict";

const assert = require("node:assert/strict");
const { execFile } = require("node:child_process");
const { createHash } = require("node:crypto");
const { mkdtempSync, rmSync } = require("node:fs");
const { tmpdir } = require("node:os");
const { join } = require("node:path");
const { after, afterEach, before, describe, test } = require("node:test");
const { promisify } = require("node:util");
const { io } = require("socket.io-client");

const { startRedis } = require("./cluster/redis");
const { startGateway } = require("./support/gateway");
const { ask, until } = require("./support/wait");

const PATIENCE = 60_000;
const KEY = "key of the tests";
const WRITTEN = 'roomcast_session_writes_total{outcome="written"}';
const UNAVAILABLE = 'roomcast_recoveries_total{outcome="unavailable"}';

const SETTINGS = `
access = "open"
client_rooms = true
[namespaces."/".journal]
messages = 5000
[namespaces."/".recovery]
max_disconnection = "1m"
[[api.keys]]
name = "tests"
hash = "sha256:${createHash("sha256").update(KEY).digest("hex")}"
namespaces = ["*"]
verbs = ["emit", "sockets"]
`;

describe("recovery", { timeout: 300_000 }, () => {
  let redis;
  const nodes = [];
  const clients = [];

  before(async () => {
    redis = await startRedis();
  });

  after(async () => {
    await redis?.stop();
  });

  afterEach(async () => {
    for (const client of clients.splice(0)) client.close();
    for (const node of nodes.splice(0)) await node.stop().catch(() => {});
  });

  async function start({ url = redis.url, settings = SETTINGS, args = [] } = {}) {
    const node = await startGateway(settings, { args: ["--redis", url, ...args] });
    nodes.push(node);
    return node;
  }

  /** A client in the room `news`, with the numbers that it has received there. */
  async function connect(node, transport) {
    const client = io(node.url, { forceNew: true, transports: [transport], reconnectionDelay: 50, reconnectionDelayMax: 200 });
    clients.push(client);
    client.numbers = [];
    client.on("number", (number) => client.numbers.push(number));
    await until("the connect", () => client.connected, PATIENCE);
    const before = await node.metric(WRITTEN);
    await ask(client, "join", "news", { quiet: true });
    await until("the session to be stored", async () => (await node.metric(WRITTEN)) > before, PATIENCE);
    return client;
  }

  async function emit(node, number) {
    const headers = { authorization: `Bearer ${KEY}`, "content-type": "application/json" };
    const body = JSON.stringify({ event: "number", args: [number], rooms: ["news"] });
    const response = await fetch(`${node.internal}/api/emit`, { method: "POST", headers, body });
    assert.equal(response.status, 200, await response.clone().text());
  }

  const range = (count) => Array.from({ length: count }, (_, number) => number);

  for (const transport of ["websocket", "polling"]) {
    test(`a client whose node is killed goes on at another, by ${transport}`, async () => {
      const [one, two] = [await start(), await start()];
      const client = await connect(one, transport);
      assert.equal(client.recovered, false);
      const { id } = client;
      for (const number of range(20)) await emit(two, number);
      await until("the first numbers", () => client.numbers.length >= 20, PATIENCE);
      client.io.uri = two.url;
      await one.kill();
      for (const number of range(40).slice(20)) await emit(two, number);
      await until("the client to be back", () => client.connected && client.numbers.length >= 40, PATIENCE);
      await emit(two, 40);
      await until("the last number", () => client.numbers.length >= 41, PATIENCE);
      assert.equal(client.recovered, true);
      assert.equal(client.id, id);
      assert.deepEqual(client.numbers, range(41));
      assert.equal(await two.metric('roomcast_recoveries_total{outcome="recovered"}'), 1);
    });
  }

  /** Emits a number at least once, as the API tells whether it can. */
  async function order(node, number, flags = { at_least_once: true }) {
    const headers = { authorization: `Bearer ${KEY}`, "content-type": "application/json" };
    const body = JSON.stringify({ event: "order", args: [{ number }], rooms: ["news"], flags });
    return fetch(`${node.internal}/api/emit`, { method: "POST", headers, body });
  }

  const outcome = (node, name) => node.metric(`roomcast_at_least_once_total{outcome="${name}"}`);

  test("what a client has not acknowledged is sent again, by another node if its own was killed", async () => {
    const settings = SETTINGS.replace("[namespaces.\"/\".recovery]", "$&\nat_least_once = true");
    const [one, two] = [await start({ settings }), await start({ settings })];
    const client = await connect(one, "websocket");
    const { id } = client;
    const received = [];
    let isDone = (number) => number !== 1;
    const late = [];
    client.on("order", ({ number }, acknowledge, ...others) => {
      assert.deepEqual(others, []);
      received.push(number);
      if (isDone(number)) acknowledge();
      else late.push(acknowledge);
    });
    for (const number of range(3)) assert.equal((await order(two, number)).status, 200);
    await until("the orders", () => received.length === 3, PATIENCE);
    await until("two to be acknowledged", async () => (await outcome(one, "acknowledged")) === 2, PATIENCE);

    // Its session is written when the connection ends, so it receives the one order only.
    client.io.engine.close();
    await until("the client to be back", () => client.connected && received.length === 4, PATIENCE);
    assert.deepEqual([client.recovered, client.id, received[3]], [true, id, 1]);
    // An acknowledgement of the former connection counts.
    late[0]();
    await until("the acknowledgement", async () => (await outcome(one, "acknowledged")) === 3, PATIENCE);

    isDone = (number) => number !== 4;
    for (const number of [3, 4, 5]) await order(one, number);
    await emit(one, 6);
    await until("more orders", () => received.length === 7 && client.numbers.length === 1, PATIENCE);
    await until("two more to be acknowledged", async () => (await outcome(one, "acknowledged")) === 5, PATIENCE);
    client.io.uri = two.url;
    isDone = () => true;
    await one.kill();
    const command = ["emit", "--redis", redis.url, "--at-least-once", "--room", "news", "order", '{"number":7}'];
    await promisify(execFile)(process.env.ROOMCAST, command);
    await until("the client to be back", () => client.connected && received.includes(7), PATIENCE);
    assert.deepEqual([client.recovered, client.id], [true, id]);
    // Once more 4, and of the others those that the killed node had not written to be acknowledged.
    const again = received.slice(7);
    assert.ok(again.includes(4), String(again));
    assert.deepEqual(again, range(8).filter((number) => again.includes(number)));
    assert.deepEqual(client.numbers, [6]);
    await until("all to be acknowledged", async () => (await outcome(two, "acknowledged")) === again.length, PATIENCE);
  });

  test("an event cannot be emitted at least once where that is not turned on", async () => {
    const node = await start();
    const refused = await order(node, 1);
    assert.equal(refused.status, 400);
    const problem = await refused.json();
    assert.match(problem.detail, /recovery with `at_least_once` turned on/);
    assert.equal((await order(node, 1, {})).status, 200);
  });

  test("a client whose node is replaced goes on at a node that was started later", async () => {
    const one = await start();
    const client = await connect(one, "websocket");
    const { id } = client;
    for (const number of range(20)) await emit(one, number);
    await until("the first numbers", () => client.numbers.length >= 20, PATIENCE);
    // It comes back when there is something to come back to.
    client.io.reconnection(false);
    const left = until("the client to notice", () => !client.connected, PATIENCE);
    const two = await start();
    client.io.uri = two.url;
    const emitting = (async () => {
      for (const number of range(60).slice(20)) await emit(two, number);
    })();
    await one.stop();
    await Promise.all([left, emitting]);
    await two.stop();
    const three = await start();
    client.io.uri = three.url;
    client.connect();
    await until("the client to be back", () => client.connected && client.numbers.length >= 60, PATIENCE);
    assert.deepEqual([client.recovered, client.id], [true, id]);
    assert.deepEqual(client.numbers, range(60));
  });

  test("a client that has left is a new one", async () => {
    const one = await start();
    const client = await connect(one, "websocket");
    const { id } = client;
    await emit(one, 0);
    await until("the number", () => client.numbers.length === 1, PATIENCE);
    client.disconnect();
    client.connect();
    await until("the client to be back", () => client.connected, PATIENCE);
    assert.equal(client.recovered, false);
    assert.notEqual(client.id, id);
  });

  const keyOf = (client) => `socket.io-session#/#${client._pid}`;
  const exists = async (client) => (await redis.command("EXISTS", keyOf(client))) === 1;

  test("a session that Redis has lost is stored again with the next change", async () => {
    const client = await connect(await start(), "websocket");
    const { id } = client;
    assert.ok(await exists(client));
    await redis.command("FLUSHALL");
    await ask(client, "join", "sport", { quiet: true });
    await until("the session to be there again", () => exists(client), PATIENCE);
    client.io.engine.close();
    await until("the client to be back", () => client.connected && client.recovered, PATIENCE);
    assert.equal(client.id, id);
  });

  test("a session that Redis has lost is stored again without a change", async () => {
    const settings = SETTINGS.replace('max_disconnection = "1m"', 'max_disconnection = "4s"');
    const client = await connect(await start({ settings }), "websocket");
    await redis.command("DEL", keyOf(client));
    await until("the session to be there again", () => exists(client), PATIENCE);
  });

  test("a socket whose session another one has ends with its next change", async () => {
    const client = await connect(await start(), "websocket");
    const { id } = client;
    await redis.command("SET", keyOf(client), "another-owner-of-it-{}");
    client.emit("join", "sport", { quiet: true });
    await until("the client to be another one", () => client.connected && client.id !== id, PATIENCE);
    assert.equal(client.recovered, false);
  });

  test("a client that comes back while Redis is away goes on with its session once Redis is there", async () => {
    const folder = mkdtempSync(join(tmpdir(), "roomcast-recovery-"));
    const options = ["--appendonly", "yes", "--appendfsync", "always", "--dir", folder];
    const kept = await startRedis({ options });
    try {
      const node = await start({ url: kept.url, args: ["--connect-timeout", "8s"] });
      const client = await connect(node, "websocket");
      const { id } = client;
      await emit(node, 0);
      await until("the number", () => client.numbers.length === 1, PATIENCE);
      await kept.kill();
      client.io.engine.close();
      await until("the client to be sent away", async () => (await node.metric(UNAVAILABLE)) > 0, PATIENCE);
      assert.equal(client.connected, false);
      // A client without a session does not wait.
      const fresh = io(node.url, { forceNew: true, transports: ["websocket"] });
      clients.push(fresh);
      await until("a new client to connect", () => fresh.connected, PATIENCE);
      await kept.start();
      await until("the client to be back", () => client.connected, PATIENCE);
      assert.deepEqual([client.recovered, client.id], [true, id]);
      await emit(node, 1);
      await until("the next number", () => client.numbers.length === 2, PATIENCE);
      assert.deepEqual(client.numbers, range(2));
    } finally {
      await kept.stop();
      rmSync(folder, { recursive: true, force: true });
    }
  });

  test("what a node misses of its Redis arrives late, in order and once", async () => {
    const [one, two] = [await start(), await start()];
    const members = [await connect(one, "websocket"), await connect(two, "websocket")];
    let isOver = false;
    const emitting = (async () => {
      let number = 0;
      while (!isOver) await emit(number % 2 ? one : two, number++);
      return number;
    })();
    for (let round = 1; round <= 3; round += 1) {
      const enough = members.map((member) => member.numbers.length + 50);
      await until("numbers to arrive", () => members.every((member, at) => member.numbers.length >= enough[at]), PATIENCE);
      await redis.command("CLIENT", "KILL", "TYPE", "pubsub");
    }
    const enough = members.map((member) => member.numbers.length + 50);
    await until("numbers to arrive again", () => members.every((member, at) => member.numbers.length >= enough[at]), PATIENCE);
    isOver = true;
    const count = await emitting;
    await until("all numbers", () => members.every((member) => member.numbers.length >= count), PATIENCE);
    for (const member of members) assert.deepEqual(member.numbers, range(count));
    for (const node of [one, two]) assert.equal(await node.metric('roomcast_journal_gaps_total{outcome="lost"}'), 0);
  });
});
