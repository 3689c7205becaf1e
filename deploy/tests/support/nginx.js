// deploy/nginx/nginx.conf with other addresses, and nginx running with it.

"use strict";

const { spawn } = require("node:child_process");
const { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } = require("node:fs");
const { tmpdir, userInfo } = require("node:os");
const { join } = require("node:path");

const { deadline } = require("../../../node/tests/clients/support/wait");

const FILE = join(__dirname, "../../nginx/nginx.conf");

/**
 * Writes the file for one port and these servers; returns the arguments that nginx takes. Without `hasSessions` each
 * request goes to the next server.
 */
function writeConfig(folder, port, servers, hasSessions = true) {
  let lines = readFileSync(FILE, "utf8").split("\n");
  const isServer = (line) => /^ {4}server node\d:3000 /.test(line);
  const options = lines.find(isServer).replace(/^ {4}server \S+/, "");
  const first = lines.findIndex(isServer);
  lines = lines.filter((line) => !isServer(line));
  lines.splice(first, 0, ...servers.map((server) => `    server ${server}${options}`));
  let text = lines.join("\n").replace("listen 3000;", `listen 127.0.0.1:${port};`);
  if (!hasSessions) text = text.replace(/^ {4}hash .*\n/m, "");
  // Elsewhere the package decides where nginx writes.
  const paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
  const temporary = paths.map((path) => `  ${path}_temp_path ${join(folder, path)};`);
  text = text.replace("http {\n", `http {\n  access_log off;\n${temporary.join("\n")}\n`);
  // As root, nginx would run its workers as a user who may not enter the folder.
  const user = userInfo().uid === 0 ? "user root;\n" : "";
  const file = join(folder, "nginx.conf");
  writeFileSync(file, `daemon off;\npid ${join(folder, "nginx.pid")};\n${user}${text}`);
  return ["-e", "stderr", "-p", folder, "-c", file];
}

class Nginx {
  constructor(port, servers, { hasSessions = true } = {}) {
    this.folder = mkdtempSync(join(tmpdir(), "roomcast-nginx-"));
    mkdirSync(join(this.folder, "logs"));
    this.url = `http://127.0.0.1:${port}`;
    this.child = spawn("nginx", writeConfig(this.folder, port, servers, hasSessions), {
      stdio: ["ignore", "inherit", "inherit"],
    });
    this.exited = new Promise((resolve) => this.child.once("exit", resolve));
    process.once("exit", () => this.child.kill("SIGTERM"));
  }

  async stop() {
    this.child.kill("SIGTERM");
    await deadline(this.exited, 20_000, "nginx to stop");
    rmSync(this.folder, { recursive: true, force: true });
  }
}

module.exports = { Nginx, writeConfig };
