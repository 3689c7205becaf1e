// The example application of deploy/examples/pakyow behind two nodes over a real Redis, with its page in a
// real browser. ROOMCAST is the program, TEST_CHROMIUM the browser's.

"use strict";

const assert = require("node:assert/strict");
const { spawn } = require("node:child_process");
const { createHash } = require("node:crypto");
const { join } = require("node:path");
const { after, afterEach, before, beforeEach, test } = require("node:test");
const WebSocket = require("ws");

const { startRedis } = require("./cluster/redis");
const { startBrowser, PATIENCE } = require("./support/browser");
const { startGateway } = require("./support/gateway");
const { sparePort } = require("./support/ports");
const { deadline, until } = require("./support/wait");

const APPLICATION = join(__dirname, "../../../deploy/examples/pakyow/app.py");
const KEY = "key of the application";

let browser;
let redis;
let nodes;
let applications;
const closing = [];

before(async () => {
  browser = await startBrowser();
  redis = await startRedis();
});

after(async () => {
  await browser?.stop();
  await redis?.stop();
});

beforeEach(async () => {
  const ports = [await sparePort(), await sparePort()];
  const hash = createHash("sha256").update(KEY).digest("hex");
  const settings = `
    redis = "${redis.url}"
    cors_origin = ["http://127.0.0.1:${ports[0]}"]
    [namespaces."/pakyow"]
    access = "open"
    [doors.pakyow]
    application = "http://127.0.0.1:${ports[0]}"
    actions = "/actions"
    [doors.pakyow.hook]
    url = "http://127.0.0.1:${ports[0]}/pakyow/hook"
    timeout = "20s"
    [[api.keys]]
    name = "application"
    hash = "sha256:${hash}"
    namespaces = ["/pakyow"]
    verbs = ["join", "leave", "emit"]
  `;
  nodes = [await startGateway(settings), await startGateway(settings)];
  // The page is of the first one, whose calls go to the first node. Its socket is at the second node.
  applications = [
    await startApplication(ports[0], nodes[0], nodes[1].url.replace("http", "ws")),
    await startApplication(ports[1], nodes[1], ""),
  ];
});

afterEach(async () => {
  for (const close of closing.splice(0)) await close();
  for (const application of applications?.splice(0) ?? []) application.stop();
  for (const node of nodes?.splice(0) ?? []) await node.stop();
});

test("a page hears pushes of other requests and nodes, and calls routes over its socket", { timeout: 240_000 }, async () => {
  const page = await browser.context.newPage();
  closing.push(() => page.close());
  await page.goto(applications[0].url);
  const call = (method, uri, input) => page.evaluate((args) => socket.call(...args), [method, uri, input]);
  await page.waitForFunction(() => socket.ws.readyState === WebSocket.OPEN);
  const pong = await page.evaluate(() => socket.send({ action: "ping" }));
  assert.deepEqual([pong.status, pong.body], [200, "pong"]);

  for (const [index, text] of [[0, "from this node"], [1, "from another instance"]]) {
    await fetch(`${applications[index].url}publish?text=${encodeURIComponent(text)}`);
    await page.waitForSelector(`li[data-channel=news]:has-text("${text}")`);
  }

  // The route subscribes this very socket, at another node, before it responds.
  const { status, body } = await call("GET", "/more", { a: "b" });
  assert.equal(status, 200);
  assert.match(body, /^subscribed with a=b&socket_connection_id=[0-9a-f]{64}$/);
  await push(nodes[0], { message: { sky: "blue" }, channels: ["weather"] });
  await page.waitForSelector('li[data-channel=weather]:has-text("blue")');
  await push(nodes[0], { message: "for all", channels: ["w*", "n*s"] });
  for (const channel of ["weather", "news"]) {
    await page.waitForSelector(`li[data-channel=${channel}]:has-text("for all")`);
  }
  assert.equal((await call("GET", "/nowhere")).status, 404);
  const view = await page.evaluate(() => socket.send({ action: "fetch-view", lookup: { channel: "news" } }));
  assert.match(view.body, /^fetch-view: \['action', 'id', 'input', 'lookup'\]$/);
  // Another visitor's page cannot take its place: the key is in the session.
  const id = await page.evaluate(() => socket.id);
  const stranger = new WebSocket(`${nodes[1].url.replace("http", "ws")}/?socket_connection_id=${id}`);
  closing.push(() => stranger.terminate());
  const heard = [];
  stranger.on("message", (data) => heard.push(JSON.parse(data)));
  await deadline(new Promise((resolve) => stranger.once("open", resolve)), PATIENCE, "the stranger's socket");
  await push(nodes[1], { message: 1, channels: ["news"] });
  stranger.send(JSON.stringify({ id: 1, action: "ping" }));
  await until("the reply", () => heard.length > 0, PATIENCE);
  assert.equal(heard[0].id, 1);
});

