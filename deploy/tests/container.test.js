// What can be tested of the container without building it: its file, its build context, and its health
// check.

"use strict";

const assert = require("node:assert/strict");
const { execFile, execFileSync, spawnSync } = require("node:child_process");
const { cpSync, existsSync, mkdtempSync, readFileSync, readdirSync, rmSync } = require("node:fs");
const { createServer } = require("node:http");
const { tmpdir } = require("node:os");
const { basename, join, resolve } = require("node:path");
const { afterEach, beforeEach, describe, test } = require("node:test");

const ROOT = resolve(__dirname, "../..");
const FOLDER = join(ROOT, "deploy/container");
const CONTAINERFILE = readFileSync(join(FOLDER, "Containerfile"), "utf8");

describe("the container", { timeout: 60_000 }, () => {
  test("has a file that passes its linter", () => {
    const { status, stdout, error } = spawnSync("hadolint", [join(FOLDER, "Containerfile")], { encoding: "utf8" });
    assert.equal(status, 0, `${error ?? ""}${stdout}`);
  });

  test("contains a static program, built with our Rust for each platform, and does not run it as root", () => {
    const bases = [...CONTAINERFILE.matchAll(/^FROM (\S+)/gm)].map(([, image]) => image);
    assert.equal(bases.length, 3);
    // Rust links statically with the C library of Alpine. The build fails if it did not.
    for (const base of bases) assert.match(base, /alpine:?3\.\d+$/);
    assert.match(CONTAINERFILE, /if readelf --dynamic \S+ \| grep NEEDED; then exit 1; fi$/m);
    // A base that is pinned to one platform would run nowhere else.
    assert.ok(!/^FROM .*--platform/m.test(CONTAINERFILE));
    const manifest = readFileSync(join(ROOT, "Cargo.toml"), "utf8");
    const [, version] = /^rust-version = "(.*)"$/m.exec(manifest);
    assert.ok(bases[0].startsWith(`rust:${version}-`), `${bases[0]} and Rust ${version}`);
    assert.match(CONTAINERFILE, /^USER [1-9]\d*:[1-9]\d*$/m);
  });

  test("is built from all files that cargo needs, and from no others", () => {
    const ignored = readFileSync(join(FOLDER, "Containerfile.dockerignore"), "utf8").split("\n");
    // A name without a file is harmless; a missing crate fails the build.
    const kept = ignored
      .filter((line) => line.startsWith("!"))
      .map((line) => line.slice(1))
      .filter((path) => existsSync(join(ROOT, path)));
    const left = ignored.filter((line) => line.startsWith("**/")).map((line) => line.slice(3));
    const context = mkdtempSync(join(tmpdir(), "roomcast-context-"));
    try {
      for (const path of kept) {
        const filter = (file) => !left.includes(basename(file));
        cpSync(join(ROOT, path), join(context, path), { recursive: true, filter });
      }
      const arguments_ = ["metadata", "--locked", "--no-deps", "--format-version", "1"];
      const { packages } = JSON.parse(execFileSync("cargo", arguments_, { cwd: context, encoding: "utf8" }));
      const program = packages
        .flatMap(({ targets }) => targets)
        .find(({ kind, name }) => kind.includes("bin") && name === "roomcast");
      assert.ok(existsSync(program.src_path));
      const copied = /^COPY --chmod=\d+ (deploy\S+)/m.exec(CONTAINERFILE)[1];
      assert.ok(existsSync(join(context, copied)), copied);
      const wanted = [...new Set(kept.map((path) => path.split("/")[0]))];
      assert.deepEqual(readdirSync(context).sort(), wanted.sort());
    } finally {
      rmSync(context, { recursive: true, force: true });
    }
  });

  describe("its check", () => {
    let answer;
    let server;
    let port;

    beforeEach(async () => {
      server = createServer((incoming, response) => {
        const { status, body } = incoming.url === "/readyz" ? answer : { status: 404, body: "not found" };
        response.writeHead(status).end(`${body}\n`);
      });
      await new Promise((done) => server.listen(0, "127.0.0.1", done));
      port = String(server.address().port);
    });

    afterEach(() => new Promise((done) => server.close(done)));

    function check(args, variables = {}) {
      return new Promise((done) => {
        const options = { env: { ...process.env, ...variables }, timeout: 10_000 };
        execFile(join(FOLDER, "check-ready"), args, options, (error, stdout, stderr) => {
          done({ status: error ? error.code : 0, stderr });
        });
      });
    }

    test("succeeds when the node is ready", async () => {
      answer = { status: 200, body: "ready" };
      assert.equal((await check([port])).status, 0);
      assert.equal((await check([], { ROOMCAST_INTERNAL_LISTEN: `0.0.0.0:${port}` })).status, 0);
    });

    test("fails with the reason when it is not", async () => {
      answer = { status: 503, body: "draining" };
      const { status, stderr } = await check([port]);
      assert.equal(status, 1);
      assert.match(stderr, /draining/);
    });

    test("fails when nobody responds", async () => {
      const other = createServer();
      await new Promise((done) => other.listen(0, "127.0.0.1", done));
      const free = other.address().port;
      await new Promise((done) => other.close(done));
      assert.equal((await check([String(free)])).status, 1);
    });
  });
});
