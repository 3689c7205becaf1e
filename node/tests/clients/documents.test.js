// The code for clients in README.md and in the book, run against the servers that it is written for.
// TEST_DEMO is the command that serves the demo and prints its URL; TEST_EXAMPLES is the folder with
// the built examples.

"use strict";

const assert = require("node:assert/strict");
const { spawn } = require("node:child_process");
const { readFileSync } = require("node:fs");
const { join } = require("node:path");
const { createInterface } = require("node:readline");
const { afterEach, test } = require("node:test");
const { io } = require("socket.io-client");

const { deadline, next } = require("./support/wait");

const PATIENCE = 15_000;
const ROOT = join(__dirname, "../../..");

let started = [];
afterEach(async () => {
  for (const child of started) child.kill("SIGKILL");
  await Promise.all(started.map(({ exited }) => exited));
  started = [];
});

test("the client of README.md joins the lobby of the demo and hears itself", async () => {
  const server = start(`exec ${process.env.TEST_DEMO}`);
  const [url] = await server.line(/http:\/\/[\d.:]+/);
  const client = startClient("README.md", url);
  await client.line(/^1 in the lobby$/);
  await client.line(/^lobby: hello, everybody$/);
});

test("the client of the first page of the book talks to others in the example", async () => {
  const server = start(`PORT=0 exec ${process.env.TEST_EXAMPLES}/chat`);
  const [, address] = await server.line(/listening on (.*)/);
  const url = `http://${address}`;
  const ben = io(url, { auth: { name: "Ben" } });
  try {
    await next(ben, "connect");
    await ben.emitWithAck("join", "tea");
    const said = next(ben, "said");
    const ada = startClient("docs/src/getting-started.md", url);
    assert.deepEqual(await said, ["tea", "Ada", "hello, everybody"]);
    ben.emit("say", "tea", "hello, Ada");
    await ada.line(/^tea Ben: hello, Ada$/);
  } finally {
    ben.disconnect();
  }
});

/** Runs the first block of JavaScript of a document against this server. */
function startClient(document, url) {
  const [, code] = /^```js\n(.*?)^```/ms.exec(readFileSync(join(ROOT, document), "utf8"));
  assert.ok(code.includes("http://127.0.0.1:3000"), code);
  // NODE_PATH, where the official client is, holds for `require` alone.
  const runnable = code.replace("http://127.0.0.1:3000", url)
    .replace(/import (.*) from (".*");/, "const $1 = require($2);");
  return start('exec node -e "$1"', runnable);
}

function start(command, ...args) {
  const child = spawn("/bin/sh", ["-c", command, "sh", ...args], {
    cwd: process.env.TEST_FOLDER,
    stdio: ["ignore", "pipe", "inherit"],
  });
  child.exited = new Promise((resolve) => child.once("exit", resolve));
  started.push(child);
  const lines = [];
  const waiting = [];
  const look = () => {
    for (const each of waiting) {
      const found = lines.map((line) => each.pattern.exec(line)).find(Boolean);
      if (found) each.resolve(found);
    }
  };
  createInterface({ input: child.stdout }).on("line", (line) => {
    lines.push(line);
    look();
  });
  /** Resolves to the match of a line that the program has printed or will print. */
  child.line = (pattern) => {
    const found = new Promise((resolve) => waiting.push({ pattern, resolve }));
    look();
    return deadline(found, PATIENCE, `a line like ${pattern} among ${JSON.stringify(lines)}`);
  };
  return child;
}
