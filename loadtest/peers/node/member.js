// A server of Node.js for the table of faults: alone in a cluster of its kind, or as a member beside Roomcast.
//
//   node member.js --redis URL --adapter classic|streams --listen HOST:PORT
//
// It has the namespaces of `roomcast-loadtest chaos`, and enough of Roomcast's internal listener, at a port of its
// own: `/readyz`, and `POST /api/emit`. A response means that `emit` has returned. With the streams adapter, clients
// can come back to their session.

"use strict";

const { createServer } = require("node:http");
const { parseArgs } = require("node:util");
const { createAdapter } = require("@socket.io/redis-adapter");
const { createAdapter: createStreamsAdapter } = require("@socket.io/redis-streams-adapter");
const { createClient } = require("redis");
const { Server } = require("socket.io");

const { values } = parseArgs({
  options: {
    redis: { type: "string" },
    adapter: { type: "string", default: "classic" },
    listen: { type: "string", default: "127.0.0.1:0" },
  },
});

main().catch((error) => {
  console.error(error);
  process.exit(1);
});

async function main() {
  const isStreams = values.adapter === "streams";
  const clients = await Promise.all([connect(), connect()]);
  const adapter = isStreams ? createStreamsAdapter(clients[0]) : createAdapter(...clients);
  // The limit of disconnections that Roomcast has, and pings as often as its nodes send them in this test.
  const recovery = isStreams ? { connectionStateRecovery: { maxDisconnectionDuration: 120_000 } } : {};
  const http = createServer();
  const options = { adapter, serveClient: false, pingInterval: 2000, pingTimeout: 3000, ...recovery };
  const io = new Server(http, options);
  for (const name of ["/plain", "/journal", "/recovery"]) io.of(name).on("connection", attach);
  const internal = createServer((request, response) => serve(io, request, response));
  const [host, port] = values.listen.split(":");
  await listen(http, Number(port), host);
  await listen(internal, 0, host);
  // The adapters do not handle promises of commands that the end of a connection has rejected.
  process.on("unhandledRejection", (error) => console.error("unhandled:", error.message));
  console.log(`ready address=${host}:${http.address().port} internal=${host}:${internal.address().port}`);
  process.on("SIGTERM", () => process.exit(0));
}

async function connect() {
  const client = createClient({ url: values.redis });
  // Without a listener an error would end the process. The client connects again by itself.
  client.on("error", () => {});
  await client.connect();
  return client;
}

function listen(server, port, host) {
  return new Promise((resolve) => server.listen({ host, port, backlog: 4096 }, resolve));
}

function attach(socket) {
  socket.on("join", async (room, _manner, answer) => {
    await socket.join(room);
    answer();
  });
}

async function serve(io, request, response) {
  if (request.method === "POST" && request.url === "/api/emit") {
    let text = "";
    for await (const chunk of request) text += chunk;
    const { namespace, event, args, rooms } = JSON.parse(text);
    io.of(namespace).to(rooms).emit(event, ...args);
  }
  response.setHeader("connection", "close");
  response.end("{}");
}
