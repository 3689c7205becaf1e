// The Node.js server that Roomcast is measured against: `socket.io` with `@socket.io/redis-adapter`,
// each with its defaults. It speaks what `peer.rs` describes; the configuration is its one argument.

"use strict";

const { createServer } = require("node:http");
const { createInterface } = require("node:readline");
const { createAdapter, createShardedAdapter } = require("@socket.io/redis-adapter");
const { createClient } = require("redis");
const { Server } = require("socket.io");

const config = JSON.parse(process.argv[2]);
const FILLER = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz012345678".repeat(4);

let published = 0;
let lastPublish;
// Copies of messages that Redis has sent to this server.
let received = 0;
const sockets = [];

main();

async function main() {
  const url = `redis://127.0.0.1:${config.redis}`;
  const publisher = createClient({ url });
  const subscriber = createClient({ url });
  await Promise.all([publisher.connect(), subscriber.connect()]);
  remember(publisher, config.sharded ? "sPublish" : "publish");
  count(subscriber, config.sharded ? "sSubscribe" : "pSubscribe");
  const httpServer = createServer();
  const create = config.sharded ? createShardedAdapter : createAdapter;
  const io = new Server(httpServer, { adapter: create(publisher, subscriber), serveClient: false });
  io.on("connection", (socket) => {
    sockets.push(socket);
    socket.on("join", (room, done) => {
      socket.join(config.rooms + room);
      done();
    });
  });
  const commands = {
    publish: (duration, concurrency) => publish(io, duration, concurrency),
    churn,
    received: async () => ({ received }),
  };
  const input = createInterface({ input: process.stdin });
  input.on("line", async (line) => {
    const [command, ...numbers] = line.split(" ");
    tell(await commands[command](...numbers.map(Number)).catch((error) => ({ error: error.message })));
  });
  input.on("close", () => process.exit(0));
  httpServer.listen(config.port, "127.0.0.1", () => tell({ listening: config.port }));
}

/** Makes the outcome of the last publish known, which the adapter keeps for itself. */
function remember(client, method) {
  const original = client[method].bind(client);
  client[method] = (...args) => (lastPublish = original(...args));
}

/** Counts what arrives on subscriptions. */
function count(client, method) {
  const original = client[method].bind(client);
  client[method] = (channels, listener, ...rest) =>
    original(channels, (...args) => {
      received += 1;
      listener(...args);
    }, ...rest);
}

async function publish(io, duration, concurrency) {
  const end = performance.now() + duration;
  const one = async () => {
    while (performance.now() < end) {
      io.to(config.room).emit("cast", payload(published++));
      await lastPublish;
    }
  };
  await Promise.all(Array.from({ length: concurrency }, one));
  return { published };
}

function payload(sequence) {
  const shift = sequence % 61;
  return `000000${sequence.toString(16).padStart(8, "0")}${FILLER.slice(shift, shift + 114)}`;
}

async function churn(joins) {
  const started = performance.now();
  const socketOf = (number) => sockets[number % sockets.length];
  const name = (number) => `short-${String(number).padStart(7, "0")}`;
  const steps = [];
  const leave = ([from, to]) => {
    for (let i = from; i < to; i++) socketOf(i).leave(name(i));
  };
  for (let from = 0; from < joins; from += config.joins) {
    const wait = started + (from / config.joins) * config.interval - performance.now();
    if (wait > 0) await new Promise((resolve) => setTimeout(resolve, wait));
    const to = Math.min(from + config.joins, joins);
    for (let i = from; i < to; i++) socketOf(i).join(name(i));
    steps.push([from, to]);
    if (steps.length > config.lifetime) leave(steps.shift());
  }
  steps.forEach(leave);
  return { joined: joins };
}

function tell(line) {
  process.stdout.write(`${JSON.stringify(line)}\n`);
}
