// A cluster behind each balancer, with the official client: rooms span nodes, sessions stay with their
// node, and clients survive the loss of their node.

"use strict";

const assert = require("node:assert/strict");
const { execFile } = require("node:child_process");
const { after, afterEach, before, describe, test } = require("node:test");
const { promisify } = require("node:util");

const { Sockets, connection, ways } = require("../../node/tests/clients/support/clients");
const { ask, deadline, next } = require("../../node/tests/clients/support/wait");
const { freePorts, get, startCluster, until } = require("./support/cluster");
const { Caddy } = require("./support/caddy");
const { Envoy } = require("./support/envoy");
const { Nginx } = require("./support/nginx");

// A browser keeps the balancer's cookie by itself; this client needs an option.
const COOKIES = { withCredentials: true };
// Reconnects fast and without a limit, because each test has its own deadline.
const RECONNECT = { reconnection: true, reconnectionDelay: 100, reconnectionDelayMax: 500, ...COOKIES };

const NODES = ["node-1", "node-2", "node-3"];

describe("a cluster behind balancers", { timeout: 200_000 }, () => {
  let cluster;
  // In front of the same nodes as the HAProxy of the cluster.
  const alternatives = {};
  const open = [];
  const tags = new Map();

  before(async () => {
    cluster = await startCluster("--nodes", "3", "--node-js");
    const port = (url) => Number(new URL(url).port);
    const nodes = NODES.map((name) => {
      return { name, port: port(cluster.urls[name]), internal: port(cluster.urls[`${name} internal`]) };
    });
    const ports = await freePorts();
    alternatives.nginx = new Nginx(ports, nodes.map((node) => `127.0.0.1:${node.port}`));
    alternatives.caddy = new Caddy(ports + 2, nodes);
    alternatives.envoy = new Envoy(ports + 4, nodes);
    for (const [name, { url }] of Object.entries(alternatives)) {
      await until(`${name} to answer`, async () => (await get(url)).status === 200);
    }
    for (const node of NODES) {
      const socket = await connected(cluster.urls[node], "websocket");
      tags.set(tagOf(socket), node);
    }
  });

  afterEach(closeAll);

  after(async () => {
    closeAll();
    await Promise.all(Object.values(alternatives).map((balancer) => balancer.stop()));
    await cluster?.stop();
  });

  function closeAll() {
    for (const sockets of open.splice(0)) sockets.closeAll();
  }

  async function connected(url, way, options) {
    const socket = start(url, way, options);
    await connection(socket);
    return socket;
  }

  function start(url, way, options) {
    const sockets = new Sockets("4.8", url, way);
    open.push(sockets);
    return sockets.open("/", options);
  }

  /** The ids of a Roomcast node's sockets begin alike. */
  function tagOf(socket) {
    return socket.id.slice(0, 4);
  }

  function nodeOf(socket) {
    return tags.get(tagOf(socket)) ?? "node-js";
  }

  /** Sockets through the balancer until each of these nodes has one, those on other nodes included. */
  async function spread(nodes, way, options) {
    const found = [];
    while (!nodes.every((node) => found.some((socket) => nodeOf(socket) === node))) {
      assert.ok(found.length < 40, `no socket on ${nodes} among ${found.map(nodeOf)}`);
      found.push(await connected(cluster.urls.balancer, way, options));
    }
    return found;
  }

  for (const balancer of ["haproxy", "envoy", "caddy", "nginx"]) {
    for (const way of Object.keys(ways)) {
      test(`a room spans all nodes through ${balancer}, by ${way}`, async () => {
        const room = `tea by ${way} through ${balancer}`;
        const url = alternatives[balancer]?.url ?? cluster.urls.balancer;
        const ada = await connected(url, way, COOKIES);
        const others = await Promise.all(
          [...NODES, "node-js"].map((node) => connected(cluster.urls[node], "websocket")),
        );
        const everybody = [ada, ...others];
        for (const socket of everybody) assert.equal((await ask(socket, "join", room)).error, undefined);
        const ids = everybody.map(({ id }) => id).sort();
        for (const socket of everybody) assert.deepEqual(await ask(socket, "who", room), ids);
        for (const sender of everybody) {
          const arrivals = everybody.map((socket) => next(socket, "message"));
          await ask(sender, "message", room, { from: sender.id });
          const expected = { room, from: sender.id, data: { from: sender.id } };
          for (const [message] of await Promise.all(arrivals)) assert.deepEqual(message, expected);
        }
        if (way === "upgrade") {
          await until("the upgrade", () => ada.io.engine.transport.name === "websocket");
        }
      });
    }
  }

  test("the command that up prints reaches all members of the room", async () => {
    const people = await Promise.all(NODES.map((node) => connected(cluster.urls[node], "websocket")));
    for (const person of people) await ask(person, "join", "lobby");
    const arrivals = people.map((person) => next(person, "message"));
    const command = (await cluster.line(" emit --redis ")).trim();
    const shell = promisify(execFile)("/bin/sh", ["-c", command], { timeout: 10_000 });
    const [, ...messages] = await Promise.all([shell, ...arrivals]);
    for (const [message] of messages) {
      assert.deepEqual(message, { room: "lobby", from: "a shell", data: "hello" });
    }
  });

  test("a session stays with its node through every balancer, request by request", async () => {
    const sockets = await spread(NODES, "polling", COOKIES);
    for (const { url } of Object.values(alternatives)) sockets.push(await connected(url, "polling", COOKIES));
    for (const socket of sockets) {
      const { id } = socket;
      for (let round = 0; round < 10; round += 1) assert.deepEqual(await ask(socket, "rooms"), []);
      assert.equal(socket.id, id);
    }
  });

  test("clients of a killed node reconnect to others, and come back once it does", async () => {
    const sockets = await spread(["node-2"], "websocket", RECONNECT);
    sockets.push(...(await spread(["node-2"], "upgrade", RECONNECT)));
    sockets.push(...(await spread(["node-2"], "polling", RECONNECT)));
    const before = new Map(sockets.map((socket) => [socket, socket.id]));
    const hit = sockets.filter((socket) => nodeOf(socket) === "node-2");
    const returned = hit.map((socket) => next(socket, "connect", 60_000));
    cluster.signal("node-2", "SIGKILL");
    await cluster.line("node-2 ended with status 137; the others continue");
    await Promise.all(returned);
    for (const socket of sockets) {
      assert.notEqual(nodeOf(socket), "node-2");
      if (!hit.includes(socket)) assert.equal(socket.id, before.get(socket));
      assert.deepEqual(await ask(socket, "rooms"), []);
    }
    cluster.again("node-2");
    const anew = await until("the node to answer", () => connected(cluster.urls["node-2"], "websocket"));
    tags.set(tagOf(anew), "node-2");
    await until("a client on the node that is back", async () => {
      return nodeOf(await connected(cluster.urls.balancer, "websocket")) === "node-2";
    });
  });

  test("a node that stops hands its clients over, and no client is refused meanwhile", async () => {
    const sockets = await spread(["node-3"], "websocket", RECONNECT);
    sockets.push(...(await spread(["node-3"], "polling", RECONNECT)));
    const leaving = sockets.filter((socket) => nodeOf(socket) === "node-3");
    const returned = leaving.map((socket) => next(socket, "connect", 60_000));
    cluster.signal("node-3", "SIGTERM");
    const stopped = cluster.line("node-3 ended with status 0");
    let isOver = false;
    stopped.then(() => (isOver = true), () => (isOver = true));
    // A refused client fails the test here.
    while (!isOver) (await connected(cluster.urls.balancer, "websocket")).disconnect();
    await stopped;
    await Promise.all(returned);
    for (const socket of sockets) assert.notEqual(nodeOf(socket), "node-3");
  });

  test("without Redis, no new clients are accepted, and sessions stay with their nodes", async () => {
    const sockets = await spread(["node-1"], "polling", COOKIES);
    const ids = sockets.map(({ id }) => id);
    cluster.signal("redis", "SIGKILL");
    await until("HAProxy to find no node ready", async () => {
      return (await get(cluster.urls.balancer)).status === 503;
    });
    for (const socket of sockets) {
      if (nodeOf(socket) === "node-js") continue;
      for (let round = 0; round < 5; round += 1) assert.deepEqual(await ask(socket, "rooms"), []);
    }
    assert.deepEqual(sockets.map(({ id }) => id), ids);
    cluster.again("redis");
    const again = until("a new client", () => connected(cluster.urls.balancer, "websocket"));
    await deadline(again, 40_000, "a new client after Redis is back");
    assert.deepEqual(sockets.map(({ id }) => id), ids);
  });
});
