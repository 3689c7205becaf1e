// The demo page in a real browser: two tabs, one room, on one node and on two, with its own client and with the official
// one. TEST_DEMO is the command that serves the page and prints its URL, and takes the options of a node; ROOMCAST the
// program, which emits to the page; TEST_CHROMIUM the browser's program.
//
// The page is known by these ids: #status (attribute data-state is "connected" once it is, title the id of the socket),
// #transport, #node, #nodes and #client for what it uses, #me to open the dialog with #name, the radio buttons of #colours
// and #save, #room and #join to enter a room, #rooms the rooms entered, with a button for each that selects it, #leave for
// the selected one, #who its members, #text and #send to write to it, #typing, #log what was said.

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

const BUNDLES = join(require.resolve("socket.io-client"), "../../../dist");

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

for (const [client, options] of [["minimal", []], ["official", ["--client-files", BUNDLES]]]) {
  test(`rooms, members and messages are seen by both tabs, and by nobody who left, with the ${client} client`, async () => {
    const demo = await startDemo(...options);
    const ada = await openTab(demo.url, "Ada");
    const bob = await openTab(demo.url, "Bob");
    assert.notEqual(ada.id, bob.id);
    await ada.sees("#client", client);
    await ada.sees("#node", new URL(demo.url).host);

    await ada.enter("tea");
    await bob.enter("tea");
    await ada.sees("#who", "Bob");
    await bob.sees("#who", "Ada");

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
    await ada.misses("#who", "Bob");
    await ada.say("only for those who stayed");
    await ada.sees("#log", "only for those who stayed");
    await ada.select("fence");
    await ada.say("for everybody");
    await bob.select("fence");
    await bob.sees("#log", "for everybody");
    assert.ok(bob.received.some((frame) => frame.includes("for everybody")));
    assert.ok(!bob.received.some((frame) => frame.includes("only for those who stayed")));

    await bob.page.close();
    await ada.misses("#who", "Bob");

    const policy = (await fetch(demo.url)).headers.get("content-security-policy");
    assert.match(policy, /default-src 'none'; script-src 'self';/);
    assert.doesNotMatch(policy, /unsafe|[:*]\/\//);
    assert.deepEqual([...hosts], [new URL(demo.url).host]);
    assert.deepEqual(complaints, []);
  });
}

test("names, colours, typing, unread messages and the history of a room are shown", async () => {
  const demo = await startDemo();
  const ada = await openTab(demo.url, "Ada", 5);
  const bob = await openTab(demo.url, "Bob", 3);
  await ada.sees("#who", "Bob");
  await ada.enter("tea");
  await bob.enter("tea");
  await ada.sees("#who", "Bob");
  const faces = ada.page.locator("#who li", { hasText: "Bob" }).locator(".face[data-colour='3']");
  await faces.waitFor();

  await bob.page.locator("#text").pressSequentially("hm");
  await ada.sees("#typing", "Bob is typing");
  await bob.page.keyboard.press("Enter");
  await ada.sees("#log li[data-colour='3']", "hm");
  await ada.misses("#typing", "Bob is typing");

  await ada.select("lobby");
  for (const text of ["one", "two"]) await bob.say(text);
  await ada.sees("#rooms button .unread", "2");
  await ada.page.waitForFunction(() => document.title.startsWith("(2)"));
  await ada.page.keyboard.press("Alt+ArrowDown");
  await ada.sees("#room-title", "tea");
  await ada.sees("#log", "two");
  await ada.page.locator("#rooms .unread").waitFor({ state: "detached" });

  await bob.call("Robert", 2);
  await ada.sees("#who", "Robert");
  await ada.sees("#log", "Bob is now Robert");

  const eve = await openTab(demo.url, "Eve");
  await eve.enter("tea");
  for (const text of ["hm", "one", "two"]) await eve.sees("#log", text);
  // Under the name that it had then.
  await eve.sees("#log .by", "Bob");
  await eve.sees("#who", "Robert");

  // A tab that is loaded again is in its rooms, with its name.
  await eve.page.reload();
  await eve.sees("#room-title", "tea");
  await eve.sees("#who", "Eve (you)");
  assert.deepEqual(complaints, []);
});

test("the page fits on a phone and on a desktop, in light and in dark", async () => {
  const demo = await startDemo();
  const ada = await openTab(demo.url, "Ada");
  await ada.say(`a word without a break: ${"x".repeat(300)}`);
  const places = ["#status", "#log .text", "#log .by b", "#send", "#room-title"];
  await ada.page.waitForFunction((all) => all.every((place) => document.querySelector(place)), places);
  for (const size of [{ width: 340, height: 640 }, { width: 1280, height: 720 }]) {
    for (const colorScheme of ["light", "dark"]) {
      await ada.page.setViewportSize(size);
      await ada.page.emulateMedia({ colorScheme });
      const fits = () => document.documentElement.scrollWidth <= innerWidth
        && document.getElementById("send").getBoundingClientRect().bottom <= innerHeight
        && document.getElementById("log").clientHeight > 150;
      await ada.page.waitForFunction(fits);
      // The colours of the text and of what is behind it, as the browser has computed them.
      const contrasts = await ada.page.evaluate(contrastOf, places);
      for (const [place, contrast] of contrasts) assert.ok(contrast >= 4.5, `${place}: ${contrast} in ${colorScheme}`);
    }
  }
});

/** Runs in the page: the contrast of each place's text, as WCAG defines it. */
function contrastOf(places) {
  const channels = (colour) => colour.match(/[\d.]+/g).map(Number);
  const luminance = (colour) => {
    const [r, g, b] = channels(colour).map((value) => value / 255)
      .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    const colour = getComputedStyle(element).backgroundColor;
    const [, , , alpha = 1] = channels(colour);
    return alpha > 0 || !element.parentElement ? colour : behind(element.parentElement);
  };
  return places.map((place) => {
    const element = document.querySelector(place);
    const pair = [getComputedStyle(element).color, behind(element)].map(luminance).sort((one, other) => other - one);
    return [place, (pair[0] + 0.05) / (pair[1] + 0.05)];
  });
}

test("a page written for Node.js loads the official client from the server, with its source map", async () => {
  const options = ["--access=open", "--client-rooms", "--client-files", BUNDLES];
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
  const ada = await openTab(one.url, "Ada");
  const bob = await openTab(two.url, "Bob");

  await ada.enter("tea");
  await bob.enter("tea");
  await ada.sees("#who", "Bob");
  await bob.sees("#who", "Ada");
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

  // A third tab comes by the link to the other node, and finds what was said on both.
  const link = ada.page.locator("#nodes a", { hasText: new URL(two.url).host });
  const opened = browser.context.waitForEvent("page");
  await link.click();
  const eve = await new Tab(await opened, []).isReady("Eve");
  started.push({ stop: () => eve.page.close() });
  await eve.sees("#node", new URL(two.url).host);
  await eve.enter("tea");
  for (const text of ["from node to node", "and back"]) await eve.sees("#log", text);
  await ada.sees("#who", "Eve");

  await bob.page.close();
  await ada.misses("#who", "Bob");
  assert.deepEqual([...hosts], [one, two].map(({ url }) => new URL(url).host));
  assert.deepEqual(complaints, []);
});

async function openTab(url, name, colour = 0) {
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
  return new Tab(page, received).isReady(name, colour);
}

class Tab {
  /** `received` collects the frames of its WebSocket. */
  constructor(page, received) {
    this.page = page;
    this.received = received;
  }

  /** Resolves once it is connected, by WebSocket, and has this name. */
  async isReady(name, colour = 0) {
    await this.page.waitForSelector("#status[data-state=connected]");
    await this.sees("#transport", "websocket");
    this.id = await this.page.getAttribute("#status", "title");
    await this.sees("#who", "(you)");
    await this.call(name, colour);
    return this;
  }

  async call(name, colour) {
    await this.page.click("#me");
    await this.page.fill("#name", name);
    await this.page.click(`#colours [value="${colour}"]`);
    await this.page.click("#save");
    await this.sees("#who", `${name} (you)`);
  }

  async enter(room) {
    await this.page.fill("#room", room);
    await this.page.click("#join");
    await this.sees("#room-title", room);
    await this.sees("#who", "(you)");
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
    return this.page.locator(selector).filter({ hasText: text }).first().waitFor();
  }

  misses(selector, text) {
    return this.page.locator(selector).filter({ hasNotText: text }).first().waitFor({ state: "attached" });
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
