// Traffic in both directions while the connection moves from polling to WebSocket: a numbered ledger
// shows that nothing is lost, doubled or reordered.

"use strict";

const assert = require("node:assert/strict");
const { test } = require("node:test");

const { ask, deadline, next } = require("../support/wait");

const ROUNDS = 8;
const GOODBYES = 40;
const PUSHED = 200;
const AFTERWARDS = 30;

module.exports = (context) => {
  if (context.way !== "upgrade") return;

  test("nothing is lost or doubled during the upgrade", async () => {
    for (let round = 0; round < ROUNDS; round += 1) {
      const socket = await context.sockets.connected("/", { reconnection: false });
      const pushed = push(socket, round);
      const { sent, noted } = await talkAcrossUpgrade(socket);
      const expected = Array.from({ length: sent }, (_, i) => i);
      assert.deepEqual(noted, expected, "events of the server");
      assert.deepEqual(await ask(socket, "notes"), expected, "events of the client");
      assert.deepEqual(await pushed, Array.from({ length: PUSHED }, (_, i) => i));
      socket.disconnect();
    }
  });

  test("a server disconnect during the upgrade is told as such", async () => {
    for (let round = 0; round < GOODBYES; round += 1) {
      const socket = await context.sockets.connected();
      const gone = next(socket, "disconnect");
      socket.emit("disconnect-me-close");
      // With any other reason the client would come back by itself.
      assert.equal((await gone)[0], "io server disconnect", `round ${round}`);
    }
  });
};

// The server's own burst starts at another moment of the upgrade in each round.
async function push(socket, round) {
  const { engine } = socket.io;
  const seen = [];
  socket.on("number", (n) => seen.push(n));
  const moments = ["upgrading", "upgrade"];
  const moment = moments[round % (moments.length + 1)];
  if (moment && engine.transport.name === "polling") {
    await deadline(new Promise((resolve) => engine.once(moment, resolve)), 10_000, moment);
  }
  await ask(socket, "many", PUSHED);
  return seen;
}

// Keeps four numbered events under way until some have made the trip over the new transport.
async function talkAcrossUpgrade(socket) {
  const { engine } = socket.io;
  const noted = [];
  let sent = 0;
  let remaining = Infinity;
  const finished = new Promise((resolve) => {
    const note = () => {
      socket.emit("note", sent);
      sent += 1;
      remaining -= 1;
    };
    socket.on("noted", (i) => {
      noted.push(i);
      if (remaining > 0) note();
      else if (noted.length === sent) resolve();
    });
    const upgraded = () => {
      remaining = AFTERWARDS;
    };
    if (engine.transport.name === "websocket") upgraded();
    else engine.once("upgrade", upgraded);
    for (let i = 0; i < 4; i += 1) note();
  });
  await deadline(finished, 10_000, "all notes").catch((error) => {
    throw new Error(`${error.message}: ${sent} sent, ${noted.length} came back`);
  });
  return { sent, noted };
}
