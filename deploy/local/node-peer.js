// A Node.js Socket.IO server in the same cluster as Roomcast nodes, through the official Redis adapter. It
// shows how an existing server takes part. It handles the events of `roomcast serve --client-rooms` and of
// `roomcast demo`, and serves the page of the latter.
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
const DEMO = join(__dirname, "../../node/src/gateway/demo");
const FILES = { "/": ["page.html", "html"], "/demo/page.css": ["page.css", "css"], "/demo/page.js": ["page.js", "javascript"] };

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
  const demo = new Demo(io, { name: "node-js", address: `${HOST}:${values.port}` });
  io.on("connection", (socket) => {
    attachRooms(io, socket, demo);
    demo.attach(socket);
  });
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
      demo.stop();
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
  // The server has the official client, as Node.js servers do.
  if (request.url === "/demo/client.js") return response.writeHead(307, { Location: "/socket.io/socket.io.js" }).end();
  const [name, kind] = FILES[request.url] ?? [];
  if (!name) return response.writeHead(404).end();
  return response.writeHead(200, { "Content-Type": `text/${kind}; charset=utf-8` }).end(readFileSync(join(DEMO, name)));
}

/** Acknowledges with what `work` returns or resolves to, or with its error. */
const answering = (work) => (...args) => {
  const answer = args.pop();
  if (typeof answer !== "function") return;
  Promise.resolve()
    .then(() => work(...args))
    .then(answer, (error) => answer({ error: error.message }));
};

/** What the page uses beside rooms: names, typing, the latest messages of rooms, and the nodes of the cluster. */
class Demo {
  #io;
  #own;
  #others = new Map();
  #history = new Map();
  #announcing;
  /** The names of the others at the last announcement. */
  #known = "";

  constructor(io, own) {
    this.#io = io;
    this.#own = own;
    io.on("demo:message", (said) => this.#keep(said));
    io.on("demo:node", (node) => this.#others.set(node.name, { node, missed: 0 }));
    this.#announcing = setInterval(() => this.#announce(), 1000);
  }

  stop() {
    clearInterval(this.#announcing);
  }

  attach(socket) {
    socket.on("demo:hello", answering(({ name, colour }) => {
      socket.data = { name: String(name).slice(0, 24), colour };
      const shared = [...socket.rooms].filter((room) => room !== socket.id);
      if (shared.length > 0) socket.to(shared).emit("demo:profile", { id: socket.id, ...socket.data });
      return { node: this.#own, nodes: this.#nodes() };
    }));
    socket.on("demo:room", answering(async (room, withHistory) => {
      if (!socket.rooms.has(room)) throw new Error(`join ${room} first`);
      const people = (await this.#io.in(room).fetchSockets()).map(({ id, data }) => ({ ...data, id }));
      return { people, history: withHistory ? this.#history.get(room) ?? [] : null };
    }));
    socket.on("demo:typing", (room) => {
      if (socket.rooms.has(room)) socket.volatile.to(room).emit("demo:typing", { room, id: socket.id });
    });
  }

  /** A message of a client of this server. */
  said(socket, room, data) {
    const message = { room, from: socket.id, ...socket.data, data, at: Math.floor(Date.now() / 1000) };
    this.#keep(message);
    this.#io.serverSideEmit("demo:message", message);
  }

  #keep(message) {
    const kept = this.#history.get(message.room) ?? [];
    // Set again, so that the first room of the map is the one that was quiet for the longest time.
    this.#history.delete(message.room);
    this.#history.set(message.room, [...kept, message].slice(-50));
    if (this.#history.size > 200) this.#history.delete(this.#history.keys().next().value);
  }

  #announce() {
    this.#io.serverSideEmit("demo:node", this.#own);
    for (const [name, other] of this.#others) if (++other.missed > 5) this.#others.delete(name);
    const names = [...this.#others.keys()].sort().join();
    if (names !== this.#known) this.#io.local.emit("demo:nodes", this.#nodes());
    this.#known = names;
  }

  #nodes() {
    return [...this.#others.values()].map(({ node }) => node);
  }
}

function attachRooms(io, socket, demo) {
  // Rooms that were notified of the client, and will be notified when it leaves.
  const announced = new Set();
  const tell = (room, event) => socket.to(room).emit(event, { room, id: socket.id });
  const shared = () => [...socket.rooms].filter((room) => room !== socket.id).sort();
  const members = async (room) => {
    const sockets = await io.in(room).fetchSockets();
    return sockets.map(({ id }) => id).sort();
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
    demo.said(socket, room, data);
    return io.of("/").adapter.rooms.get(room)?.size ?? 0;
  }));
  socket.on("echo", (...args) => {
    const answer = args.pop();
    if (typeof answer === "function") answer(...args);
  });
  socket.on("disconnecting", () => announced.forEach((room) => tell(room, "left")));
}
