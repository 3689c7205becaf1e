// Tests the parts of the container that need no engine: its file, its build context, its health check, and its last
// stage in a root of its own, with programs of this machine in place of Alpine's.

"use strict";

const assert = require("node:assert/strict");
const { execFile, execFileSync, spawn, spawnSync } = require("node:child_process");
const { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync } = require("node:fs");
const { createServer } = require("node:http");
const { tmpdir } = require("node:os");
const { basename, dirname, join, resolve } = require("node:path");
const { createInterface } = require("node:readline");
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

  describe("its last stage", () => {
    const stage = CONTAINERFILE.slice(CONTAINERFILE.lastIndexOf("\nFROM "));
    const list = (instruction) => JSON.parse(new RegExp(`^${instruction} (\\[.*\\])$`, "m").exec(stage)[1]);
    const [, user, group] = /^USER (\d+):(\d+)$/m.exec(stage);
    const [, block] = /^ENV ((?:.*\\\n)*.*)$/m.exec(stage);
    const variables = Object.fromEntries([...block.matchAll(/(\w+)=(\S+)/g)].map(([, name, value]) => [name, value]));
    let root;

    beforeEach(() => {
      root = mkdtempSync(join(tmpdir(), "roomcast-root-"));
      const modules = process.env.NODE_PATH.split(":").find((path) => existsSync(join(path, "socket.io-client")));
      const built = { "/usr/local/bin/roomcast": process.env.ROOMCAST, "/client/node_modules": modules };
      for (const [, source, target] of stage.matchAll(/^COPY (?:--\S+ )?(\S+) (\S+)$/gm)) {
        const [place, from] = Object.entries(built).find(([place]) => source.startsWith(place)) ?? ["", ROOT];
        put(join(from, source.slice(place.length)), target);
      }
      for (const program of ["bash", "sed"]) put(execFileSync("which", [program], { encoding: "utf8" }).trim(), `/bin/${program}`);
    });

    // The program writes no files, so nobody may.
    const lock = () => execFileSync("chmod", ["-R", "a-w", root]);

    afterEach(() => {
      execFileSync("chmod", ["-R", "u+w", root]);
      rmSync(root, { recursive: true });
    });

    /** Copies a file or folder, and the libraries of a program. The program of the image needs none. */
    function put(file, target) {
      const { stdout } = spawnSync("ldd", [file], { encoding: "utf8" });
      const libraries = [...stdout.matchAll(/\/\S+/g)].map(([library]) => [library, library]);
      for (const [from, to] of [[file, target], ...(stdout.includes("=>") ? libraries : [])]) {
        mkdirSync(dirname(join(root, to)), { recursive: true });
        cpSync(from, join(root, to), { recursive: true, dereference: true });
      }
    }

    /** Runs a command as the image does: as its user and as process 1. */
    function contained(command, environment = {}) {
      const identity = ["--user", `--map-user=${user}`, `--map-group=${group}`, "--pid", "--fork", "--kill-child"];
      const env = { PATH: "/usr/local/bin:/usr/bin:/bin", ...variables, ...environment };
      const inside = ["env", "-i", ...Object.entries(env).map(([name, value]) => `${name}=${value}`)];
      return [...inside, "unshare", ...identity, "--mount", `--root=${root}`, "--wd=/", ...command];
    }

    function run(command, environment) {
      const [program, ...args] = contained(command, environment);
      return spawnSync(program, args, { encoding: "utf8", timeout: 30_000 });
    }

    test("runs as its user, passes its health check, serves the client, and ends by its signal", async (t) => {
      if (spawnSync("unshare", ["--user", "--map-user=1", "true"]).status !== 0) {
        t.skip("missing: user namespaces, or unshare of util-linux 2.38");
        return;
      }
      lock();
      const identity = run(["bash", "-c", 'echo "$UID:$GROUPS $$"; echo x >/file']);
      assert.match(identity.stdout, new RegExp(`^${user}:\\d+ 1$`, "m"), identity.stderr);
      assert.match(identity.stderr, /\/file: Permission denied/);
      const [serve] = list("CMD");
      const checked = run([...list("ENTRYPOINT"), "config", "check"]);
      assert.equal(checked.status, 0, checked.stderr);

      // Other tests may have the ports of the image.
      const free = { ROOMCAST_LISTEN: "127.0.0.1:0", ROOMCAST_INTERNAL_LISTEN: "127.0.0.1:0", ROOMCAST_DRAIN_GRACE: "0s" };
      const [program, ...args] = contained([...list("ENTRYPOINT"), serve], free);
      const child = spawn(program, args, { stdio: ["ignore", "ignore", "pipe"] });
      const ended = new Promise((done) => child.once("exit", (status) => done(status)));
      try {
        let log = "";
        let address;
        for await (const line of createInterface({ input: child.stderr })) {
          log += `${line}\n`;
          address = / listening address=(\S+) internal=(\S+)/.exec(line);
          if (address) break;
        }
        assert.ok(address, log);
        child.stderr.resume();
        const [, check] = /^HEALTHCHECK .*CMD (\[.*\])$/m.exec(stage);
        const health = run(JSON.parse(check), { ROOMCAST_INTERNAL_LISTEN: address[2] });
        assert.equal(health.status, 0, health.stderr);
        const bundle = await fetch(`http://${address[1]}/socket.io/socket.io.min.js`);
        assert.equal(bundle.status, 200);
        // Process 1 gets no signal that it does not handle.
        const processes = readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, "utf8");
        const [, signal] = /^STOPSIGNAL (\S+)$/m.exec(stage);
        process.kill(Number(processes.trim()), signal);
        assert.equal(await ended, 0);
      } finally {
        child.kill("SIGKILL");
      }
    });
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
