// What happens to messages when Redis, the links to it or servers fail. A message may be lost, but never
// silently: its sender was told, or the server that should have heard it reports a gap in which it was
// sent. Nothing comes twice or out of order, and everything is repaired without help.

"use strict";

const assert = require("node:assert/strict");
const { readdirSync, readFileSync } = require("node:fs");
const { describe, test } = require("node:test");

const { Ledger, table } = require("./cluster/ledger");
const { settled } = require("./cluster/members");
const { Peer } = require("./cluster/peer");
const { startRedis, startSentinels } = require("./cluster/redis");
const { startProxy } = require("./support/proxy");
const { isReference } = require("./support/server");
const { until } = require("./support/wait");

const KIND = isReference ? "node" : "roomcast";
const CLASSIC = {};
const SHARDED = { dialect: "sharded-dynamic" };

// They wait for most of their time.
describe("faults", { concurrency: true, skip: isReference && "Node's servers lose messages silently" }, () => {
  for (const [dialect, config] of Object.entries({ classic: CLASSIC, sharded: SHARDED })) {
    fault(`Redis is killed and comes back empty, ${dialect}`, config, async ({ redis, books }) => {
      await books.fault(async () => {
        await redis.kill();
        await pass(2000);
        await redis.start();
      });
      await books.healed();
    });

    fault(`the subscriptions' connections are killed three times, ${dialect}`, config, async ({ redis, books }) => {
      for (let round = 0; round < 3; round += 1) {
        await books.fault(() => redis.command("CLIENT", "KILL", "TYPE", "pubsub"));
        await books.healed();
      }
    });
  }

  fault("Redis hangs for 8 s", CLASSIC, async ({ redis, books }) => {
    await books.fault(async () => {
      await redis.command("CLIENT", "PAUSE", 8000, "ALL");
      await redis.command("PING");
    });
    await books.healed();
  });

  fault("a server's links are cut without a word", { ...CLASSIC, behindProxy: true }, async ({ proxy, books }) => {
    await books.fault(async () => proxy.freeze());
    await books.healed();
  });

  fault("a primary is killed and its replica takes over", { ...CLASSIC, sentinels: true }, async ({ redis, books }) => {
    await books.fault(async () => {
      await redis.primary.kill();
      await until("the replica to be promoted", async () => {
        // A sentinel ends the connections of a server that it promotes.
        const role = await redis.replica.command("ROLE").catch(() => []);
        return role[0] === "master";
      }, 30_000);
    });
    await books.healed();
  });

  fault("a server is killed", CLASSIC, async ({ redis, servers, books }) => {
    const [asker, , victim] = servers;
    await books.fault(async () => {
      books.silence(victim);
      victim.signal("SIGKILL");
      await victim.exited;
    });
    const { sockets } = await asker.tell("fetch");
    assert.equal(sockets.length, 2);
    await settled(redis, CLASSIC, "/", 2);
    assert.equal((await asker.tell("fetch")).complete, true);
    await books.healed();
  });

  fault("a server is stopped for 20 s and goes on", CLASSIC, async ({ servers, books }) => {
    const [asker, , stopped] = servers;
    await books.fault(async () => {
      await books.silence(stopped);
      stopped.signal("SIGSTOP");
      // A thread that runs stops only when it next enters the kernel, and may still answer.
      await until("every thread to stand still", async () => standsStill(stopped.pid));
      for (const end = Date.now() + 20_000; Date.now() < end; await pass(1000)) {
        const { sockets, complete } = await asker.tell("fetch");
        assert.deepEqual([sockets.length, complete], [2, false]);
      }
      stopped.signal("SIGCONT");
    });
    books.resume(stopped);
    await books.healed();
    await until("the server to answer again", async () => {
      const { sockets, complete } = await asker.tell("fetch");
      return sockets.length === 3 && complete;
    });
  });
});

/** Whether all threads of a process are stopped. */
function standsStill(pid) {
  const states = readdirSync(`/proc/${pid}/task`).map((thread) => {
    const stat = readFileSync(`/proc/${pid}/task/${thread}/stat`, "utf8");
    return stat[stat.lastIndexOf(")") + 2];
  });
  return states.every((state) => state === "T");
}

/** Three servers, one fault, and the books of it. */
function fault(name, { behindProxy, sentinels, ...config }, act) {
  test(name, async () => {
    const redis = await (sentinels ? startSentinels() : startRedis());
    const proxy = behindProxy ? await startProxy(redis.port) : undefined;
    const servers = [];
    const books = new Ledger(servers);
    try {
      for (const i of [0, 1, 2]) {
        const url = proxy && i === 2 ? proxy.url.replace("http:", "redis:") : redis.url;
        servers.push(await Peer.start(KIND, { ...config, redis: url, name: `${KIND}${i}` }));
      }
      await books.open();
      await act({ redis, proxy, servers, books });
      const lines = await books.close();
      console.log(table(name, lines));
      for (const line of lines) check(line, books);
    } finally {
      books.abandon();
      for (const server of servers) {
        server.signal("SIGCONT");
        await server.stop();
      }
      proxy?.close();
      await redis.stop();
    }
  });
}

function check(line, books) {
  assert.deepEqual(line.unexplained, [], `${line.server}: lost without a word`);
  assert.deepEqual(line.unanswered, [], `${line.server}: senders that were told nothing`);
  assert.deepEqual(line.refusedButHeard, [], `${line.server}: said not to be sent, and heard`);
  assert.deepEqual(line.duplicates, [], `${line.server}: heard twice`);
  assert.deepEqual(line.reordered, [], `${line.server}: out of order`);
  for (const { from, to } of line.gaps) {
    assert.ok(from >= books.begin - 5000 && from <= to && to <= Date.now(), `a gap from ${from} to ${to}`);
  }
  assert.equal(line.changed.gaps_total ?? 0, line.gaps.length, `${line.server}: gaps as the metrics count them`);
}

function pass(milliseconds) {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}
