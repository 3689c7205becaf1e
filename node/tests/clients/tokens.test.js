// The program's tokens and room policies, as the official client meets them. ROOMCAST is the program.

"use strict";

const assert = require("node:assert/strict");
const { execFileSync, spawn } = require("node:child_process");
const { generateKeyPairSync, sign } = require("node:crypto");
const { mkdtempSync, rmSync, writeFileSync } = require("node:fs");
const { createServer } = require("node:http");
const { tmpdir } = require("node:os");
const { join } = require("node:path");
const { createInterface } = require("node:readline");
const { after, afterEach, before, describe, test } = require("node:test");
const { io } = require("socket.io-client");

const { startGateway } = require("./support/gateway");
const { next, until } = require("./support/wait");

const ROOMCAST = process.env.ROOMCAST;

const SETTINGS = `
access = "jwt"
client_rooms = true

[jwt]
audience = "chat"
leeway = "1s"
expiry_notice = "2s"
token_from = ["auth.token", "header:authorization", "cookie:session"]

[[jwt.keys]]
id = "first"
algorithm = "HS256"
secret_file = "SECRET"

[namespaces."/".rooms]
join = ["room:*", "team:{team}", "doc*"]
send = ["room:*", "team:{team}", "user:*"]
presence = ["room:*"]

[namespaces."/open"]
access = "open"
`;

