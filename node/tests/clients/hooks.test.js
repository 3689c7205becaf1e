// Hooks: an application that answers by HTTP, behind the program, with the official client in front.
// ROOMCAST is the program.

"use strict";

const assert = require("node:assert/strict");
const { createHmac } = require("node:crypto");
const { createServer } = require("node:http");
const { after, afterEach, before, describe, test } = require("node:test");
const { io } = require("socket.io-client");

const { startRedis, startRedisCluster } = require("./cluster/redis");
const { startGateway } = require("./support/gateway");
const { ask, askAll, collect, next, until } = require("./support/wait");

const SECRET = "a secret of the tests 0123456789";
const ENVIRONMENT = { HOOK_SECRET: SECRET };

/** An application whose `respond` returns operations for a request, or throws a status. */
class Backend {
  requests = [];
  respond = () => [];

  async start(port = 0) {
    this.server = createServer(async (request, response) => {
      let body = "";
      for await (const part of request.setEncoding("utf8")) body += part;
      const seen = { ...JSON.parse(body), http: request.headers, body };
      this.requests.push(seen);
      try {
        const list = await this.respond(seen);
        response.setHeader("content-type", "application/json");
        response.end(typeof list === "string" ? list : JSON.stringify(list));
      } catch (status) {
        response.statusCode = typeof status === "number" ? status : 500;
        response.end();
      }
    });
    await new Promise((resolve) => this.server.listen(port, "127.0.0.1", resolve));
    this.port = this.server.address().port;
    this.url = `http://127.0.0.1:${this.port}/hook`;
    return this;
  }

  of(type) {
    return this.requests.filter((request) => request.type === type);
  }

  async stop() {
    this.server.closeAllConnections();
    await new Promise((resolve) => this.server.close(resolve));
  }
}

