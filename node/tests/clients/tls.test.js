// TLS: the official client over wss and https, certificates by name and their reload as curl and openssl
// see them, and hooks whose applications are reached over TLS, by HTTP/1.1 and HTTP/2. ROOMCAST is the
// program.

"use strict";

const assert = require("node:assert/strict");
const { execFile } = require("node:child_process");
const { createServer } = require("node:http");
const { createSecureServer } = require("node:http2");
const https = require("node:https");
const { after, afterEach, before, describe, test } = require("node:test");
const { promisify } = require("node:util");
const { io } = require("socket.io-client");

const { Authority } = require("./support/authority");
const { startGateway } = require("./support/gateway");
const { ask, next, until } = require("./support/wait");

const run = promisify(execFile);

describe("a node with certificates", () => {
  let authority;
  let gateway;
  const clients = [];

  const settings = () => `
    access = "open"
    client_rooms = true
    tls_cert = [${JSON.stringify(authority.path("one.pem"))}, ${JSON.stringify(authority.path("two.pem"))}]
    tls_key = [${JSON.stringify(authority.path("one.key"))}, ${JSON.stringify(authority.path("two.key"))}]
  `;

  before(async () => {
    authority = new Authority();
    authority.sign("one", "DNS:localhost,IP:127.0.0.1");
    authority.sign("two", "DNS:*.two.example");
    authority.sign("new", "DNS:localhost,IP:127.0.0.1");
    gateway = await startGateway(settings());
  });

  afterEach(() => clients.splice(0).forEach((client) => client.disconnect()));

  after(async () => {
    await gateway?.stop();
    authority?.remove();
  });

  const port = () => new URL(gateway.url).port;

  function connect(options) {
    const client = io(`https://localhost:${port()}`, { ca: authority.read("ca.pem"), forceNew: true, ...options });
    clients.push(client);
    return client;
  }

  /** The subject of the certificate that openssl gets for a name. */
  async function subject(name) {
    const args = ["s_client", "-connect", `127.0.0.1:${port()}`, "-servername", name, "-CAfile", authority.path("ca.pem")];
    const running = run("openssl", args);
    running.child.stdin.end();
    const { stdout } = await running;
    return /subject=.*?CN ?= ?(\w+)/.exec(stdout)[1];
  }

  /** The status with which curl gets a page over TLS. */
  async function curl(...args) {
    const all = ["-s", "-o", "/dev/null", "-w", "%{http_code} %{http_version}", "--cacert", authority.path("ca.pem"), ...args];
    return (await run("curl", all)).stdout;
  }

  for (const transports of [["websocket"], ["polling"], ["polling", "websocket"]]) {
    test(`serves the official client over ${transports.join(", then ")}`, async () => {
      const client = connect({ transports });
      await next(client, "connect");
      if (transports.length === 2) await until("the upgrade", () => client.io.engine.transport.name === "websocket");
      const data = { text: "x".repeat(200_000), bytes: Buffer.alloc(100_000, 7) };
      assert.deepEqual(await ask(client, "echo", data), data);
      await ask(client, "join", "tea");
      const heard = next(client, "message");
      await ask(client, "message", "tea", "hello");
      assert.equal((await heard)[0].data, "hello");
    });
  }

  test("refuses a client that does not know the authority", async () => {
    const client = connect({ ca: undefined, transports: ["websocket"], reconnection: false });
    const [error] = await next(client, "connect_error");
    assert.match(error.description.message ?? error.description.error.message, /certificate/);
  });

  test("shows the certificate for the name that a client asks for", async () => {
    assert.equal(await subject("localhost"), "one");
    assert.equal(await subject("a.two.example"), "two");
    assert.equal(await subject("elsewhere.example"), "one");
  });

  test("speaks HTTP/1.1 with clients that would prefer HTTP/2", async () => {
    const url = `https://localhost:${port()}/socket.io/?EIO=4&transport=polling`;
    assert.equal(await curl("--http2", url), "200 1.1");
  });

  test("replaces certificates by SIGHUP, and keeps them if one is broken", async () => {
    const client = connect({ transports: ["websocket"] });
    await next(client, "connect");
    authority.copy("new", "one");
    assert.equal((await gateway.reload(settings())).message, "reloaded the settings");
    assert.equal(await subject("localhost"), "new");

    authority.copy("two", "one");
    authority.openssl("rand", "-out", "two.pem", "100");
    const refused = await gateway.reload(settings());
    assert.match(refused.error, /two\.pem/);
    assert.equal(await subject("localhost"), "new");
    assert.equal(await curl(`https://localhost:${port()}/socket.io/?EIO=4&transport=polling`), "200 1.1");
    assert.equal(await ask(client, "echo", "still here"), "still here", "open connections stay");
    assert.ok(!JSON.stringify(gateway.lines).includes("PRIVATE KEY"));
  });
});

