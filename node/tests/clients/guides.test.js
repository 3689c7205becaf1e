// The examples for guides to Socket.IO 1 and 2, with the client of that time, the old emitter and today's client.
// TEST_EXAMPLES is the folder with the built examples.

"use strict";

const assert = require("node:assert/strict");
const { spawn } = require("node:child_process");
const { resolve } = require("node:path");
const { createInterface } = require("node:readline");
const { after, afterEach, before, describe, test } = require("node:test");
const { io } = require("socket.io-client");
const io2 = require("socket.io-client-2");
const createOldEmitter = require("socket.io-emitter");

const { startRedis } = require("./cluster/redis");
const { deadline, next } = require("./support/wait");

const PATIENCE = 15_000;

const sockets = [];
afterEach(() => {
  for (const socket of sockets.splice(0)) socket.close();
});

/** A client of Socket.IO 2. The option that gives it a connection of its own has the name from the guides. */
async function old(url, options = {}) {
  const socket = io2(url, { "force new connection": true, ...options });
  sockets.push(socket);
  await next(socket, "connect");
  return socket;
}

async function modern(url, options = {}) {
  const socket = io(url, { forceNew: true, ...options });
  sockets.push(socket);
  await next(socket, "connect");
  return socket;
}

/** Emits and waits for the acknowledgement. */
function ask(socket, ...args) {
  return deadline(new Promise((resolve) => socket.emit(...args, resolve)), PATIENCE, `the answer to ${args[0]}`);
}

describe("rooms", () => {
  let server;
  before(async () => (server = await start("rooms")));
  after(() => server?.stop());

  test("members hear each other, whatever their clients' age", async () => {
    const [ada, ben, eve] = [await old(server.url), await modern(server.url), await old(server.url)];
    await ask(ada, "join", "tea");
    await ask(ben, "join", "tea");
    const heard = next(ben, "said");
    await ask(ada, "say", "tea", "hello");
    assert.deepEqual(await heard, ["hello"]);
    const announced = [ada, ben].map((socket) => next(socket, "announced"));
    await ask(eve, "announce", "tea", "closing");
    assert.deepEqual(await Promise.all(announced), [["closing"], ["closing"]]);
  });

  test("who has left a room hears nothing more of it", async () => {
    const [ada, ben] = [await old(server.url), await old(server.url)];
    const heard = [];
    ben.on("said", (text) => heard.push(text));
    ben.on("whispered", (_, text) => heard.push(text));
    await ask(ben, "join", "tea");
    await ask(ben, "leave", "tea");
    await ask(ada, "say", "tea", "to nobody");
    const whispered = next(ben, "whispered");
    await ask(ada, "whisper", ben.id, "to you");
    await whispered;
    assert.deepEqual(heard, ["to you"]);
  });

  test("the id of a socket is a room of its own, which others cannot join", async () => {
    const [ada, ben, eve] = [await old(server.url), await modern(server.url), await old(server.url)];
    await ask(eve, "join", ben.id);
    let overheard = 0;
    eve.on("whispered", () => (overheard += 1));
    const whispered = next(ben, "whispered");
    await ask(ada, "whisper", ben.id, "psst");
    assert.deepEqual(await whispered, [ada.id, "psst"]);
    await ask(eve, "announce", "anything", "");
    assert.equal(overheard, 0);
  });

  test("a socket leaves its rooms when it disconnects", async () => {
    const [ada, ben] = [await old(server.url), await old(server.url)];
    await ask(ada, "join", "tea");
    await ask(ben, "join", "tea");
    const id = ben.id;
    const left = next(ada, "left");
    ben.close();
    assert.deepEqual(await left, [id]);
  });
});

describe("topics", () => {
  let redis;
  let server;
  before(async () => {
    redis = await startRedis();
    server = await start("topics", { REDIS: redis.url });
  });
  after(async () => {
    await server?.stop();
    await redis?.stop();
  });

  test("a page with a connection for each topic hears each topic on its own", async () => {
    const weather = await old(server.url, { query: { topic: "weather" } });
    const traffic = await old(server.url, { query: { topic: "traffic" } });
    const reader = await modern(server.url, { query: { topic: "weather" } });
    assert.notEqual(weather.id, traffic.id);
    const news = [weather, reader].map((socket) => next(socket, "news"));
    const other = next(traffic, "news");
    await ask(weather, "news", "rain");
    await ask(traffic, "news", "jam");
    assert.deepEqual([...(await Promise.all(news)), await other], [["rain"], ["rain"], ["jam"]]);
  });

  test("an emitter that was created with host and port reaches the clients of a topic", async () => {
    const weather = await old(server.url, { query: { topic: "weather" } });
    const sports = await old(server.url, { query: { topic: "sports" } });
    const emitter = createOldEmitter({ host: "127.0.0.1", port: redis.port });
    try {
      const news = [weather, sports].map((socket) => next(socket, "news"));
      emitter.in("weather").emit("news", "snow");
      emitter.to("sports").emit("news", "goal");
      assert.deepEqual(await Promise.all(news), [["snow"], ["goal"]]);
    } finally {
      emitter.redis.end(true);
    }
  });

  test("a topic that does not exist is refused", async () => {
    const socket = io(server.url, { forceNew: true, query: { topic: "gossip" } });
    sockets.push(socket);
    const [error] = await next(socket, "connect_error");
    assert.equal(error.message, "no such topic");
  });
});

/** Starts an example on a free port. */
async function start(name, environment = {}) {
  // A relative folder is the caller's.
  const command = resolve(process.env.TEST_FOLDER, process.env.TEST_EXAMPLES, name);
  const child = spawn(command, { env: { PORT: "0", ...environment }, stdio: ["ignore", "pipe", "inherit"] });
  const exited = new Promise((end) => child.once("exit", end));
  const listening = new Promise((found, reject) => {
    createInterface({ input: child.stdout }).on("line", (line) => {
      const [, address] = /listening on (.*)/.exec(line) ?? [];
      if (address) found(address);
    });
    child.once("error", reject);
    child.once("exit", (code) => reject(new Error(`${command} ended with ${code}`)));
  });
  const address = await deadline(listening, PATIENCE, `${command} to listen`);
  return {
    url: `http://${address}`,
    stop() {
      child.kill("SIGTERM");
      return exited;
    },
  };
}
