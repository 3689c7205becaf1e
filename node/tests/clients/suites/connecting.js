// Handshake, namespaces and refusals.

"use strict";

const assert = require("node:assert/strict");
const { test } = require("node:test");

const { refusal } = require("../support/clients");
const { ask, collect, deadline, next } = require("../support/wait");

module.exports = (context) => {
  test("client and server agree on id, namespace and handshake", async () => {
    const socket = await context.sockets.connected("/", {
      query: { colour: "blue & green", empty: "" },
      extraHeaders: { "x-test": "yes" },
    });
    const seen = await ask(socket, "whoami", ["x-test", "x-absent"]);
    assert.equal(seen.id, socket.id);
    assert.equal(seen.nsp, "/");
    assert.deepEqual(seen.rooms, []);
    assert.equal(seen.query.colour, "blue & green");
    assert.equal(seen.query.empty, "");
    assert.equal(seen.query.EIO, context.isV2 ? "3" : "4");
    assert.deepEqual(seen.headers, { "x-test": "yes", "x-absent": null });
    assert.equal(seen.address, true);
    assert.equal(seen.time, true);
  });

  test("ids are 20 URL-safe characters and never repeat", async () => {
    const sockets = await Promise.all(Array.from({ length: 5 }, () => context.sockets.connected()));
    const ids = sockets.map((socket) => socket.id);
    assert.equal(new Set(ids).size, ids.length);
    for (const id of ids) assert.match(id, /^[\w-]{20}$/);
  });

  test("the transport is the one that was asked for", async () => {
    const socket = await context.sockets.connected();
    const { engine } = socket.io;
    if (context.way === "upgrade" && engine.transport.name === "polling") {
      await next(engine, "upgrade");
    }
    assert.equal(engine.transport.name, context.way === "polling" ? "polling" : "websocket");
    assert.equal(await ask(socket, "echo-ack", "still here"), "still here");
  });

  test("namespaces share one connection and stay apart", async () => {
    const main = await context.sockets.connected();
    const { io: manager } = main;
    const chat = manager.socket("/chat");
    await next(chat, "connect");
    const org = manager.socket("/org-12");
    await next(org, "connect");
    assert.equal(manager.engine, main.io.engine);
    const seen = await Promise.all([main, chat, org].map((socket) => ask(socket, "whoami", [])));
    assert.deepEqual(seen.map(({ nsp }) => nsp), ["/", "/chat", "/org-12"]);
    assert.deepEqual(seen.map(({ id }) => id), [main.id, chat.id, org.id]);

    await ask(main, "join", "shared name");
    await ask(chat, "join", "shared name");
    main.on("news", () => assert.fail("an event of /chat arrived in /"));
    const news = next(chat, "news");
    const target = { from: "io", to: ["shared name"], event: "news", args: ["for /chat"] };
    await ask(chat, "broadcast", target);
    assert.deepEqual(await news, ["for /chat"]);

    chat.disconnect();
    assert.equal(await ask(main, "echo-ack", "without /chat"), "without /chat");
    assert.equal(await ask(org, "echo-ack", "without /chat"), "without /chat");
  });

  test("a namespace that was left can be joined again", async () => {
    const main = await context.sockets.connected();
    const chat = main.io.socket("/chat");
    await next(chat, "connect");
    const first = chat.id;
    await ask(chat, "join", "old");
    chat.disconnect();
    // The official server closes the connection when the two packets arrive in one read.
    await ask(main, "disconnect-reason", first);
    chat.connect();
    await next(chat, "connect");
    assert.deepEqual(await ask(chat, "rooms"), []);
    // Version 2 derives the id from that of the connection.
    assert.equal(chat.id === first, context.isV2);
  });

  test("dynamic namespaces of the same pattern are separate", async () => {
    const [one, two] = await Promise.all(
      ["/org-1", "/org-2"].map((name) => context.sockets.connected(name)),
    );
    two.on("news", () => assert.fail("an event of /org-1 arrived in /org-2"));
    const news = next(one, "news");
    await ask(one, "broadcast", { from: "io", event: "news", args: [1] });
    assert.deepEqual(await news, [1]);
    assert.equal(await ask(two, "echo-ack", "fence"), "fence");
  });

  test("an unknown namespace is refused", async () => {
    for (const name of ["/unknown", "/org-", "/org-1/2", "/Chat"]) {
      const reason = await refusal(context.sockets.open(name));
      // Version 2 gets no error object, only what the packet has.
      assert.equal(reason.message ?? reason, "Invalid namespace", name);
    }
  });

  test("authorization refuses with message and data", async () => {
    const reason = await refusal(context.sockets.open("/admin", credentials("wrong")));
    if (context.isV2) {
      assert.deepEqual(reason, { code: 401 });
    } else {
      assert.equal(reason.message, "not authorized");
      assert.deepEqual(reason.data, { code: 401 });
    }
    const without = await refusal(context.sockets.open("/denied-nodata"));
    assert.equal(context.isV2 ? without : without.message, "nope");
    assert.equal(without.data, undefined);
  });

  test("authorization accepts the right token", async () => {
    const socket = await context.sockets.connected("/admin", credentials("secret"));
    const seen = await ask(socket, "whoami", []);
    assert.equal(seen.auth.token, "secret");
  });

  test("a refusal leaves the other namespaces of the connection alone", async () => {
    const main = await context.sockets.connected();
    await refusal(main.io.socket("/denied"));
    assert.equal(await ask(main, "echo-ack", 1), 1);
  });

  test("events sent on connection arrive, in order", async () => {
    const socket = context.sockets.open("/greet");
    assert.deepEqual(await collect(socket, "welcome", 3), [0, 1, 2]);
  });

  test("two megabytes that are sent on connection arrive, in order", async () => {
    const items = await collect(context.sockets.open("/flood"), "item", 20);
    assert.deepEqual(items, Array.from({ length: 20 }, (_, i) => i));
  });

  test("an event sent before or on connect finds its handler", async () => {
    const answers = Array.from({ length: 30 }, (_, i) => {
      const socket = context.sockets.open(i % 2 === 0 ? "/" : "/chat");
      const early = ask(socket, "echo-ack", `${i} early`);
      const ready = new Promise((resolve, reject) => {
        socket.on("connect", () => ask(socket, "echo-ack", `${i} ready`).then(resolve, reject));
      });
      return Promise.all([early, deadline(ready, 10_000, `the answer to client ${i}`)]);
    });
    const expected = Array.from({ length: 30 }, (_, i) => [`${i} early`, `${i} ready`]);
    assert.deepEqual(await Promise.all(answers), expected);
  });

  // Version 2 has no auth payload; its namespace query takes that place.
  function credentials(token) {
    return context.isV2 ? { query: { token } } : { auth: { token } };
  }
};
