// The admin page in a real browser, with two nodes over a real Redis. ROOMCAST is the program, TEST_CHROMIUM
// the browser's. The operator of the first test has no mouse.

"use strict";

const assert = require("node:assert/strict");
const { beforeEach, test } = require("node:test");
const { io } = require("socket.io-client");

const { PATIENCE } = require("./support/browser");
const { apiKey, useNodes } = require("./support/nodes");
const { ask, next, until } = require("./support/wait");

const KEYS = { operator: ["admin", "emit", "disconnect"], viewer: ["admin"], application: ["emit"] };

// Errors of the pages, and the hosts of their requests.
let complaints;
let hosts;

const parts = useNodes({
  hasBrowser: true,
  settings(redis) {
    const keys = Object.entries(KEYS).map(([name, verbs]) => apiKey(name, `key of ${name}`, verbs));
    return `access = "open"\nclient_rooms = true\nredis = "${redis.url}"\n${keys.join("")}`;
  },
});
const { closing, nodes } = parts;

beforeEach(() => {
  [complaints, hosts] = [[], new Set()];
});

test("an operator sees both nodes, searches, follows a room and disconnects a socket by keyboard", async () => {
  const [ada, bob] = [await connect(nodes[0]), await connect(nodes[1])];
  for (const client of [ada, bob]) for (const room of ["tea", "milk"]) await ask(client, "join", room);
  const page = await openPage(nodes[0]);
  const press = (key) => page.keyboard.press(key);

  // The field has the focus.
  for (const [key, error] of [["a guess", "the key is unknown"], ["key of application", "not for the verb admin"]]) {
    await page.keyboard.type(key);
    await press("Enter");
    await sees(page, "#sign-in-error", error);
  }
  complaints.length = 0;
  await page.keyboard.type("key of operator");
  await press("Enter");
  await page.waitForSelector("#status[data-state=connected]");
  await until("both nodes", async () => (await page.locator("#nodes .health[data-state=ready]").count()) === 2, PATIENCE);
  const names = await page.locator("#nodes tbody td:first-child").allTextContents();
  const here = names.find((name) => name.endsWith(" (this)"));
  const there = names.find((name) => name !== here);
  await sees(page, "#status", here.replace(" (this)", ""));
  await sees(page, "#totals", "2connections");
  await until("a line of the plot", async () => (await page.locator("#plots path.in").first().getAttribute("d")) !== "", PATIENCE);

  await press("/");
  await page.keyboard.type("tea");
  await press("Enter");
  for (const client of [ada, bob]) await sees(page, "#found table", client.id);
  await sees(page, "#found", "2 sockets.");
  const [first, second] = await page.locator("#found .names").first().locator("button").all();
  const [left, right] = [await first.boundingBox(), await second.boundingBox()];
  assert.ok(left.x + left.width + 4 <= right.x, "buttons of rooms do not touch");

  await tabTo(page, "Follow");
  await press("Enter");
  await sees(page, "#live-note", "Following the room tea in /.");
  // The other node begins a moment later.
  await until("lines of both nodes", async () => {
    await ask(bob, "message", "tea", "is <b>ready</b>");
    const text = await page.locator("#live").textContent();
    return text.includes(there) && text.includes(here.replace(" (this)", "")) && text.includes("is <b>ready</b>");
  }, PATIENCE);
  const overlapping = await page.locator("#live .node").evaluateAll((all) => all.filter((name) => name.scrollWidth > name.clientWidth).length);
  assert.equal(overlapping, 0, "names of nodes stay in their column");
  bob.emit("leave", "tea", { quiet: true });
  await sees(page, "#live", `${bob.id} left tea`);

  await press("/");
  await press("Shift+Tab");
  for (let step = 0; step < 2; step++) await press("ArrowDown");
  assert.equal(await page.locator("#kind").inputValue(), "socket");
  await press("Tab");
  await press("Control+A");
  await page.keyboard.type(bob.id);
  await press("Enter");
  await sees(page, "#found", "1 socket.");
  await tabTo(page, "Emit…");
  await press("Enter");
  const event = next(bob, "news", PATIENCE);
  await page.keyboard.type("news");
  await press("Enter");
  assert.deepEqual(await event, ["test"]);
  await sees(page, "#emit-result", "Reached 1 socket on 2 nodes.");
  await press("Escape");
  await tabTo(page, "Disconnect…");
  await press("Enter");
  await sees(page, "#disconnect-whom", bob.id);
  const gone = next(bob, "disconnect", PATIENCE);
  await tabTo(page, "Disconnect");
  await press("Enter");
  assert.equal((await gone)[0], "io server disconnect");
  await until("the socket to be gone", async () => {
    await press("Enter");
    return (await page.locator("#found").textContent()).includes("0 sockets.");
  }, PATIENCE);
  assert.ok(ada.connected);

  assert.deepEqual([...hosts], [new URL(nodes[0].internal).host]);
  assert.deepEqual(complaints, []);
});

