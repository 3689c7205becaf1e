// The same events on Node.js Socket.IO with its defaults: alone, or with the official adapter for Redis,
// classic or sharded.
//
//   node server.js --listen HOST:PORT [--redis URL [--sharded]] [--workers 1]
//
// Node.js serves in one thread, so `--workers` takes nothing but 1.

"use strict";

const { createServer } = require("node:http");
const { parseArgs } = require("node:util");
const { createAdapter, createShardedAdapter } = require("@socket.io/redis-adapter");
const { createClient } = require("redis");
const { Server } = require("socket.io");

const { values } = parseArgs({
  options: {
    listen: { type: "string", default: "127.0.0.1:0" },
    redis: { type: "string" },
    sharded: { type: "boolean", default: false },
    workers: { type: "string", default: "1" },
  },
});

main().catch((error) => {
  console.error(error);
  process.exit(1);
});

async function main() {
  if (values.workers !== "1") throw new Error("--workers: Node.js serves in one thread");
  const http = createServer();
  const io = new Server(http, { serveClient: false });
  if (values.redis) io.adapter(await adapter());
  io.on("connection", (socket) => attach(io, socket));
  const [host, port] = values.listen.split(":");
  // As many connections at a time may wait to be accepted as at the other servers.
  http.listen({ host, port: Number(port), backlog: 4096 }, () => {
    console.log(`listening address=${host}:${http.address().port}`);
  });
}

async function adapter() {
  const publisher = createClient({ url: values.redis });
  const subscriber = publisher.duplicate();
  await Promise.all([publisher.connect(), subscriber.connect()]);
  return values.sharded
    ? createShardedAdapter(publisher, subscriber)
    : createAdapter(publisher, subscriber);
}

function attach(io, socket) {
  socket.on("join", async (room, _manner, answer) => {
    await socket.join(room);
    answer();
  });
  socket.on("leave", async (room, _manner, answer) => {
    await socket.leave(room);
    answer();
  });
  socket.on("message", (room, data, answer) => {
    io.to(room).emit("message", { room, from: socket.id, data });
    // Not every sender asks.
    answer?.();
  });
  socket.on("echo", (payload, answer) => answer(payload));
}
