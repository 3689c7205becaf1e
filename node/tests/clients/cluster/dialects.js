// Two servers under test and one official server for each dialect, through all that must work between
// them. Against the reference, all three are official servers.

"use strict";

const { after, before, describe } = require("node:test");

const mixed = require("./mixed");
const { startServers } = require("./members");
const { isReference } = require("../support/server");

const KINDS = isReference ? ["node", "node", "node"] : ["roomcast", "roomcast", "node"];

/** `dialects` are configurations by name; their prefixes keep them apart, as they share a Redis. */
function clusters(title, startRedis, dialects) {
  describe(title, () => {
    let redis;
    before(async () => {
      redis = await startRedis();
    });
    after(() => redis?.stop());

    for (const [name, config] of Object.entries(dialects)) {
      describe(name, () => {
        const context = { config, servers: undefined };
        before(async () => {
          context.hasSeveralPrimaries = redis.primaries !== undefined;
          context.servers = await startServers(KINDS, { ...config, redis: redis.url }, redis);
        });
        after(() => Promise.all((context.servers ?? []).map((server) => server.stop())));
        mixed(context);
      });
    }
  });
}

module.exports = { KINDS, clusters };