test("the stock client's reconnect hears nothing until the page subscribes again, at any node", { timeout: 240_000 }, async () => {
  const pair = { connection_id: "abc", socket_key: "k1" };
  await call(nodes[0], "subscribe", { channels: ["a"], ...pair });
  const first = await connect(nodes[1]);
  await push(nodes[0], { message: 1, channels: ["a"] });
  await until("the push", () => first.heard.some(({ payload }) => payload === 1), PATIENCE);
  first.socket.terminate();
  await until("the end of its subscriptions", async () => (await redis.command("KEYS", "*pk:sub:*")).length === 0, PATIENCE);
  const second = await connect(nodes[0]);
  await push(nodes[1], { message: 2, channels: ["a"] });
  await call(nodes[1], "subscribe", { channels: ["a"], ...pair });
  await push(nodes[1], { message: 3, channels: ["a"] });
  await until("the push", () => second.heard.some(({ payload }) => payload === 3), PATIENCE);
  assert.deepEqual(second.heard.filter((frame) => "payload" in frame).map(({ payload }) => payload), [3]);
  await call(nodes[1], "unsubscribe", { channels: ["a"], ...pair });
  await push(nodes[0], { message: 4, channels: ["a"] });
  const { digest } = await call(nodes[1], "subscribe", { channels: ["b"], ...pair });
  await call(nodes[1], "push_to", { digest, channel: "own", message: 5 });
  await until("the message", () => second.heard.some(({ channel }) => channel === "own"), PATIENCE);
  assert.ok(!second.heard.some(({ payload }) => payload === 4));
});

/** A client whose subscriptions are in force. */
async function connect(node) {
  const socket = new WebSocket(`${node.url.replace("http", "ws")}/?socket_connection_id=abc&socket_key=k1`);
  closing.push(() => socket.terminate());
  const heard = [];
  socket.on("message", (data) => heard.push(JSON.parse(data)));
  await deadline(new Promise((resolve) => socket.once("open", resolve)), PATIENCE, "the socket");
  socket.send(JSON.stringify({ id: "p", action: "ping" }));
  await until("the reply", () => heard.some(({ id }) => id === "p"), PATIENCE);
  return { socket, heard };
}

function push(node, body) {
  return call(node, "push", body);
}

async function call(node, name, body) {
  const response = await fetch(`${node.internal}/pakyow/${name}`, {
    method: "POST",
    headers: { "content-type": "application/json", authorization: `Bearer ${KEY}` },
    body: JSON.stringify(body),
  });
  const result = await response.json();
  assert.equal(response.status, 200, JSON.stringify(result));
  return result;
}

async function startApplication(port, node, socket) {
  const env = { ...process.env, ROOMCAST_KEY: KEY, ROOMCAST_CALLS: node.internal, ROOMCAST_SOCKET: socket };
  const child = spawn("python3", [APPLICATION, String(port)], { env, stdio: ["ignore", "pipe", "inherit"] });
  const orphanGuard = () => child.kill("SIGKILL");
  process.on("exit", orphanGuard);
  const started = new Promise((resolve, reject) => {
    child.stdout.once("data", (data) => resolve(String(data).trim()));
    child.once("exit", (code) => reject(new Error(`the application ended with ${code}`)));
  });
  const url = await deadline(started, PATIENCE, "the application");
  return {
    url,
    stop() {
      process.removeListener("exit", orphanGuard);
      child.kill();
    },
  };
}
