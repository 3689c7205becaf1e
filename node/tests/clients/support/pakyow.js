// Clients of Pakyow's door, and the calls of the application behind it.

"use strict";

const assert = require("node:assert/strict");
const WebSocket = require("ws");

const { PATIENCE } = require("./browser");
const { apiKey } = require("./nodes");
const { deadline, until } = require("./wait");

const KEY = "key of the application";

/** The key of the application as a part of the settings. */
const APPLICATION_KEY = apiKey("application", KEY, ["join", "leave", "emit"], ["/pakyow"]);

/** One pair of connection id and key, as calls name it and as a WebSocket does. */
const PAIR = { connection_id: "abc", socket_key: "k1" };
const PAIR_QUERY = "socket_connection_id=abc&socket_key=k1";

/** Opens a WebSocket; `heard` collects its frames, and `closed` resolves to the code of its end. */
async function connect(node, query = PAIR_QUERY) {
  const socket = new WebSocket(`${node.url.replace("http", "ws")}/?${query}`);
  const heard = [];
  let pings = 0;
  socket.on("message", (data) => heard.push(JSON.parse(data)));
  const closed = new Promise((resolve) => socket.once("close", resolve));
  const opened = new Promise((resolve, reject) => {
    socket.once("open", resolve);
    socket.once("error", reject);
  });
  await deadline(opened, PATIENCE, "the socket");
  // It stays when the node goes.
  socket.on("error", () => {});
  const reply = (id) => until(`the reply to ${id}`, () => heard.find((frame) => frame.id === id), PATIENCE);
  const client = {
    socket,
    heard,
    closed: () => deadline(closed, PATIENCE, "the end of the socket"),
    close: () => socket.terminate(),
    payloads: () => heard.filter((frame) => "payload" in frame).map(({ payload }) => payload),
    hears: (payload) => until(`the push of ${payload}`, () => client.payloads().includes(payload), PATIENCE),
    /** Resolves when whatever was written before has arrived, and when it is subscribed. */
    ping() {
      const id = `ping ${++pings}`;
      socket.send(JSON.stringify({ id, action: "ping" }));
      return reply(id);
    },
    call(uri) {
      const id = `call ${++pings}`;
      socket.send(JSON.stringify({ id, action: "call-route", method: "GET", uri }));
      return reply(id);
    },
  };
  await client.ping();
  return client;
}

/** Calls a node as the application, and returns the status and the body of the response. */
async function tryCall(node, name, body) {
  const response = await fetch(`${node.internal}/pakyow/${name}`, {
    method: "POST",
    headers: { "content-type": "application/json", authorization: `Bearer ${KEY}` },
    body: JSON.stringify(body),
  });
  return { status: response.status, body: await response.json() };
}

async function call(node, name, body) {
  const result = await tryCall(node, name, body);
  assert.equal(result.status, 200, JSON.stringify(result.body));
  return result.body;
}

const subscribe = (node, ...channels) => call(node, "subscribe", { channels, ...PAIR });
const unsubscribe = (node, ...channels) => call(node, "unsubscribe", { channels, ...PAIR });
const push = (node, message, ...channels) => call(node, "push", { message, channels });

module.exports = { KEY, APPLICATION_KEY, PAIR, PAIR_QUERY, connect, tryCall, call, subscribe, unsubscribe, push };
