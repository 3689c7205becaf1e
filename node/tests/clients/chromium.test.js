// The demo page in a real browser: two tabs, one room, on one node and on two. TEST_DEMO is the command
// that serves the page and prints its URL, and takes the options of a node; ROOMCAST the program, which
// emits to the page; TEST_CHROMIUM the browser's program.
//
// The page is known by these ids alone: #status (attribute data-state is "connected" once it is),
// #room and #join to enter a room, #rooms the rooms entered, with a button for each that selects it,
// #leave for the selected one, #who its members, #text and #send to write to it, #log what was said.

"use strict";

const assert = require("node:assert/strict");
const { execFile, spawn } = require("node:child_process");
const { join } = require("node:path");
const { createInterface } = require("node:readline");
const { after, afterEach, before, beforeEach, test } = require("node:test");
const { promisify } = require("node:util");

const { startRedis } = require("./cluster/redis");
const { PATIENCE, startBrowser } = require("./support/browser");
const { deadline } = require("./support/wait");

let browser;
// What a test starts, and what its pages complain of and ask for.
let started;
let complaints;
let hosts;

before(async () => {
  browser = await startBrowser();
  browser.context.on("request", (request) => hosts.add(new URL(request.url()).host));
});

after(() => browser?.stop());

beforeEach(() => {
  started = [];
  complaints = [];
  hosts = new Set();
});

afterEach(async () => {
  for (const one of started.reverse()) await one.stop();
});

test("rooms, members and messages are seen by both tabs, and by nobody who left", async () => {
  const demo = await startDemo();
  const ada = await openTab(demo.url);
  const bob = await openTab(demo.url);
  assert.notEqual(ada.id, bob.id);

  await ada.enter("tea");
  await bob.enter("tea");
  await ada.sees("#who", bob.id);
  await bob.sees("#who", ada.id);

  await ada.say("milk & <sugar>?");
  await bob.sees("#log", "milk & <sugar>?");
  await ada.sees("#log", "milk & <sugar>?");
  await bob.say("no, thanks 🍋");
  await ada.sees("#log", "no, thanks 🍋");

  // A second room shows when what must not arrive would have arrived.
  await ada.enter("fence");
  await bob.enter("fence");
  await bob.select("tea");
  await bob.page.click("#leave");
  await ada.select("tea");
  await ada.misses("#who", bob.id);
  await ada.say("only for those who stayed");
  await ada.sees("#log", "only for those who stayed");
  await ada.select("fence");
  await ada.say("for everybody");
  await bob.select("fence");
  await bob.sees("#log", "for everybody");
  assert.ok(bob.received.some((frame) => frame.includes("for everybody")));
  assert.ok(!bob.received.some((frame) => frame.includes("only for those who stayed")));

  await bob.page.close();
  await ada.misses("#who", bob.id);

  assert.deepEqual([...hosts], [new URL(demo.url).host]);
  assert.deepEqual(complaints, []);
});

test("a page written for Node.js loads the official client from the server, with its source map", async () => {
  const bundles = join(require.resolve("socket.io-client"), "../../../dist");
  const options = ["--access=open", "--client-rooms", "--client-files", bundles];
  options.push("--listen", "127.0.0.1:0", "--internal-listen", "127.0.0.1:0");
  const address = await startProgram(`${process.env.ROOMCAST} serve`, options, "stderr", /(?<=address=)\S+/);
  const page = await browser.context.newPage();
  // The application's own page, on the same host.
  let name;
  await page.route(`http://${address}/`, (route) => {
    const body = `<script src="/socket.io/${name}"></script>`;
    return route.fulfill({ contentType: "text/html", body });
  });
  for (name of ["socket.io.js", "socket.io.min.js"]) {
    await page.goto(`http://${address}/`);
    const echo = await page.evaluate(async () => {
      const socket = window.io();
      const heard = await socket.timeout(10_000).emitWithAck("echo", "from the bundle");
      socket.disconnect();
      return heard;
    });
    assert.equal(echo, "from the bundle", name);
  }
  name = "socket.io.msgpack.min.js";
  await page.goto(`http://${address}/`);
  assert.equal(await page.evaluate(() => typeof window.io), "function");
  const map = await fetch(`http://${address}/socket.io/socket.io.min.js.map`);
  assert.ok((await map.json()).sources.length > 0);
  await page.close();
});

