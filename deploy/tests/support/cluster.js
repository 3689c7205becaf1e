// Starts a cluster with deploy/local/up, reads the addresses from its output, and stops it. It knows the
// command, its output and its folder, and nothing about sessions.

"use strict";

const { spawn } = require("node:child_process");
const { mkdtempSync, readFileSync, rmSync } = require("node:fs");
const net = require("node:net");
const { tmpdir } = require("node:os");
const { join } = require("node:path");
const { createInterface } = require("node:readline");

const { deadline } = require("../../../node/tests/clients/support/wait");

const UP = join(__dirname, "../../local/up");
// Long enough to start all processes on a machine that is busy with other tests.
const PATIENCE = 90_000;

class Cluster {
  #lines = [];
  #child;
  #started = [];

  constructor(child, ports, folder) {
    this.#child = child;
    this.exited = new Promise((resolve) => {
      child.once("exit", (code, signal) => resolve(code ?? signal));
    });
    this.ports = ports;
    this.folder = folder;
    this.urls = {
      balancer: `http://127.0.0.1:${ports}`,
      figures: `http://127.0.0.1:${ports + 1}`,
      prometheus: `http://127.0.0.1:${ports + 2}`,
      "node-js": `http://127.0.0.1:${ports + 30}`,
    };
    for (let node = 1; node <= 9; node += 1) {
      this.urls[`node-${node}`] = `http://127.0.0.1:${ports + 10 + node}`;
      this.urls[`node-${node} internal`] = `http://127.0.0.1:${ports + 20 + node}`;
    }
    for (const stream of [child.stdout, child.stderr]) {
      createInterface({ input: stream }).on("line", (line) => this.#lines.push(line));
    }
  }

  /** The first line with `text`, now or later. */
  async line(text, patience = PATIENCE) {
    await until(`"${text}" in what up prints`, () => this.#lines.some((line) => line.includes(text)), {
      patience,
      ended: this.exited,
    }).catch((error) => {
      throw new Error(`${error.message}; it printed:\n${this.#lines.slice(-40).join("\n")}`);
    });
    return this.#lines.find((line) => line.includes(text));
  }

  get output() {
    return this.#lines.join("\n");
  }

  signal(name, signal) {
    process.kill(Number(readFileSync(join(this.folder, "run", `${name}.pid`), "utf8")), signal);
  }

  /** Starts a process again that has ended, in the way that up says. */
  again(name) {
    const child = spawn(join(this.folder, "run", name), { stdio: "ignore" });
    this.#started.push(child);
    process.once("exit", () => child.kill("SIGKILL"));
    return child;
  }

  /** Resolves to the exit status of up. */
  async stop() {
    for (const child of this.#started) child.kill("SIGTERM");
    this.#child.kill("SIGTERM");
    return deadline(this.exited, 45_000, "up to stop after SIGTERM").catch((error) => {
      this.#child.kill("SIGKILL");
      throw error;
    });
  }
}

/** A cluster that is up. Its files are in `folder`. */
async function startCluster(...options) {
  const folder = mkdtempSync(join(tmpdir(), "roomcast-deploy-"));
  const cluster = await launch([...options, "--dir", folder], folder);
  process.once("exit", () => rmSync(folder, { recursive: true, force: true }));
  try {
    await cluster.line("Ctrl-C stops everything");
  } catch (error) {
    await cluster.stop();
    throw error;
  }
  return cluster;
}

/** Runs up, on free ports unless told which, and waits for nothing. */
async function launch(options, folder, ports) {
  ports ??= await freePorts();
  const child = spawn(UP, ["--ports", String(ports), ...options], { stdio: ["ignore", "pipe", "pipe"] });
  const orphanGuard = () => child.kill("SIGTERM");
  process.once("exit", orphanGuard);
  const cluster = new Cluster(child, ports, folder);
  cluster.exited.then(() => process.removeListener("exit", orphanGuard));
  return cluster;
}

/**
 * The first of 40 free ports, below those that the system gives to outgoing connections and above 10080, the last one
 * that `fetch` refuses to use. The last of the 40 is held until this process ends, because other test files choose theirs
 * at the same time.
 */
async function freePorts() {
  for (let attempt = 0; attempt < 50; attempt += 1) {
    const base = 10_200 + 40 * Math.floor(Math.random() * 490);
    if (!(await hold(base + 39))) continue;
    const offsets = Array.from({ length: 39 }, (_, offset) => offset);
    const free = await Promise.all(offsets.map((offset) => isFree(base + offset)));
    if (free.every(Boolean)) return base;
  }
  throw new Error("no 40 free ports in 50 attempts");
}

function hold(port) {
  return new Promise((resolve) => {
    const server = net.createServer().unref();
    server.once("error", () => resolve(false));
    server.listen(port, "127.0.0.1", () => resolve(true));
  });
}

function isFree(port) {
  return new Promise((resolve) => {
    const server = net.createServer();
    server.once("error", () => resolve(false));
    server.listen(port, "127.0.0.1", () => server.close(() => resolve(true)));
  });
}

/** Asks `condition` again and again until it holds; fails with what was waited for. */
async function until(what, condition, { patience = 30_000, ended } = {}) {
  const end = Date.now() + patience;
  let isOver = false;
  ended?.then(() => (isOver = true));
  let last;
  for (;;) {
    try {
      last = await condition();
      if (last) return last;
    } catch (error) {
      last = error.cause?.message ?? error.message;
    }
    if (isOver) throw new Error(`it ended before there was ${what}`);
    if (Date.now() > end) throw new Error(`waited ${patience} ms for ${what}; last: ${String(last)}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** Status and body of a GET. */
async function get(url) {
  const response = await fetch(url, { signal: AbortSignal.timeout(10_000) });
  return { status: response.status, text: await response.text() };
}

module.exports = { startCluster, launch, freePorts, isFree, until, get };