describe("tokens", { timeout: 120_000 }, () => {
  const folder = mkdtempSync(join(tmpdir(), "roomcast-tokens-"));
  const config = join(folder, "roomcast.toml");
  let program;
  let url;
  let sockets = [];

  before(async () => {
    const secret = join(folder, "secret");
    writeFileSync(secret, "a secret of 32 bytes at the least\n");
    writeFileSync(config, SETTINGS.replace("SECRET", secret));
    const any = ["--listen", "127.0.0.1:0", "--internal-listen", "127.0.0.1:0"];
    program = spawn(ROOMCAST, ["serve", "--config", config, ...any], { stdio: ["ignore", "ignore", "pipe"] });
    url = await new Promise((resolve, reject) => {
      program.on("exit", (status) => reject(new Error(`ended with ${status}`)));
      createInterface({ input: program.stderr }).on("line", (line) => {
        const found = /listening.* address=(\S+)/.exec(line);
        if (found) resolve(`http://${found[1]}`);
      });
    });
  });

  after(() => {
    program.removeAllListeners("exit");
    program.kill("SIGKILL");
    rmSync(folder, { recursive: true });
  });

  afterEach(() => {
    for (const socket of sockets) socket.disconnect();
    sockets = [];
  });

  function token(user, ...options) {
    const args = ["token", "--config", config, "--user", user, ...options];
    return execFileSync(ROOMCAST, args, { encoding: "utf8" }).trim();
  }

  function open(auth, options = {}) {
    const socket = io(`${url}${options.namespace ?? "/"}`, { auth, forceNew: true, reconnection: false, ...options });
    sockets.push(socket);
    return socket;
  }

  async function connect(auth, options) {
    const socket = open(auth, options);
    await next(socket, "connect");
    return socket;
  }

  async function refusal(auth, options) {
    const [error] = [await next(open(auth, options), "connect_error")].flat();
    return error.data?.code ?? error.message;
  }

  test("a client without a valid token is refused with a code", async () => {
    assert.equal(await refusal({}), "token_missing");
    assert.equal(await refusal({ token: "a.b.c" }), "token_invalid");
    const valid = token("ada");
    assert.equal(await refusal({ token: `${valid.slice(0, -4)}AAAA` }), "token_invalid");
    assert.equal(await refusal({ token: token("ada", "--claim", "aud=mail") }), "token_audience");
    assert.equal(await refusal({ token: token("ada", "--claim", "exp=1000") }), "token_expired");
    assert.equal(await refusal({ token: token("") }), "token_claim");
  });

  test("a token is taken from auth, a header or a cookie, on both transports", async () => {
    const valid = token("ada");
    for (const transports of [["polling"], ["websocket"]]) {
      await connect({ token: valid }, { transports });
      await connect({}, { transports, extraHeaders: { Authorization: `Bearer ${valid}` } });
      await connect({}, { transports, extraHeaders: { Cookie: `a=b; session=${valid}` } });
      assert.equal(await refusal({}, { transports, query: { token: valid } }), "token_missing");
    }
  });

  test("the policy decides about rooms, and acknowledgements say why not", async () => {
    const ada = await connect({ token: token("ada", "--claim", "team=red") });
    const join = (room) => ada.emitWithAck("join", room);
    assert.deepEqual(Object.keys(await join("room:1")), ["room", "members"]);
    assert.deepEqual(Object.keys(await join("team:red")), ["room", "members"]);
    assert.deepEqual(await join("team:blue"), { error: "you may not join team:blue" });
    assert.deepEqual(await join("user:bob"), { error: "you may not join user:bob" });
    assert.deepEqual(await ada.emitWithAck("who", "team:red"), { error: "you may not list the members of team:red" });
    assert.deepEqual(await ada.emitWithAck("message", "team:blue", 1), { error: "you may not send to team:blue" });
    const star = await connect({ token: token("eve", "--claim", "team=*") });
    assert.deepEqual(await star.emitWithAck("join", "team:red"), { error: "you may not join team:red" });
  });

  test("an id of Firestore is a room, and the id of a socket is none", async () => {
    const ada = await connect({ token: token("ada", "--join", "*") });
    const bob = await connect({ token: token("bob") });
    assert.ok((await ada.emitWithAck("join", "docsTZ5r8YJ9HkqLw2Xa")).members);
    assert.match((await ada.emitWithAck("join", bob.id)).error, /is a socket's id/);
  });

  test("all sockets of a user share a room, which others may send to if the policy names it", async () => {
    const phone = await connect({ token: token("bob") });
    const laptop = await connect({ token: token("bob") });
    const ada = await connect({ token: token("ada", "--room", "room:start") });
    assert.deepEqual(await ada.emitWithAck("rooms"), ["room:start", "user:ada"]);
    const heard = [phone, laptop].map((socket) => next(socket, "message"));
    assert.equal(await ada.emitWithAck("message", "user:bob", "hello"), 2);
    for (const [message] of (await Promise.all(heard)).map((args) => [args].flat())) {
      assert.deepEqual(message, { room: "user:bob", from: ada.id, user: "ada", data: "hello" });
    }
    assert.deepEqual(await ada.emitWithAck("leave", "user:ada"), { error: "you may not leave user:ada" });
  });

  test("a client is notified before its token expires, and stays with a fresh one", async () => {
    const lasting = await connect({ token: token("ada", "--valid-for", "4s", "--room", "room:old") });
    const lost = await connect({ token: token("bob", "--valid-for", "4s") });
    const ended = [next(lost, "token:expired"), next(lost, "disconnect")];
    const [notice] = [await next(lasting, "token:expiring")].flat();
    assert.ok(notice.in <= 2, JSON.stringify(notice));
    const others = await lasting.emitWithAck("token:refresh", token("bob"));
    assert.equal(others.error, "the token belongs to another user");
    const fresh = await lasting.emitWithAck("token:refresh", token("ada", "--room", "room:new"));
    assert.ok(fresh.expires > Date.now() / 1000 + 3000, JSON.stringify(fresh));
    await Promise.all(ended);
    assert.equal(lasting.connected, true);
    assert.deepEqual(await lasting.emitWithAck("rooms"), ["room:new", "user:ada"]);
  });

  test("a page of another origin is refused by both transports", async () => {
    for (const transports of [["polling"], ["websocket"]]) {
      const options = { namespace: "/open", transports };
      await connect({}, { ...options, extraHeaders: { Origin: url } });
      const socket = open({}, { ...options, extraHeaders: { Origin: "https://evil.example" } });
      await next(socket, "connect_error");
      assert.equal(socket.connected, false);
    }
  });
});

/** An issuer of tokens with a key of its own, whose public part it serves. */
class Issuer {
  async start() {
    const { publicKey, privateKey } = generateKeyPairSync("ed25519");
    const keys = [{ ...publicKey.export({ format: "jwk" }), kid: "only", alg: "EdDSA", use: "sig" }];
    this.privateKey = privateKey;
    this.server = createServer((_, response) => response.end(JSON.stringify({ keys })));
    await new Promise((resolve) => this.server.listen(0, "127.0.0.1", resolve));
    this.url = `http://127.0.0.1:${this.server.address().port}/keys`;
    return this;
  }

  token(user) {
    const encoded = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
    const exp = Math.floor(Date.now() / 1000) + 600;
    const text = `${encoded({ alg: "EdDSA", kid: "only" })}.${encoded({ sub: user, exp })}`;
    return `${text}.${sign(null, Buffer.from(text), this.privateKey).toString("base64url")}`;
  }

  async stop() {
    this.server.closeAllConnections();
    await new Promise((resolve) => this.server.close(resolve));
  }
}

describe("a set of keys", { timeout: 120_000 }, () => {
  test("of another issuer takes the place of the first by a reload, unless it cannot be fetched", async () => {
    const [first, second] = [await new Issuer().start(), await new Issuer().start()];
    const settings = (url) => `access = "jwt"\n[jwt.jwks]\nurl = "${url}"\nalgorithms = ["EdDSA"]\n`;
    const gateway = await startGateway(settings(first.url));
    /** Whether a client with a token of this issuer gets in. */
    async function trusts(issuer) {
      const client = io(gateway.url, { forceNew: true, reconnection: false, auth: { token: issuer.token("ada") } });
      const refused = next(client, "connect_error").then(([error]) => error.data.code);
      const outcome = await Promise.race([next(client, "connect").then(() => "connected"), refused]);
      client.close();
      return outcome;
    }
    try {
      assert.deepEqual([await trusts(first), await trusts(second)], ["connected", "token_invalid"]);
      const refused = await gateway.reload(settings("http://127.0.0.1:1/keys"));
      assert.match(refused.message, /nothing has changed/);
      assert.deepEqual([await trusts(first), await trusts(second)], ["connected", "token_invalid"]);
      const staying = io(gateway.url, { forceNew: true, reconnection: false, auth: { token: first.token("bob") } });
      await next(staying, "connect");
      const reloaded = await gateway.reload(settings(second.url));
      assert.match(reloaded.message, /^reloaded the settings/);
      assert.deepEqual([await trusts(first), await trusts(second)], ["token_invalid", "connected"]);
      assert.equal(staying.connected, true);
      staying.close();
    } finally {
      await gateway.stop();
      await Promise.all([first.stop(), second.stop()]);
    }
  });
});

describe("a reload", { timeout: 120_000 }, () => {
  test("applies what it can, and names what needs a restart", async () => {
    const gateway = await startGateway('access = "open"\nlog_level = "info"\n[api]\nlisten = "127.0.0.1:0"\n');
    try {
      const line = await gateway.reload(
        'access = "open"\nlog_level = "debug"\n[api]\nlisten = "127.0.0.2:0"\nconcurrency = 7\n' +
          '[hooks.first]\nurl = "http://127.0.0.1:1/"\non = ["event"]\n',
      );
      assert.equal(line.changed, '["api.concurrency", "log_level"]');
      const named = () => gateway.lines.find(({ message }) => /need a restart/.test(message));
      assert.equal((await until("the line of the log", named)).settings, '["api.listen", "hooks"]');
    } finally {
      await gateway.stop();
    }
  });
});
