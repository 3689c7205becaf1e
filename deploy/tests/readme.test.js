// The section of README.md about a cluster with an application in Python: each of its commands is run as it is
// written, with other ports.

"use strict";

const assert = require("node:assert/strict");
const { spawn, spawnSync } = require("node:child_process");
const { mkdtempSync, readFileSync, rmSync, writeFileSync } = require("node:fs");
const { tmpdir } = require("node:os");
const { join, resolve } = require("node:path");
const { after, before, describe, test } = require("node:test");

const { isFree, startCluster, until } = require("./support/cluster");

const ROOT = resolve(__dirname, "../..");
const SECTION = /^## A cluster with an application in Python\n(.*?)^## /ms.exec(
  readFileSync(join(ROOT, "README.md"), "utf8"),
)[1];
const blocks = (language, text = SECTION) => {
  const pattern = new RegExp(`^\`\`\`${language}\\n(.*?)^\`\`\``, "gms");
  return [...text.matchAll(pattern)].map(([, code]) => code);
};

/** A command that runs until it is stopped, and what it has printed. */
class Running {
  output = "";

  constructor(command, folder) {
    this.child = spawn("/bin/sh", ["-c", `exec ${command}`], { cwd: folder, stdio: ["ignore", "pipe", "pipe"] });
    for (const stream of [this.child.stdout, this.child.stderr]) stream.on("data", (data) => (this.output += data));
  }

  async prints(line) {
    await until(`"${line}"`, () => this.output.split("\n").includes(line)).catch((error) => {
      throw new Error(`${error.message}; it printed:\n${this.output}`);
    });
  }

  stop() {
    this.child.kill("SIGKILL");
  }
}

describe("the cluster of the README", { timeout: 180_000 }, () => {
  const [client] = blocks("js");
  const commands = blocks("sh").flatMap((block) => block.trim().split("\n"));
  const [up, install, ada, bob, nobody, emit, ...others] = commands;
  const folder = mkdtempSync(join(tmpdir(), "roomcast-readme-"));
  const running = [];
  let cluster;

  before(async () => {
    process.chdir(ROOT);
    const [program, ...options] = up.split(" ");
    assert.equal(program, "deploy/local/up");
    cluster = await startCluster(...options);
    writeFileSync(join(folder, "chat.mjs"), here(client));
    const { status, stdout, stderr } = spawnSync("/bin/sh", ["-c", install], { cwd: folder, encoding: "utf8" });
    assert.equal(status, 0, `${stdout}${stderr}`);
  });

  after(async () => {
    for (const each of running) each.stop();
    await cluster?.stop();
    rmSync(folder, { recursive: true, force: true });
  });

  /** The text with the ports of this cluster, and with the program that is tested. */
  function here(text) {
    const ports = text.replace(/127\.0\.0\.1:40(\d\d)/g, (_, offset) => `127.0.0.1:${cluster.ports + Number(offset)}`);
    return ports.replace("target/release/roomcast", process.env.ROOMCAST);
  }

  function run(command, where = folder) {
    running.push(new Running(here(command), where));
    return running.at(-1);
  }

  test("has these commands and no others", () => {
    assert.match(install, /^npm install /);
    for (const command of [ada, bob, nobody]) assert.match(command, /^node chat\.mjs token-of-/);
    assert.match(emit, /^target\/release\/roomcast emit /);
    assert.deepEqual(others, []);
  });

  test("is that of the quick start in the book, whose code of the application is the application's", () => {
    const page = readFileSync(join(ROOT, "docs/src/quick-start-python.md"), "utf8");
    for (const language of ["sh", "js"]) assert.deepEqual(blocks(language, page), blocks(language));
    const application = readFileSync(join(ROOT, "deploy/examples/hooks/app.py"), "utf8");
    const [code, ...others] = blocks("python", page);
    assert.ok(application.includes(code));
    assert.deepEqual(others, []);
  });

  test("lets two users talk through the application, refuses a third, and can be emitted to", async () => {
    const first = run(ada);
    await first.prints("delivered");
    await first.prints("ada: hello, everybody");
    const second = run(bob);
    await second.prints("delivered");
    await first.prints("bob has joined");
    await first.prints("bob: hello, everybody");
    await run(nobody).prints("unknown token");
    run(emit, ROOT);
    for (const person of [first, second]) await person.prints("a shell: hello, everybody");
  });

  test("starts the application again by the command that it prints", async () => {
    const command = (await cluster.line("/run/app")).trim();
    const [stop, start] = command.split("; ");
    assert.equal(spawnSync("/bin/sh", ["-c", stop]).status, 0);
    await cluster.line("app ended with status 143; the others continue");
    run(start);
    await until("the application to listen", async () => !(await isFree(cluster.ports + 32)));
    await run(ada).prints("delivered");
  });
});
