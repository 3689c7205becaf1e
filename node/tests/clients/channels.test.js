// Channels in a real browser: ten lines of JavaScript follow rooms, while the connection is cut off again and again.
// ROOMCAST is the program, TEST_CHROMIUM the browser's.

"use strict";

const assert = require("node:assert/strict");
const { createHash } = require("node:crypto");
const { readFileSync } = require("node:fs");
const { join } = require("node:path");
const { after, afterEach, before, test } = require("node:test");

const { startBrowser } = require("./support/browser");
const { startGateway } = require("./support/gateway");
const { until } = require("./support/wait");

const HASH = createHash("sha256").update("key").digest("hex");
const SETTINGS = `access = "open"
[doors.channels]
namespaces = ["/"]
retry = "10ms"
[[api.keys]]
name = "test"
hash = "sha256:${HASH}"
namespaces = ["*"]
verbs = ["*"]
`;
const EVENTS = 300;
const PATIENCE = 60_000;

let browser;
let node;

before(async () => {
  browser = await startBrowser();
});

after(() => browser?.stop());

afterEach(() => node?.stop());

test("EventSource reconnects without losing or duplicating an event", async () => {
  node = await startGateway(SETTINGS);
  const page = await browser.context.newPage();
  await page.goto(`${node.url}/channels/rooms/a/history`);
  await page.evaluate(example("rooms/a/events?room=b"));
  await until("the stream", () => page.evaluate("source.readyState === EventSource.OPEN"), PATIENCE);

  const sent = [];
  for (let number = 0; number < EVENTS; number++) {
    const { id } = await publish(number % 3 ? "a" : "b", number);
    sent.push({ id, number });
    if (number % 50 === 25) await cutOff();
  }
  const received = () => page.evaluate("received.length");
  await until("all events", async () => (await received()) >= EVENTS, PATIENCE);
  // What comes after a last event shows that no other one came in between.
  const last = await publish("a", EVENTS);
  sent.push({ id: last.id, number: EVENTS });
  await until("the last event", async () => (await received()) > EVENTS, PATIENCE);
  const events = await page.evaluate("received");
  assert.deepEqual(events.map(({ id, data }) => ({ id, number: data })), sent);
  assert.ok((await page.evaluate("opened")) > 3, "it has reconnected");
  await page.close();
});

/** The first example of the book, for these rooms, with what it has received as a list. */
function example(path) {
  const book = readFileSync(join(__dirname, "../../../docs/src/channels.md"), "utf8");
  const code = /```js\n([^]*?)```/.exec(book)[1];
  assert.match(code, /new EventSource\("\/channels\/rooms\/news\/events"\)/);
  const script = code
    .replace("rooms/news/events", path)
    .replace("const source", "window.source")
    .replace(/console\.log\(event\.data\)/, "received.push(event)");
  assert.match(script, /received\.push/);
  return `window.received = []; window.opened = 0; ${script}; source.addEventListener("open", () => opened++);`;
}

async function publish(room, data) {
  const response = await fetch(`${node.url}/channels/rooms/${room}`, { method: "POST", body: JSON.stringify({ data }) });
  assert.equal(response.status, 201);
  return response.json();
}

/** Disconnects whoever is in the rooms. */
async function cutOff() {
  const response = await fetch(`${node.internal}/api/disconnect`, {
    method: "POST",
    headers: { Authorization: "Bearer key", "Content-Type": "application/json" },
    body: JSON.stringify({ rooms: ["a"], close: true }),
  });
  assert.equal(response.status, 200);
}
