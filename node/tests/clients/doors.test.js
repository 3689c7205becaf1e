// One room, all doors: a message through each of them arrives at a member behind every other, on one node and across
// two over Redis. The settings are those of deploy/examples/doors. ROOMCAST is the program.

"use strict";

const assert = require("node:assert/strict");
const { createHash } = require("node:crypto");
const { readFileSync } = require("node:fs");
const { join } = require("node:path");
const { Emitter } = require("@socket.io/redis-emitter");
const { after, before, describe, test } = require("node:test");
const { createClient } = require("redis");
const { io } = require("socket.io-client");
const WebSocket = require("ws");

const { startRedis } = require("./cluster/redis");
const { startGateway } = require("./support/gateway");
const { ask, deadline, until } = require("./support/wait");

const EXAMPLE = readFileSync(join(__dirname, "../../../deploy/examples/doors/roomcast.toml"), "utf8");
const NAMESPACE = "/syncano/shop";
const ROOM = "news#lobby";
const API = { Authorization: "Bearer example-api-key", "Content-Type": "application/json" };
const SYNCANO = { "X-API-KEY": `${"e".repeat(39)}1`, "Content-Type": "application/json" };
const PAIR = { connection_id: "c".repeat(64), socket_key: "5".repeat(64) };
const PATIENCE = 30_000;

describe("one node", { timeout: 180_000 }, () => {
  let node;
  before(async () => (node = await startGateway(EXAMPLE)));
  after(() => node?.stop());

  for (const [name, send] of Object.entries(senders())) {
    test(`a message through ${name} arrives behind every door`, () => arrives(node, send, node));
  }
});

describe("two nodes over Redis", { timeout: 300_000 }, () => {
  let redis;
  let nodes = [];
  let publisher;
  before(async () => {
    redis = await startRedis();
    nodes = await Promise.all([1, 2].map(() => startGateway(EXAMPLE, { args: ["--redis", redis.url] })));
    publisher = await createClient({ url: redis.url }).connect();
  });
  after(async () => {
    publisher?.destroy();
    for (const node of nodes) await node.stop();
    await redis?.stop();
  });

  for (const [name, send] of Object.entries(senders(() => publisher))) {
    test(`a message through ${name} arrives behind every door of the other node`, () => arrives(nodes[0], send, nodes[1]));
  }
});

/** How a text is sent through each door of a node. The emitter needs Redis and no node. */
function senders(publisher) {
  const all = {
    "Socket.IO": async (node, text) => {
      const client = io(`${node.url}${NAMESPACE}`, { forceNew: true });
      try {
        assert.equal((await ask(client, "join", ROOM, { quiet: true })).error, undefined);
        const said = await ask(client, "message", ROOM, { text });
        assert.equal(said.error, undefined, JSON.stringify(said));
      } finally {
        client.close();
      }
    },
    "the HTTP API": (node, text) =>
      post(`${node.internal}/api/emit`, API, 200, { namespace: NAMESPACE, rooms: [ROOM], event: "message", args: [{ text }] }),
    "a POST of channels": (node, text) =>
      post(`${node.url}/channels/syncano%2Fshop/rooms/${encodeURIComponent(ROOM)}`, {}, 201, { data: { text } }),
    "a plain WebSocket": async (node, text) => {
      const socket = await open(`${node.url.replace("http", "ws")}/channels/syncano%2Fshop/events`);
      const reply = new Promise((resolve) => (socket.onmessage = ({ data }) => resolve(JSON.parse(data))));
      socket.send(JSON.stringify({ type: "publish", room: ROOM, data: { text } }));
      assert.equal((await deadline(reply, PATIENCE, "the reply")).type, "published");
      socket.close();
    },
    Syncano: (node, text) =>
      post(`${node.url}/v1.1/instances/shop/channels/news/publish/`, SYNCANO, 201, { room: "lobby", payload: { text } }),
    Pakyow: (node, text) => post(`${node.internal}/pakyow/push`, API, 200, { channels: [ROOM], message: { text } }),
  };
  if (publisher) {
    all["an emitter"] = async (_, text) => {
      new Emitter(publisher()).of(NAMESPACE).to(ROOM).emit("message", { text });
    };
  }
  return all;
}

