// The files of deploy/haproxy with other addresses, and HAProxy running with them.

"use strict";

const { spawn } = require("node:child_process");
const { mkdtempSync, readFileSync, rmSync, writeFileSync } = require("node:fs");
const { tmpdir } = require("node:os");
const { join } = require("node:path");

const { deadline } = require("../../../node/tests/clients/support/wait");

/** A file of deploy/haproxy, running. */
class Balancer {
  constructor(file, replacements, server, nodes) {
    this.folder = mkdtempSync(join(tmpdir(), "roomcast-haproxy-"));
    let text = readFileSync(join(__dirname, "../../haproxy", file), "utf8");
    for (const [from, to] of replacements) text = text.replace(from, to);
    let lines = text.split("\n");
    const isServer = (line) => line.startsWith("  server ");
    const first = lines.findIndex(isServer);
    lines = lines.filter((line) => !isServer(line));
    lines.splice(first, 0, ...nodes.map(server));
    const written = join(this.folder, file);
    writeFileSync(written, lines.join("\n"));
    this.child = spawn("haproxy", ["-db", "-f", written], { stdio: ["ignore", "ignore", "ignore"] });
    this.exited = new Promise((resolve) => this.child.once("exit", resolve));
    process.once("exit", () => this.child.kill("SIGTERM"));
  }

  async stop() {
    this.child.kill("SIGTERM");
    await deadline(this.exited, 20_000, "HAProxy to stop");
    rmSync(this.folder, { recursive: true, force: true });
  }
}

// Without these lines each request goes to the next node, as deployment.md says.
const WITHOUT_SESSIONS = [
  ["balance leastconn", "balance roundrobin"],
  [/^ {2}cookie .*\n/m, ""],
  [/^ {2}force-persist .*\n/m, ""],
];

/**
 * haproxy.cfg: clients at `port`, operators at the next one. /readyz is at a node's `internal` port or at its `port`.
 * Without `hasSessions` no session stays with a node.
 */
class Haproxy extends Balancer {
  constructor(port, nodes, { hasSessions = true } = {}) {
    const replacements = [
      ["bind :3000", `bind 127.0.0.1:${port}`],
      ["bind :8404", `bind 127.0.0.1:${port + 1}`],
      // HAProxy must notice within a test that a node has returned.
      ["slowstart 30s", "slowstart 1s"],
      ...(hasSessions ? [] : WITHOUT_SESSIONS),
    ];
    const server = ({ name, port: at, internal = at }) => {
      const cookie = hasSessions ? `cookie ${name} ` : "";
      return `  server ${name} 127.0.0.1:${at} ${cookie}check port ${internal}`;
    };
    super("haproxy.cfg", replacements, server, nodes);
    this.url = `http://127.0.0.1:${port}`;
  }
}

/** tcp.cfg, in front of nodes that end TLS. */
class TcpHaproxy extends Balancer {
  constructor(port, nodes) {
    const server = ({ name, port: at, internal }) => `  server ${name} 127.0.0.1:${at} send-proxy-v2 check port ${internal}`;
    super("tcp.cfg", [["bind :443", `bind 127.0.0.1:${port}`]], server, nodes);
    this.url = `https://127.0.0.1:${port}`;
  }
}

module.exports = { Haproxy, TcpHaproxy };
