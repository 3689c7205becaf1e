// Every way a socket ends, and the reason that each side is told.

"use strict";

const assert = require("node:assert/strict");
const { test } = require("node:test");

const { ask, next } = require("../support/wait");

module.exports = (context) => {
  test("a server disconnect ends one namespace", async () => {
    const main = await context.sockets.connected();
    const chat = main.io.socket("/chat");
    await next(chat, "connect");
    const { id } = chat;
    const gone = next(chat, "disconnect");
    chat.emit("disconnect-me");
    assert.equal((await gone)[0], "io server disconnect");
    assert.equal(await ask(main, "echo-ack", "alive"), "alive");
    assert.equal(await ask(main, "disconnect-reason", id), "server namespace disconnect");
  });

  test("a server disconnect with close ends the connection", async () => {
    const main = await context.sockets.connected();
    const chat = main.io.socket("/chat");
    await next(chat, "connect");
    const gone = Promise.all([next(main, "disconnect"), next(chat, "disconnect")]);
    main.emit("disconnect-me-close");
    const [[ofMain], [ofChat]] = await gone;
    assert.equal(ofMain, "io server disconnect");
    assert.ok(["io server disconnect", "transport close"].includes(ofChat), ofChat);
  });

  test("a client that leaves the namespace is told apart", async () => {
    const [leaving, witness] = await pair();
    const { id } = leaving;
    leaving.disconnect();
    const reason = await ask(witness, "disconnect-reason", id);
    assert.equal(reason, "client namespace disconnect");
  });

  test("a client that closes its transport is told apart", async () => {
    const [leaving, witness] = await pair();
    const { id } = leaving;
    leaving.io.engine.close();
    assert.equal(await ask(witness, "disconnect-reason", id), "transport close");
  });

  test("a failing handler costs its own socket only", async () => {
    const [failing, witness] = await pair();
    const gone = next(failing, "disconnect");
    failing.emit("panic");
    const [reason] = await gone;
    assert.ok(["io server disconnect", "transport close"].includes(reason), reason);
    assert.equal(await ask(witness, "echo-ack", "alive"), "alive");
    const fresh = await context.sockets.connected();
    assert.equal(await ask(fresh, "echo-ack", "fresh"), "fresh");
  });

  test("a message above the limit costs its connection only", async () => {
    const [sender, witness] = await pair();
    const gone = next(sender, "disconnect");
    sender.emit("echo", "x".repeat(1_100_000));
    const [reason] = await gone;
    assert.ok(["transport close", "transport error"].includes(reason), reason);
    assert.equal(await ask(witness, "echo-ack", "alive"), "alive");
  });

  async function pair() {
    return Promise.all([context.sockets.connected(), context.sockets.connected()]);
  }
};
