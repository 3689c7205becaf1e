// A Node.js Socket.IO server in the same cluster as Roomcast nodes, through the official Redis adapter. It
// shows how an existing server takes part. It handles the events of `roomcast serve --client-rooms` and
// serves the page of `roomcast demo`.
//
//   node node-peer.js --redis URL --port PORT --internal-port PORT

"use strict";

const { readFileSync } = require("node:fs");
const { createServer } = require("node:http");
const { join } = require("node:path");
const { parseArgs } = require("node:util");
const { createAdapter } = require("@socket.io/redis-adapter");
const { createClient } = require("redis");
const { Server } = require("socket.io");

const { values } = parseArgs({
  options: {
    redis: { type: "string" },
    port: { type: "string" },
    "internal-port": { type: "string" },
  },
});

const HOST = "127.0.0.1";
const PAGE = join(__dirname, "../../node/src/gateway/demo.html");

main().catch((error) => {
  console.error(error);
  process.exit(1);
});

async function main() {
  const publisher = createClient({ url: values.redis });
  const subscriber = publisher.duplicate();
  for (const client of [publisher, subscriber]) {
    // Without a listener, a lost connection would end the process instead of being retried.
    client.on("error", (error) => console.error(`redis: ${error.message}`));
  }
  await Promise.all([publisher.connect(), subscriber.connect()]);

  const http = createServer(servePage);
  const io = new Server(http, {
    // The defaults of Roomcast: same prefix, same channels, same parser on the wire.
    adapter: createAdapter(publisher, subscriber),
    cors: { origin: "*" },
  });
  io.on("connection", (socket) => attachRooms(io, socket));
  http.listen(Number(values.port), HOST);

  let isReady = true;
  const internal = createServer((request, response) => {
    const flows = isReady && publisher.isReady && subscriber.isReady;
    response.writeHead(request.url === "/readyz" && flows ? 200 : 503).end();
  });
  internal.listen(Number(values["internal-port"]), HOST);
  console.log(`listening on ${HOST}:${values.port}`);

  for (const signal of ["SIGTERM", "SIGINT"]) {
    process.once(signal, async () => {
      isReady = false;
      // Connections end without a disconnect packet, so clients treat it as an accident and reconnect.
      io.engine.close();
      http.close();
      internal.close();
      await Promise.allSettled([publisher.close(), subscriber.close()]);
      process.exit(0);
    });
  }
}

function servePage(request, response) {
  if (request.url !== "/") return response.writeHead(404).end();
  response.writeHead(200, { "Content-Type": "text/html; charset=utf-8" }).end(readFileSync(PAGE));
}

function attachRooms(io, socket) {
  // Rooms that were notified of the client, and will be notified when it leaves.
  const announced = new Set();
  const tell = (room, event) => socket.to(room).emit(event, { room, id: socket.id });
  const shared = () => [...socket.rooms].filter((room) => room !== socket.id).sort();
  const members = async (room) => {
    const sockets = await io.in(room).fetchSockets();
    return sockets.map(({ id }) => id).sort();
  };
  const answering = (work) => (...args) => {
    const answer = args.pop();
    if (typeof answer !== "function") return;
    Promise.resolve()
      .then(() => work(...args))
      .then(answer, (error) => answer({ error: error.message }));
  };

  socket.on("join", answering(async (room, { quiet } = {}) => {
    // A name of this form could be the id of a socket, and its private room is not for others.
    if (typeof room !== "string" || !room || /^[\w-]{20}$/.test(room)) throw new Error("no such room");
    const isNew = !socket.rooms.has(room);
    await socket.join(room);
    if (quiet) return { room };
    if (isNew) {
      announced.add(room);
      tell(room, "joined");
    }
    return { room, members: await members(room) };
  }));
  socket.on("leave", answering(async (room, { quiet } = {}) => {
    const wasMember = socket.rooms.has(room);
    await socket.leave(room);
    announced.delete(room);
    if (wasMember && !quiet) tell(room, "left");
    return { room };
  }));
  socket.on("rooms", answering(shared));
  socket.on("who", answering(members));
  socket.on("message", answering((room, data) => {
    if (!socket.rooms.has(room)) throw new Error(`join ${room} before you send to it`);
    io.to(room).emit("message", { room, from: socket.id, data });
    return io.of("/").adapter.rooms.get(room)?.size ?? 0;
  }));
  socket.on("echo", (...args) => {
    const answer = args.pop();
    if (typeof answer === "function") answer(...args);
  });
  socket.on("disconnecting", () => announced.forEach((room) => tell(room, "left")));
}
