// Starts Redis for one test: alone, as a cluster of three primaries with or without replicas, or as a primary with a replica
// and three sentinels. Every server has a port from the system and a folder of its own, which goes
// when it is stopped.

"use strict";

const { spawn } = require("node:child_process");
const { mkdtempSync, rmSync, writeFileSync } = require("node:fs");
const { tmpdir } = require("node:os");
const { join } = require("node:path");
const { createClient } = require("redis");

const { sparePort } = require("../support/ports");
const { deadline, until } = require("../support/wait");

const HOST = "127.0.0.1";
const SLOTS = 16_384;
const PRIMARY_NAME = "main";

/** One Redis: `url` for servers, `command` to ask it something, `kill` and `start` to lose it empty. */
async function startRedis({ port, options = [] } = {}) {
  const redis = new Redis("redis-server", port ?? (await sparePort()), options);
  await redis.start();
  return redis;
}

/** Three primaries that share the slots, and a replica of each if so wished. */
async function startRedisCluster({ hasReplicas = false } = {}) {
  const count = hasReplicas ? 6 : 3;
  const servers = await Promise.all(
    Array.from({ length: count }, async () => {
      const bus = await sparePort();
      const options = ["--cluster-enabled", "yes", "--cluster-port", bus, "--cluster-node-timeout", 2000];
      const redis = await startRedis({ options });
      return Object.assign(redis, { bus });
    }),
  );
  const primaries = servers.slice(0, 3);
  const replicas = servers.slice(3);
  const [first, ...others] = servers;
  const share = Math.ceil(SLOTS / primaries.length);
  await Promise.all(primaries.map((redis, i) => {
    const last = Math.min((i + 1) * share, SLOTS) - 1;
    return redis.command("CLUSTER", "ADDSLOTSRANGE", i * share, last);
  }));
  for (const { port, bus } of others) await first.command("CLUSTER", "MEET", HOST, port, bus);
  await Promise.all(servers.map((redis) => until("the cluster's slots to be known", async () => {
    const info = await redis.command("CLUSTER", "INFO");
    return info.includes("cluster_state:ok") && info.includes(`cluster_known_nodes:${count}`);
  })));
  await Promise.all(replicas.map(async (replica, i) => {
    await replica.command("CLUSTER", "REPLICATE", await primaries[i].command("CLUSTER", "MYID"));
    await Promise.all(servers.map((redis) => until("the replica to be known", async () => {
      const nodes = (await redis.command("CLUSTER", "NODES")).split("\n");
      return nodes.some((node) => node.includes(`:${replica.port}@`) && /[ ,]slave/.test(node));
    })));
  }));
  return {
    url: `redis+cluster://${primaries.map(({ port }) => `${HOST}:${port}`).join(",")}`,
    primaries,
    replicas,
    stop: () => Promise.all(servers.map((redis) => redis.stop())),
  };
}

/** A primary, its replica, and three sentinels that replace the primary when it is gone for a second. */
async function startSentinels() {
  const primary = await startRedis();
  const replica = await startRedis({ options: ["--replicaof", `${HOST} ${primary.port}`] });
  await until("the replica to follow", async () => {
    return (await replica.command("INFO", "replication")).includes("master_link_status:up");
  });
  const sentinels = await Promise.all([0, 1, 2].map(async () => {
    const sentinel = new Redis("redis-sentinel", await sparePort(), [], [
      `sentinel monitor ${PRIMARY_NAME} ${HOST} ${primary.port} 2`,
      `sentinel down-after-milliseconds ${PRIMARY_NAME} 1000`,
      `sentinel failover-timeout ${PRIMARY_NAME} 5000`,
    ]);
    await sentinel.start();
    return sentinel;
  }));
  await Promise.all(sentinels.map((sentinel) => until("the sentinels to know each other", async () => {
    const known = await sentinel.command("SENTINEL", "MASTER", PRIMARY_NAME);
    const value = (key) => Number(known[known.indexOf(key) + 1]);
    return value("num-other-sentinels") === 2 && value("num-slaves") === 1;
  })));
  const hosts = sentinels.map(({ port }) => `${HOST}:${port}`).join(",");
  return {
    url: `redis+sentinel://${hosts}/${PRIMARY_NAME}`,
    primary,
    replica,
    stop: () => Promise.all([...sentinels, primary, replica].map((redis) => redis.stop())),
  };
}

class Redis {
  #program;
  #options;
  #lines;
  #folder;
  #child;
  #exited;
  #client;

  constructor(program, port, options = [], lines = []) {
    this.#program = program;
    this.#options = options;
    this.#lines = lines;
    this.port = port;
    this.url = `redis://${HOST}:${port}`;
  }

  async start() {
    this.#folder = mkdtempSync(join(tmpdir(), "roomcast-redis-"));
    const file = join(this.#folder, "redis.conf");
    // Sentinels insist on a file that they can rewrite.
    writeFileSync(file, this.#lines.map((line) => `${line}\n`).join(""));
    const options = [
      "--port", this.port, "--bind", HOST, "--dir", this.#folder, "--save", "", "--appendonly", "no",
      "--logfile", "redis.log", "--repl-diskless-sync-delay", "0", ...this.#options,
    ];
    const child = spawn(this.#program, [file, ...options.map(String)], { stdio: "ignore" });
    const orphanGuard = () => child.kill("SIGKILL");
    process.on("exit", orphanGuard);
    this.#child = child;
    this.#exited = new Promise((resolve, reject) => {
      child.once("error", reject);
      child.once("exit", () => {
        process.removeListener("exit", orphanGuard);
        resolve();
      });
    });
    this.#exited.catch(() => {});
    let ended = false;
    this.#exited.then(() => { ended = true; }, () => { ended = true; });
    await until(`${this.#program} to answer`, async () => {
      if (ended) throw new Error(`${this.#program} ended at once; is port ${this.port} taken?`);
      return (await this.command("PING").catch(() => "")) === "PONG";
    });
  }

  /** The answer to one command, on a connection that stays open. */
  async command(...args) {
    if (!this.#client) {
      this.#client = createClient({ url: this.url, RESP: 2, socket: { reconnectStrategy: false } });
      this.#client.on("error", () => {});
    }
    try {
      if (!this.#client.isOpen) await this.#client.connect();
      return await this.#client.sendCommand(args.map(String));
    } catch (error) {
      this.#forgetClient();
      throw error;
    }
  }

  /** Stops it without a farewell. */
  kill() {
    return this.#end("SIGKILL");
  }

  async stop() {
    await this.#end(this.#child?.exitCode === null ? "SIGKILL" : undefined);
  }

  signal(signal) {
    this.#child.kill(signal);
  }

  async #end(signal) {
    this.#forgetClient();
    if (signal) this.#child.kill(signal);
    await deadline(this.#exited, 10_000, `${this.#program} to end`);
    rmSync(this.#folder, { recursive: true, force: true });
  }

  #forgetClient() {
    if (this.#client?.isOpen) this.#client.destroy();
    this.#client = undefined;
  }
}

module.exports = { startRedis, startRedisCluster, startSentinels };
