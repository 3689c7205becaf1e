// Two nodes behind a balancer that leads each request to the next one, without a cookie: official clients of all
// versions work by every transport, because nodes relay requests to the node that has the session. ROOMCAST is the
// program.

"use strict";

const assert = require("node:assert/strict");
const { after, afterEach, before, describe, test } = require("node:test");

const { startRedis } = require("./cluster/redis");
const { startBalancer } = require("./support/front");
const { startGateway } = require("./support/gateway");
const { ask, until } = require("./support/wait");

const PATIENCE = 60_000;
const VERSIONS = { 4: require("socket.io-client").io, 3: require("socket.io-client-3").io, 2: require("socket.io-client-2") };
const MAX_PAYLOAD = 1_000_000;

const SETTINGS = `
access = "open"
client_rooms = true
allow_eio3 = true
relay_listen = "127.0.0.1:0"
[namespaces."/".journal]
[namespaces."/".recovery]
`;

const portOf = (node) => Number(new URL(node.url).port);

describe("relay", { timeout: 300_000 }, () => {
  let redis;
  let balancer;
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
    await balancer?.stop();
    // How nodes stop is the subject of other tests.
    await Promise.all(nodes.splice(0).map((node) => node.kill()));
  });

  async function start(count) {
    const environment = { ROOMCAST_CLUSTER_KEY: "a key that only these tests know of" };
    const started = Array.from({ length: count }, () => startGateway(SETTINGS, { args: ["--redis", redis.url], environment }));
    nodes.push(...(await Promise.all(started)));
    balancer = await startBalancer(nodes.map(portOf));
  }

  function open(version, transports) {
    const client = VERSIONS[version](balancer.url, { forceNew: true, transports, reconnectionDelay: 50, reconnectionDelayMax: 200 });
    clients.push(client);
    client.ends = [];
    client.on("disconnect", (reason) => client.ends.push(reason));
    return client;
  }

  async function connect(version, transports) {
    const client = open(version, transports);
    await until("the connect", () => client.connected, PATIENCE);
    return client;
  }

  /** The sum of a series over all nodes. */
  async function total(series) {
    const values = await Promise.all(nodes.map((node) => node.metric(series)));
    return values.reduce((sum, value) => sum + (value ?? 0), 0);
  }

  const relayed = (kind) => total(`roomcast_relay_requests_total{kind="${kind}",outcome="relayed"}`);

  /** How many requests of clients were refused. */
  async function refused() {
    const texts = await Promise.all(nodes.map(async ({ internal }) => (await fetch(`${internal}/metrics`)).text()));
    const lines = texts.flatMap((text) => text.split("\n")).filter((line) => line.startsWith("roomcast_http_refused_total{"));
    return lines.reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
  }

  for (const version of [4, 3, 2]) {
    for (const transports of [["polling"], ["websocket"], ["polling", "websocket"]]) {
      test(`a client of version ${version} by ${transports.join(" and ")}`, async () => {
        await start(2);
        const client = await connect(version, transports);
        for (let number = 0; number < 20; number++) assert.equal(await ask(client, "echo", number), number);
        if (transports.length === 2) {
          await until("the upgrade", () => client.io.engine.transport.name === "websocket", PATIENCE);
          for (let number = 0; number < 20; number++) assert.equal(await ask(client, "echo", number), number);
        }
        assert.deepEqual(client.ends, []);
        // The second request of a session reaches the other node, whatever its kind.
        const kinds = await Promise.all(["poll", "post", "upgrade"].map(relayed));
        const requests = kinds.reduce((sum, count) => sum + count);
        assert.equal(requests > 0, transports[0] === "polling");
        assert.equal(await refused(), 0);
      });
    }
  }

  test("an upgrade that is relayed carries events in both directions", async () => {
    await start(3);
    const upgraded = [];
    for (let count = 0; count < 6; count++) upgraded.push(await connect(4, ["polling", "websocket"]));
    for (const client of upgraded) {
      await until("the upgrade", () => client.io.engine.transport.name === "websocket", PATIENCE);
      await ask(client, "join", "all", { quiet: true });
      client.texts = [];
      client.on("message", ({ data }) => client.texts.push(data));
    }
    assert.ok((await relayed("upgrade")) > 0, "an upgrade was relayed");
    const text = "x".repeat(100_000);
    for (const client of upgraded) await ask(client, "message", "all", text);
    const isComplete = (client) => client.texts.length === upgraded.length;
    await until("all messages", () => upgraded.every(isComplete), PATIENCE);
    assert.ok(upgraded.every((client) => client.texts.every((received) => received === text)));
    assert.deepEqual(upgraded.flatMap((client) => client.ends), []);
  });

  test("the largest payload passes in both directions, and a larger one ends the session", async () => {
    await start(2);
    const client = await connect(4, ["polling"]);
    const overhead = '420["echo",""]'.length;
    for (let count = 0; count < 4; count++) {
      const text = "x".repeat(MAX_PAYLOAD - overhead - 1);
      assert.equal(await ask(client, "echo", text), text);
    }
    assert.ok((await relayed("post")) > 0);
    const closed = (node) => node.metric('roomcast_limit_reached_total{limit="message_size"}');
    client.io.reconnection(false);
    for (let count = 0; count < 4 && client.connected; count++) {
      client.emit("echo", "x".repeat(MAX_PAYLOAD));
      await until("the end", () => !client.connected, PATIENCE);
    }
    const counts = await Promise.all(nodes.map(closed));
    assert.equal(counts.reduce((sum, value) => sum + (value ?? 0), 0), 1);
  });

  test("a client whose node is killed comes back to its session at another", async () => {
    await start(2);
    const client = await connect(4, ["polling"]);
    const { id } = client;
    const owner = await owns(id);
    const written = 'roomcast_session_writes_total{outcome="written"}';
    const before = await owner.metric(written);
    await ask(client, "join", "all", { quiet: true });
    await until("the session to be stored", async () => (await owner.metric(written)) > before, PATIENCE);
    client.once("disconnect", () => {
      client.once("connect", () => client.comeback = true);
    });
    await owner.kill();
    nodes.splice(nodes.indexOf(owner), 1);
    balancer.ports.splice(0, Infinity, ...nodes.map(portOf));
    await until("the client to be back", () => client.comeback, PATIENCE);
    assert.deepEqual([client.recovered, client.id], [true, id]);
    assert.equal(await ask(client, "echo", 1), 1);
  });

  /** The node that has the socket: the one whose connections are not zero. */
  async function owns() {
    for (const node of nodes) {
      if ((await node.metric('roomcast_connections{transport="polling"}')) > 0) return node;
    }
    throw new Error("no node has a connection");
  }
});
