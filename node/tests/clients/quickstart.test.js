// The quick start beside a Node.js cluster: its code and its commands are run as they are written, with other ports.
// ROOMCAST is the program.

"use strict";

const assert = require("node:assert/strict");
const { spawn } = require("node:child_process");
const { mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } = require("node:fs");
const { tmpdir } = require("node:os");
const { dirname, join } = require("node:path");
const { after, before, describe, test } = require("node:test");

const { startRedis } = require("./cluster/redis");
const { sparePort } = require("./support/ports");
const { deadline, until } = require("./support/wait");

const PATIENCE = 30_000;
const PAGE = readFileSync(join(__dirname, "../../../docs/src/quick-start-nodejs.md"), "utf8");
const blocks = (language) => {
  const pattern = new RegExp(`^\`\`\`${language}\n(.*?)^\`\`\``, "gms");
  return [...PAGE.matchAll(pattern)].map(([, code]) => code);
};

describe("the quick start beside a Node.js cluster", { timeout: 180_000 }, () => {
  const [serverCode, clientCode] = blocks("js");
  const commands = blocks("sh").flatMap((block) => block.trim().split("\n"));
  const [install, redisServer, server, build, serve, atNode, atRoomcast, curl, ...others] = commands;
  const folder = mkdtempSync(join(tmpdir(), "roomcast-quickstart-"));
  const running = [];
  const ports = {};
  let redis;

  before(async () => {
    redis = await startRedis();
    ports[6379] = Number(new URL(redis.url).port);
    for (const port of [3000, 3001, 4000]) ports[port] = await sparePort();
    // Packages of `import` are looked for in the folders above.
    const packages = dirname(dirname(require.resolve("redis/package.json")));
    symlinkSync(packages, join(folder, "node_modules"));
    writeFileSync(join(folder, "server.mjs"), here(serverCode));
    writeFileSync(join(folder, "client.mjs"), here(clientCode));
  });

  after(async () => {
    for (const child of running) child.kill("SIGKILL");
    await deadline(Promise.all(running.map(({ exited }) => exited)), PATIENCE, "the programs to end");
    await redis?.stop();
    rmSync(folder, { recursive: true, force: true });
  });

  /** The text with the ports of this test, and the program that is tested. */
  function here(text) {
    const local = text.replace(/\b(6379|3000|3001|4000)\b/g, (port) => ports[port]);
    return local.replace("target/release/roomcast", process.env.ROOMCAST);
  }

  function run(command) {
    const child = spawn("/bin/sh", ["-c", `exec ${here(command)}`], {
      cwd: folder,
      // The page's command leaves it at its default, which may be taken here.
      env: { ...process.env, ROOMCAST_INTERNAL_LISTEN: `127.0.0.1:${ports[3001]}` },
      stdio: ["ignore", "pipe", "pipe"],
    });
    child.output = "";
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (data) => (child.output += data));
    child.exited = new Promise((resolve) => child.once("exit", resolve));
    child.prints = (text) => until(`"${text}"`, () => child.output.includes(text), PATIENCE).catch((error) => {
      throw new Error(`${error.message}; ${command} printed:\n${child.output}`);
    });
    running.push(child);
    return child;
  }

  test("has these commands, and needs these packages", () => {
    const { devDependencies } = require("./package.json");
    const [npm, verb, ...packages] = install.split(" ");
    assert.deepEqual([npm, verb], ["npm", "install"]);
    for (const name of packages) assert.ok(devDependencies[name], name);
    assert.match(redisServer, /^redis-server /);
    assert.match(build, /^cargo build --release -p roomcast$/);
    assert.deepEqual(others, []);
  });

  test("lets clients of both servers talk in one room, and counts the foreign server", async () => {
    run(server);
    const node = run(serve);
    await node.prints("listening");
    const poll = () => fetch(here("http://127.0.0.1:3000/socket.io/?EIO=4&transport=polling")).then(({ ok }) => ok, () => false);
    await until("the server in Node.js", poll, PATIENCE);

    const first = run(atNode);
    await first.prints(here("hello from http://127.0.0.1:3000"));
    const second = run(atRoomcast);
    await first.prints(here("hello from http://127.0.0.1:4000"));
    first.kill("SIGKILL");
    run(atNode);
    await second.prints(here("hello from http://127.0.0.1:3000"));

    const [, url, series] = /^curl -s (\S+) \| grep '(.*)'$/.exec(here(curl));
    const counts = async () => (await (await fetch(url)).text()).split("\n").includes(`${series} 1`);
    await until("one foreign server", counts, PATIENCE);
    await node.prints("Node.js servers share this cluster");
  });
});