describe("an application", () => {
  let backend;
  let gateway;
  const clients = [];

  function connect(options = {}) {
    const client = io(gateway.url, { forceNew: true, reconnection: false, transports: ["websocket"], ...options });
    clients.push(client);
    return client;
  }

  async function connected(options) {
    const client = connect(options);
    await next(client, "connect");
    return client;
  }

  const failures = (outcome) => gateway.metric(`roomcast_hook_requests_total{hook="app",outcome="${outcome}"}`);

  before(async () => {
    backend = await new Backend().start();
    gateway = await startGateway(
      `
      access = "hook"
      namespace = ["/", "/back", "/trusted"]

      [namespaces."/back".recovery]
      unicasts = true

      [namespaces."/trusted".recovery]
      connect_hook = false

      [hooks.app]
      url = "${backend.url}"
      events = ["*"]
      timeout = "500ms"
      concurrency = 8
      queue = 4
      circuit_failures = 3
      circuit_pause = "200ms"
      headers = ["x-tenant"]
      cookies = ["session"]
      secret_env = "HOOK_SECRET"

      [hooks.other]
      url = "${backend.url}/other"
      on = ["event"]
      events = ["other:*"]

      [hooks.back]
      url = "${backend.url}/back"
      namespaces = ["/back", "/trusted"]
      timeout = "60s"
      `,
      { environment: ENVIRONMENT },
    );
  });
  afterEach(async () => {
    backend.respond = () => [];
    for (const client of clients.splice(0)) client.close();
    await until("all disconnects", async () => (await gateway.metric('roomcast_hook_disconnects_pending{hook="app"}')) === 0);
    // The circuit is closed for the next test.
    await until("a closed circuit", async () => {
      const isOpen = await gateway.metric('roomcast_hook_circuit_open{hook="app"}');
      if (isOpen) await connected().then((client) => client.close()).catch(() => {});
      return !isOpen;
    });
    backend.requests.length = 0;
  });
  after(async () => {
    await gateway?.stop();
    await backend?.stop();
  });

  test("sees who connects, signed, with the headers and cookies that it wants", async () => {
    const client = await connected({
      auth: { token: "t" },
      query: { room: "a b" },
      extraHeaders: { "x-tenant": "acme", "x-other": "no", cookie: "a=1; session=s=7; b=2" },
    });
    const [request] = backend.of("connect");
    const { id, hook, node, namespace, auth, query, socket, http, body } = request;
    assert.equal(socket.id, client.id);
    assert.deepEqual({ hook, namespace, auth, room: query.room }, { hook: "app", namespace: "/", auth: { token: "t" }, room: "a b" });
    assert.ok(id && node);
    assert.deepEqual(socket.headers, { "x-tenant": "acme" });
    assert.deepEqual(socket.cookies, { session: "s=7" });
    assert.equal(socket.address, "127.0.0.1");
    assert.deepEqual([http["x-tenant"], http["x-other"], http.cookie], ["acme", undefined, "session=s=7"]);
    const [, time, signature] = /^t=(\d+),v1=([0-9a-f]{64})$/.exec(http["roomcast-signature"]);
    assert.equal(signature, createHmac("sha256", SECRET).update(`${time}.${body}`).digest("hex"));
    assert.ok(Math.abs(Date.now() / 1000 - time) < 60);
  });

  test("sees who comes back, and emits to a client that has lost its connection", async () => {
    const client = io(`${gateway.url}/back`, { forceNew: true, reconnectionDelay: 50, transports: ["websocket"] });
    const watcher = io(`${gateway.url}/back`, { forceNew: true, transports: ["websocket"] });
    clients.push(client, watcher);
    const [told, seen] = [[], []];
    client.on("told", (number) => told.push(number));
    watcher.on("seen", (number) => seen.push(number));
    await until("the connects", () => client.connected && watcher.connected);
    const { id } = client;
    let isLost = Promise.resolve();
    backend.respond = async ({ type, args }) => {
      if (type !== "event") return [];
      await isLost;
      return [{ op: "emit", event: "told", args }, { op: "emit", event: "seen", args, sockets: [watcher.id] }];
    };
    client.emit("tell", 1);
    await until("the first", () => told.length === 1);
    let lose;
    isLost = new Promise((resolve) => (lose = resolve));
    client.emit("tell", 2);
    await until("the second request", () => backend.of("event").length === 2);
    client.io.reconnection(false);
    client.io.engine.close();
    await until("the disconnect", async () => (await gateway.metric('roomcast_sockets{namespace="/back"}')) === 1);
    lose();
    await until("the second to be emitted", () => seen.length === 2);
    client.io.reconnection(true);
    client.connect();
    await until("the client to be back", () => client.connected && told.length === 2);
    assert.deepEqual([client.recovered, client.id, told], [true, id, [1, 2]]);
    const connects = backend.of("connect").filter(({ socket }) => socket.id === id);
    assert.deepEqual(connects.map(({ recovered }) => recovered), [false, true]);
    for (const open of [client, watcher]) open.close();
    await until("all disconnects", async () => (await gateway.metric('roomcast_hook_disconnects_pending{hook="back"}')) === 0);
    await until("all disconnects to be seen", () => backend.of("disconnect").length === 3);
  });

  test("does not ask about a client that comes back if it shall trust the session", async () => {
    const returning = connect({ transports: ["websocket"] }).io.socket("/trusted", { auth: { mine: 1 } });
    backend.respond = ({ type }) =>
      type === "connect"
        ? [{ op: "set_user", user: "7" }, { op: "set_data", data: { name: "Ada" } }]
        : [{ op: "ack", args: [] }];
    await until("the connect", () => returning.connected);
    const { id } = returning;
    // A broadcast gives the client its place.
    assert.equal(await gateway.metric('roomcast_sockets{namespace="/trusted"}'), 1);
    returning.io.engine.close();
    returning.connect();
    await until("the client to be back", () => returning.connected && returning.id === id);
    await returning.emitWithAck("who");
    const [connects, [event]] = [backend.of("connect"), backend.of("event")];
    assert.equal(connects.filter(({ namespace }) => namespace === "/trusted").length, 1);
    assert.deepEqual([event.socket.user, event.socket.data], ["7", { name: "Ada" }]);
    // Without the session the hook decides, and sees no secrets.
    const stranger = connect().io.socket("/trusted", { auth: { pid: "unknown", offset: "1-1", mine: 1 } });
    await until("a new socket", () => stranger.connected);
    const last = backend.of("connect").at(-1);
    assert.deepEqual([last.auth, last.recovered], [{ mine: 1 }, false]);
    for (const open of [returning, stranger]) open.close();
    await until("all disconnects", async () => (await gateway.metric('roomcast_hook_disconnects_pending{hook="back"}')) === 0);
  });

  test("refuses a client with its message and data", async () => {
    backend.respond = () => [{ op: "refuse", message: "not you", data: { code: 7 } }];
    const [error] = await next(connect(), "connect_error");
    assert.deepEqual([error.message, error.data], ["not you", { code: 7 }]);
  });

  test("lets a client in with a user, data and rooms, which later requests show", async () => {
    backend.respond = ({ type }) =>
      type === "connect"
        ? [
            { op: "set_user", user: "7" },
            { op: "set_data", data: { name: "Ada" } },
            { op: "join", rooms: ["lobby"] },
            { op: "emit", event: "welcome", args: [1] },
          ]
        : [{ op: "emit", event: "note", args: ["for the user"], users: ["7"] }];
    const client = connect();
    assert.deepEqual(await next(client, "welcome"), [1]);
    const noted = next(client, "note");
    client.emit("any", 1);
    assert.deepEqual(await noted, ["for the user"]);
    const [{ socket }] = backend.of("event");
    const { user, data, rooms } = socket;
    assert.deepEqual({ user, data, rooms: rooms.sort() }, { user: "7", data: { name: "Ada" }, rooms: ["lobby", "user:7"] });
  });

  test("answers an event, and its operations are carried out in their order", async () => {
    const other = await connected();
    const client = await connected();
    backend.respond = ({ args: [room] }) => [
      { op: "join", rooms: [room] },
      { op: "emit", event: "news", args: [room, 1], rooms: [room, "elsewhere"] },
      { op: "emit", event: "all", args: ["x"], all: true, except: [other.id] },
      { op: "emit", event: "one", sockets: [other.id] },
      { op: "ack", args: ["done", { n: 1 }] },
    ];
    const seen = [];
    client.onAny((event, ...args) => seen.push([event, ...args]));
    const one = next(other, "one");
    const acked = await askAll(client, "enter", "a room");
    assert.deepEqual(acked, ["done", { n: 1 }]);
    assert.deepEqual(seen, [["news", "a room", 1], ["all", "x"]]);
    assert.deepEqual(await one, []);
    const [{ event, args, ack }] = backend.of("event");
    assert.deepEqual({ event, args, ack }, { event: "enter", args: ["a room"], ack: true });
  });

  test("an empty response acknowledges, and a refusal is the acknowledgement's error", async () => {
    const client = await connected();
    backend.respond = () => "";
    assert.deepEqual(await askAll(client, "x"), []);
    backend.respond = () => [{ op: "refuse", message: "no", data: [1] }];
    assert.deepEqual(await ask(client, "x"), { error: "no", data: [1] });
  });

  test("binary keeps its place in both directions", async () => {
    const client = await connected();
    backend.respond = ({ args }) => [{ op: "ack", args: [args[1], { deep: [args[0].file] }] }];
    const file = Buffer.from([0, 1, 254, 255]);
    const [text, back] = await askAll(client, "upload", { file, name: "n" }, "t");
    assert.deepEqual(backend.of("event")[0].args, [{ file: { $binary: "AAH+/w==" }, name: "n" }, "t"]);
    assert.equal(text, "t");
    assert.deepEqual(Buffer.from(back.deep[0]), file);
  });

  test("the events of a socket keep their order while other sockets do not wait", async () => {
    const [slow, quick] = [await connected(), await connected()];
    const order = [];
    let release;
    const released = new Promise((resolve) => (release = resolve));
    backend.respond = async ({ event, args }) => {
      order.push([event, ...args]);
      if (args[0] === 0) await released;
      return [{ op: "ack", args }];
    };
    const acks = [0, 1, 2].map((n) => ask(slow, "slow", n));
    await until("the first event", () => order.length === 1);
    assert.equal(await ask(quick, "quick", 7), 7);
    release();
    assert.deepEqual(await Promise.all(acks), [0, 1, 2]);
    assert.deepEqual(order, [["slow", 0], ["quick", 7], ["slow", 1], ["slow", 2]]);
  });

  test("an event goes to the hook whose pattern fits best", async () => {
    const client = await connected();
    await askAll(client, "other:x");
    await askAll(client, "othe");
    assert.deepEqual(backend.of("event").map(({ hook }) => hook), ["other", "app"]);
  });

  test("a wrong response is carried out in no part and named in the log", async () => {
    const client = await connected();
    const seen = [];
    client.onAny((event) => seen.push(event));
    const internal = { error: "internal error", data: { code: "internal" } };
    backend.respond = () => [{ op: "emit", event: "first" }, { op: "join", room: "a" }];
    // Lines about failures are limited in number, and the disconnect of an earlier client may have used them up.
    const line = await until("the line of the log", async () => {
      assert.deepEqual(await ask(client, "x"), internal);
      return gateway.lines.find(({ error }) => /unknown field `room`/.test(error));
    });
    assert.equal(line.event, "x");
    assert.ok(backend.of("event").some(({ id }) => id === line.request), line.request);
    const before = await failures("invalid");
    assert.deepEqual(await ask(client, "x"), internal);
    backend.respond = () => "no JSON";
    assert.deepEqual(await ask(client, "x"), internal);
    backend.respond = () => [];
    await askAll(client, "x");
    assert.deepEqual(seen, []);
    assert.equal(await failures("invalid"), before + 2);
    assert.equal(line.hook, "app");
    assert.match(line.error, /\[1\]\.room/);
  });

  test("a slow backend costs its own events an error and nothing else", async () => {
    const client = await connected();
    const other = await connected();
    backend.respond = ({ event }) => (event === "slow" ? new Promise(() => {}) : [{ op: "ack", args: ["quick"] }]);
    const slow = ask(client, "slow");
    assert.equal(await ask(other, "quick"), "quick");
    assert.deepEqual(await slow, { error: "the application did not respond in time", data: { code: "timeout" } });
    assert.equal(await ask(client, "quick"), "quick");
  });

  test("beyond the requests at a time and the queue, events fail at once", async () => {
    const many = [];
    while (many.length < 14) many.push(await connected());
    let release;
    const released = new Promise((resolve) => (release = resolve));
    backend.respond = async () => {
      await released;
      return [{ op: "ack", args: ["ok"] }];
    };
    const overloaded = [];
    const acks = many.map(async (client) => {
      const answer = await ask(client, "x");
      if (answer !== "ok") overloaded.push(answer);
      return answer;
    });
    // Only then, because an event that arrives after the release is free to pass.
    await until("both to fail", () => overloaded.length === 2);
    release();
    const answers = await Promise.all(acks);
    const failure = { error: "the application is overloaded", data: { code: "overloaded" } };
    assert.deepEqual(overloaded, [failure, failure]);
    assert.equal(answers.filter((answer) => answer === "ok").length, 12);
  });

  test("a dead backend opens the circuit, which closes when it responds again", async () => {
    const client = await connected();
    backend.respond = () => Promise.reject(503);
    const unavailable = { error: "the application is unavailable", data: { code: "unavailable" } };
    await until("an open circuit", async () => {
      assert.deepEqual(await ask(client, "x"), unavailable);
      return (await failures("circuit_open")) > 0;
    });
    assert.equal(await gateway.metric('roomcast_hook_circuit_open{hook="app"}'), 1);
    const [error] = await next(connect(), "connect_error");
    assert.equal(error.message, "the application is unavailable");
    backend.respond = () => [{ op: "ack", args: ["back"] }];
    await until("a closed circuit", async () => (await ask(client, "x")) === "back");
    assert.equal(await gateway.metric('roomcast_hook_circuit_open{hook="app"}'), 0);
    await until("the line of the log", () => gateway.lines.some(({ message }) => /responds again/.test(message)));
  });

  test("hears of a disconnect until it has confirmed it, each time with the same id", async () => {
    backend.respond = ({ type }) => (type === "connect" ? [{ op: "join", rooms: ["a"] }, { op: "set_user", user: "9" }] : []);
    const [client, other] = [await connected(), await connected()];
    let failing = 1;
    backend.respond = ({ type }) => {
      if (type !== "disconnect") return [];
      if (failing > 0) {
        failing -= 1;
        return Promise.reject(500);
      }
      return [{ op: "emit", event: "left", args: ["9"], rooms: ["a"] }];
    };
    const left = next(other, "left");
    const { id } = client;
    client.disconnect();
    assert.deepEqual(await left, ["9"]);
    const [first, second, ...more] = backend.of("disconnect");
    assert.deepEqual(more, []);
    assert.equal(first.id, second.id);
    assert.deepEqual(
      [second.socket.id, second.socket.user, second.socket.rooms.sort(), second.reason],
      [id, "9", ["a", "user:9"], "client namespace disconnect"],
    );
  });

  test("is replaced by a reload, and a wrong section replaces nothing", async () => {
    const other = await new Backend().start();
    const settings = (url, more = "") => `access = "hook"\n[hooks.app]\nurl = "${url}"\n${more}`;
    const own = await startGateway(settings(backend.url));
    try {
      const client = io(own.url, { forceNew: true, reconnection: false });
      clients.push(client);
      await next(client, "connect");
      const named = (name) => ({ type }) => type === "event" ? [{ op: "ack", args: [name] }] : [];
      backend.respond = named("first");
      other.respond = named("second");
      for (const [more, problem] of [
        [`secret_file = "/nowhere"`, /hooks\.app: cannot read `secret_file` \/nowhere/],
        [`on = ["event"]`, /a hook decides who may connect to \//],
      ]) {
        const line = await own.reload(settings(other.url, more));
        assert.match(JSON.stringify(line), problem);
        assert.equal(await client.emitWithAck("who"), "first");
      }
      await own.reload(settings(other.url));
      assert.equal(await client.emitWithAck("who"), "second");
      client.disconnect();
      await until("the disconnect", () => other.of("disconnect").length === 1);
      assert.equal(backend.of("disconnect").length, 0);
    } finally {
      await own.stop();
      await other.stop();
    }
  });

  test("gets a namespace by a reload that had no hooks, and its sockets", async () => {
    const settings = (namespaces) => `
      access = "open"
      namespace = ["/", "/late"]
      [hooks.app]
      url = "${backend.url}"
      namespaces = ${JSON.stringify(namespaces)}
      on = ["event", "disconnect"]
    `;
    const own = await startGateway(settings(["/"]));
    try {
      const client = io(`${own.url}/late`, { forceNew: true, reconnection: false });
      clients.push(client);
      await next(client, "connect");
      const { id } = client;
      assert.deepEqual(await ask(client, "x"), { error: "no hook handles this event" });
      await own.reload(settings(["/", "/late"]));
      backend.respond = ({ type, namespace }) => (type === "event" ? [{ op: "ack", args: [namespace] }] : []);
      assert.equal(await ask(client, "x"), "/late");
      client.disconnect();
      await until("the disconnect", () => backend.of("disconnect").some(({ socket }) => socket.id === id));
    } finally {
      await own.stop();
    }
  });

  test("hears of the disconnects of a node that stops", async () => {
    const own = await startGateway(`access = "hook"\n[hooks.app]\nurl = "${backend.url}"`);
    const client = io(own.url, { forceNew: true, reconnection: false });
    await next(client, "connect");
    backend.requests.length = 0;
    assert.deepEqual(await own.stop(), { code: 0, signal: null });
    client.close();
    assert.equal(backend.of("disconnect").length, 1);
  });
});

describe("an application that takes batches", () => {
  let backend;
  const clients = [];
  const gateways = [];

  /** Resolves to the order in which requests have shown events. */
  const seen = () =>
    backend.requests.flatMap(({ type, events, event, args }) =>
      type === "batch" ? [events.map(({ args }) => args[0])] : type === "event" ? [args[0] ?? event] : [type],
    );

  async function node(batch, more = "") {
    const hook = `url = "${backend.url}"\non = ["event", "disconnect"]\nbatch = ${batch}\n${more}`;
    const gateway = await startGateway(`access = "open"\n[hooks.app]\n${hook}`);
    gateways.push(gateway);
    return gateway;
  }

  async function connected(gateway) {
    const client = io(gateway.url, { forceNew: true, reconnection: false, transports: ["websocket"] });
    clients.push(client);
    await next(client, "connect");
    return client;
  }

  before(async () => {
    backend = await new Backend().start();
  });
  afterEach(async () => {
    backend.respond = () => [];
    for (const client of clients.splice(0)) client.close();
    await Promise.all(gateways.splice(0).map((gateway) => gateway.stop()));
    backend.requests.length = 0;
  });
  after(() => backend?.stop());

  test("gets events without an acknowledgement together, and each has its operations", async () => {
    const gateway = await node('{ size = 3, delay = "1h" }');
    const [ada, bob] = [await connected(gateway), await connected(gateway)];
    backend.respond = ({ events }) => events.map(({ args: [n] }) => [{ op: "emit", event: "mine", args: [n] }, { op: "ack" }]);
    const [ofAda, ofBob] = [collect(ada, "mine", 2), collect(bob, "mine", 1)];
    ada.emit("move", "a1", Buffer.from([1]));
    ada.emit("move", "a2");
    await until("both to wait", async () => (await gateway.metric('roomcast_hook_batch_events_waiting{hook="app"}')) === 2);
    assert.deepEqual(backend.requests, []);
    bob.emit("move", "b1");
    assert.deepEqual(await Promise.all([ofAda, ofBob]), [["a1", "a2"], ["b1"]]);
    const [{ id, hook, node: name, events, namespace }, ...others] = backend.requests;
    assert.deepEqual([others, hook, namespace], [[], "app", undefined]);
    assert.equal(new Set([id, ...events.map((event) => event.id)]).size, 4);
    const shown = events.map((event) => [event.type, event.hook, event.node, event.namespace, event.ack, event.socket.id, event.args]);
    const wanted = (client, args) => ["event", "app", name, "/", false, client.id, args];
    assert.deepEqual(shown, [wanted(ada, ["a1", { $binary: "AQ==" }]), wanted(ada, ["a2"]), wanted(bob, ["b1"])]);
    assert.equal(await gateway.metric('roomcast_hook_batch_events_total{hook="app"}'), 3);
    assert.equal(await gateway.metric('roomcast_hook_batch_events_waiting{hook="app"}'), 0);
  });

  test("sees what a socket does in its order, with and without acknowledgements", async () => {
    const gateway = await node("{}");
    const client = await connected(gateway);
    backend.respond = ({ type }) => (type === "event" ? [{ op: "ack" }] : []);
    for (const n of [1, 2]) client.emit("n", n);
    const asked = askAll(client, "n", 3);
    for (const n of [4, 5]) client.emit("n", n);
    await asked;
    await until("the last event", () => seen().flat().includes(5));
    client.disconnect();
    await until("the disconnect", () => seen().at(-1) === "disconnect");
    assert.deepEqual(seen().flat(), [1, 2, 3, 4, 5, "disconnect"]);
    assert.deepEqual(seen().filter((n) => !Array.isArray(n)), [3, "disconnect"]);
  });

  test("gets the next events of a socket when the batch before is done, and others meanwhile", async () => {
    const gateway = await node('{ size = 1, delay = "1h" }');
    const [slow, quick] = [await connected(gateway), await connected(gateway)];
    let release;
    const released = new Promise((resolve) => (release = resolve));
    backend.respond = ({ events }) => (events?.[0].args[0] === "s1" ? released.then(() => []) : []);
    for (const n of ["s1", "s2", "s3"]) slow.emit("n", n);
    await until("the first", () => seen().length === 1);
    quick.emit("n", "q1");
    await until("the other socket", () => seen().length === 2);
    release();
    await until("all", () => seen().length === 4);
    assert.deepEqual(seen(), [["s1"], ["q1"], ["s2"], ["s3"]]);
  });

  test("gets events that wait for an acknowledgement together, if asked to, and each gets its own", async () => {
    const gateway = await node('{ size = 3, delay = "1h", acks = true }');
    const [ada, bob] = [await connected(gateway), await connected(gateway)];
    let release;
    const released = new Promise((resolve) => (release = resolve));
    const lists = {
      a1: [{ op: "ack", args: ["one"] }],
      a2: [{ op: "refuse", message: "no", data: { n: 2 } }],
      a3: [],
      b1: [{ op: "join", room: "mistaken" }],
    };
    backend.respond = ({ events }) =>
      events[0].args[0] === "first" ? released.then(() => []) : events.map(({ args: [n] }) => lists[n]);
    // Nothing is under way, so it does not wait for others.
    const first = bob.emitWithAck("n", "first");
    await until("the first", () => seen().length === 1);
    const asked = ["a1", "a2"].map((n) => ada.emitWithAck("n", n));
    ada.emit("n", "a3");
    asked.push(bob.emitWithAck("n", "b1"));
    // The second one of a socket waits for its first, so the three others fill a batch.
    await until("the batch", () => seen().length === 2);
    const [one, two] = await Promise.all(asked.slice(0, 2));
    assert.deepEqual([one, two], ["one", { error: "no", data: { n: 2 } }]);
    assert.deepEqual(backend.requests[1].events.map(({ args, ack }) => [args[0], ack]), [["a1", true], ["a2", true], ["a3", false]]);
    release();
    assert.equal(await first, undefined);
    const failed = await asked[2];
    assert.deepEqual([failed.error, failed.data.code], ["internal error", "internal"]);
    assert.deepEqual(seen(), [["first"], ["a1", "a2", "a3"], ["b1"]]);
  });

  test("may err in the list of one event", async () => {
    const gateway = await node('{ size = 2, delay = "1h" }');
    const client = await connected(gateway);
    backend.respond = () => [[{ op: "join", room: "a" }], [{ op: "emit", event: "fine" }]];
    const fine = next(client, "fine");
    for (const n of [1, 2]) client.emit("n", n);
    await fine;
    const failed = (outcome) => gateway.metric(`roomcast_hook_requests_total{hook="app",outcome="${outcome}"}`);
    assert.equal(await failed("invalid"), 1);
    const isNamed = ({ hook, error }) => hook === "app" && /\[0\]\[0\]\.room/.test(error);
    await until("the line of the log", () => gateway.lines.some(isNamed));
    backend.respond = () => [];
    client.emit("n", 3);
    await until("an event that waits", async () => (await gateway.metric('roomcast_hook_batch_events_waiting{hook="app"}')) === 1);
    await gateways.pop().stop();
    assert.deepEqual(seen(), [[1, 2], [3], "disconnect"]);
  });

  test("is overloaded by many sockets, and a socket that sends many events takes no room from others", async () => {
    const gateway = await node('{ size = 2, delay = "1h", acks = true }', "queue = 1\nconcurrency = 1");
    const waiting = (count) => async () =>
      (await gateway.metric('roomcast_hook_batch_events_waiting{hook="app"}')) === count;
    const [many, other, late] = [await connected(gateway), await connected(gateway), await connected(gateway)];
    let release;
    const released = new Promise((resolve) => (release = resolve));
    backend.respond = ({ events }) => released.then(() => events.map(({ args }) => [{ op: "ack", args }]));
    const asked = [many.emitWithAck("n", 0)];
    await until("a batch under way", () => seen().length === 1);
    for (let n = 1; n <= 20; n += 1) asked.push(many.emitWithAck("n", n));
    await until("its own events to wait", waiting(20));
    const waits = other.emitWithAck("n", "other");
    await until("the event of the other", waiting(21));
    const { error, data } = await late.emitWithAck("n", "late");
    assert.deepEqual([error, data.code], ["the application is overloaded", "overloaded"]);
    release();
    assert.equal(await waits, "other");
    assert.deepEqual(await Promise.all(asked), Array.from({ length: 21 }, (_, n) => n));
    assert.ok(seen().flat().indexOf("other") <= 2, `the other socket waited for ${seen().flat().indexOf("other")} events`);
    await until("nothing to wait", waiting(0));
  });
});

describe("an application behind tokens", () => {
  let backend;
  let gateway;

  const encoded = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");

  function token(user, secret = SECRET) {
    const exp = Math.floor(Date.now() / 1000) + 60;
    const text = `${encoded({ alg: "HS256", kid: "k" })}.${encoded({ sub: user, exp })}`;
    return `${text}.${createHmac("sha256", secret).update(text).digest("base64url")}`;
  }

  const open = (auth) => io(gateway.url, { forceNew: true, reconnection: false, transports: ["websocket"], auth });

  before(async () => {
    backend = await new Backend().start();
    gateway = await startGateway(
      `
      access = "jwt+hook"

      [[jwt.keys]]
      id = "k"
      algorithm = "HS256"
      secret_env = "HOOK_SECRET"

      [hooks.app]
      url = "${backend.url}"
      `,
      { environment: ENVIRONMENT },
    );
  });
  afterEach(() => {
    backend.respond = () => [];
    backend.requests.length = 0;
  });
  after(async () => {
    await gateway?.stop();
    await backend?.stop();
  });

  test("is asked only about clients with a valid token, whose user it sees", async () => {
    const [error] = await next(open({ token: token("ada", "another secret of the tests 01234") }), "connect_error");
    assert.equal(error.data.code, "token_invalid");
    assert.deepEqual(backend.requests, []);
    backend.respond = ({ type }) => (type === "event" ? [{ op: "emit", event: "note", users: ["ada"] }] : []);
    const client = open({ token: token("ada") });
    await next(client, "connect");
    const [{ socket }] = backend.of("connect");
    assert.deepEqual([socket.id, socket.user], [client.id, "ada"]);
    const noted = next(client, "note");
    client.emit("any");
    await noted;
    client.close();
  });

  test("may refuse a client in spite of its token", async () => {
    backend.respond = ({ type }) => (type === "connect" ? [{ op: "refuse", message: "banned", data: { code: 403 } }] : []);
    const [error] = await next(open({ token: token("ada") }), "connect_error");
    assert.deepEqual([error.message, error.data], ["banned", { code: 403 }]);
  });

  test("must not name another user than the token", async () => {
    backend.respond = ({ type }) => (type === "connect" ? [{ op: "set_data", data: {} }, { op: "set_user", user: "eve" }] : []);
    // Of the lines of one second, the log has the first.
    await until("the line in the log", async () => {
      const [error] = await next(open({ token: token("ada") }), "connect_error");
      assert.deepEqual([error.message, error.data], ["internal error", { code: "internal" }]);
      return gateway.lines.some(({ error }) => /\[1\]\.user: the token/.test(error));
    });
    backend.respond = ({ type }) => (type === "connect" ? [{ op: "set_user", user: "ada" }] : []);
    const client = open({ token: token("ada") });
    await next(client, "connect");
    client.close();
  });
});

// A lease lasts 10 s, and a node claims after as many seconds of its own.
const LEASE = 45_000;

/** The last request about each room, in the order of their numbers, as an application keeps it. */
function roomsOf(backend) {
  const latest = new Map();
  for (const { room, occupied, seq, namespace } of backend.of("rooms")) {
    const known = latest.get(namespace + room);
    if (!known || known.seq < seq) latest.set(namespace + room, { room: namespace + room, occupied, seq });
  }
  return [...latest.values()].filter(({ occupied }) => occupied).map(({ room }) => room).sort();
}

const JOINS = ({ type, event, args }) => (type === "event" ? [{ op: event, rooms: args }, { op: "ack" }] : []);

describe("an application with a hook for rooms", () => {
  let backend;
  let gateway;
  const clients = [];

  async function connected(path = "/") {
    const client = io(gateway.url + path, { forceNew: true, reconnection: false, transports: ["websocket"] });
    clients.push(client);
    await next(client, "connect");
    return client;
  }

  before(async () => {
    backend = await new Backend().start();
  });
  afterEach(async () => {
    for (const client of clients.splice(0)) client.close();
    await gateway?.stop();
    backend.requests.length = 0;
  });
  after(() => backend?.stop());

  test("hears of the first and the last member of rooms that it wants, until it has confirmed", async () => {
    gateway = await startGateway(`
      access = "open"
      namespace = ["/", "/chat"]
      [hooks.app]
      url = "${backend.url}"
      namespaces = ["/", "/chat"]
      on = ["event", "rooms"]
      rooms = ["room:*", "hall"]
    `);
    backend.respond = JOINS;
    const [ada, bob, other] = [await connected(), await connected(), await connected("/chat")];
    await askAll(ada, "join", "room:1", "hall", "quiet", bob.id);
    await askAll(bob, "join", "room:1");
    await askAll(other, "join", "room:1");
    await until("the rooms", () => roomsOf(backend).length === 3);
    assert.deepEqual(roomsOf(backend), ["/chatroom:1", "/hall", "/room:1"]);
    assert.equal(backend.of("rooms").length, 3);
    await askAll(ada, "leave", "room:1", "hall");
    await until("the empty room", () => roomsOf(backend).length === 2);
    assert.deepEqual(roomsOf(backend), ["/chatroom:1", "/room:1"]);
    let failing = 1;
    backend.respond = ({ type }) => (type === "rooms" && failing-- > 0 ? Promise.reject(500) : []);
    bob.disconnect();
    await until("another attempt", () => backend.of("rooms").filter(({ room, occupied }) => room === "room:1" && !occupied).length === 2);
    const [first, second] = backend.of("rooms").slice(-2);
    assert.deepEqual([first.id, first.seq, first.hook, first.socket], [second.id, second.seq, "app", undefined]);
    assert.deepEqual(roomsOf(backend), ["/chatroom:1"]);
    assert.deepEqual(await gateway.stop(), { code: 0, signal: null });
    assert.deepEqual(roomsOf(backend), [], "a node that stops leaves its rooms");
    gateway = undefined;
  });

  test("learns of existing rooms after a reload, and may respond with operations", async () => {
    const settings = (on) => `access = "open"\n[hooks.app]\nurl = "${backend.url}"\non = [${on}]`;
    gateway = await startGateway(settings('"event"'));
    backend.respond = JOINS;
    const [client, other] = [await connected(), await connected()];
    await askAll(client, "join", "a", other.id);
    backend.respond = (request) =>
      request.type === "rooms" ? [{ op: "emit", event: "opened", args: [request.room], rooms: [request.room] }] : JOINS(request);
    const opened = next(client, "opened");
    await gateway.reload(settings('"event", "rooms"'));
    assert.deepEqual(await opened, ["a"]);
    await gateway.reload(settings('"event"'));
    await askAll(client, "join", "b");
    await gateway.reload(settings('"event", "rooms"'));
    await until("the other room", () => roomsOf(backend).includes("/b"));
    assert.ok(!backend.of("rooms").some(({ room }) => room === other.id), "the private room of a socket");
  });
});

for (const [kind, start] of [["Redis", startRedis], ["a Redis Cluster", startRedisCluster]]) {
  describe(`disconnects in ${kind}`, () => {
    let backend;
    let redis;
    const gateways = [];
    const clients = [];

    async function node(more = "") {
      const gateway = await startGateway(
        `access = "hook"\n[hooks.app]\nurl = "${backend.url}"\ncookies = ["session"]\ncircuit_failures = 1000\n${more}`,
        { args: ["--redis", redis.url] },
      );
      gateways.push(gateway);
      return gateway;
    }

    async function connected(gateway, options) {
      const client = io(gateway.url, { forceNew: true, reconnection: false, transports: ["websocket"], ...options });
      clients.push(client);
      await next(client, "connect");
      return client;
    }

    /** The records in Redis, by id. */
    async function records() {
      const found = {};
      for (const server of redis.primaries ?? [redis]) {
        for (const key of await server.command("KEYS", "socket.io-{hooks}#node:*")) {
          const pairs = await server.command("HGETALL", key);
          for (let i = 0; i < pairs.length; i += 2) found[pairs[i]] = JSON.parse(pairs[i + 1]);
        }
      }
      return found;
    }

    const holds = (ids, what = "Redis to hold these sockets", patience = undefined) =>
      until(what, async () => Object.keys(await records()).sort().join() === ids.sort().join(), patience);
    const idOf = (socket) => `${socket}-app`;

    before(async () => {
      redis = await start();
      backend = await new Backend().start();
    });
    afterEach(async () => {
      backend.respond = () => [];
      for (const client of clients.splice(0)) client.close();
      await Promise.all(gateways.splice(0).map((gateway) => gateway.stop()));
      backend.requests.length = 0;
    });
    after(async () => {
      await backend?.stop();
      await redis?.stop();
    });

    test("of a killed node are sent by another, each with one id, as the sockets were", async () => {
      let isDown = true;
      const confirmed = [];
      backend.respond = ({ type, id, socket, event }) => {
        if (type === "connect") return [{ op: "join", rooms: ["lobby"] }, { op: "set_user", user: "7" }];
        if (event === "rename") return [{ op: "set_data", data: { name: "Ada" } }, { op: "ack" }];
        if (type !== "disconnect") return [];
        if (isDown) return Promise.reject(400);
        confirmed.push(id);
        return [{ op: "emit", event: "left", args: [socket.id], rooms: ["lobby"] }];
      };
      const [mortal, survivor] = [await node(), await node()];
      const staying = await connected(survivor);
      const lost = await connected(mortal, { extraHeaders: { cookie: "session=s" } });
      const leaving = await connected(mortal);
      await askAll(lost, "rename");
      const [lostId, leavingId, stayingId] = [lost.id, leaving.id, staying.id];
      leaving.disconnect();
      await until("an attempt of the node", () => backend.of("disconnect").length > 0);
      const ids = [lostId, leavingId, stayingId].map(idOf);
      await holds(ids);
      await until("the changed data in Redis", async () => /Ada/.test((await records())[idOf(lostId)].body));
      await until("the reason in Redis", async () => /client namespace/.test((await records())[idOf(leavingId)].body));
      await mortal.kill();
      const left = [];
      staying.on("left", (id) => left.push(id));
      const attempts = () => new Set(backend.of("disconnect").map(({ id }) => id));
      await until("attempts of the other node", () => attempts().size === 2, LEASE);
      isDown = false;
      await holds([idOf(stayingId)], "both to be confirmed", LEASE);
      assert.deepEqual(confirmed.sort(), [lostId, leavingId].map(idOf).sort());
      await until("both operations", () => left.length === 2);
      assert.deepEqual(left.sort(), [lostId, leavingId].sort());
      const last = (id) => backend.of("disconnect").findLast(({ socket }) => socket.id === id);
      assert.equal(last(leavingId).reason, "client namespace disconnect");
      const { reason, socket, http } = last(lostId);
      assert.deepEqual(
        [reason, socket.user, socket.rooms.sort(), socket.data, socket.cookies, http.cookie],
        ["node lost", "7", ["lobby", "user:7"], { name: "Ada" }, { session: "s" }, "session=s"],
      );
      assert.equal(await survivor.metric('roomcast_hook_disconnects_adopted_total{hook="app"}'), 2);
      assert.equal(await survivor.metric("roomcast_hook_disconnects_stored"), 1);
      assert.equal(staying.connected, true);
    });

    test("that a stopping node cannot deliver are sent by another", async () => {
      backend.respond = ({ type }) => (type === "disconnect" ? Promise.reject(400) : []);
      const [stopping, survivor] = [await node(), await node()];
      const client = await connected(stopping);
      const id = idOf(client.id);
      assert.deepEqual(await stopping.stop(), { code: 0, signal: null });
      gateways.splice(gateways.indexOf(stopping), 1);
      await holds([id], "the record to stay");
      backend.requests.length = 0;
      backend.respond = () => [];
      await until("the other node", () => backend.of("disconnect").length > 0, LEASE);
      await holds([], "Redis to forget it");
      assert.deepEqual(backend.of("disconnect").map((request) => request.id), [id]);
      assert.equal(await survivor.metric("roomcast_hook_disconnects_stored"), 0);
    });

    test("and rooms are those of the cluster, and those of a dead node are taken out", async () => {
      backend.respond = JOINS;
      const on = 'on = ["connect", "event", "rooms"]';
      const [mortal, survivor] = [await node(on), await node(on)];
      const [lost, staying] = [await connected(mortal), await connected(survivor)];
      await askAll(lost, "join", "both", "lost");
      await until("the first rooms", () => roomsOf(backend).length === 2);
      await askAll(staying, "join", "both", "staying");
      await until("the other room", () => roomsOf(backend).length === 3);
      assert.equal(backend.of("rooms").length, 3, "each room is reported once, on any number of nodes");
      await askAll(lost, "leave", "both");
      await askAll(lost, "join", "marker");
      await until("the marker", () => roomsOf(backend).includes("/marker"));
      assert.deepEqual(roomsOf(backend), ["/both", "/lost", "/marker", "/staying"]);
      await mortal.kill();
      await until("the rooms of the dead node to be taken out", () => roomsOf(backend).length === 2, LEASE);
      assert.deepEqual(roomsOf(backend), ["/both", "/staying"]);
      for (const server of redis.primaries ?? [redis]) await server.command("FLUSHALL");
      const told = () => backend.of("rooms").filter(({ room, occupied }) => room === "both" && occupied).length;
      await until("the rooms to be reported again", () => told() === 2);
      await askAll(staying, "leave", "both");
      await until("the empty room", () => roomsOf(backend).length === 1);
      assert.deepEqual(roomsOf(backend), ["/staying"]);
    });

    test("are forgotten when confirmed, and sockets are stored again when Redis was emptied", async () => {
      const gateway = await node();
      const [client, other] = [await connected(gateway), await connected(gateway)];
      const [id, otherId] = [client.id, other.id].map(idOf);
      await holds([id, otherId]);
      other.disconnect();
      await holds([id], "one to be forgotten");
      assert.equal(backend.of("disconnect").length, 1);
      for (const server of redis.primaries ?? [redis]) await server.command("FLUSHALL");
      await holds([id], "the socket to be stored again");
      assert.equal(await gateway.metric("roomcast_hook_store_failures_total"), 0);
    });
  });
}
