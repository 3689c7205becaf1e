// A server of a cluster as a child process, Node.js or Roomcast; what it can be told is described at
// the top of node-peer.js.

"use strict";

const { spawn } = require("node:child_process");
const { EventEmitter } = require("node:events");
const { join } = require("node:path");
const { createInterface } = require("node:readline");

const { deadline } = require("../support/wait");
const { decode, encode } = require("./values");

// Waits of the servers themselves end after 5 s.
const PATIENCE = 15_000;

const commands = {
  node: () => [process.execPath, [join(__dirname, "node-peer.js")]],
  roomcast() {
    const command = process.env.TEST_CLUSTER_NODE;
    if (!command) throw new Error("TEST_CLUSTER_NODE is not set: start the tests with ./run");
    return ["/bin/sh", ["-c", `exec ${command} "$@"`, "sh"]];
  },
};

// Each has a guard that ends it with this process.
process.setMaxListeners(100);

/** Events: "note" with {namespace, args}, "gap" with {from, to} in milliseconds, "exit". */
class Peer extends EventEmitter {
  #child;
  #waiting = new Map();
  #next = 0;

  /** Starts a server of that kind ("node" or "roomcast"); resolves when it listens. */
  static async start(kind, config) {
    const peer = new Peer(kind, config);
    await deadline(
      Promise.race([peer.listening, peer.exited.then(({ code, signal }) => {
        throw new Error(`the ${kind} server ended at once (${code ?? signal})`);
      })]),
      20_000,
      `a ${kind} server to listen`,
    ).catch((error) => {
      peer.signal("SIGKILL");
      throw error;
    });
    return peer;
  }

  constructor(kind, config) {
    super();
    this.kind = kind;
    this.name = config.name;
    const [program, args] = commands[kind]();
    this.#child = spawn(program, [...args, "--config", JSON.stringify(config)], {
      cwd: process.env.TEST_FOLDER,
      stdio: ["pipe", "pipe", "inherit"],
    });
    const orphanGuard = () => this.#child.kill("SIGKILL");
    process.on("exit", orphanGuard);
    this.exited = new Promise((resolve) => {
      this.#child.once("exit", (code, signal) => {
        process.removeListener("exit", orphanGuard);
        for (const { reject } of this.#waiting.values()) reject(new Error(`${this.name} has ended`));
        this.#waiting.clear();
        resolve({ code, signal });
        this.emit("exit");
      });
    });
    this.#child.stdin.on("error", () => {});
    this.listening = new Promise((resolve) => {
      createInterface({ input: this.#child.stdout }).on("line", (line) => {
        const said = decode(JSON.parse(line));
        if (said.listening) {
          this.url = `http://127.0.0.1:${said.listening}`;
          resolve();
        }
        if (said.note) this.emit("note", said.note);
        if (said.gap) this.emit("gap", said.gap);
        if (said.id !== undefined) this.#settle(said);
      });
    });
  }

  get pid() {
    return this.#child.pid;
  }

  /** Has the server do something in the main namespace, or in the one that is given. */
  tell(what, fields = {}) {
    const id = this.#next++;
    const answer = new Promise((resolve, reject) => this.#waiting.set(id, { resolve, reject }));
    const command = { id, do: what, namespace: "/", ...fields };
    this.#child.stdin.write(`${JSON.stringify(encode(command))}\n`);
    return deadline(answer, PATIENCE, `${this.name} to ${what}`).finally(() => this.#waiting.delete(id));
  }

  signal(signal) {
    this.#child.kill(signal);
  }

  async stop() {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    this.signal("SIGTERM");
    await deadline(this.exited, 10_000, `${this.name} to stop after SIGTERM`).catch((error) => {
      this.signal("SIGKILL");
      throw error;
    });
  }

  #settle({ id, ok, error }) {
    const waiting = this.#waiting.get(id);
    if (error === undefined) waiting?.resolve(ok);
    else waiting?.reject(new Error(`${this.name}: ${error}`));
  }
}

module.exports = { Peer };
