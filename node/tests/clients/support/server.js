// Starts the server under test, once per configuration, and stops what it started. It knows the
// command and the one line that the server prints, nothing about sessions.

"use strict";

const { spawn } = require("node:child_process");
const { createInterface } = require("node:readline");

const { improvements } = require("../differences.json");
const { deadline } = require("./wait");

const COMMAND = process.env.TEST_SERVER;

// Some expectations differ on purpose between the official server and ours; see differences.json.
const isReference = process.env.TEST_REFERENCE === "1";

async function startServer(config = {}) {
  if (!COMMAND) throw new Error("TEST_SERVER is not set: start the tests with ./run");
  // With exec, so that signals reach the server and not a shell before it.
  const child = spawn("/bin/sh", ["-c", `exec ${COMMAND} "$@"`, "sh", "--config", JSON.stringify(config)], {
    cwd: process.env.TEST_FOLDER,
    stdio: ["ignore", "pipe", "inherit"],
  });
  const orphanGuard = () => child.kill("SIGKILL");
  process.on("exit", orphanGuard);
  const exited = new Promise((resolve) => {
    child.once("exit", (code, signal) => {
      process.removeListener("exit", orphanGuard);
      resolve({ code, signal });
    });
  });
  const port = await deadline(listeningPort(child, exited), 20_000, "the server to say where it listens");
  return {
    port,
    url: `http://127.0.0.1:${port}`,
    terminate: () => child.kill("SIGTERM"),
    exited,
    async stop() {
      child.kill("SIGTERM");
      await deadline(exited, 10_000, "the server to stop after SIGTERM").catch((error) => {
        child.kill("SIGKILL");
        throw error;
      });
    },
  };
}

function listeningPort(child, exited) {
  return new Promise((resolve, reject) => {
    createInterface({ input: child.stdout }).on("line", (line) => {
      const match = /^listening on 127\.0\.0\.1:(\d+)$/.exec(line);
      if (match) resolve(Number(match[1]));
    });
    child.once("error", reject);
    exited.then(({ code, signal }) => reject(new Error(`the server ended at once (${code ?? signal})`)));
  });
}

/** Options of a test that the official server is known not to pass, listed in differences.json. */
function improvement(name) {
  const reason = improvements[name];
  if (!reason) throw new Error(`"${name}" is not in the list of improvements`);
  return { skip: isReference ? reason : false };
}

module.exports = { startServer, improvement, isReference };
