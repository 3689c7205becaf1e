// The official emitter for Redis: messages from standard input, one per line, as `roomcast emit` takes
// them. Ends when Redis has taken all of them.
//
//   node emit.js --redis URL
//
// There is none for the sharded adapter.

"use strict";

const { parseArgs } = require("node:util");
const { Emitter } = require("@socket.io/redis-emitter");
const { createClient } = require("redis");

const { values } = parseArgs({ options: { redis: { type: "string" } } });

main().catch((error) => {
  console.error(error);
  process.exit(1);
});

async function main() {
  const client = createClient({ url: values.redis });
  await client.connect();
  const emitter = new Emitter(client);
  let rest = "";
  process.stdin.setEncoding("utf8");
  for await (const chunk of process.stdin) {
    const lines = (rest + chunk).split("\n");
    rest = lines.pop();
    for (const line of lines) emit(emitter, line);
    // The emitter queues without a limit and tells nobody when it is done: Redis answers in order.
    await client.ping();
  }
  emit(emitter, rest);
  await client.close();
}

function emit(emitter, line) {
  if (line.trim() === "") return;
  const { event, args = [], rooms = [], except = [] } = JSON.parse(line);
  emitter.to(rooms).except(except).emit(event, ...args);
}
