// The demo page in a real browser: two tabs, one room. ROOMCAST_DEMO is the command that serves the
// page and prints its URL; ROOMCAST_CHROMIUM the browser's program.
//
// The page is known by these ids alone: #status (attribute data-state is "connected" once it is),
// #room and #join to enter a room, #rooms the rooms entered, with a button for each that selects it,
// #leave for the selected one, #who its members, #text and #send to write to it, #log what was said.

"use strict";

const assert = require("node:assert/strict");
const { spawn } = require("node:child_process");
const { mkdtempSync, rmSync } = require("node:fs");
const { tmpdir } = require("node:os");
const { join } = require("node:path");
const { createInterface } = require("node:readline");
const { after, before, describe, test } = require("node:test");
const { chromium } = require("playwright-core");

const { deadline } = require("./support/wait");

const PATIENCE = 15_000;

describe("the demo page in two tabs", () => {
  const profile = mkdtempSync(join(tmpdir(), "roomcast-browser-"));
  const complaints = [];
  const hosts = new Set();
  let demo;
  let browser;

  before(async () => {
    demo = await startDemo();
    browser = await chromium.launchPersistentContext(profile, {
      executablePath: process.env.ROOMCAST_CHROMIUM ?? "/usr/bin/chromium",
      headless: true,
      args: [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
      ],
    });
    browser.setDefaultTimeout(PATIENCE);
    browser.on("request", (request) => hosts.add(new URL(request.url()).host));
  });

  after(async () => {
    await browser?.close();
    await demo?.stop();
    rmSync(profile, { recursive: true, force: true });
  });

  test("rooms, members and messages are seen by both, and by nobody who left", async () => {
    const ada = await openTab();
    const bob = await openTab();
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

  async function openTab() {
    const page = await browser.newPage();
    const received = [];
    page.on("console", (message) => {
      if (["error", "warning"].includes(message.type())) complaints.push(message.text());
    });
    page.on("pageerror", (error) => complaints.push(error.message));
    page.on("websocket", (socket) => {
      hosts.add(new URL(socket.url()).host);
      socket.on("framereceived", ({ payload }) => received.push(String(payload)));
    });
    await page.goto(demo.url);
    await page.waitForSelector("#status[data-state=connected]");
    const connect = received.find((frame) => frame.startsWith("40{"));
    return new Tab(page, JSON.parse(connect.slice(2)).sid, received);
  }
});

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

async function startDemo() {
  const command = process.env.ROOMCAST_DEMO;
  const child = spawn("/bin/sh", ["-c", `exec ${command}`], {
    cwd: process.env.ROOMCAST_TEST_FOLDER,
    stdio: ["ignore", "pipe", "inherit"],
  });
  const exited = new Promise((resolve) => child.once("exit", resolve));
  const orphanGuard = () => child.kill("SIGKILL");
  process.on("exit", orphanGuard);
  const printed = new Promise((resolve, reject) => {
    createInterface({ input: child.stdout }).on("line", (line) => {
      const match = /http:\/\/[^\s/]+\/?/.exec(line);
      if (match) resolve(match[0]);
    });
    exited.then((code) => reject(new Error(`the demo ended at once (${code})`)));
  });
  const url = await deadline(printed, PATIENCE, "the demo to print its URL");
  return {
    url,
    async stop() {
      child.kill("SIGTERM");
      await deadline(exited, PATIENCE, "the demo to stop after SIGTERM");
      process.removeListener("exit", orphanGuard);
    },
  };
}