test("tabs on two nodes see each other, and what a program emits", async () => {
  const redis = await startRedis();
  started.push(redis);
  const [one, two] = [await startDemo("--redis", redis.url), await startDemo("--redis", redis.url)];
  assert.notEqual(one.url, two.url);
  const ada = await openTab(one.url);
  const bob = await openTab(two.url);

  await ada.enter("tea");
  await bob.enter("tea");
  await ada.sees("#who", bob.id);
  await bob.sees("#who", ada.id);
  await ada.say("from node to node");
  await bob.sees("#log", "from node to node");
  await bob.say("and back");
  await ada.sees("#log", "and back");

  const news = { room: "tea", from: "the kitchen", data: "it is ready" };
  const { stdout } = await promisify(execFile)(process.env.ROOMCAST, [
    "emit", "--redis", redis.url, "--room", "tea", "--confirm", "message", JSON.stringify(news),
  ], { cwd: process.env.TEST_FOLDER, env: {}, timeout: PATIENCE });
  assert.equal(stdout, "1 message emitted, reached 2 sockets on 2 nodes\n");
  for (const tab of [ada, bob]) {
    await tab.sees("#log", "it is ready");
    await tab.sees("#log", "the kitchen");
    // Once each, whoever said it.
    for (const text of ["from node to node", "and back", "it is ready"]) {
      assert.equal(tab.received.filter((frame) => frame.includes(text)).length, 1, text);
    }
  }

  await bob.page.close();
  await ada.misses("#who", bob.id);
  assert.deepEqual([...hosts], [one, two].map(({ url }) => new URL(url).host));
  assert.deepEqual(complaints, []);
});

async function openTab(url) {
  const page = await browser.context.newPage();
  started.push({ stop: () => page.close() });
  const received = [];
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) complaints.push(message.text());
  });
  page.on("pageerror", (error) => complaints.push(error.message));
  page.on("websocket", (socket) => {
    hosts.add(new URL(socket.url()).host);
    socket.on("framereceived", ({ payload }) => received.push(String(payload)));
  });
  await page.goto(url);
  await page.waitForSelector("#status[data-state=connected]");
  const connect = received.find((frame) => frame.startsWith("40{"));
  return new Tab(page, JSON.parse(connect.slice(2)).sid, received);
}

class Tab {
  constructor(page, id, received) {
    this.page = page;
    this.id = id;
    this.received = received;
  }

  async enter(room) {
    await this.page.fill("#room", room);
    await this.page.click("#join");
    await this.sees("#who", this.id);
    await this.sees("#rooms", room);
  }

  async select(room) {
    await this.page.locator("#rooms button", { hasText: room }).click();
  }

  async say(text) {
    await this.page.fill("#text", text);
    await this.page.click("#send");
  }

  sees(selector, text) {
    return this.page.locator(selector).filter({ hasText: text }).waitFor();
  }

  misses(selector, text) {
    return this.page.locator(selector).filter({ hasNotText: text }).waitFor();
  }
}

/** A node that serves the page, which ends with the test. */
async function startDemo(...options) {
  const url = await startProgram(process.env.TEST_DEMO, options, "stdout", /http:\/\/[^\s/]+\/?/);
  return { url };
}

/** A program that ends with the test; resolves to what it prints about its address. */
async function startProgram(command, options, stream, pattern) {
  const child = spawn("/bin/sh", ["-c", `exec ${command} "$@"`, "sh", ...options], {
    cwd: process.env.TEST_FOLDER,
    stdio: ["ignore", "pipe", stream === "stderr" ? "pipe" : "inherit"],
  });
  const exited = new Promise((resolve) => child.once("exit", resolve));
  const orphanGuard = () => child.kill("SIGKILL");
  process.on("exit", orphanGuard);
  const printed = new Promise((resolve, reject) => {
    createInterface({ input: child[stream] }).on("line", (line) => {
      const match = pattern.exec(line);
      if (match) resolve(match[0]);
    });
    exited.then((code) => reject(new Error(`${command} ended at once (${code})`)));
  });
  started.push({
    async stop() {
      child.kill("SIGTERM");
      await deadline(exited, PATIENCE, "the program to stop after SIGTERM");
      process.removeListener("exit", orphanGuard);
    },
  });
  return deadline(printed, PATIENCE, "the program to print its address");
}
