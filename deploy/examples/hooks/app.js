// A chat as an application behind Roomcast, with Express.
//
//     npm install express
//     ROOMCAST_SECRET=… node app.js [PORT]
//
// Roomcast posts the events of its clients, and carries out the operations of the response. Clients send arguments of
// any number and type. An exception would count as an outage of the application, so each function checks its arguments.

"use strict";

const { createHmac, timingSafeEqual } = require("node:crypto");
const express = require("express");

const SECRET = process.env.ROOMCAST_SECRET;
// Users by their tokens. A real application asks its sessions or its database.
const USERS = { "token-of-ada": "ada", "token-of-bob": "bob" };

function connect({ auth, socket }) {
  const isKnown = typeof auth.token === "string" && Object.hasOwn(USERS, auth.token);
  if (!isKnown) return [{ op: "refuse", message: "unknown token", data: { code: 401 } }];
  const user = USERS[auth.token];
  return [
    { op: "set_user", user },
    { op: "set_data", data: { name: user } },
    { op: "join", rooms: ["lobby"] },
    { op: "emit", event: "welcome", args: [user] },
    { op: "emit", event: "joined", args: [user], rooms: ["lobby"], except: [socket.id] },
  ];
}

const events = {
  message({ socket }, text) {
    if (typeof text !== "string" || !text.trim()) return [{ op: "refuse", message: "say something" }];
    return [
      { op: "emit", event: "message", args: [socket.data.name, text], rooms: ["lobby"] },
      { op: "ack", args: ["delivered"] },
    ];
  },
  whisper({ socket }, user, text) {
    if (!Object.values(USERS).includes(user) || typeof text !== "string") {
      return [{ op: "refuse", message: "name a user and say something" }];
    }
    return [
      { op: "emit", event: "whisper", args: [socket.user, text], users: [user] },
      { op: "ack", args: ["delivered"] },
    ];
  },
};

function disconnect({ socket }) {
  return [{ op: "emit", event: "left", args: [socket.user], rooms: ["lobby"] }];
}

function respond(request) {
  if (request.type === "connect") return connect(request);
  if (request.type === "disconnect") return disconnect(request);
  if (request.type === "batch") return request.events.map(respond);
  if (Object.hasOwn(events, request.event)) return events[request.event](request, ...request.args);
  return [{ op: "refuse", message: "unknown event" }];
}

function isGenuine(header, body) {
  const { t, v1 = "" } = Object.fromEntries(header.split(",").map((part) => part.split("=", 2)));
  const wanted = Buffer.from(createHmac("sha256", SECRET).update(`${t}.`).update(body).digest("hex"));
  const given = Buffer.from(v1);
  const isRecent = Math.abs(Date.now() / 1000 - Number(t)) < 300;
  // The lengths in bytes: a character beyond ASCII has several.
  return isRecent && given.length === wanted.length && timingSafeEqual(given, wanted);
}

const app = express();
// As bytes, because the signature is one of the bytes.
app.use(express.raw({ type: "application/json", limit: "2mb" }));
app.post("/", (request, response) => {
  if (!isGenuine(request.get("Roomcast-Signature") ?? "", request.body)) {
    response.sendStatus(403);
  } else {
    response.json(respond(JSON.parse(request.body)));
  }
});
app.listen(Number(process.argv[2] ?? 8000), "127.0.0.1");