/** Lets a member behind each door wait, sends, and compares what they receive. */
async function arrives(from, send, to) {
  const text = `a text ${createHash("sha256").update(String(Math.random())).digest("hex")}`;
  const members = await Promise.all(Object.entries(RECEIVERS).map(async ([name, wait]) => [name, await wait(to)]));
  try {
    // A request that waits may be accepted before it is in its room.
    await until("all members in the room", async () => (await membersAt(to)) === members.length, PATIENCE);
    await send(from, text);
    for (const [name, member] of members) {
      await until(`the message behind ${name}, which has ${JSON.stringify(member.received)}`, () => member.received.join().includes(text), PATIENCE);
    }
  } finally {
    for (const [, member] of members) await member.stop();
  }
}

/** The number of members of the room. Those of the test before leave as their connections end. */
async function membersAt(node) {
  const query = new URLSearchParams({ namespace: NAMESPACE, room: ROOM });
  const response = await fetch(`${node.internal}/api/sockets?${query}`, { headers: API });
  assert.equal(response.status, 200);
  return (await response.json()).sockets.length;
}

/**
 * A member of the room behind each door, or one that is about to join it. It joins quietly, because the event `joined`
 * would be what the polls have waited for.
 */
const RECEIVERS = {
  "Socket.IO": async (node) => {
    const received = [];
    const client = io(`${node.url}${NAMESPACE}`, { forceNew: true });
    client.onAny((...event) => received.push(JSON.stringify(event)));
    assert.equal((await ask(client, "join", ROOM, { quiet: true })).error, undefined);
    return { received, stop: () => client.close() };
  },
  "an event stream": async (node) => {
    const received = [];
    const abort = new AbortController();
    const url = `${node.url}/channels/syncano%2Fshop/rooms/${encodeURIComponent(ROOM)}/events`;
    const response = await fetch(url, { signal: abort.signal });
    assert.equal(response.status, 200);
    collect(response, received);
    // The first lines come when the room is joined.
    await until("the begin of the stream", () => received.length > 0, PATIENCE);
    return { received, stop: () => abort.abort() };
  },
  "a long poll": (node) =>
    poll(`${node.url}/channels/syncano%2Fshop/rooms/${encodeURIComponent(ROOM)}/poll`, {}),
  "a plain WebSocket": async (node) => {
    const received = [];
    const socket = await open(`${node.url.replace("http", "ws")}/channels/syncano%2Fshop/events`);
    socket.onmessage = ({ data }) => received.push(data);
    socket.send(JSON.stringify({ type: "subscribe", room: ROOM }));
    await until("the subscription", () => received.join().includes("subscribed"), PATIENCE);
    return { received, stop: () => socket.close() };
  },
  "Syncano's poll": (node) => poll(`${node.url}/v1.1/instances/shop/channels/news/poll/?room=lobby`, SYNCANO),
  Pakyow: async (node) => {
    const received = [];
    await post(`${node.internal}/pakyow/subscribe`, API, 200, { channels: [ROOM], ...PAIR });
    const query = new URLSearchParams({ socket_connection_id: PAIR.connection_id, socket_key: PAIR.socket_key });
    const socket = await open(`${node.url.replace("http", "ws")}/?${query}`);
    socket.onmessage = ({ data }) => received.push(data);
    // A reply shows that the subscriptions are in force.
    socket.send(JSON.stringify({ id: 1, action: "ping" }));
    await until("the reply", () => received.join().includes("pong"), PATIENCE);
    return {
      received,
      stop: async () => {
        const closed = new Promise((resolve) => (socket.onclose = resolve));
        socket.close();
        await closed;
      },
    };
  },
};

/** A request that waits. */
async function poll(url, headers) {
  const received = [];
  const abort = new AbortController();
  const response = fetch(url, { headers, signal: abort.signal });
  response.then((response) => collect(response, received)).catch((error) => received.push(String(error)));
  return { received, stop: () => abort.abort() };
}

async function collect(response, received) {
  const decoder = new TextDecoder();
  try {
    for await (const chunk of response.body) received.push(decoder.decode(chunk));
  } catch {
    // Aborted at the end of the test.
  }
}

async function post(url, headers, status, body) {
  const response = await fetch(url, { method: "POST", headers, body: JSON.stringify(body) });
  const text = await response.text();
  assert.equal(response.status, status, text);
  return JSON.parse(text);
}

async function open(url) {
  const socket = new WebSocket(url);
  await deadline(new Promise((resolve, reject) => {
    socket.onopen = resolve;
    socket.onerror = (event) => reject(new Error(`the WebSocket does not open: ${event.message}`));
  }), PATIENCE, "the WebSocket");
  return socket;
}
