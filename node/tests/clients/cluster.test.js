// Clusters over one Redis, in every dialect of the official adapter.

"use strict";

const { clusters } = require("./cluster/dialects");
const { startRedis } = require("./cluster/redis");

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
