// Clusters of two servers under test and one official server, over Redis, in every dialect of the
// official adapter. Against the reference, all three are official servers.

"use strict";

const { after, before, describe } = require("node:test");

const mixed = require("./cluster/mixed");
const { startServers } = require("./cluster/members");
const { startRedis } = require("./cluster/redis");
const { isReference } = require("./support/server");

const KINDS = isReference ? ["node", "node", "node"] : ["roomcast", "roomcast", "node"];

// Prefixes keep the clusters apart, which share a Redis.
const DIALECTS = {
  "classic": {},
  "classic, answers on channels of their own": { prefix: "specific", specificResponses: true },
  "classic, JSON": { prefix: "json:a#b", parser: "json" },
  "sharded, static": { dialect: "sharded-static" },
  "sharded, dynamic": { prefix: "dynamic", dialect: "sharded-dynamic" },
  "sharded, dynamic and private": { prefix: "private", dialect: "sharded-dynamic-private" },
};

describe("cluster", () => {
  let redis;
  before(async () => {
    redis = await startRedis();
  });
  after(() => redis?.stop());

  for (const [name, config] of Object.entries(DIALECTS)) {
    describe(name, () => {
      const context = { config, servers: undefined };
      before(async () => {
        context.servers = await startServers(KINDS, { ...config, redis: redis.url }, redis);
      });
      after(() => Promise.all((context.servers ?? []).map((server) => server.stop())));
      mixed(context);
    });
  }
});
