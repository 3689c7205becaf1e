// The addresses of clients that real nodes see behind real balancers. Clients connect from 127.0.0.2 and the
// balancers from 127.0.0.1, the only proxy that the nodes trust. ROOMCAST is the program.

"use strict";

const assert = require("node:assert/strict");
const { execFile } = require("node:child_process");
const { createServer, request } = require("node:http");
const https = require("node:https");
const { after, afterEach, describe, test } = require("node:test");
const { io } = require("socket.io-client");

const { Authority } = require("../../node/tests/clients/support/authority");
const { startGateway } = require("../../node/tests/clients/support/gateway");
const { next } = require("../../node/tests/clients/support/wait");
const { freePorts, until } = require("./support/cluster");
const { Haproxy, TcpHaproxy } = require("./support/haproxy");
const { Nginx } = require("./support/nginx");

const CLIENT = "127.0.0.2";
const POLL = "/socket.io/?EIO=4&transport=polling";
// An address that a client may not claim.
const FORGED = { "X-Forwarded-For": "203.0.113.9", Forwarded: "for=203.0.113.9", "X-Forwarded-Proto": "https" };

/** The application: lets everybody in and notes the addresses that the hook `connect` names. */
async function startApplication() {
  const addresses = [];
  const server = createServer(async (incoming, response) => {
    let body = "";
    for await (const part of incoming.setEncoding("utf8")) body += part;
    addresses.push(JSON.parse(body).socket.address);
    response.setHeader("content-type", "application/json");
    response.end("[]");
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    addresses,
    url: `http://127.0.0.1:${server.address().port}/`,
    stop() {
      server.closeAllConnections();
      return new Promise((resolve) => server.close(resolve));
    },
  };
}

describe("a node behind a balancer", { timeout: 120_000 }, () => {
  const started = [];

  afterEach(async () => {
    for (const each of started.splice(0).reverse()) await each.stop();
  });

  let authority;
  after(() => authority?.remove());

  async function start(promise) {
    const one = await promise;
    started.push(one);
    return one;
  }

  async function startNode(application, settings) {
    const node = await start(
      startGateway(`access = "hook"\n${settings}\n[hooks.app]\nurl = "${application.url}"\non = ["connect"]\n`),
    );
    return { name: "node1", port: new URL(node.url).port, internal: new URL(node.internal).port, node };
  }

  /** A request from the client's own address. Resolves to status and body. */
  function ask(url, { method = "GET", body, headers, ca } = {}) {
    return new Promise((resolve, reject) => {
      const send = url.startsWith("https:") ? https.request : request;
      const sent = send(url, { method, headers, ca, localAddress: CLIENT, agent: false }, async (response) => {
        let text = "";
        for await (const part of response.setEncoding("utf8")) text += part;
        resolve({ status: response.statusCode, text, cookies: response.headers["set-cookie"] ?? [] });
      });
      sent.on("error", reject);
      sent.end(body);
    });
  }

  /** Opens a session with forged headers and connects to the main namespace. */
  async function connect(url) {
    const opened = await until("a session", async () => {
      const answer = await ask(url + POLL, { headers: FORGED });
      return answer.status === 200 && answer;
    });
    const { sid } = JSON.parse(opened.text.slice(1));
    const headers = { ...FORGED, cookie: opened.cookies.map((cookie) => cookie.split(";")[0]).join("; ") };
    const posted = await ask(`${url}${POLL}&sid=${sid}`, { method: "POST", body: "40", headers });
    assert.equal(posted.status, 200);
  }

  /** What `roomcast doctor` on the node's machine finds about addresses. */
  function doctor(url, { internal }) {
    const args = ["doctor", "--url", url, "--internal-listen", `127.0.0.1:${internal}`, "--json"];
    return new Promise((resolve, reject) => {
      // Other checks may fail on this host, so the exit status means nothing here.
      execFile(process.env.ROOMCAST, args, { timeout: 60_000 }, (error, stdout) => {
        try {
          resolve(JSON.parse(stdout).checks.find(({ check }) => check === "addresses"));
        } catch {
          reject(error ?? new Error(stdout));
        }
      });
    });
  }

  async function seen(application) {
    await until("the hook to be called", () => application.addresses.length > 0);
    return application.addresses;
  }

  test("knows the client by X-Forwarded-For of nginx, and believes nobody else", async () => {
    const application = await start(startApplication());
    const behind = await startNode(application, 'trusted_proxies = ["127.0.0.1"]');
    const { port, node } = behind;
    const nginx = await start(new Nginx(await freePorts(), [`127.0.0.1:${port}`]));
    await connect(nginx.url);
    assert.deepEqual(await seen(application), [CLIENT]);
    assert.equal((await doctor(nginx.url, behind)).status, "ok");
    assert.equal(await node.metric("roomcast_forwarded_ignored_total"), 0);

    application.addresses.length = 0;
    await connect(`http://127.0.0.1:${port}`);
    assert.deepEqual(await seen(application), [CLIENT], "directly, from an address that is no proxy");
    assert.equal(await node.metric("roomcast_forwarded_ignored_total"), 1);
  });

  test("sees the balancer if it trusts no proxy, and says so", async () => {
    const application = await start(startApplication());
    const behind = await startNode(application, "");
    const { port, node } = behind;
    const nginx = await start(new Nginx(await freePorts(), [`127.0.0.1:${port}`]));
    await connect(nginx.url);
    assert.deepEqual(await seen(application), ["127.0.0.1"]);
    await until("the line of the log", () => node.lines.some(({ message }) => message.includes("no trusted proxy")));
    const found = await doctor(nginx.url, behind);
    assert.equal(found.status, "warn");
    assert.match(found.remedy, /--trusted-proxies/);
  });

  test("knows the client by the header of HAProxy", async () => {
    const application = await start(startApplication());
    const node = await startNode(application, 'trusted_proxies = ["127.0.0.1"]');
    const haproxy = await start(new Haproxy(await freePorts(), [node]));
    await connect(haproxy.url);
    assert.deepEqual(await seen(application), [CLIENT]);
  });

  test("knows the client by the PROXY header of HAProxy, and ends TLS itself", async () => {
    authority = new Authority();
    authority.sign("site", "DNS:localhost,IP:127.0.0.1");
    const application = await start(startApplication());
    const file = (name) => JSON.stringify(authority.path(name));
    const node = await startNode(
      application,
      `trusted_proxies = ["127.0.0.1"]\nproxy_protocol = true\ntls_cert = ${file("site.pem")}\ntls_key = ${file("site.key")}`,
    );
    const haproxy = await start(new TcpHaproxy(await freePorts(), [node]));
    const ca = authority.read("ca.pem");
    await until("the node to be used", async () => (await ask(haproxy.url + POLL, { ca })).status === 200);
    for (const transports of [["websocket"], ["polling", "websocket"]]) {
      const agent = new https.Agent({ ca, localAddress: CLIENT, keepAlive: true });
      const client = io(haproxy.url, { transports, agent, ca, localAddress: CLIENT, extraHeaders: FORGED, forceNew: true });
      await start({ stop: () => (client.disconnect(), agent.destroy()) });
      await next(client, "connect");
    }
    assert.deepEqual(await seen(application), [CLIENT, CLIENT]);

    // Somebody who reaches the node itself, without a proxy in between.
    const direct = `https://127.0.0.1:${node.port}${POLL}`;
    await assert.rejects(ask(direct, { ca }));
    const refused = () => node.node.metric('roomcast_proxy_header_errors_total{reason="untrusted"}');
    await until("it to be counted", async () => (await refused()) === 1);
  });
});
