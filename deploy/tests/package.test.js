// The Debian package and the service in it: built, checked by lintian and systemd, unpacked, and run.

"use strict";

const assert = require("node:assert/strict");
const { execFileSync, spawn, spawnSync } = require("node:child_process");
const { mkdtempSync, readFileSync, rmSync, statSync } = require("node:fs");
const { tmpdir } = require("node:os");
const { join, resolve } = require("node:path");
const { after, before, describe, test } = require("node:test");

const { freePorts, get, until } = require("./support/cluster");

const DEPLOY = resolve(__dirname, "..");
const UNIT = join(DEPLOY, "systemd/roomcast.service");

function run(program, ...args) {
  const { status, stdout, stderr, error } = spawnSync(program, args, { encoding: "utf8" });
  assert.equal(status, 0, `${program} ${args.join(" ")}: ${error ?? ""}\n${stdout}${stderr}`);
  return stdout + stderr;
}

describe("the package", { timeout: 120_000 }, () => {
  let folder;
  let file;
  let root;

  before(() => {
    folder = mkdtempSync(join(tmpdir(), "roomcast-deb-"));
    root = join(folder, "root");
    file = run(join(DEPLOY, "deb/build"), process.env.ROOMCAST, folder).trim();
    run("dpkg-deb", "-x", file, root);
  });

  after(() => rmSync(folder, { recursive: true, force: true }));

  test("passes lintian", () => {
    run("lintian", "--allow-root", "--fail-on", "error,warning", file);
  });

  test("has the version and the architecture of the program, and names the C library that it needs", () => {
    const field = (name) => execFileSync("dpkg-deb", ["-f", file, name], { encoding: "utf8" }).trim();
    const [, version] = /^version = "(.*)"$/m.exec(readFileSync(join(DEPLOY, "../Cargo.toml"), "utf8"));
    assert.equal(field("Version"), version.replace("-", "~"));
    const here = execFileSync("dpkg", ["--print-architecture"], { encoding: "utf8" }).trim();
    assert.equal(field("Architecture"), here);
    assert.match(field("Depends"), /libc6 \(>= 2\.\d+\)/);
  });

  test("is the same when it is built again", () => {
    const again = run(join(DEPLOY, "deb/build"), process.env.ROOMCAST, join(folder, "root")).trim();
    assert.ok(readFileSync(again).equals(readFileSync(file)));
    rmSync(again);
  });

  test("keeps the settings, which may contain passwords, from other users", () => {
    const settings = join(root, "etc/default/roomcast");
    assert.equal(statSync(settings).mode & 0o777, 0o640);
    const conffiles = execFileSync("dpkg-deb", ["-I", file, "conffiles"], { encoding: "utf8" });
    assert.equal(conffiles.trim(), "/etc/default/roomcast");
    // Every variable that it suggests is one.
    const table = execFileSync(process.env.ROOMCAST, ["options"], { encoding: "utf8" });
    const names = [...readFileSync(settings, "utf8").matchAll(/^#(ROOMCAST_\w+)=/gm)].map(([, name]) => name);
    assert.ok(names.length > 3);
    for (const name of names) assert.ok(table.includes(`| \`${name}\` |`), name);
  });

  test("contains settings that the program accepts, the completions of shells, and every command in its manual", () => {
    const program = join(root, "usr/bin/roomcast");
    const settings = join(root, "usr/share/doc/roomcast/examples/roomcast.toml");
    run(program, "config", "check", "--config", settings);
    assert.match(readFileSync(join(root, "usr/share/bash-completion/completions/roomcast"), "utf8"), /complete -F/);
    const manual = run("zcat", join(root, "usr/share/man/man1/roomcast.1.gz"));
    const [, commands] = /^Commands:\n([^]*?)\n\n/m.exec(run(program, "--help"));
    const names = [...commands.matchAll(/^ {2}(\w+)/gm)].map(([, name]) => name).filter((name) => name !== "help");
    assert.ok(names.length > 3);
    for (const name of names) assert.ok(manual.includes(`.TP\n.B ${name}\n`), name);
  });

  test("contains a program that runs, and becomes ready", async () => {
    const ports = await freePorts();
    const variables = {
      ROOMCAST_LISTEN: `127.0.0.1:${ports}`,
      ROOMCAST_INTERNAL_LISTEN: `127.0.0.1:${ports + 1}`,
    };
    const child = spawn(join(root, "usr/bin/roomcast"), ["serve"], { env: variables, stdio: "ignore" });
    const exited = new Promise((done) => child.once("exit", done));
    try {
      await until("readiness", async () => (await get(`http://127.0.0.1:${ports + 1}/readyz`)).status === 200);
    } finally {
      child.kill("SIGTERM");
    }
    assert.equal(await exited, 0);
  });

  test("contains the unit, which systemd accepts and finds well confined", () => {
    const unit = join(root, "lib/systemd/system/roomcast.service");
    assert.equal(readFileSync(unit, "utf8"), readFileSync(UNIT, "utf8"));
    const verified = spawnSync("systemd-analyze", ["verify", "--man=no", unit], { encoding: "utf8" });
    // The program is not installed where the unit expects it; anything else is a fault.
    const faults = (verified.stderr + verified.stdout)
      .split("\n")
      .filter((line) => line.includes("roomcast") && !line.includes("/usr/bin/roomcast is not executable"));
    assert.deepEqual(faults, []);
    // 0.0 is no exposure and 10.0 is a service without any confinement.
    run("systemd-analyze", "security", "--offline=true", "--threshold=20", unit);
  });

  test("gives a node more time to stop than its drain takes", () => {
    const [, seconds] = /^TimeoutStopSec=(\d+)s$/m.exec(readFileSync(UNIT, "utf8"));
    const table = execFileSync(process.env.ROOMCAST, ["options"], { encoding: "utf8" });
    const [, drain] = /`ROOMCAST_DRAIN_TIMEOUT` \| `(\d+)s`/.exec(table);
    assert.ok(Number(seconds) > Number(drain));
  });
});
