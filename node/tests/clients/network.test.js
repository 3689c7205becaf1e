// What clients see when the network or the server goes away: reasons on both sides, reconnection, and
// what a client does with events that it could not send.

"use strict";

const assert = require("node:assert/strict");
const { afterEach, describe, test } = require("node:test");

const { Sockets, clients } = require("./support/clients");
const { startProxy } = require("./support/proxy");
const { startServer } = require("./support/server");
const { ask, deadline, next } = require("./support/wait");

const QUICK = { reconnection: true, reconnectionDelay: 10, reconnectionDelayMax: 20, randomizationFactor: 0 };

for (const client of ["4.8", "3.1", "2.5"]) {
  for (const way of ["polling", "websocket"]) {
    describe(`client ${client}, ${way}, behind a network that fails`, () => {
      const started = [];
      let proxy;
      let sockets;
      let direct;

      const start = async (options = {}) => {
        const server = await startServer({ ...clients[client].config, ...options });
        started.push(server);
        proxy = await startProxy(server.port);
        sockets = new Sockets(client, proxy.url, way);
        direct = new Sockets(client, server.url, way);
        return server;
      };

      afterEach(async () => {
        sockets.closeAll();
        direct.closeAll();
        proxy.close();
        await Promise.all(started.splice(0).map((server) => server.stop()));
      });

      test("a lost connection comes back as a new socket", async () => {
        await start();
        const socket = await sockets.connected("/chat", QUICK);
        await ask(socket, "join", "x");
        const { id } = socket;
        const gone = next(socket, "disconnect");
        proxy.down();
        const [reason] = await gone;
        assert.ok(["transport close", "transport error"].includes(reason), reason);
        // Sent without a connection: kept by the client until it is back.
        const kept = ask(socket, "echo-ack", "kept");
        proxy.up();
        await next(socket, "connect");
        assert.notEqual(socket.id, id);
        assert.equal(await kept, "kept");
        assert.deepEqual(await ask(socket, "rooms"), []);
        const witness = await direct.connected("/chat");
        if (way === "websocket") {
          const told = await ask(witness, "disconnect-reason", id);
          assert.ok(["transport close", "transport error"].includes(told), told);
        }
      });

      test("a silent network ends in a ping timeout on both sides", async () => {
        await start({ pingInterval: 300, pingTimeout: 300 });
        const socket = await sockets.connected();
        const witness = await direct.connected();
        const { id } = socket;
        const gone = next(socket, "disconnect");
        proxy.silence();
        const told = ask(witness, "disconnect-reason", id);
        const [reason] = await gone;
        // The server may end the TCP connection before the client's own timer; the proxy passes that on.
        assert.ok(["ping timeout", "transport close", "transport error"].includes(reason), reason);
        const onServer = await told;
        assert.ok(["ping timeout", "transport close", "transport error"].includes(onServer), onServer);
        assert.equal(await ask(witness, "echo-ack", "alive"), "alive");
      });

      test("heartbeats keep an idle connection", async () => {
        await start({ pingInterval: 50, pingTimeout: 2000 });
        const socket = await sockets.connected();
        const { engine } = socket.io;
        let beats = 0;
        await deadline(
          new Promise((resolve) => {
            engine.on("packet", ({ type }) => {
              // A client of version 2 is the one who pings.
              if (type === (client === "2.5" ? "pong" : "ping")) beats += 1;
              if (beats === 5) resolve();
            });
          }),
          10_000,
          "five heartbeats",
        );
        assert.equal(await ask(socket, "echo-ack", "alive"), "alive");
      });

      test("a server that stops closes the transport, and the client comes back to the next", async () => {
        const first = await start();
        const socket = await sockets.connected("/", QUICK);
        const second = await startServer(clients[client].config);
        started.push(second);
        proxy.redirect(second.port);
        const gone = next(socket, "disconnect");
        const back = next(socket, "connect");
        await first.stop();
        const [reason] = await gone;
        // Not "io server disconnect": after that a client stays away.
        assert.ok(["transport close", "transport error"].includes(reason), reason);
        await back;
        assert.equal(await ask(socket, "echo-ack", "back"), "back");
      });

      test("after a server disconnect the client stays away until told to connect", async () => {
        await start();
        const socket = await sockets.connected("/", QUICK);
        const gone = next(socket, "disconnect");
        socket.emit("disconnect-me-close");
        assert.equal((await gone)[0], "io server disconnect");
        assert.equal(socket.connected, false);
        socket.connect();
        await next(socket, "connect");
        assert.equal(await ask(socket, "echo-ack", "again"), "again");
      });
    });
  }
}
