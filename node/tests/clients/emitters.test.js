// Emitters of others into a cluster of two servers under test and one official server: the official
// one, its predecessor, and the ports for Python and Rust. They speak the classic dialect; there are none
// for the sharded one. Ports for PHP, Java and Go are not on the registries that this folder uses: what
// they send is tested where the wire format is. TEST_EMITTER_RUST is the program of
// cluster/emitter-rust.

"use strict";

const assert = require("node:assert/strict");
const { execFile } = require("node:child_process");
const { join } = require("node:path");
const { after, before, describe, test } = require("node:test");
const { promisify } = require("node:util");
const { Emitter } = require("@socket.io/redis-emitter");
const { createClient } = require("redis");
const createOldEmitter = require("socket.io-emitter");

const { KINDS } = require("./cluster/dialects");
const { Cast, PEOPLE, startServers } = require("./cluster/members");
const { startRedis } = require("./cluster/redis");
const { encode } = require("./cluster/values");
const { next, until } = require("./support/wait");

const PREFIX = "emitted";
const EVERYBODY = Object.keys(PEOPLE);

let redis;
let servers;
let cast;

before(async () => {
  redis = await startRedis();
  servers = await startServers(KINDS, { redis: redis.url, prefix: PREFIX }, redis);
  cast = await Cast.open(servers, "/");
});
after(async () => {
  cast?.close();
  await Promise.all((servers ?? []).map((server) => server.stop()));
  await redis?.stop();
});

describe("the official emitter", () => {
  let client;
  let emitter;
  before(async () => {
    client = createClient({ url: redis.url });
    await client.connect();
    emitter = new Emitter(client, { key: PREFIX });
  });
  after(() => client?.destroy());

  test("each operator reaches exactly its sockets, each once", async () => {
    const cases = [
      [(io) => io, EVERYBODY],
      [(io) => io.to("x"), ["ada", "bob", "eve"]],
      [(io) => io.to(["x", "y"]), ["ada", "bob", "cid", "eve"]],
      [(io) => io.to("x").to("z").except("y"), ["ada", "fay"]],
      [(io) => io.except(["x", "y"]), ["dan", "fay"]],
      [(io) => io.to("x").except("y"), ["ada"]],
      [(io) => io.in(cast.sockets.cid.id), ["cid"]],
      [(io) => io.to("nobody is here"), []],
    ];
    for (const [i, [target, expected]] of cases.entries()) {
      const reached = await cast.receivers(expected.length, (event) => target(emitter).emit(event, i));
      assert.deepEqual(reached, expected, `case ${i}`);
    }
  });

  test("arguments arrive, binary too, in its namespace alone", async () => {
    const args = [1.5, "ünïcödé 😀", null, { list: [Buffer.from("deep")] }];
    const arrived = Promise.all(Object.values(cast.sockets).map((socket) => next(socket, "values")));
    emitter.emit("values", ...args);
    for (const [first, second, third, { list }] of await arrived) {
      assert.deepEqual([first, second, third], args.slice(0, 3));
      assert.equal(Buffer.from(list[0]).toString(), "deep");
    }
    assert.deepEqual(await cast.receivers(0, (event) => emitter.of("chat").emit(event)), []);
    const socket = await cast.extra(1);
    const nsp = socket.io.socket("/chat");
    await next(nsp, "connect");
    const heard = next(nsp, "in chat");
    emitter.of("chat").emit("in chat", 1);
    assert.deepEqual(await heard, [1]);
  });

  test("deep data and odd numbers arrive on every server as on the official one", async () => {
    const nested = (depth) => (depth === 0 ? 1 : [nested(depth - 1)]);
    // Its MessagePack cannot carry whole numbers from 2^64 on: it writes their lowest 64 bits.
    const numbers = [-0, -7, 1e18, 2 ** 53 + 2, 0.1, 5e-324];
    for (const args of [[nested(101)], [nested(128)], [nested(300)], numbers]) {
      const arrived = Promise.all(Object.values(cast.sockets).map((socket) => next(socket, "values")));
      emitter.emit("values", ...args);
      const expected = JSON.parse(JSON.stringify(args));
      for (const values of await arrived) assert.deepEqual(values, expected);
    }
  });

  test("sockets join, leave and are disconnected", async () => {
    emitter.in("z").socketsJoin(["new", "newer"]);
    emitter.in("y").except("x").socketsJoin("new");
    await until("two to be in the room", async () => {
      return (await cast.receivers(0, (event) => emitter.to("new").emit(event))).join() === "cid,fay";
    });
    emitter.socketsLeave("new");
    await until("nobody to be in the room", async () => {
      return (await cast.receivers(0, (event) => emitter.to("new").emit(event))).length === 0;
    });
    assert.deepEqual(await cast.receivers(1, (event) => emitter.to("newer").emit(event)), ["fay"]);
    emitter.socketsLeave("newer");
    const doomed = await Promise.all([0, 1, 2].map((i) => cast.extra(i, { rooms: ["doomed"] })));
    const gone = Promise.all(doomed.map((socket) => next(socket, "disconnect")));
    emitter.in("doomed").disconnectSockets(true);
    for (const [reason] of await gone) assert.equal(reason, "io server disconnect");
  });

  test("an emit right behind a join reaches the sockets that were told to join", async () => {
    for (let i = 0; i < 50; i += 1) {
      const room = `late ${i}`;
      const reached = await cast.receivers(3, (event) => {
        emitter.in("x").socketsJoin(room);
        emitter.to(room).emit(event);
      });
      assert.deepEqual(reached, ["ada", "bob", "eve"], room);
      emitter.socketsLeave(room);
    }
  });

  test("a server-side event reaches all servers", async () => {
    const notes = Promise.all(servers.map((server) => next(server, "note")));
    emitter.serverSideEmit("note", 1, { two: [3] });
    for (const [{ namespace, args }] of await notes) {
      assert.equal(namespace, "/");
      assert.deepEqual(args, [1, { two: [3] }]);
    }
  });

  test("many messages arrive in order", async () => {
    const count = 1000;
    const seen = Object.fromEntries(EVERYBODY.map((name) => [name, []]));
    for (const name of EVERYBODY) cast.sockets[name].on("numbered", (n) => seen[name].push(n));
    for (let i = 0; i < count; i += 1) emitter.to("x").emit("numbered", i);
    await until("all messages", () => ["ada", "bob", "eve"].every((name) => seen[name].length >= count));
    await cast.fence();
    for (const name of EVERYBODY) {
      const expected = PEOPLE[name].rooms.includes("x") ? Array.from({ length: count }, (_, i) => i) : [];
      assert.deepEqual(seen[name], expected, name);
      cast.sockets[name].off("numbered");
    }
  });
});

