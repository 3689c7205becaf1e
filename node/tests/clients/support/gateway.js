// Starts the program with a file of settings, and stops it. ROOMCAST is the program.

"use strict";

const { spawn } = require("node:child_process");
const { mkdtempSync, rmSync, writeFileSync } = require("node:fs");
const { tmpdir } = require("node:os");
const { join } = require("node:path");
const { createInterface } = require("node:readline");

const { deadline, until } = require("./wait");

/** Serves with this text as the file of settings. `lines` collects the lines of the log. */
async function startGateway(toml, { environment = {}, args = [] } = {}) {
  const folder = mkdtempSync(join(tmpdir(), "roomcast-gateway-"));
  const file = join(folder, "roomcast.toml");
  writeFileSync(file, toml);
  const ports = ["--listen", "127.0.0.1:0", "--internal-listen", "127.0.0.1:0", "--log-format", "json"];
  const child = spawn("/bin/sh", ["-c", `exec ${process.env.ROOMCAST} "$@"`, "sh", "serve", "--config", file, ...ports, ...args], {
    cwd: process.env.TEST_FOLDER,
    // A stop need not spare balancers and other nodes.
    env: { ROOMCAST_DRAIN_GRACE: "0s", ROOMCAST_DRAIN_OVER: "0s", ...process.env, ...environment },
    stdio: ["ignore", "inherit", "pipe"],
  });
  const orphanGuard = () => child.kill("SIGKILL");
  process.on("exit", orphanGuard);
  const exited = new Promise((resolve) => {
    child.once("exit", (code, signal) => {
      process.removeListener("exit", orphanGuard);
      rmSync(folder, { recursive: true, force: true });
      resolve({ code, signal });
    });
  });
  const lines = [];
  const started = new Promise((resolve, reject) => {
    createInterface({ input: child.stderr }).on("line", (text) => {
      const line = parsed(text);
      lines.push(line);
      if (line.message === "listening") resolve(line);
    });
    child.once("error", reject);
    exited.then(({ code }) => reject(new Error(`the program ended with ${code}: ${JSON.stringify(lines)}`)));
  });
  const { address, internal } = await deadline(started, 20_000, "the program to listen");
  return {
    url: `http://${address}`,
    internal: `http://${internal}`,
    lines,
    async metric(series) {
      const text = await (await fetch(`http://${internal}/metrics`)).text();
      const line = text.split("\n").find((candidate) => candidate.startsWith(`${series} `));
      return line === undefined ? undefined : Number(line.slice(series.length + 1));
    },
    /** Ends it without a farewell. */
    async kill() {
      child.kill("SIGKILL");
      return deadline(exited, 10_000, "the program to end");
    },
    /** Has it read this text as its settings, and returns the line of the log that tells the outcome. */
    async reload(text) {
      writeFileSync(file, text);
      const before = lines.length;
      child.kill("SIGHUP");
      const outcome = () => lines.slice(before).find(({ message }) => /^(reloaded the settings|the settings were not)/.test(message));
      return until("the reload", outcome);
    },
    async stop() {
      child.kill("SIGTERM");
      return deadline(exited, 20_000, "the program to stop").catch((error) => {
        child.kill("SIGKILL");
        throw error;
      });
    },
  };
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return { text };
  }
}

module.exports = { startGateway };
