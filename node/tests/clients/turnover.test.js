// Servers that come and go while the others ask each other: who asks gets an answer. Among official
// servers one thing cannot be helped: a question is rejected when another server goes between being counted
// and being asked. For a server of ours that goes, another one answers.

"use strict";

const assert = require("node:assert/strict");
const { after, before, describe, test } = require("node:test");

const { settled, startServers } = require("./cluster/members");
const { Peer } = require("./cluster/peer");
const { startRedis } = require("./cluster/redis");
const { Sockets } = require("./support/clients");
const { improvement, isReference } = require("./support/server");
const { until } = require("./support/wait");

const KIND = isReference ? "node" : "roomcast";
// How long an official server may take from being told to ask until it has counted, in milliseconds.
const COUNTING = 1000;
// Without a server that stands in, about one question is rejected in each, and two where one is killed.
const ROUNDS = 4;
const DIALECTS = { classic: {}, sharded: { prefix: "turnover", dialect: "sharded-dynamic" } };

let redis;
before(async () => {
  redis = await startRedis();
});
after(() => redis?.stop());

for (const [name, config] of Object.entries(DIALECTS)) {
  describe(name, () => {
    const options = () => ({ ...config, redis: redis.url });
    let servers;
    let clients;
    before(async () => {
      servers = await startServers(["node", KIND], options(), redis);
      clients = servers.map((server) => new Sockets("4.8", server.url, "websocket"));
      await Promise.all(clients.map((sockets) => sockets.connected()));
    });
    after(async () => {
      for (const sockets of clients ?? []) sockets.closeAll();
      await Promise.all((servers ?? []).map((server) => server.stop()));
    });

    test("servers that start and drain cost nobody an answer", async () => {
      const { stop, moving } = keepAsking(servers);
      const leaving = [];
      for (let round = 0; round < ROUNDS; round += 1) {
        const { guest, sockets } = await visit(options(), `guest${round}`);
        await Promise.all([0, 1, 2].map(() => sockets.connected()));
        await moving();
        const from = Date.now();
        await guest.stop();
        leaving.push({ from, to: Date.now() });
        sockets.closeAll();
      }
      const asked = await stop();
      // An official server counts first and asks then, and rejects if another one has left in between.
      const needless = asked.failures.filter(({ kind, at }) => {
        return !isReference || kind !== "node" || !leaving.some(({ from, to }) => at >= from - COUNTING && at <= to);
      });
      assert.deepEqual(needless, []);
      assert.ok(asked.answers > 100, `${asked.answers} answers`);
      for (const { kind, fewest } of asked.sockets) assert.equal(fewest, 2, kind);
    });

    test("once a killed server is gone, questions are answered without it", async () => {
      for (let round = 0; round < 3; round += 1) {
        const { guest, sockets } = await visit(options(), `victim${round}`);
        await sockets.connected();
        for (const server of servers) {
          assert.equal((await server.tell("fetch")).sockets.length, 3, server.name);
        }
        guest.signal("SIGKILL");
        await guest.exited;
        await settled(redis, config, "/", 2);
        for (const server of servers) {
          const { sockets: found, complete } = await server.tell("fetch");
          assert.deepEqual([found.length, complete], [2, true], server.name);
        }
        sockets.closeAll();
      }
    });

    const killing = "a server that is killed costs the others no answer but its own";
    test(killing, improvement(killing), async () => {
      const { stop, moving } = keepAsking(servers);
      for (let round = 0; round < ROUNDS; round += 1) {
        const { guest, sockets } = await visit(options(), `victim${round}`);
        await sockets.connected();
        await moving();
        guest.signal("SIGKILL");
        await guest.exited;
        sockets.closeAll();
      }
      const asked = await stop();
      assert.deepEqual(asked.failures, []);
      for (const { kind, fewest } of asked.sockets) assert.equal(fewest, 2, kind);
    });

    async function visit(config, name) {
      const guest = await Peer.start(KIND, { ...config, name });
      const sockets = new Sockets("4.8", guest.url, "websocket");
      return { guest, sockets };
    }
  });
}

/**
 * Has each server ask for all sockets again and again, three times at once, until it is told to stop. Once
 * they are `moving`, the official servers ask without a pause.
 */
function keepAsking(servers) {
  let isOver = false;
  const failures = [];
  let answers = 0;
  const each = servers.flatMap(() => [0, 0, 0]);
  const asking = servers.flatMap((server) => [server, server, server]).map(async (server, i) => {
    let fewest = Infinity;
    while (!isOver) {
      const at = Date.now();
      try {
        const { sockets } = await server.tell("fetch");
        answers += 1;
        each[i] += 1;
        fewest = Math.min(fewest, sockets.length);
      } catch (error) {
        failures.push({ kind: server.kind, at, message: error.message });
      }
    }
    return { kind: server.kind, fewest };
  });
  return {
    moving() {
      const before = [...each];
      const official = servers.flatMap(({ kind }) => Array(3).fill(kind === "node"));
      return until("official servers to ask", () => {
        return each.every((count, i) => !official[i] || count >= before[i] + 20);
      });
    },
    async stop() {
      isOver = true;
      return { sockets: await Promise.all(asking), failures, answers };
    },
  };
}