test("the emitter of socket.io 2 is heard", async () => {
  const emitter = createOldEmitter({ host: "127.0.0.1", port: redis.port, key: PREFIX });
  try {
    assert.deepEqual(await cast.receivers(6, (event) => emitter.emit(event, 1)), EVERYBODY);
    assert.deepEqual(await cast.receivers(3, (event) => emitter.to("x").emit(event, 1)), ["ada", "bob", "eve"]);
    assert.deepEqual(
      await cast.receivers(4, (event) => emitter.to("x").to("y").emit(event, 1)),
      ["ada", "bob", "cid", "eve"],
    );
    const heard = next(cast.sockets.fay, "values");
    emitter.to("z").emit("values", Buffer.from("bytes"), { a: [1] });
    const [bytes, value] = await heard;
    assert.equal(Buffer.from(bytes).toString(), "bytes");
    assert.deepEqual(value, { a: [1] });
  } finally {
    emitter.redis.quit();
  }
});

test("the emitter for Python is heard", async () => {
  const emit = async (...calls) => {
    await promisify(execFile)("python3", [
      join(__dirname, "cluster", "emit.py"), redis.port, PREFIX, JSON.stringify(encode(calls)),
    ]);
  };
  const call = { namespace: "/", rooms: [], args: [] };
  assert.deepEqual(await cast.receivers(6, (event) => emit({ ...call, event })), EVERYBODY);
  assert.deepEqual(await cast.receivers(3, (event) => emit({ ...call, event, rooms: ["x"] })), ["ada", "bob", "eve"]);
  // It publishes once for each room, and means both rooms each time: a copy for each room that has
  // members on the server. There is nobody of room z on the first two servers.
  assert.deepEqual(
    await cast.receivers(6, (event) => emit({ ...call, event, rooms: ["x", "z"] })),
    ["ada", "bob", "eve", "eve", "fay", "fay"],
  );
  const heard = next(cast.sockets.fay, "values");
  await emit({ ...call, rooms: ["z"], event: "values", args: [{ $bin: "Ynl0ZXM=" }, { a: [1, null] }] });
  const [bytes, value] = await heard;
  assert.equal(Buffer.from(bytes).toString(), "bytes");
  assert.deepEqual(value, { a: [1, null] });
});

test("the emitter for Rust is heard", async () => {
  const emit = async (rooms, event, args = [], namespace = "/") => {
    const line = [redis.port, PREFIX, namespace, rooms.join(), event, ...args];
    await promisify(execFile)(process.env.TEST_EMITTER_RUST, line, {
      cwd: process.env.TEST_FOLDER,
    });
  };
  assert.deepEqual(await cast.receivers(6, (event) => emit([], event)), EVERYBODY);
  assert.deepEqual(await cast.receivers(3, (event) => emit(["x"], event)), ["ada", "bob", "eve"]);
  assert.deepEqual(await cast.receivers(4, (event) => emit(["x", "y"], event)), ["ada", "bob", "cid", "eve"]);
  assert.deepEqual(await cast.receivers(1, (event) => emit([cast.sockets.cid.id], event)), ["cid"]);
  assert.deepEqual(await cast.receivers(0, (event) => emit([], event, [], "/chat")), []);
  const strays = await Promise.all(servers.map((_, i) => cast.stray(i, "/chat")));
  const arrived = Promise.all(strays.map((socket) => next(socket, "values")));
  // It knows strings alone.
  await emit([], "values", ["ünïcödé 😀", "", "1"], "/chat");
  for (const args of await arrived) assert.deepEqual(args, ["ünïcödé 😀", "", "1"]);
});
