// Nodes with a cluster key behind HAProxy and nginx that lead each request to the next node, without a cookie and
// without another rule about sessions: official clients of all versions work by every transport. ROOMCAST is the program.

"use strict";

const assert = require("node:assert/strict");
const { after, before, describe, test } = require("node:test");

const { startRedis } = require("../../node/tests/clients/cluster/redis");
const { startGateway } = require("../../node/tests/clients/support/gateway");
const { ask, until } = require("../../node/tests/clients/support/wait");
const { freePorts } = require("./support/cluster");
const { Haproxy } = require("./support/haproxy");
const { Nginx } = require("./support/nginx");

const PATIENCE = 60_000;
const VERSIONS = { 4: require("socket.io-client").io, 3: require("socket.io-client-3").io, 2: require("socket.io-client-2") };
const SETTINGS = `
access = "open"
client_rooms = true
allow_eio3 = true
relay_listen = "127.0.0.1:0"
# All nodes deliver in one order.
[namespaces."/".journal]
`;
const TRANSPORTS = [["polling"], ["websocket"], ["polling", "websocket"]];
// A larger number needs as many descriptors as this test has connections, for itself and for each server.
const CLIENTS = Number(process.env.TEST_RELAY_CLIENTS ?? 60);
const ROOM_SIZE = 10;
const ROUNDS = 3;
const AT_A_TIME = 100;
// Of these many clients, one sends the largest payload.
const LARGE_EVERY = 30;
const textOf = (index, round) => `${index} in ${round} ${"x".repeat(1000)}`;
const LARGE = "x".repeat(999_000);

const portOf = (url) => Number(new URL(url).port);

const BALANCERS = {
  haproxy: (port, nodes) => new Haproxy(port, nodes, { hasSessions: false }),
  nginx: (port, nodes) => new Nginx(port, nodes.map((node) => `127.0.0.1:${node.port}`), { hasSessions: false }),
};

for (const [kind, startBalancer] of Object.entries(BALANCERS)) {
  describe(`nodes that relay, behind ${kind}`, { timeout: 300_000 }, () => {
    const nodes = [];
    const clients = [];
    let redis;
    let balancer;

    before(async () => {
      redis = await startRedis();
      const environment = { ROOMCAST_CLUSTER_KEY: "a key that only these tests know of" };
      const started = Array.from({ length: 3 }, () => startGateway(SETTINGS, { args: ["--redis", redis.url], environment }));
      nodes.push(...(await Promise.all(started)));
      const servers = nodes.map(({ url, internal }, index) => ({ name: `n${index}`, port: portOf(url), internal: portOf(internal) }));
      balancer = startBalancer(await freePorts(), servers);
      const answers = async () => (await fetch(`${balancer.url}/socket.io/?EIO=4&transport=polling`)).status === 200;
      await until("the balancer", () => answers().catch(() => false), PATIENCE);
    });

    after(async () => {
      for (const client of clients) client.close();
      await balancer?.stop();
      // How nodes stop is the subject of other tests.
      await Promise.all(nodes.map((node) => node.kill()));
      await redis?.stop();
    });

    /** `ends` and `errors` stay empty as long as all goes well. */
    function open(version, transports) {
      const client = VERSIONS[version](balancer.url, { forceNew: true, transports });
      clients.push(client);
      Object.assign(client, { ends: [], errors: [], texts: [] });
      client.on("disconnect", (reason) => client.ends.push(reason));
      client.on("message", ({ data }) => client.texts.push(data));
      client.on("connect_error", (error) => client.errors.push(error));
      client.io.on("reconnect_attempt", () => client.errors.push("reconnect"));
      return client;
    }

    const isMoved = (client) => client.io.opts.transports.length === 1 || client.io.engine.transport.name === "websocket";

    /** The sums of the series of all nodes whose lines match. */
    async function total(pattern) {
      const texts = await Promise.all(nodes.map(async ({ internal }) => (await fetch(`${internal}/metrics`)).text()));
      const lines = texts.flatMap((text) => text.split("\n")).filter((line) => pattern.test(line));
      return lines.reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
    }

    /** How many clients are in the room of this one. */
    const sizeOf = (index) => Math.min(ROOM_SIZE, CLIENTS - (index - (index % ROOM_SIZE)));

    test("many clients of all versions and transports lose nothing and see no error", async () => {
      const kinds = [4, 3, 2].flatMap((version) => TRANSPORTS.map((transports) => [version, transports]));
      const members = [];
      for (let index = 0; index < CLIENTS; index++) {
        members.push(open(...kinds[index % kinds.length]));
        if (members.length % AT_A_TIME === 0 || members.length === CLIENTS) {
          await until("the connects", () => members.every(({ connected }) => connected), PATIENCE);
        }
      }
      /** Does something for all clients, for some at a time. */
      async function forAll(action) {
        for (let first = 0; first < CLIENTS; first += AT_A_TIME) {
          await Promise.all(members.slice(first, first + AT_A_TIME).map((member, at) => action(member, first + at)));
        }
      }
      await until("the upgrades", () => members.every(isMoved), PATIENCE);
      const roomOf = (index) => `room ${Math.floor(index / ROOM_SIZE)}`;
      await forAll((member, index) => ask(member, "join", roomOf(index), { quiet: true }));
      for (let round = 0; round < ROUNDS; round++) {
        await forAll((member, index) => ask(member, "message", roomOf(index), textOf(index, round)));
      }
      for (let index = 0; index < members.length; index += LARGE_EVERY) {
        assert.equal(await ask(members[index], "echo", LARGE), LARGE);
      }
      await until("all messages", () => members.every(({ texts }, index) => texts.length >= ROUNDS * sizeOf(index)), PATIENCE);
      await forAll((member) => ask(member, "echo", "the last one"));
      for (const [index, { texts, ends, errors }] of members.entries()) {
        const first = index - (index % ROOM_SIZE);
        const expected = Array.from({ length: sizeOf(index) }, (_, at) => Array.from({ length: ROUNDS }, (_, round) => textOf(first + at, round)));
        assert.deepEqual([...texts].sort(), expected.flat().sort());
        assert.deepEqual(texts, members[first].texts, "one order in a room");
        assert.deepEqual([ends, errors], [[], []]);
      }
      assert.equal(await total(/^roomcast_http_refused_total\{/), 0);
      assert.equal(await total(/^roomcast_relay_requests_total\{.*outcome="(?!relayed)/), 0);
      assert.equal(await total(/^roomcast_relay_received_total\{.*outcome="(?!accepted)/), 0);
      for (const kind of ["poll", "post", "upgrade"]) {
        assert.ok((await total(new RegExp(`^roomcast_relay_requests_total\\{kind="${kind}",outcome="relayed"`))) > 0, kind);
      }
    });
  });
}
