// Events and acks in both directions, binary, order, and what a waiting handler must not hold up.

"use strict";

const assert = require("node:assert/strict");
const { test } = require("node:test");

const { ask, askAll, collect, next } = require("../support/wait");

const VALUES = [
  null, true, false, 0, -1, 1.5, 1e-7, 2 ** 53 - 1, "", "ünïcödé 😀\u2028\u0000\"\\", [], {},
  [[1, [2, [3]]], { a: { b: [null, { c: "d" }] } }], { "": 0, __proto__key: 1, "ключ": [true] },
];

module.exports = (context) => {
  test("arguments come back unchanged", async () => {
    const socket = await context.sockets.connected();
    const echoed = next(socket, "echo");
    socket.emit("echo", ...VALUES);
    assert.deepEqual(await echoed, VALUES);
    assert.deepEqual(await askAll(socket, "echo-ack", ...VALUES), VALUES);
  });

  test("an event and an ack may have no arguments", async () => {
    const socket = await context.sockets.connected();
    const echoed = next(socket, "echo");
    socket.emit("echo");
    assert.deepEqual(await echoed, []);
    assert.deepEqual(await askAll(socket, "echo-ack"), []);
  });

  test("binary comes back at any depth, in events and acks", async () => {
    const socket = await context.sockets.connected();
    const values = [
      Buffer.from([0, 1, 2, 255]),
      { deep: [{ image: Buffer.alloc(70_000, 7) }], text: "between" },
      [[Buffer.alloc(0)], "end"],
    ];
    const echoed = next(socket, "echo");
    socket.emit("echo", ...values);
    assert.deepEqual(asBuffers(await echoed), values);
    assert.deepEqual(asBuffers(await askAll(socket, "echo-ack", ...values)), values);
    assert.deepEqual(asBuffers(await askAll(socket, "echo", values[0])), [values[0]]);
  });

  test("the server asks and gets the answer", async () => {
    const socket = await context.sockets.connected();
    socket.on("question", (n, answer) => answer("yes", { n }, Buffer.from("42")));
    const answered = next(socket, "answered");
    socket.emit("ask-me");
    assert.deepEqual(asBuffers(await answered), ["yes", { n: 1 }, Buffer.from("42")]);
  });

  test("hundreds of handlers that wait for their client get its answers", async () => {
    const socket = await context.sockets.connected();
    socket.on("question", (n, answer) => answer("yes"));
    const answered = collect(socket, "answered", 400);
    for (let i = 0; i < 400; i += 1) socket.emit("ask-me");
    assert.deepEqual([...new Set(await answered)], ["yes"]);
  });

  test("a question that nobody answers times out on the server", async () => {
    const socket = await context.sockets.connected();
    const asked = next(socket, "question");
    const gaveUp = next(socket, "unanswered");
    socket.emit("ask-me", 50);
    const [, answer] = await asked;
    await gaveUp;
    socket.on("answered", () => assert.fail("a late answer was taken"));
    answer("too late");
    assert.equal(await ask(socket, "echo-ack", "fence"), "fence");
  });

  test("many events arrive in order, and the ack after them", async () => {
    const socket = await context.sockets.connected();
    const seen = [];
    socket.on("number", (n) => seen.push(n));
    assert.equal(await ask(socket, "many", 1000), 1000);
    assert.deepEqual(seen, Array.from({ length: 1000 }, (_, i) => i));
  });

  test("events of a client are handled in the order of sending", async () => {
    const socket = await context.sockets.connected();
    const noted = collect(socket, "noted", 500);
    for (let i = 0; i < 500; i += 1) socket.emit("note", i);
    const expected = Array.from({ length: 500 }, (_, i) => i);
    assert.deepEqual(await noted, expected);
    assert.deepEqual(await ask(socket, "notes"), expected);
  });

  for (const [count, size] of [[20, 100_000], [3000, 1000]]) {
    test(`${count} events of ${size} bytes arrive although they are emitted at once`, async () => {
      const socket = await context.sockets.connected();
      const items = collect(socket, "item", count);
      assert.equal(await ask(socket, "flood", count, size), count);
      const seen = await items;
      assert.deepEqual(seen, Array.from({ length: count }, (_, i) => i));
    });
  }

  test("volatile events may be dropped, the rest arrives in order", async () => {
    const socket = await context.sockets.connected();
    const seen = [];
    socket.on("burst", (n) => seen.push(n));
    const done = next(socket, "burst-done");
    socket.emit("volatile-burst", 50);
    assert.deepEqual(await done, [50]);
    assert.deepEqual(seen, [...new Set(seen)].sort((a, b) => a - b));
    assert.ok(seen.every((n) => n >= 0 && n < 50));
  });

  test("a waiting handler holds up nobody, not even its own client", async () => {
    const [waiting, other] = await Promise.all([
      context.sockets.connected(),
      context.sockets.connected(),
    ]);
    const key = `${context.client} ${context.way}`;
    let answered = false;
    const slow = ask(waiting, "slow", key).then((value) => {
      answered = true;
      return value;
    });
    assert.equal(await ask(waiting, "echo-ack", "meanwhile"), "meanwhile");
    assert.equal(await ask(other, "echo-ack", "meanwhile"), "meanwhile");
    assert.equal(answered, false);
    assert.equal(await ask(other, "release", key), true);
    assert.equal(await slow, key);
  });

  test("the catch-all listener sees every event, known or not", async () => {
    const socket = await context.sockets.connected();
    socket.emit("never-heard-of", 1);
    await ask(socket, "echo-ack");
    socket.emit("ünknown 😀");
    assert.deepEqual(await ask(socket, "recorded"), [
      "never-heard-of", "echo-ack", "ünknown 😀", "recorded",
    ]);
  });

  test("data kept with a socket stays with it", async () => {
    const socket = await context.sockets.connected();
    assert.equal(await ask(socket, "get-data"), null);
    await ask(socket, "set-data", { name: "Ada", tags: [1, 2] });
    assert.deepEqual(await ask(socket, "get-data"), { name: "Ada", tags: [1, 2] });
  });

  test("a message just below the limit passes", async () => {
    const socket = await context.sockets.connected();
    // The limit is for what travels: base64 adds a third.
    const isBase64 = context.client.endsWith("msgpack") && context.way !== "websocket";
    const text = "x".repeat(isBase64 ? 700_000 : 900_000);
    assert.equal(await ask(socket, "echo-ack", text), text);
    const bytes = Buffer.alloc(700_000, 3);
    assert.deepEqual(asBuffers([await ask(socket, "echo-ack", bytes)]), [bytes]);
  });
};

// Clients hand out binary as Buffer, Uint8Array or ArrayBuffer, depending on version and transport.
function asBuffers(value) {
  if (value instanceof ArrayBuffer) return Buffer.from(value);
  if (ArrayBuffer.isView(value)) return Buffer.from(value.buffer, value.byteOffset, value.byteLength);
  if (Array.isArray(value)) return value.map(asBuffers);
  if (value !== null && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, asBuffers(item)]));
  }
  return value;
}
