// deploy/envoy/envoy.yaml with other addresses, and Envoy running with it.

"use strict";

const { spawn } = require("node:child_process");
const { mkdtempSync, readFileSync, rmSync, writeFileSync } = require("node:fs");
const { tmpdir } = require("node:os");
const { join } = require("node:path");

const { deadline } = require("../../../node/tests/clients/support/wait");

const FILE = join(__dirname, "../../envoy/envoy.yaml");

/** Clients at `port`, operators at the next one; nodes answer /readyz on their internal port, or on their only one. */
class Envoy {
  constructor(port, nodes) {
    this.folder = mkdtempSync(join(tmpdir(), "roomcast-envoy-"));
    this.url = `http://127.0.0.1:${port}`;
    const file = join(this.folder, "envoy.yaml");
    let text = readFileSync(FILE, "utf8")
      .replace("{address: 0.0.0.0, port_value: 3000}", `{address: 127.0.0.1, port_value: ${port}}`)
      .replace("port_value: 9901", `port_value: ${port + 1}`);
    nodes.forEach((node, index) => {
      text = text
        .replace(`{address: node${index + 1}, port_value: 3000}`, `{address: 127.0.0.1, port_value: ${node.port}}`)
        .replace("{port_value: 3001}", `{port_value: ${node.internal ?? node.port}}`);
    });
    writeFileSync(file, text);
    const args = ["-c", file, "--concurrency", "1", "--disable-hot-restart", "--log-level", "error"];
    this.child = spawn("envoy", args, { stdio: ["ignore", "ignore", "ignore"] });
    this.exited = new Promise((resolve) => this.child.once("exit", resolve));
    process.once("exit", () => this.child.kill("SIGTERM"));
  }

  async stop() {
    this.child.kill("SIGTERM");
    await deadline(this.exited, 20_000, "Envoy to stop");
    rmSync(this.folder, { recursive: true, force: true });
  }
}

module.exports = { Envoy };
