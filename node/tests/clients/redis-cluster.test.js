// Clusters over Redis Cluster with three primaries: in the sharded dialect, each channel belongs to one.
// In the classic dialect every server delivers every message, a replica too, and knows its own
// subscribers alone.

"use strict";

const assert = require("node:assert/strict");
const { after, before, describe, test } = require("node:test");

const { clusters } = require("./cluster/dialects");
const { startServers, settled } = require("./cluster/members");
const { Peer } = require("./cluster/peer");
const { startRedisCluster } = require("./cluster/redis");
const { Sockets } = require("./support/clients");
const { isReference } = require("./support/server");

clusters("over Redis Cluster", startRedisCluster, {
  "classic": {},
  "sharded, dynamic": { prefix: "dynamic", dialect: "sharded-dynamic" },
});

const skip = isReference && "Node's servers count the subscribers of primaries";

describe("beside a server that listens at a replica", { skip }, () => {
  let redis;
  let asker;
  const servers = [];
  const opened = [];
  const ids = [];
  before(async () => {
    redis = await startRedisCluster({ hasReplicas: true });
    servers.push(...await startServers(["roomcast"], { redis: redis.url }, redis));
    [asker] = servers;
    const [replica] = redis.replicas;
    servers.push(await Peer.start("node", { name: "node", redis: redis.url, listenAt: replica.url }));
    await settled(redis, {}, "/", servers.length);
    for (const server of servers) {
      const sockets = new Sockets("4.8", server.url, "websocket");
      opened.push(sockets);
      const socket = await sockets.connected("/", {});
      socket.on("question", (answer) => answer(server.kind));
      ids.push(socket.id);
    }
  });
  after(async () => {
    opened.forEach((sockets) => sockets.closeAll());
    await Promise.all(servers.map((server) => server.stop()));
    await redis?.stop();
  });

  test("its sockets are part of every answer", async () => {
    for (let round = 0; round < 10; round += 1) {
      const { sockets: found, complete } = await asker.tell("fetch");
      assert.equal(complete, true);
      assert.deepEqual(found.map(({ id }) => id).sort(), [...ids].sort());
    }
  });

  test("its clients' acknowledgements are waited for", async () => {
    const asked = await asker.tell("ask", { event: "question", args: [], timeout: 3000 });
    assert.deepEqual({ ...asked, answers: asked.answers.sort() }, {
      answers: ["node", "roomcast"],
      complete: true,
    });
  });
});
