// Who is online in the whole cluster, as each node knows it without a question: two nodes, one that is killed, one that
// starts later, and a Node.js server. ROOMCAST is the program.

"use strict";

const assert = require("node:assert/strict");
const { createHash, createHmac } = require("node:crypto");
const { after, afterEach, before, describe, test } = require("node:test");
const { io } = require("socket.io-client");

const { Peer } = require("./cluster/peer");
const { startRedis } = require("./cluster/redis");
const { startGateway } = require("./support/gateway");
const { ask, until } = require("./support/wait");

const PATIENCE = 60_000;
const SECRET = "a secret of the tests 0123456789";
const KEY = "key of the tests";

const SETTINGS = `
access = "jwt"
client_rooms = true
namespace = ["/", "/plain"]
[[jwt.keys]]
algorithm = "HS256"
secret_env = "TEST_SECRET"
[namespaces."/".rooms]
join = ["*"]
presence = ["lobby", "vip"]
[presence]
namespaces = ["/"]
[[api.keys]]
name = "tests"
hash = "sha256:${createHash("sha256").update(KEY).digest("hex")}"
namespaces = ["*"]
verbs = ["users", "presence", "rooms", "join", "disconnect"]
`;

describe("presence", { timeout: 300_000 }, () => {
  let redis;
  let nodes;
  const clients = [];

  before(async () => {
    redis = await startRedis();
  });

  after(async () => {
    await redis?.stop();
  });

  afterEach(async () => {
    for (const client of clients.splice(0)) client.close();
    for (const node of nodes.splice(0)) await node.stop();
  });

  async function start(more = "") {
    const environment = { TEST_SECRET: SECRET };
    const node = await startGateway(SETTINGS + more, { environment, args: ["--redis", redis.url] });
    nodes.push(node);
    return node;
  }

  async function startTwo(more) {
    nodes = [];
    return [await start(more), await start(more)];
  }

  async function connect(node, user, { namespace = "/", rooms = [] } = {}) {
    const client = io(node.url + namespace, { forceNew: true, reconnection: false, auth: { token: token(user, rooms) } });
    clients.push(client);
    await until(`the connect of ${user}`, () => client.connected, PATIENCE);
    return client;
  }

  async function call(node, path, body) {
    const headers = { authorization: `Bearer ${KEY}`, "content-type": "application/json" };
    const request = body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers };
    const response = await fetch(`${node.internal}/api/${path}`, request);
    assert.equal(response.status, 200, await response.clone().text());
    return response.json();
  }

  /** How many questions the node has asked the cluster. */
  async function questions(node) {
    const text = await (await fetch(`${node.internal}/metrics`)).text();
    const series = /^roomcast_bus_requests_total\{.*\} (\d+)$/gm;
    return [...text.matchAll(series)].reduce((sum, [, count]) => sum + Number(count), 0);
  }

  /** Waits until a node knows these users and their rooms, and that it knows all. */
  async function knows(node, expected, query = "") {
    let known;
    await until(`${JSON.stringify(expected)} to be known`, async () => {
      const found = await call(node, `presence${query}`);
      const users = found.users.map(({ user, sockets, rooms }) => [user, sockets.length, ...rooms]);
      known = { users, isComplete: found.is_complete };
      return found.is_complete && JSON.stringify(users) === JSON.stringify(expected);
    }, PATIENCE).catch((error) => {
      throw new Error(`${error.message}; known is ${JSON.stringify(known)}`);
    });
  }

  test("each node knows the users of both, their rooms, and when they go", async () => {
    const [one, two] = await startTwo();
    const ada = await connect(one, "ada", { rooms: ["lobby"] });
    const phone = await connect(two, "ada", { rooms: ["vip"] });
    await connect(two, "bob", { rooms: ["lobby"] });
    await connect(two, "eve", { namespace: "/plain", rooms: ["lobby"] });
    for (const node of nodes) {
      await knows(node, [["ada", 2, "lobby", "vip"], ["bob", 1, "lobby"]]);
      await knows(node, [["ada", 1, "vip"]], "?room=vip");
      await knows(node, [["ada", 2, "lobby", "vip"]], "?user=ada");
      await knows(node, [["bob", 1, "lobby"]], "?after=ada");
      const { users } = await call(node, "users?room=lobby");
      assert.deepEqual(users, [{ user: "ada", sockets: 1 }, { user: "bob", sockets: 1 }]);
      const rooms = async (query) => (await call(node, `rooms?${query}`)).rooms;
      const [lobby, vip] = [{ room: "lobby", sockets: 2, users: 2 }, { room: "vip", sockets: 1, users: 1 }];
      const before = await questions(node);
      assert.deepEqual(await rooms("of=users"), [lobby, vip]);
      assert.deepEqual(await rooms("of=users&prefix=v"), [vip]);
      assert.deepEqual(await rooms("of=users&after=lobby"), [vip]);
      assert.equal(await questions(node), before);
      assert.deepEqual(await rooms("prefix=l"), [lobby]);
      assert.ok((await questions(node)) > before);
    }
    const presence = await ask(ada, "presence", "lobby");
    const expected = [{ user: "ada", sockets: 1 }, { user: "bob", sockets: 1 }];
    assert.deepEqual(presence, { room: "lobby", users: expected, total: 2, is_complete: true });
    assert.deepEqual(await ask(ada, "presence", "secret"), { error: "you may not list the members of secret" });

    await ask(phone, "join", "late", { quiet: true });
    await ask(phone, "leave", "vip", { quiet: true });
    await call(two, "join", { rooms: ["given"], users: ["bob"] });
    await knows(one, [["ada", 2, "late", "lobby"], ["bob", 1, "given", "lobby"]]);
    phone.close();
    await call(one, "disconnect", { users: ["bob"] });
    for (const node of nodes) await knows(node, [["ada", 1, "lobby"]]);
  });

  test("of a client that came back elsewhere before its node noticed, one socket is left", async () => {
    const [one, two] = await startTwo('[namespaces."/".recovery]\n');
    const written = () => one.metric('roomcast_session_writes_total{outcome="written"}');
    const former = await connect(one, "ada", { rooms: ["lobby"] });
    const before = await written();
    await ask(former, "join", "vip", { quiet: true });
    await until("the session to be stored", async () => (await written()) > before, PATIENCE);
    for (const node of nodes) await knows(node, [["ada", 1, "lobby", "vip"]]);
    const [id, reasons] = [former.id, []];
    former.on("disconnect", (reason) => reasons.push(reason));
    // As by a client whose network has changed: the old connection is still there.
    const auth = { token: token("ada", ["lobby"]) };
    const client = io(two.url, { forceNew: true, reconnection: false, autoConnect: false, auth });
    clients.push(client);
    client._pid = former._pid;
    client.connect();
    await until("the client to be back", () => client.connected, PATIENCE);
    assert.deepEqual([client.recovered, client.id], [true, id]);
    await until("the end of the former socket", () => reasons.length === 1, PATIENCE);
    for (const node of nodes) await knows(node, [["ada", 1, "lobby", "vip"]]);
    assert.equal(await one.metric('roomcast_sockets{namespace="/"}'), 0);
    client.close();
    for (const node of nodes) await knows(node, []);
  });

  test("a look asks no other node", async () => {
    const [one] = await startTwo();
    await connect(one, "ada");
    await knows(one, [["ada", 1]]);
    const questions = async () => {
      const text = await (await fetch(`${one.internal}/metrics`)).text();
      const lines = text.split("\n").filter((line) => /^roomcast_bus_requests_total\b/.test(line));
      return lines.reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
    };
    const earlier = await questions();
    for (let count = 0; count < 20; count++) await call(one, count % 2 ? "users" : "presence?room=lobby");
    assert.equal(await questions(), earlier);
    await call(one, "rooms");
    assert.ok((await questions()) > earlier, "a look at the rooms is a question");
  });

  test("a node that starts later knows everybody, and what a killed one held disappears", async () => {
    const [one, two] = await startTwo();
    await connect(one, "ada", { rooms: ["lobby"] });
    await connect(two, "bob", { rooms: ["lobby"] });
    const late = await start();
    for (const node of nodes) await knows(node, [["ada", 1, "lobby"], ["bob", 1, "lobby"]]);
    nodes.splice(nodes.indexOf(two), 1);
    await two.kill();
    for (const node of [one, late]) await knows(node, [["ada", 1, "lobby"]]);
  });

  test("what was missed while Redis was away is made good", async () => {
    const [one, two] = await startTwo();
    await connect(one, "ada");
    const bob = await connect(one, "bob");
    await knows(two, [["ada", 1], ["bob", 1]]);
    await redis.kill();
    bob.close();
    await connect(one, "eve");
    const own = async () => (await call(one, "users")).users.map(({ user }) => user).join();
    await until("the own users", async () => (await own()) === "ada,eve", PATIENCE);
    await redis.start();
    for (const node of nodes) await knows(node, [["ada", 1], ["eve", 1]]);
  });

  test("sockets of a Node.js server are not part of it", async () => {
    const [one, two] = await startTwo();
    const peer = await Peer.start("node", { redis: redis.url, name: "node" });
    try {
      const stranger = io(peer.url, { forceNew: true, reconnection: false, auth: { token: token("eve", []) } });
      clients.push(stranger);
      await until("the connect", () => stranger.connected, PATIENCE);
      await connect(one, "ada", { rooms: ["lobby"] });
      const ids = async () => (await peer.tell("fetch")).sockets.map(({ id }) => id);
      await until("the server to see both", async () => (await ids()).length === 2, PATIENCE);
      for (const node of [one, two]) await knows(node, [["ada", 1, "lobby"]]);
    } finally {
      await peer.stop();
    }
  });
});

function token(user, rooms) {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const claims = { sub: user, rooms, exp: Math.floor(Date.now() / 1000) + 600 };
  const text = `${part({ alg: "HS256", typ: "JWT" })}.${part(claims)}`;
  return `${text}.${createHmac("sha256", SECRET).update(text).digest("base64url")}`;
}
