// `roomcast emit` into clusters of two servers under test and one official server: how many sockets it
// says it has reached, what they see of it, and what it says of servers that do not answer.
// ROOMCAST is the program.

"use strict";

const assert = require("node:assert/strict");
const { execFile } = require("node:child_process");
const { after, before, describe, test } = require("node:test");

const { Emitter } = require("@socket.io/redis-emitter");
const { createClient } = require("redis");
const { io } = require("socket.io-client");

const { KINDS } = require("./cluster/dialects");
const { Cast, PEOPLE, startServers } = require("./cluster/members");
const { startRedis } = require("./cluster/redis");
const { startGateway } = require("./support/gateway");
const { ask, deadline, next, until } = require("./support/wait");

const PATIENCE = 15_000;
const PREFIX = "emitted";
const EVERYBODY = Object.keys(PEOPLE);
const NOBODY_SILENT = { messages: 1, reached_nobody: 0, nodes: 3, silent_nodes: [], status: 0 };

for (const dialect of ["classic", "sharded-dynamic"]) {
  describe(`in the ${dialect} dialect`, () => {
    let redis;
    let servers;
    let cast;

    before(async () => {
      redis = await startRedis();
      servers = await startServers(KINDS, { redis: redis.url, prefix: PREFIX, dialect }, redis);
      cast = await Cast.open(servers, "/");
    });
    after(async () => {
      cast?.close();
      await Promise.all((servers ?? []).map((server) => server.stop()));
      await redis?.stop();
    });

    const emit = (...args) => run([
      "--redis", redis.url, "--redis-prefix", PREFIX, "--redis-dialect", dialect, "--json", ...args,
    ]);

    test("what is confirmed counts the sockets of all servers, and looks as ever to clients", async () => {
      const cases = [
        [[], EVERYBODY],
        [["--room", "x"], ["ada", "bob", "eve"]],
        [["--room", "y", "--room", "z", "--except", "x"], ["cid", "fay"]],
      ];
      for (const [target, expected] of cases) {
        let said;
        const received = await cast.received(expected.length, async (event) => {
          said = await emit("--confirm", ...target, event, "1", "{\"a\":[2]}");
        });
        assert.deepEqual(said, { ...NOBODY_SILENT, sockets: expected.length }, target.join(" "));
        assert.deepEqual(received.map(({ name }) => name).sort(), expected);
        // A callback, if there were one, would be the last argument.
        for (const { args } of received) assert.deepEqual(args, [1, { a: [2] }]);
      }
      const nobody = { ...NOBODY_SILENT, reached_nobody: 1, sockets: 0, status: 9 };
      assert.deepEqual(await emit("--confirm", "--room", "nobody is here", "news"), nobody);
    });

    test("clients are asked with a callback only if their acknowledgements are wanted", async () => {
      for (const name of EVERYBODY) cast.sockets[name].once("vote", (choice, answer) => answer(`${choice} ${name}`));
      const said = await emit("--ack", "vote", "\"tea\"");
      assert.deepEqual(said.answers.sort(), EVERYBODY.map((name) => `tea ${name}`));
      assert.equal(said.status, 0);
    });

    for (const [i, kind] of KINDS.entries()) {
      if (i === 0) continue;
      test(`a ${kind} server that is stopped is silent, and hears it later`, async () => {
        const stopped = servers[i];
        const here = EVERYBODY.filter((name) => PEOPLE[name].server === i);
        const received = await cast.received(EVERYBODY.length, async (event) => {
          stopped.signal("SIGSTOP");
          try {
            const { silent_nodes: [silent, ...others], ...said } = await emit(
              "--confirm", "--timeout", "2s", event, "1",
            );
            assert.deepEqual(said, {
              messages: 1, reached_nobody: 0, nodes: 2, sockets: EVERYBODY.length - here.length, status: 10,
            });
            assert.deepEqual(others, []);
            // Servers of Node.js have no names. The ids of a node's sockets begin like its own.
            if (kind === "node") assert.equal(silent, "foreign");
            else for (const name of here) assert.equal(cast.sockets[name].id.slice(0, 4), silent.slice(0, 4));
          } finally {
            stopped.signal("SIGCONT");
          }
        });
        assert.deepEqual(received.map(({ name }) => name).sort(), EVERYBODY);
        for (const { args } of received) assert.deepEqual(args, [1]);
      });
    }
  });
}

describe("in a cluster that signs", () => {
  const KEY = { ROOMCAST_REDIS_SIGNING_KEY: "a signing key of the tests 0123456789" };
  const DROPPED = 'roomcast_bus_messages_dropped_total{reason="unsigned"}';
  let redis;
  let foreign;
  const gateways = [];
  const clients = [];

  before(async () => {
    redis = await startRedis();
    const settings = `access = "open"\nclient_rooms = true\nredis = "${redis.url}"\n`;
    for (let i = 0; i < 2; i++) gateways.push(await startGateway(settings, { environment: KEY }));
    for (const { url } of gateways) clients.push(io(url, { forceNew: true, transports: ["websocket"] }));
    foreign = await createClient({ url: redis.url }).connect();
    await until("the connects", () => clients.every(({ connected }) => connected));
  });
  after(async () => {
    for (const client of clients) client.close();
    await foreign?.close();
    await Promise.all(gateways.map((gateway) => gateway.stop()));
    await redis?.stop();
  });

  test("clients of all nodes receive what has the key, and nothing of others", async () => {
    const [ada, bob] = clients;
    const seen = clients.map(() => []);
    clients.forEach((client, i) => client.on("news", (value) => seen[i].push(value)));
    const emit = (value, environment, ...more) => run(["--redis", redis.url, "--json", ...more, "news", JSON.stringify(value)], environment);
    // Neither an emitter of Node.js nor one of ours without the key, or with another one.
    new Emitter(foreign).emit("news", "of Node.js");
    await emit("unsigned", {});
    await emit("forged", { ROOMCAST_REDIS_SIGNING_KEY: "another key than that of this cluster" });
    const said = await emit("signed", KEY, "--confirm");
    assert.deepEqual([said.sockets, said.nodes, said.silent_nodes], [2, 2, []]);
    await until("what is signed", () => seen.every(({ length }) => length > 0));
    // Clients of one node reach those of the other one.
    for (const client of clients) await ask(client, "join", "tea");
    const heard = next(bob, "message");
    await ask(ada, "message", "tea", "hello");
    assert.equal((await heard)[0].data, "hello");
    assert.deepEqual(seen, [["signed"], ["signed"]]);
    for (const gateway of gateways) {
      assert.equal(await gateway.metric(DROPPED), 2);
      await until("the log", () => gateway.lines.some(({ error }) => /not signed/.test(error ?? "")));
    }
  });
});

/** The object that the program prints; its exit status is the one that it says. */
async function run(args, environment = {}) {
  const ended = new Promise((resolve, reject) => {
    const options = { cwd: process.env.TEST_FOLDER, env: environment, timeout: PATIENCE };
    execFile(process.env.ROOMCAST, ["emit", ...args], options, (error, out, complaint) => {
      const status = error ? error.code : 0;
      if (typeof status !== "number" || out === "") reject(error ?? new Error(complaint));
      else resolve({ status, said: JSON.parse(out) });
    });
  });
  const { status, said } = await deadline(ended, PATIENCE, "roomcast emit to end");
  assert.equal(status, said.status);
  return said;
}
