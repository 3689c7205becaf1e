// The server that the page was written for: Socket.IO in Node.js. app.py takes its place behind Roomcast.
//
//     npm install socket.io
//     JWT_SECRET=… node server.js [PORT]

"use strict";

const { createHmac, timingSafeEqual } = require("node:crypto");
const { readFileSync } = require("node:fs");
const { createServer } = require("node:http");
const { join } = require("node:path");
const { Server } = require("socket.io");

const SECRET = process.env.JWT_SECRET;
// Users with their passwords. A real application has hashes of them in a database.
const PASSWORDS = { ada: "lovelace", bob: "baker" };

// --- Login ------------------------------------------------------------------------------------------

const encoded = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
const decoded = (text) => JSON.parse(Buffer.from(text, "base64url"));
const signed = (text) => createHmac("sha256", SECRET).update(text).digest();

function issue(user) {
  const exp = Math.floor(Date.now() / 1000) + 3600;
  const text = `${encoded({ alg: "HS256", typ: "JWT" })}.${encoded({ sub: user, exp })}`;
  return `${text}.${signed(text).toString("base64url")}`;
}

/** The user of a valid token. */
function verify(token) {
  try {
    const [header, claims, signature] = token.split(".");
    const isGenuine = timingSafeEqual(signed(`${header}.${claims}`), Buffer.from(signature, "base64url"));
    const { sub, exp } = decoded(claims);
    return isGenuine && decoded(header).alg === "HS256" && exp > Date.now() / 1000 ? sub : null;
  } catch {
    return null;
  }
}

async function login(request, response) {
  let body = "";
  for await (const part of request) body += part;
  const { name, password } = JSON.parse(body);
  if (!Object.hasOwn(PASSWORDS, name) || PASSWORDS[name] !== password) return response.writeHead(401).end();
  return response.writeHead(200, { "Content-Type": "application/json" }).end(JSON.stringify({ token: issue(name) }));
}

// --- HTTP -------------------------------------------------------------------------------------------

const PAGE = readFileSync(join(__dirname, "index.html"));

const http = createServer((request, response) => {
  if (request.method === "POST" && request.url === "/login") return login(request, response);
  if (request.url !== "/") return response.writeHead(404).end();
  return response.writeHead(200, { "Content-Type": "text/html; charset=utf-8" }).end(PAGE);
});

// --- Sockets ----------------------------------------------------------------------------------------

const io = new Server(http);
const roomOf = (name) => `room:${name}`;
const userRoom = (user) => `user:${user}`;

io.use((socket, next) => {
  const user = verify(socket.handshake.auth.token);
  if (!user) return next(new Error("invalid token"));
  socket.data.user = user;
  return next();
});

io.on("connection", (socket) => {
  const { user } = socket.data;
  socket.join(userRoom(user));

  socket.on("join", async (room, done) => {
    if (typeof room !== "string" || !room.trim()) return done({ error: "a room needs a name" });
    socket.join(roomOf(room));
    socket.to(roomOf(room)).emit("joined", { room, user });
    const members = await io.in(roomOf(room)).fetchSockets();
    return done({ members: [...new Set(members.map(({ data }) => data.user))].sort() });
  });

  socket.on("leave", (room, done) => {
    socket.leave(roomOf(room));
    socket.to(roomOf(room)).emit("left", { room, user });
    done({});
  });

  socket.on("message", (room, text, done) => {
    if (!socket.rooms.has(roomOf(room))) return done({ error: "join the room first" });
    if (typeof text !== "string" || !text.trim()) return done({ error: "say something" });
    socket.to(roomOf(room)).emit("message", { room, from: user, text });
    return done({});
  });

  socket.on("private message", (to, text, done) => {
    if (!Object.hasOwn(PASSWORDS, to)) return done({ error: "no such user" });
    socket.to(userRoom(to)).emit("private message", { from: user, text });
    return done({});
  });

  socket.on("typing", (room, isTyping) => {
    if (socket.rooms.has(roomOf(room))) socket.to(roomOf(room)).emit("typing", { room, user, isTyping });
  });

  socket.on("disconnecting", () => {
    for (const name of socket.rooms) {
      const room = /^room:(.*)$/s.exec(name)?.[1];
      if (room !== undefined) socket.to(name).emit("left", { room, user });
    }
  });
});

http.listen(Number(process.argv[2] ?? 3000), "127.0.0.1", () => {
  console.log(`listening on http://127.0.0.1:${http.address().port}`);
});
