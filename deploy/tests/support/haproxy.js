// deploy/haproxy/haproxy.cfg with other addresses, and HAProxy running with it.

"use strict";

const { spawn } = require("node:child_process");
const { mkdtempSync, readFileSync, rmSync, writeFileSync } = require("node:fs");
const { tmpdir } = require("node:os");
const { join } = require("node:path");

const { deadline } = require("../../../node/tests/clients/support/wait");

const FILE = join(__dirname, "../../haproxy/haproxy.cfg");

/** Clients at `port`, operators at the next one; nodes whose clients' port answers /readyz, too. */
class Haproxy {
  constructor(port, nodes) {
    this.folder = mkdtempSync(join(tmpdir(), "roomcast-haproxy-"));
    this.url = `http://127.0.0.1:${port}`;
    const file = join(this.folder, "haproxy.cfg");
    let lines = readFileSync(FILE, "utf8")
      .replace("bind :3000", `bind 127.0.0.1:${port}`)
      .replace("bind :8404", `bind 127.0.0.1:${port + 1}`)
      // HAProxy must notice within a test that a node has returned.
      .replace("slowstart 30s", "slowstart 1s")
      .split("\n");
    const isServer = (line) => line.startsWith("  server ");
    const first = lines.findIndex(isServer);
    lines = lines.filter((line) => !isServer(line));
    const servers = nodes.map(({ name, port: at }) => {
      return `  server ${name} 127.0.0.1:${at} cookie ${name} check port ${at}`;
    });
    lines.splice(first, 0, ...servers);
    writeFileSync(file, lines.join("\n"));
    this.child = spawn("haproxy", ["-db", "-f", file], { stdio: ["ignore", "ignore", "ignore"] });
    this.exited = new Promise((resolve) => this.child.once("exit", resolve));
    process.once("exit", () => this.child.kill("SIGTERM"));
  }

  async stop() {
    this.child.kill("SIGTERM");
    await deadline(this.exited, 20_000, "HAProxy to stop");
    rmSync(this.folder, { recursive: true, force: true });
  }
}

module.exports = { Haproxy };
