// Who gets a place, how fast clients may send, and who else is in the cluster, as the official client and an operator
// meet it. ROOMCAST is the program.

"use strict";

const assert = require("node:assert/strict");
const { createHmac } = require("node:crypto");
const { afterEach, describe, test } = require("node:test");
const { createClient } = require("redis");
const { io } = require("socket.io-client");

const { startRedis } = require("./cluster/redis");
const { startGateway } = require("./support/gateway");
const { ask, next, until } = require("./support/wait");

const PATIENCE = 60_000;
const SECRET = "a secret of the tests 0123456789";

describe("admission", { timeout: 300_000 }, () => {
  const clients = [];
  const gateways = [];

  afterEach(async () => {
    for (const client of clients.splice(0)) client.close();
    for (const gateway of gateways.splice(0)) await gateway.stop();
  });

  async function start(toml, options) {
    const gateway = await startGateway(toml, options);
    gateways.push(gateway);
    return gateway;
  }

  function open(gateway, options = {}) {
    const client = io(gateway.url, { forceNew: true, ...options });
    clients.push(client);
    return client;
  }

  /** The first such line of the log, which may be written a little later. */
  const logged = (gateway, isLine) => until("a line of the log", () => gateway.lines.find(isLine), PATIENCE);
  const reached = (gateway, limit) => gateway.metric(`roomcast_limit_reached_total{limit="${limit}"}`);

  test("official clients come back after new connections were too many", async () => {
    const gateway = await start('access = "open"\nmax_connect_rate = "2:1"\n');
    const back = { reconnectionDelay: 100, reconnectionDelayMax: 400 };
    const crowd = Array.from({ length: 8 }, (_, index) => open(gateway, index % 2 ? { ...back, transports: ["websocket"] } : back));
    await until("all clients to be connected", () => crowd.every((client) => client.connected), PATIENCE);
    assert.ok((await reached(gateway, "connect_rate")) > 0);
    const line = await logged(gateway, ({ limit }) => limit === "connect_rate");
    assert.match(line.message, /too many new connections per second/);
  });

  test("the response asks clients to come back at different times", async () => {
    const gateway = await start('access = "open"\nmax_connect_rate = "1:1"\n');
    const seconds = new Set();
    await until("responses that differ", async () => {
      const response = await fetch(`${gateway.url}/socket.io/?EIO=4&transport=polling`);
      const body = await response.text();
      if (response.status !== 503) return false;
      assert.deepEqual(JSON.parse(body), { message: "too many new connections per second", limit: "connect_rate" });
      seconds.add(Number(response.headers.get("retry-after")));
      return seconds.size > 2;
    }, PATIENCE);
    assert.ok([...seconds].every((second) => second >= 1 && second <= 60), [...seconds].join());
  });

  test("an event beyond the rate is acknowledged with an error, and a reload lifts the rate", async () => {
    const gateway = await start('access = "open"\nclient_rooms = true\nmax_event_rate = "1:2"\n');
    const client = open(gateway);
    await next(client, "connect");
    const refused = await until("an event beyond the rate", async () => {
      const answer = await ask(client, "echo", 1);
      return answer.error && answer;
    }, PATIENCE);
    assert.deepEqual(refused, { error: "too many events", data: { limit: "event_rate" } });
    const line = await logged(gateway, ({ limit }) => limit === "event_rate");
    assert.equal(line.socket, client.id);
    assert.equal(line.event, "echo");
    await gateway.reload('access = "open"\nclient_rooms = true\n');
    for (let count = 0; count < 20; count++) assert.equal(await ask(client, "echo", count), count);
  });

  test("a user has as many sockets as it may have, and the next one after one has gone", async () => {
    const settings = `access = "jwt"\nmax_sockets_per_user = 2\n[[jwt.keys]]\nalgorithm = "HS256"\nsecret_env = "TEST_SECRET"\n`;
    const gateway = await start(settings, { environment: { TEST_SECRET: SECRET } });
    const connect = (user) => open(gateway, { auth: { token: token(user) } });
    const [first, second, other] = [connect("ada"), connect("ada"), connect("bob")];
    await Promise.all([first, second, other].map((client) => until("the connect", () => client.connected, PATIENCE)));
    const third = connect("ada");
    const [error] = await next(third, "connect_error");
    assert.equal(error.message, "too many connections of this user");
    assert.deepEqual(error.data, { limit: "sockets_per_user", user: "ada" });
    assert.equal(await gateway.metric('roomcast_connect_refused_total{reason="sockets_per_user"}'), 1);
    first.close();
    await until("a place", async () => {
      third.disconnect().connect();
      return Promise.race([next(third, "connect").then(() => true), next(third, "connect_error").then(() => false)]);
    }, PATIENCE);
  });

  test("a node warns of servers of another make beside an open namespace", async () => {
    const redis = await startRedis();
    const stranger = createClient({ url: redis.url });
    try {
      const alone = await start('access = "closed"\n', { args: ["--redis", redis.url] });
      const open = await start('access = "open"\n', { args: ["--redis", redis.url] });
      const isWarning = ({ message }) => message?.startsWith("Node.js servers share this cluster");
      await stranger.connect();
      // The channels of questions and responses, as @socket.io/redis-adapter subscribes to them.
      await stranger.subscribe(["socket.io-request#/#", "socket.io-response#/#"], () => {});
      const warning = await logged(open, isWarning);
      assert.equal(warning.namespaces, "/");
      assert.equal(warning.level, "WARN");
      const foreign = () => alone.metric('roomcast_bus_nodes{kind="foreign"}');
      await until("the other node to see it, too", async () => (await foreign()) === 1, PATIENCE);
      assert.equal(alone.lines.find(isWarning), undefined);
    } finally {
      await stranger.disconnect().catch(() => {});
      for (const gateway of gateways.splice(0)) await gateway.stop();
      await redis.stop();
    }
  });
});

function token(user) {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const text = `${part({ alg: "HS256", typ: "JWT" })}.${part({ sub: user, exp: Math.floor(Date.now() / 1000) + 600 })}`;
  return `${text}.${createHmac("sha256", SECRET).update(text).digest("base64url")}`;
}
