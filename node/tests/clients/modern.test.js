// What only the newest client has: acks with timeout, retries, promises, the `compress` and `volatile`
// modifiers, auth as a function; and server options that a client can notice.

"use strict";

const assert = require("node:assert/strict");
const http = require("node:http");
const { after, afterEach, before, describe, test } = require("node:test");
const { WebSocket } = require("ws");

const { Sockets, connection, ways } = require("./support/clients");
const { improvement, startServer } = require("./support/server");
const { ask, collect, deadline, next } = require("./support/wait");

for (const way of Object.keys(ways)) {
  describe(`client 4.8, ${way}, newer features`, () => {
    let server;
    let sockets;
    before(async () => {
      server = await startServer();
      sockets = new Sockets("4.8", server.url, way);
    });
    afterEach(() => sockets.closeAll());
    after(() => server?.stop());

    test("emitWithAck resolves, with and without a timeout", async () => {
      const socket = await sockets.connected();
      assert.equal(await socket.emitWithAck("echo-ack", 1), 1);
      assert.equal(await socket.timeout(5000).emitWithAck("echo-ack", 2), 2);
    });

    test("a timeout without an answer is an error, and a late ack changes nothing", async () => {
      const socket = await sockets.connected();
      const key = `late ${way}`;
      await assert.rejects(socket.timeout(50).emitWithAck("slow", key), /timed out/);
      assert.equal(await ask(socket, "release", key), true);
      assert.equal(await ask(socket, "echo-ack", "fence"), "fence");
      await assert.rejects(socket.timeout(50).emitWithAck("no handler for this"), /timed out/);
    });

    test("ackTimeout holds for every ack", async () => {
      const socket = await sockets.connected("/", { ackTimeout: 50 });
      await assert.rejects(socket.emitWithAck("no handler for this"), /timed out/);
    });

    test("retries send until the server answers, one event after the other", async () => {
      const socket = await sockets.connected("/", { retries: 2, ackTimeout: 200 });
      const results = await Promise.all(
        ["a", "b", "c"].map((value) => new Promise((resolve) => {
          socket.emit("echo-ack", value, (error, answer) => resolve(error ?? answer));
        })),
      );
      assert.deepEqual(results, ["a", "b", "c"]);
      const failed = await new Promise((resolve) => {
        socket.emit("no handler for this", (error) => resolve(error));
      });
      assert.match(failed.message, /timed out/);
      const seen = await new Promise((resolve) => {
        socket.emit("recorded", (error, names) => resolve(error ?? names));
      });
      assert.deepEqual(seen.filter((name) => name === "no handler for this").length, 3);
    });

    test("compressed, uncompressed and volatile events arrive alike", async () => {
      const socket = await sockets.connected();
      const noted = collect(socket, "noted", 2);
      socket.compress(false).emit("note", 0);
      socket.compress(true).emit("note", 1);
      assert.deepEqual(await noted, [0, 1]);
      let arrived = 0;
      socket.on("noted", () => {
        arrived += 1;
      });
      for (let i = 2; i < 20; i += 1) socket.volatile.emit("note", i);
      const list = await ask(socket, "notes");
      assert.deepEqual(list, [...list].sort((a, b) => a - b));
      assert.equal(await ask(socket, "echo-ack", "fence"), "fence");
      assert.equal(arrived, list.length - 2);
    });

    test("auth may be a function that is asked at each connection", async () => {
      let token = "wrong";
      const socket = sockets.open("/admin", { auth: (give) => give({ token }) });
      await assert.rejects(connection(socket), /not authorized/);
      token = "secret";
      socket.connect();
      await connection(socket);
      assert.deepEqual((await ask(socket, "whoami", [])).auth, { token: "secret" });
    });

    test("a client that offers subprotocols of WebSocket is served", async () => {
      const socket = sockets.open("/", { protocols: ["jwt.abc", "chat"] });
      await connection(socket);
      assert.equal(await ask(socket, "echo-ack", "hello"), "hello");
    });

    test("many connections at once all get their own answers", async () => {
      const all = await Promise.all(Array.from({ length: 40 }, () => sockets.connected()));
      const answers = await Promise.all(all.map((socket, i) => ask(socket, "echo-ack", i)));
      assert.deepEqual(answers, all.map((_, i) => i));
    });
  });
}

