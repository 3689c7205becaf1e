// Clusters over Redis Cluster with three primaries: in the sharded dialect, each channel belongs to one.

"use strict";

const { clusters } = require("./cluster/dialects");
const { startRedisCluster } = require("./cluster/redis");

clusters("over Redis Cluster", startRedisCluster, {
  "classic": {},
  "sharded, dynamic": { prefix: "dynamic", dialect: "sharded-dynamic" },
});
