// The example application of deploy/examples/pakyow behind two nodes over a real Redis, with its page in a
// real browser. ROOMCAST is the program, TEST_CHROMIUM the browser's.

"use strict";

const assert = require("node:assert/strict");
const { spawn } = require("node:child_process");
const { join } = require("node:path");
const { afterEach, beforeEach, test } = require("node:test");

const { PATIENCE } = require("./support/browser");
const { useNodes } = require("./support/nodes");
const { KEY, APPLICATION_KEY, PAIR, call, connect, push, subscribe, unsubscribe } = require("./support/pakyow");
const { sparePort } = require("./support/ports");
const { deadline, until } = require("./support/wait");

const APPLICATION = join(__dirname, "../../../deploy/examples/pakyow/app.py");

let ports;
let applications;

const parts = useNodes({
  hasBrowser: true,
  async settings(redis) {
    ports = [await sparePort(), await sparePort()];
    return `
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
      ${APPLICATION_KEY}
    `;
  },
});
const { closing } = parts;

beforeEach(async () => {
  const { nodes } = parts;
  // The page is of the first one, whose calls go to the first node. Its socket is at the second node.
  applications = [
    await startApplication(ports[0], nodes[0], nodes[1].url.replace("http", "ws")),
    await startApplication(ports[1], nodes[1], ""),
  ];
});

afterEach(() => {
  for (const application of applications?.splice(0) ?? []) application.stop();
});

test("a page hears pushes of other requests and nodes, and calls routes over its socket", { timeout: 240_000 }, async () => {
  const { browser, nodes } = parts;
  const page = await browser.context.newPage();
  closing.push(() => page.close());
  await page.goto(applications[0].url);
  const callRoute = (method, uri, input) => page.evaluate((args) => socket.call(...args), [method, uri, input]);
  await page.waitForFunction(() => socket.ws.readyState === WebSocket.OPEN);
  const pong = await page.evaluate(() => socket.send({ action: "ping" }));
  assert.deepEqual([pong.status, pong.body], [200, "pong"]);

  for (const [index, text] of [[0, "from this node"], [1, "from another instance"]]) {
    await fetch(`${applications[index].url}publish?text=${encodeURIComponent(text)}`);
    await page.waitForSelector(`li[data-channel=news]:has-text("${text}")`);
  }

  // The route subscribes this very socket, at another node, before it responds.
  const { status, body } = await callRoute("GET", "/more", { a: "b" });
  assert.equal(status, 200);
  assert.match(body, /^subscribed with a=b&socket_connection_id=[0-9a-f]{64}$/);
  await push(nodes[0], { sky: "blue" }, "weather");
  await page.waitForSelector('li[data-channel=weather]:has-text("blue")');
  await push(nodes[0], "for all", "w*", "n*s");
  for (const channel of ["weather", "news"]) {
    await page.waitForSelector(`li[data-channel=${channel}]:has-text("for all")`);
  }
  assert.equal((await callRoute("GET", "/nowhere")).status, 404);
  const view = await page.evaluate(() => socket.send({ action: "fetch-view", lookup: { channel: "news" } }));
  assert.match(view.body, /^fetch-view: \['action', 'id', 'input', 'lookup'\]$/);
  // Another visitor's page cannot take its place: the key is in the session.
  const id = await page.evaluate(() => socket.id);
  const stranger = await connect(nodes[1], `socket_connection_id=${id}`);
  closing.push(() => stranger.close());
  await push(nodes[1], 1, "news");
  await stranger.ping();
  assert.deepEqual(stranger.payloads(), []);
});

test("the stock client's reconnect hears nothing until the page subscribes again, at any node", { timeout: 240_000 }, async () => {
  const { nodes, redis } = parts;
  await subscribe(nodes[0], "a");
  const first = await connect(nodes[1]);
  await push(nodes[0], 1, "a");
  await first.hears(1);
  first.close();
  await until("the end of its subscriptions", async () => (await redis.command("KEYS", "*pk:sub:*")).length === 0, PATIENCE);
  const second = await connect(nodes[0]);
  closing.push(() => second.close());
  await push(nodes[1], 2, "a");
  await subscribe(nodes[1], "a");
  await push(nodes[1], 3, "a");
  await second.hears(3);
  assert.deepEqual(second.payloads(), [3]);
  await unsubscribe(nodes[1], "a");
  await push(nodes[0], 4, "a");
  const { digest } = await call(nodes[1], "subscribe", { channels: ["b"], ...PAIR });
  await call(nodes[1], "push_to", { digest, channel: "own", message: 5 });
  await second.hears(5);
  assert.deepEqual(second.payloads(), [3, 5]);
});

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
