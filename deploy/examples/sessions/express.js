// An application of Express with Passport: Roomcast lets in whoever has logged in to it.
//
//     npm install express express-session passport passport-local
//     ROOMCAST_SECRET=… SESSION_SECRET=… node express.js [PORT]

"use strict";

const { createHmac, timingSafeEqual } = require("node:crypto");
const express = require("express");
const session = require("express-session");
const passport = require("passport");
const { Strategy } = require("passport-local");

// A real application has a database, and hashes of passwords.
const USERS = [{ id: "7", name: "ada", password: "lovelace" }];

passport.use(
  new Strategy((name, password, done) => {
    const user = USERS.find((each) => each.name === name && each.password === password);
    done(null, user ?? false);
  }),
);
passport.serializeUser((user, done) => done(null, user.id));
passport.deserializeUser((id, done) => done(null, USERS.find((user) => user.id === id) ?? false));

const app = express();
app.use(session({ secret: process.env.SESSION_SECRET, resave: false, saveUninitialized: false }));
app.use(passport.session());

app.post("/login", express.urlencoded(), passport.authenticate("local"), (request, response) => {
  response.json({ user: request.user.name });
});

app.post("/roomcast", express.raw({ type: "application/json" }), (request, response) => {
  if (!isGenuine(process.env.ROOMCAST_SECRET, request.get("Roomcast-Signature") ?? "", request.body)) {
    response.sendStatus(403);
    return;
  }
  response.json(respond(JSON.parse(request.body), request.user));
});

function respond({ type, event }, user) {
  // It may have logged out since it connected.
  if (!user) return [{ op: "refuse", message: "log in first" }];
  if (type === "connect") {
    return [
      { op: "set_user", user: user.id },
      { op: "set_data", data: { name: user.name } },
    ];
  }
  if (event === "whoami") return [{ op: "ack", args: [user.name] }];
  return [{ op: "refuse", message: "unknown event" }];
}

function isGenuine(secret, header, body) {
  const { t, v1 = "" } = Object.fromEntries(header.split(",").map((part) => part.split("=", 2)));
  const wanted = Buffer.from(createHmac("sha256", secret).update(`${t}.`).update(body).digest("hex"));
  const given = Buffer.from(v1);
  const isRecent = Math.abs(Date.now() / 1000 - Number(t)) < 300;
  // The lengths in bytes: a character beyond ASCII has several.
  return isRecent && given.length === wanted.length && timingSafeEqual(given, wanted);
}

app.listen(Number(process.argv[2] ?? 8000), "127.0.0.1");
