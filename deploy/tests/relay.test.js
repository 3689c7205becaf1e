// Nodes with a cluster key behind HAProxy and nginx that lead each request to the next node, without a cookie and
// without another rule about sessions: official clients of all versions work by every transport. ROOMCAST is the program.

"use strict";

const assert = require("node:assert/strict");
const { after, afterEach, before, describe, test } = require("node:test");

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
      for (let count = 0; count < 3; count++) {
        nodes.push(await startGateway(SETTINGS, { args: ["--redis", redis.url], environment }));
      }
      const servers = nodes.map(({ url, internal }, index) => ({ name: `n${index}`, port: portOf(url), internal: portOf(internal) }));
      balancer = startBalancer(await freePorts(), servers);
      const answers = async () => (await fetch(`${balancer.url}/socket.io/?EIO=4&transport=polling`)).status === 200;
      await until("the balancer", () => answers().catch(() => false), PATIENCE);
    });

    afterEach(() => {
      for (const client of clients.splice(0)) client.close();
    });

    after(async () => {
      await balancer?.stop();
      // How nodes stop is the subject of other tests.
      await Promise.all(nodes.map((node) => node.kill()));
      await redis?.stop();
    });

    async function connect(version, transports) {
      const client = VERSIONS[version](balancer.url, { forceNew: true, transports });
      clients.push(client);
      client.ends = [];
      client.texts = [];
      client.on("disconnect", (reason) => client.ends.push(reason));
      client.on("message", ({ data }) => client.texts.push(data));
      await until("the connect", () => client.connected, PATIENCE);
      return client;
    }

    test("clients of all versions send and receive by all transports", async () => {
      const members = [];
      for (const version of [4, 3, 2]) {
        for (const transports of TRANSPORTS) members.push(await connect(version, transports));
      }
      const isMoved = (client) => client.io.opts.transports.length === 1 || client.io.engine.transport.name === "websocket";
      await until("the upgrades", () => members.every(isMoved), PATIENCE);
      for (const member of members) await ask(member, "join", "all", { quiet: true });
      const expected = [];
      for (let round = 0; round < 5; round++) {
        for (const [index, member] of members.entries()) {
          const text = `${round} of ${index} ${"x".repeat(10_000)}`;
          expected.push(text);
          await ask(member, "message", "all", text);
        }
      }
      await until("all messages", () => members.every(({ texts }) => texts.length >= expected.length), PATIENCE);
      for (const { texts, ends } of members) {
        assert.deepEqual(texts, expected);
        assert.deepEqual(ends, []);
      }
      const relayed = nodes.map((node) => node.metric('roomcast_relay_requests_total{kind="poll",outcome="relayed"}'));
      assert.ok((await Promise.all(relayed)).some((count) => count > 0));
    });

    test("the largest payload passes", async () => {
      const client = await connect(4, ["polling"]);
      const text = "x".repeat(999_000);
      for (let count = 0; count < 3; count++) assert.equal(await ask(client, "echo", text), text);
      assert.deepEqual(client.ends, []);
    });
  });
}
