// Clusters over one Redis, in every dialect of the official adapter.

"use strict";

const assert = require("node:assert/strict");
const { after, before, describe, test } = require("node:test");
const { io } = require("socket.io-client");

const { clusters } = require("./cluster/dialects");
const { startServers } = require("./cluster/members");
const { startRedis } = require("./cluster/redis");
const { isReference } = require("./support/server");
const { until } = require("./support/wait");

clusters("over Redis", startRedis, {
  "classic": {},
  "classic, answers on channels of their own": { prefix: "specific", specificResponses: true },
  "classic, channels for sockets": { prefix: "channels", privateRooms: "channel" },
  "classic, JSON": { prefix: "json:a#b", parser: "json" },
  "sharded, static": { dialect: "sharded-static" },
  "sharded, dynamic": { prefix: "dynamic", dialect: "sharded-dynamic" },
  "sharded, dynamic and private": { prefix: "private", dialect: "sharded-dynamic-private" },
  "streams": { prefix: "streams", dialect: "streams" },
});

// A Roomcast node stores sessions while clients are connected, a Node.js server when they are gone.
describe("recovery across servers with the streams adapter", () => {
  const PATIENCE = 60_000;
  const config = { dialect: "streams", prefix: "recovery", recovery: true };
  let redis;
  before(async () => {
    redis = await startRedis();
  });
  after(() => redis?.stop());

  async function sessions() {
    const keys = await redis.command("KEYS", "sio:session:*");
    const texts = await Promise.all(keys.map((key) => redis.command("GET", key)));
    return texts.map((text) => Buffer.from(text ?? "", "base64").toString("latin1"));
  }

  const ways = isReference ? [["node", "node"]] : [["roomcast", "node"], ["node", "roomcast"], ["roomcast", "roomcast"]];
  for (const [from, to] of ways) {
    test(`a client of ${from} goes on at ${to}`, async () => {
      await redis.command("FLUSHALL");
      const [one, two] = await startServers([from, to], { ...config, redis: redis.url }, redis);
      const client = io(one.url, { forceNew: true, transports: ["websocket"], reconnection: false });
      try {
        const numbers = [];
        let isHeard = false;
        client.on("ready", () => (isHeard = true));
        client.on("number", (number) => numbers.push(number));
        await until("the connect", () => client.connected, PATIENCE);
        const { id } = client;
        const here = { namespace: "/", sid: id };
        await one.tell("own", { ...here, what: "data", value: { name: "ada" } });
        await one.tell("own", { ...here, what: "join", rooms: ["news"] });
        // A Node.js server begins to read the stream a moment after it listens.
        await until("the servers to hear each other", async () => {
          await two.tell("emit", { namespace: "/", to: ["news"], event: "ready", args: [] });
          return isHeard;
        }, PATIENCE);
        const emit = async (server, first, end) => {
          for (let number = first; number < end; number += 1) {
            await server.tell("emit", { namespace: "/", to: ["news"], event: "number", args: [number] });
          }
        };
        await emit(two, 0, 5);
        await until("numbers of the other server", () => numbers.length === 5, PATIENCE);
        await emit(one, 5, 10);
        await until("numbers of its own server", () => numbers.length === 10, PATIENCE);
        if (from === "node") client.io.engine.close();
        await until("the session to be stored", async () => (await sessions()).some((text) => text.includes("news") && text.includes("ada")), PATIENCE);
        one.signal("SIGKILL");
        await until("the client to notice", () => !client.connected, PATIENCE);
        await emit(two, 10, 20);
        await two.tell("emit", { namespace: "/", to: ["elsewhere"], event: "number", args: [-1] });
        client.io.uri = two.url;
        client.connect();
        await until("the client to be back", () => client.connected && numbers.length >= 20, PATIENCE);
        await emit(two, 20, 25);
        await until("the last numbers", () => numbers.length >= 25, PATIENCE);
        assert.deepEqual([client.recovered, client.id], [true, id]);
        assert.deepEqual(numbers, Array.from({ length: 25 }, (_, number) => number));
        assert.deepEqual((await two.tell("own", { ...here, what: "rooms" })).rooms, ["news"]);
        const { sockets } = await two.tell("fetch", { namespace: "/", local: true });
        assert.deepEqual(sockets.map(({ data }) => data), [{ name: "ada" }]);
      } finally {
        client.close();
        await Promise.all([one, two].map((server) => server.stop().catch(() => {})));
      }
    });
  }
});