test("a node that dies is shown as silent, and what clients reach as trouble", async () => {
  const page = await openPage(nodes[0]);
  await signIn(page, "viewer");
  await until("both nodes", async () => (await page.locator("#nodes .health[data-state=ready]").count()) === 2, PATIENCE);
  assert.ok(await page.locator("#troubles-none").isVisible());
  const client = await connect(nodes[0]);
  await ask(client, "join", "x".repeat(300));
  await sees(page, "#troubles", "Limit reached: room_name");
  await nodes.pop().kill();
  await sees(page, "#nodes", "silent for");
  assert.deepEqual(complaints, []);
});

test("a page that nobody sees ends its stream, and goes on when it is seen again", async () => {
  const page = await openPage(nodes[0]);
  await page.clock.install();
  await signIn(page, "viewer");
  const streams = async () => {
    const metrics = await (await fetch(`${nodes[0].internal}/metrics`)).text();
    return Number(/^roomcast_admin_streams (\d+)$/m.exec(metrics)[1]);
  };
  assert.equal(await streams(), 1);
  await hide(page, true);
  await page.clock.fastForward("01:00");
  await sees(page, "#status", "Paused");
  await until("the end of the stream", async () => (await streams()) === 0, PATIENCE);
  await hide(page, false);
  await page.waitForSelector("#status[data-state=connected]");
  assert.equal(await streams(), 1);
  assert.deepEqual(complaints, []);
});

test("on a phone, nothing is wider than the screen, and a key that only looks has nothing to act with", async () => {
  const client = await connect(nodes[1]);
  await ask(client, "join", "a room with a rather long name that does not fit into a line of a phone at all");
  const page = await openPage(nodes[0], { width: 360, height: 740 });
  await page.emulateMedia({ colorScheme: "dark" });
  await signIn(page, "viewer");
  await page.selectOption("#kind", "rooms");
  await page.click("#search button");
  await page.locator("#found button", { hasText: "a room with" }).click();
  await sees(page, "#found", client.id);
  const buttons = await page.locator("#found .actions button, #found .row button").allTextContents();
  assert.deepEqual([...new Set(buttons)], ["Follow"]);
  const [content, screen] = await page.evaluate(() => [document.documentElement.scrollWidth, window.innerWidth]);
  assert.ok(content <= screen, `${content} > ${screen}`);
  const background = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  assert.equal(background, "rgb(18, 20, 26)");
  assert.deepEqual(complaints, []);
});

async function connect(node) {
  const client = io(node.url, { forceNew: true, reconnection: false });
  closing.push(() => client.close());
  await next(client, "connect", PATIENCE);
  return client;
}

async function openPage(node, viewport = { width: 1280, height: 800 }) {
  const page = await parts.browser.context.newPage();
  closing.push(() => page.close());
  await page.setViewportSize(viewport);
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) complaints.push(message.text());
  });
  page.on("pageerror", (error) => complaints.push(error.message));
  page.on("request", (request) => {
    const { host } = new URL(request.url());
    if (host) hosts.add(host);
  });
  await page.goto(`${node.internal}/admin/`);
  await page.waitForSelector("#key:focus");
  return page;
}

async function signIn(page, name) {
  await page.fill("#key", `key of ${name}`);
  await page.keyboard.press("Enter");
  await page.waitForSelector("#status[data-state=connected]");
}

/** As if another tab were in front. */
function hide(page, isHidden) {
  return page.evaluate((value) => {
    Object.defineProperty(document, "hidden", { value, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
  }, isHidden);
}

function sees(page, selector, text) {
  return page.locator(selector).filter({ hasText: text }).waitFor();
}

/** Presses Tab until the focus is on a button with this text. */
async function tabTo(page, text) {
  const focused = () => page.evaluate(() => document.activeElement?.textContent);
  for (let step = 0; step < 60; step++) {
    await page.keyboard.press("Tab");
    if ((await focused()) === text) return;
  }
  assert.fail(`no button ${text} within 60 steps`);
}