describe("an application behind TLS", () => {
  let authority;
  let gateway;
  const backends = {};
  const clients = [];

  /** Notes the versions of HTTP that it is called with. */
  class Backend {
    versions = new Set();

    async start(create, scheme) {
      this.server = create(async (request, response) => {
        this.versions.add(request.httpVersion);
        let body = "";
        for await (const part of request.setEncoding("utf8")) body += part;
        const { args } = JSON.parse(body);
        response.setHeader("content-type", "application/json");
        response.end(JSON.stringify([{ op: "ack", args: [request.httpVersion, ...(args ?? [])] }]));
      });
      this.sessions = new Set();
      for (const event of ["connection", "secureConnection", "session"]) {
        this.server.on(event, (session) => {
          this.sessions.add(session);
          session.on("close", () => this.sessions.delete(session));
        });
      }
      await new Promise((resolve) => this.server.listen(0, "127.0.0.1", resolve));
      this.url = `${scheme}://localhost:${this.server.address().port}/hook`;
      return this;
    }

    async stop() {
      const closed = new Promise((resolve) => this.server.close(resolve));
      this.sessions.forEach((session) => session.destroy());
      await closed;
    }
  }

  before(async () => {
    authority = new Authority();
    authority.sign("site", "DNS:localhost");
    const keys = { cert: authority.read("site.pem"), key: authority.read("site.key") };
    backends.plain = await new Backend().start((handler) => createServer(handler), "http");
    backends.https = await new Backend().start((handler) => https.createServer(keys, handler), "https");
    backends.h2 = await new Backend().start((handler) => createSecureServer(keys, handler), "https");
    backends.both = await new Backend().start(
      (handler) => createSecureServer({ ...keys, allowHTTP1: true }, handler),
      "https",
    );
    const hooks = Object.entries(backends).map(
      ([name, { url }]) => `
        [hooks.${name}]
        url = ${JSON.stringify(url)}
        on = ["event"]
        events = ["${name}"]
      `,
    );
    gateway = await startGateway(`access = "open"\n${hooks.join("")}`, {
      environment: { SSL_CERT_FILE: authority.path("ca.pem") },
    });
  });

  after(async () => {
    clients.forEach((client) => client.disconnect());
    await gateway?.stop();
    await Promise.all(Object.values(backends).map((backend) => backend.stop()));
    authority?.remove();
  });

  async function connected() {
    const client = io(gateway.url, { transports: ["websocket"], forceNew: true });
    clients.push(client);
    await next(client, "connect");
    return client;
  }

  async function answers(client, name, count) {
    const asked = Array.from({ length: count }, (_, index) => client.timeout(20_000).emitWithAck(name, index));
    return Promise.all(asked);
  }

  const cases = { plain: "1.1", https: "1.1", h2: "2.0", both: "2.0" };
  for (const [name, version] of Object.entries(cases)) {
    test(`is called by HTTP/${version} if it is ${name}`, async () => {
      const client = await connected();
      const got = await client.timeout(20_000).emitWithAck(name, "tea");
      assert.equal(got, version);
      await answers(client, name, 50);
      assert.deepEqual([...backends[name].versions], [version]);
    });
  }

  test("keeps the order of one client's events over both versions at once", async () => {
    const client = await connected();
    const order = [];
    const asked = Array.from({ length: 100 }, (_, index) => {
      const name = index % 2 === 0 ? "h2" : "https";
      return client.timeout(20_000).emitWithAck(name, index).then(() => order.push(index));
    });
    await Promise.all(asked);
    assert.deepEqual(order, [...Array(100).keys()]);
  });

  test("is not called if nobody vouches for its certificate", async () => {
    const stranger = await startGateway(`access = "open"\n[hooks.h2]\nurl = ${JSON.stringify(backends.h2.url)}\non = ["event"]\nevents = ["h2"]\n`);
    try {
      const client = io(stranger.url, { transports: ["websocket"], forceNew: true });
      clients.push(client);
      await next(client, "connect");
      await assert.rejects(async () => {
        const got = await client.timeout(20_000).emitWithAck("h2", 1);
        if (got?.error !== undefined) throw new Error(JSON.stringify(got));
      });
      const failed = await stranger.metric('roomcast_hook_requests_total{hook="h2",outcome="unreachable"}');
      assert.equal(failed, 1);
    } finally {
      await stranger.stop();
    }
  });
});
