// deploy/caddy/Caddyfile with other addresses, and Caddy running with it.

"use strict";

const { spawn } = require("node:child_process");
const { mkdtempSync, readFileSync, rmSync, writeFileSync } = require("node:fs");
const { tmpdir } = require("node:os");
const { join } = require("node:path");

const { deadline } = require("../../../node/tests/clients/support/wait");

const FILE = join(__dirname, "../../caddy/Caddyfile");

/**
 * Clients at `port`, the administration at the next one. Nodes answer /readyz on their clients' port, too; those
 * with an internal port of their own are not asked, because all of them would need the same one.
 */
class Caddy {
  constructor(port, nodes) {
    this.folder = mkdtempSync(join(tmpdir(), "roomcast-caddy-"));
    this.url = `http://127.0.0.1:${port}`;
    const file = join(this.folder, "Caddyfile");
    const addresses = nodes.map((node) => `127.0.0.1:${node.port}`).join(" ");
    const health = nodes.some((node) => node.internal) ? /\thealth_.*\n/g : /\thealth_port .*\n/g;
    const text = readFileSync(FILE, "utf8")
      .replace("to node1:3000 node2:3000 node3:3000", `to ${addresses}`)
      .replace("admin localhost:2019", `admin localhost:${port + 1}`)
      .replace(":3000 {", `http://127.0.0.1:${port} {`)
      .replace(health, "\n");
    writeFileSync(file, text);
    // It writes nothing outside of these folders.
    const env = { ...process.env, HOME: this.folder, XDG_DATA_HOME: this.folder, XDG_CONFIG_HOME: this.folder };
    const args = ["run", "--adapter", "caddyfile", "--config", file];
    this.child = spawn("caddy", args, { env, stdio: ["ignore", "ignore", "ignore"] });
    this.exited = new Promise((resolve) => this.child.once("exit", resolve));
    process.once("exit", () => this.child.kill("SIGTERM"));
  }

  async stop() {
    this.child.kill("SIGTERM");
    await deadline(this.exited, 20_000, "Caddy to stop");
    rmSync(this.folder, { recursive: true, force: true });
  }
}

module.exports = { Caddy };
