// The behaviour of the balancers' configurations, in front of scripted nodes.

"use strict";

const assert = require("node:assert/strict");
const { createServer, request } = require("node:http");
const { after, before, beforeEach, describe, test } = require("node:test");

const { deadline } = require("../../node/tests/clients/support/wait");
const { freePorts, get, until } = require("./support/cluster");
const { Caddy } = require("./support/caddy");
const { Envoy } = require("./support/envoy");
const { Haproxy } = require("./support/haproxy");
const { Nginx } = require("./support/nginx");

const POLL = "/socket.io/?EIO=4&transport=polling";

/** A server that answers with its name and what it was asked. */
class Node {
  constructor(name, port) {
    Object.assign(this, { name, port, isReady: true, refuses: false, seen: [] });
    this.server = createServer((incoming, response) => this.#answer(incoming, response));
  }

  start() {
    return new Promise((resolve) => this.server.listen(this.port, "127.0.0.1", resolve));
  }

  stop() {
    this.server.closeAllConnections();
    return new Promise((resolve) => this.server.close(resolve));
  }

  async #answer(incoming, response) {
    if (incoming.url === "/readyz") return response.writeHead(this.isReady ? 200 : 503).end();
    this.seen.push(incoming.method);
    let bytes = 0;
    for await (const chunk of incoming) bytes += chunk.length;
    if (this.refuses) return response.writeHead(503).end();
    if (incoming.url.includes("in-parts")) {
      response.write("first");
      this.finish = () => response.end("last");
      return undefined;
    }
    const { headers } = incoming;
    return response.end(JSON.stringify({ name: this.name, headers, bytes }));
  }
}

const BALANCERS = {
  caddy: (port, nodes) => new Caddy(port, nodes),
  envoy: (port, nodes) => new Envoy(port, nodes),
  haproxy: (port, nodes) => new Haproxy(port, nodes),
  nginx: (port, nodes) => new Nginx(port, nodes.map((node) => `127.0.0.1:${node.port}`)),
};

for (const [kind, start] of Object.entries(BALANCERS)) {
  // nginx knows clients by their address and has no health checks.
  const hasCookie = kind !== "nginx";

  describe(`the configuration of ${kind}`, { timeout: 60_000 }, () => {
    let nodes;
    let balancer;

    before(async () => {
      const ports = await freePorts();
      nodes = ["a", "b", "c"].map((name, index) => new Node(name, ports + 10 + index));
      await Promise.all(nodes.map((node) => node.start()));
      balancer = start(ports, nodes);
      await until("an answer", async () => (await get(balancer.url + POLL)).status === 200);
    });

    beforeEach(async () => {
      for (const node of nodes) Object.assign(node, { isReady: true, refuses: false, seen: [] });
      await usedBy(nodes);
    });

    after(async () => {
      await balancer?.stop();
      await Promise.all((nodes ?? []).map((node) => node.stop()));
    });

    /** Waits until new sessions go to exactly these nodes. */
    async function usedBy(expected) {
      if (!hasCookie) return;
      const wanted = expected.map(({ name }) => name).sort().join();
      await until(`sessions on ${wanted}`, async () => {
        const names = new Set();
        // Some balancers choose at random: so many requests miss no node.
        for (let round = 0; round < 48; round += 1) names.add((await ask(POLL)).name);
        return [...names].sort().join() === wanted;
      });
    }

    async function ask(path, options = {}) {
      const response = await fetch(balancer.url + path, { ...options, signal: AbortSignal.timeout(10_000) });
      assert.equal(response.status, 200);
      return { ...(await response.json()), cookie: response.headers.get("set-cookie") };
    }

    function named(name) {
      return nodes.find((node) => node.name === name);
    }

    test("passes on the client's address and no forged one", async () => {
      const headers = { "x-forwarded-for": "192.0.2.1", "x-forwarded-proto": "https" };
      const seen = (await ask(POLL, { headers })).headers;
      assert.equal(seen["x-forwarded-for"], "127.0.0.1");
      assert.equal(seen["x-forwarded-proto"], "http");
      assert.equal(seen["x-forwarded-host"], new URL(balancer.url).host);
    });

    test("keeps a session with its node", async () => {
      const { name, cookie } = await ask(POLL);
      const headers = hasCookie ? { cookie: cookie.split(";")[0] } : {};
      for (let round = 0; round < 10; round += 1) {
        assert.equal((await ask(`${POLL}&sid=x`, { headers })).name, name);
      }
    });

    test("tries another node when one refuses, and repeats no request that may have taken effect", async () => {
      const { name, cookie } = await ask(POLL);
      const headers = hasCookie ? { cookie: cookie.split(";")[0] } : {};
      named(name).refuses = true;
      // Caddy repeats only what was not sent, so it learns this from its next health check.
      if (kind !== "caddy") assert.notEqual((await ask(POLL, { headers })).name, name);

      for (const node of nodes) Object.assign(node, { refuses: true, seen: [] });
      const posted = await fetch(`${balancer.url}${POLL}&sid=x`, { method: "POST", headers, body: "4hello" });
      assert.equal(posted.status, 503);
      assert.deepEqual(nodes.flatMap(({ seen }) => seen), ["POST"]);
    });

    test("opens a session on another node when one is gone", async () => {
      const { name, cookie } = await ask(POLL);
      const headers = hasCookie ? { cookie: cookie.split(";")[0] } : {};
      await named(name).stop();
      assert.notEqual((await ask(POLL, { headers })).name, name);
      await named(name).start();
    });

    test("passes on the largest message that a node accepts, and larger ones", async () => {
      for (const bytes of [1_000_000, 1_500_000]) {
        const answer = await ask(`${POLL}&sid=x`, { method: "POST", body: "x".repeat(bytes) });
        assert.equal(answer.bytes, bytes);
      }
    });

    test("passes a response on without buffering", async () => {
      const parts = [];
      const [response] = await deadline(
        new Promise((resolve, reject) => {
          request(`${balancer.url}/in-parts`, (incoming) => resolve([incoming])).on("error", reject).end();
        }),
        10_000,
        "the head of an answer",
      );
      response.setEncoding("utf8").on("data", (part) => parts.push(part));
      await until("the first part", () => parts.join("") === "first");
      nodes.find(({ finish }) => finish).finish();
      await until("the last part", () => parts.join("") === "firstlast");
    });

    if (hasCookie) {
      test("sends a node that is not ready no new sessions, and keeps its existing ones there", async () => {
        const { name, cookie } = await ask(POLL);
        const headers = { cookie: cookie.split(";")[0] };
        named(name).isReady = false;
        await usedBy(nodes.filter((node) => node.name !== name));
        assert.equal((await ask(`${POLL}&sid=x`, { headers })).name, name);
        assert.notEqual((await ask(POLL, { headers })).name, name);
        named(name).isReady = true;
        await usedBy(nodes);
      });
    }
  });
}