describe("server options", () => {
  const started = [];
  const start = async (config) => {
    const server = await startServer(config);
    started.push(server);
    return server;
  };
  const opened = [];
  const open = async (server, way) => {
    const sockets = new Sockets("4.8", server.url, way);
    opened.push(sockets);
    return sockets.connected();
  };
  afterEach(async () => {
    for (const sockets of opened.splice(0)) sockets.closeAll();
    await Promise.all(started.splice(0).map((server) => server.stop()));
  });

  test("a server without WebSocket keeps clients on polling", async () => {
    const server = await start({ transports: ["polling"] });
    const socket = await open(server, "upgrade");
    assert.equal(await ask(socket, "echo-ack", 1), 1);
    assert.equal(socket.io.engine.transport.name, "polling");
    const direct = new Sockets("4.8", server.url, "websocket");
    opened.push(direct);
    await assert.rejects(direct.connected(), /websocket error/);
  });

  test("a server without polling takes WebSocket only", async () => {
    const server = await start({ transports: ["websocket"] });
    const socket = await open(server, "websocket");
    assert.equal(await ask(socket, "echo-ack", 1), 1);
    const { status, body } = await get(server, "/socket.io/?EIO=4&transport=polling");
    assert.equal(status, 400);
    assert.deepEqual(JSON.parse(body), { code: 0, message: "Transport unknown" });
  });

  test("revision 3 is refused unless it is allowed", async () => {
    const refusing = await start({});
    const { status } = await get(refusing, "/socket.io/?EIO=3&transport=polling");
    assert.equal(status, 400);
    const allowing = await start({ allowEio3: true });
    assert.equal((await get(allowing, "/socket.io/?EIO=3&transport=polling")).status, 200);
    // Newer clients are served beside the old ones.
    const socket = await open(allowing, "upgrade");
    assert.equal(await ask(socket, "echo-ack", 1), 1);
  });

  test("clients of both revisions share rooms", async () => {
    const server = await start({ allowEio3: true });
    const old = new Sockets("2.5", server.url, "websocket");
    opened.push(old);
    const [elder, younger] = [await old.connected("/chat"), await open(server, "polling")];
    const chat = younger.io.socket("/chat");
    await next(chat, "connect");
    await Promise.all([ask(elder, "join", "x"), ask(chat, "join", "x")]);
    const news = Promise.all([next(elder, "news"), next(chat, "news")]);
    const args = [{ b: Buffer.from("binary") }];
    await ask(chat, "broadcast", { from: "io", to: ["x"], event: "news", args });
    for (const [{ b }] of await news) assert.equal(Buffer.from(b).toString(), "binary");
  });

  test("a client that never finishes its upgrade stays on polling", async () => {
    const server = await start({ upgradeTimeout: 100 });
    const { sid, url } = await handshake(server);
    const probing = new WebSocket(`${server.url}/socket.io/?EIO=4&transport=websocket&sid=${sid}`);
    const closed = new Promise((resolve) => probing.on("close", resolve));
    probing.on("open", () => probing.send("2probe"));
    await deadline(closed, 10_000, "the server to give up the upgrade");
    assert.equal((await get(server, url, { method: "POST", body: "40" })).body, "ok");
    assert.match((await bodyWithout(server, url, "6")), /^40\{"sid":"[\w-]{20}"\}$/);
  });

  test("a post above the limit is refused, declared or not", async () => {
    const server = await start({ maxPayload: 1000 });
    for (const headers of [{ "content-length": 1500 }, { "transfer-encoding": "chunked" }]) {
      const { url } = await handshake(server);
      await get(server, url, { method: "POST", body: "40" });
      await packets(server, url, 1);
      const body = `42["echo","${"x".repeat(1488)}"]`;
      assert.equal((await get(server, url, { method: "POST", body, headers })).status, 413);
    }
    const { url } = await handshake(server);
    await get(server, url, { method: "POST", body: "40" });
    await packets(server, url, 1);
    const event = `42["echo","${"x".repeat(987)}"]`;
    assert.equal(event.length, 1000);
    assert.equal((await get(server, url, { method: "POST", body: event })).body, "ok");
    assert.deepEqual(await packets(server, url, 1), [event]);
  });

  test("a poll body is compressed for those who accept it, if it is large and allowed", async () => {
    for (const [config, expected] of [[{}, "gzip"], [{ httpCompression: false }, undefined]]) {
      const server = await start(config);
      const { url } = await handshake(server);
      await get(server, url, { method: "POST", body: "40" });
      await get(server, url);
      for (const [length, encoding] of [[100, undefined], [3000, expected]]) {
        const event = `42["echo","${"x".repeat(length)}"]`;
        await get(server, url, { method: "POST", body: event });
        const headers = { "accept-encoding": "gzip, deflate" };
        const answer = await get(server, url, { headers });
        assert.equal(answer.headers["content-encoding"], encoding);
      }
    }
  });

  better("the path is served with and without a slash at its end", async () => {
    const server = await start({});
    for (const path of ["/socket.io/", "/socket.io"]) {
      assert.equal((await get(server, `${path}?EIO=4&transport=polling`)).status, 200, path);
    }
  });

  better("leaving and joining a namespace again at once is fine", async () => {
    const server = await start({});
    const { url } = await handshake(server);
    await get(server, url, { method: "POST", body: "40\u001e40/chat,\u001e41/chat,\u001e40/chat," });
    const replies = await packets(server, url, 3);
    assert.deepEqual(replies.map((reply) => reply.replace(/\{.*/, "")), ["40", "40/chat,", "40/chat,"]);
  });

  better("no poll body has more packets than the Python client accepts", async () => {
    const server = await start({});
    const { url } = await handshake(server);
    await get(server, url, { method: "POST", body: "40" });
    assert.equal((await packets(server, url, 1)).length, 1);
    await get(server, url, { method: "POST", body: "420[\"many\",100]" });
    let seen = 0;
    while (seen < 101) {
      const { status, body } = await get(server, url);
      assert.equal(status, 200);
      const count = body.split("\u001e").length;
      assert.ok(count <= 16, `${count} packets in one body`);
      seen += count;
    }
    assert.equal(seen, 101);
  });
});

function get(server, path, { method = "GET", body, headers } = {}) {
  const answer = new Promise((resolve, reject) => {
    const request = http.request(server.url + path, { method, headers, agent: false }, (response) => {
      const chunks = [];
      response.on("data", (chunk) => chunks.push(chunk));
      response.on("end", () => {
        const { statusCode: status, headers: received } = response;
        resolve({ status, headers: received, body: Buffer.concat(chunks).toString() });
      });
    });
    request.on("error", reject);
    request.end(body);
  });
  return deadline(answer, 10_000, `${method} ${path}`);
}

async function handshake(server) {
  const { body } = await get(server, "/socket.io/?EIO=4&transport=polling");
  const { sid } = JSON.parse(body.slice(1));
  return { sid, url: `/socket.io/?EIO=4&transport=polling&sid=${sid}` };
}

async function packets(server, url, count) {
  const found = [];
  while (found.length < count) {
    const { status, body } = await get(server, url);
    assert.equal(status, 200, body);
    found.push(...body.split("\u001e"));
  }
  return found;
}

describe("a namespace that is left and entered again before the reply", () => {
  for (const way of Object.keys(ways)) {
    better(`connects, and the others stay, by ${way}`, async () => {
      const server = await startServer();
      const sockets = new Sockets("4.8", server.url, way);
      try {
        const main = await sockets.connected();
        let lost;
        main.on("disconnect", (reason) => (lost = reason));
        const other = main.io.socket("/chat");
        other.disconnect();
        other.connect();
        await connection(other);
        assert.equal(await ask(other, "echo-ack", 1), 1);
        assert.equal(await ask(main, "echo-ack", 2), 2);
        assert.equal(lost, undefined, "the main namespace is lost");
      } finally {
        sockets.closeAll();
        await server.stop();
      }
    });
  }
});

function better(name, run) {
  test(name, improvement(name), run);
}

// The first poll that brings more than the noop which ends an upgrade.
async function bodyWithout(server, url, noop) {
  const { body } = await get(server, url);
  return body === noop ? bodyWithout(server, url, noop) : body;
}
