// The page about publishing without a library: each of its blocks is run against a node and an official client.

"use strict";

const assert = require("node:assert/strict");
const { execFileSync, spawn } = require("node:child_process");
const { mkdtempSync, readFileSync, rmSync } = require("node:fs");
const { tmpdir } = require("node:os");
const { join } = require("node:path");
const { after, before, describe, test } = require("node:test");

const { Sockets } = require("../../node/tests/clients/support/clients");
const { ask, next } = require("../../node/tests/clients/support/wait");
const { freePorts, get, until } = require("./support/cluster");

const PAGE = readFileSync(join(__dirname, "../../docs/src/publishing.md"), "utf8");

// What the extension `redis` of PHP does, for machines without it.
const PHP_REDIS = `
if (!class_exists('Redis')) { class Redis {
  private $stream;
  function connect($host, $port = 6379) { $this->stream = fsockopen($host, $port); }
  function publish(...$arguments) {
    $parts = array_map(fn($text) => '$' . strlen($text) . "\\r\\n$text\\r\\n", ['PUBLISH', ...$arguments]);
    fwrite($this->stream, '*3' . "\\r\\n" . implode($parts));
    return fgets($this->stream);
  }
} }
`;

function blocks(language) {
  return [...PAGE.matchAll(new RegExp(`\`\`\`${language}\\n([^]*?)\`\`\``, "g"))].map(([, code]) => code);
}

describe("the page about publishing", { timeout: 120_000 }, () => {
  let folder;
  let redis;
  const started = [];
  const nodes = {};
  const open = [];

  before(async () => {
    folder = mkdtempSync(join(tmpdir(), "roomcast-publish-"));
    redis = (await freePorts()) + 8;
    start("redis-server", "--port", redis, "--bind", "127.0.0.1", "--save", "", "--dir", folder);
    for (const [index, parser] of ["msgpack", "json"].entries()) {
      const port = redis + 1 + 2 * index;
      nodes[parser] = `http://127.0.0.1:${port}`;
      const options = ["--access=open", "--client-rooms", `--redis-parser=${parser}`];
      // Two clusters on one Redis, so that the nodes do not disagree.
      const url = `redis://127.0.0.1:${redis}`;
      const prefix = parser === "json" ? "socket.io" : "binary";
      const listen = [`--listen=127.0.0.1:${port}`, `--internal-listen=127.0.0.1:${port + 1}`];
      start(process.env.ROOMCAST, "serve", ...listen, ...options, `--redis=${url}`, `--redis-prefix=${prefix}`);
      const ready = async () => (await get(`http://127.0.0.1:${port + 1}/readyz`)).status === 200;
      await until(`a node with ${parser}`, ready);
    }
  });

  after(async () => {
    for (const sockets of open) sockets.closeAll();
    for (const { child, exited } of started.reverse()) {
      child.kill("SIGTERM");
      await exited;
    }
    rmSync(folder, { recursive: true, force: true });
  });

  function start(program, ...args) {
    const child = spawn(program, args.map(String), { stdio: "ignore" });
    process.once("exit", () => child.kill("SIGKILL"));
    started.push({ child, exited: new Promise((done) => child.once("exit", done)) });
  }

  async function member(parser, room) {
    const sockets = new Sockets("4.8", nodes[parser], "websocket");
    open.push(sockets);
    const socket = await sockets.connected("/");
    assert.equal((await ask(socket, "join", room)).error, undefined);
    return socket;
  }

  /** Runs a program on code of the page that is meant for the usual port of Redis. */
  function run(program, ...args) {
    return execFileSync(program, args, { encoding: "utf8", timeout: 20_000 });
  }

  test("has MessagePack in Python that reaches a client", async () => {
    const [code] = blocks("python");
    const socket = await member("msgpack", "news");
    const headline = next(socket, "headline");
    const here = code.replace("Redis()", `Redis(port=${redis})`).replace("socket.io#", "binary#");
    assert.equal(run("python3", "-c", `${here}\nprint(reached)`).trim(), "1");
    assert.deepEqual(await headline, [{ text: "It rains" }]);
  });

  test("has four lines of PHP that reach a client", async () => {
    const [code] = blocks("php");
    assert.equal(code.trim().split("\n").length, 4);
    const socket = await member("json", "news");
    const headline = next(socket, "headline");
    run("php", "-r", PHP_REDIS + code.replace("'127.0.0.1'", `'127.0.0.1', ${redis}`));
    assert.deepEqual(await headline, [{ text: "It rains" }]);
  });

  test("has commands of a shell that reach a client and disconnect it", async () => {
    const [publish, disconnect] = blocks("sh").map((code) => code.replace("redis-cli", `redis-cli -p ${redis}`));
    const socket = await member("json", "news");
    const other = await member("json", "team:7");
    const headline = next(socket, "headline");
    assert.equal(run("sh", "-c", publish).trim(), "1");
    assert.deepEqual(await headline, [{ text: "It rains" }]);
    const gone = next(other, "disconnect");
    run("sh", "-c", disconnect);
    assert.match(String(await gone), /disconnect|close/);
    assert.ok(socket.connected);
  });
});
