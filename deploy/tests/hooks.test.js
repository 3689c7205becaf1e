// Events that an application answers by a hook, under load. loadtest/hooks publishes the costs, which a busy machine
// would spoil here.

"use strict";

const assert = require("node:assert/strict");
const { execFile } = require("node:child_process");
const { mkdtempSync, readFileSync, rmSync } = require("node:fs");
const { tmpdir } = require("node:os");
const { dirname, join } = require("node:path");
const { describe, test } = require("node:test");

const HOOKS = join(__dirname, "../../loadtest/hooks");
const DELAY = 5;

describe("events that an application answers", { timeout: 300_000 }, () => {
  test("are all acknowledged with what it responds, and no sooner", async () => {
    const folder = mkdtempSync(join(tmpdir(), "roomcast-hooks-"));
    const json = join(folder, "figures.json");
    const size = ["--clients", 100, "--rate", 50, "--delay", DELAY, "--duration", 2];
    const args = [...size, "--json", json, "--programs", dirname(process.env.ROOMCAST)];
    const said = await new Promise((resolve) => {
      execFile(HOOKS, args.map(String), (error, stdout, stderr) => resolve(`${stdout}${stderr}`));
    });
    assert.match(said, /ledger: \d+ arrived, 0 lost, 0 duplicated, 0 reordered, 0 corrupted, 0 astray/);
    assert.match(said, /^p99 above the backend's, ms .* bar 10: /m);
    const figures = JSON.parse(readFileSync(json, "utf8"));
    rmSync(folder, { recursive: true, force: true });
    assert.ok(figures["server CPU per event, µs"] > 0, said);
    assert.ok(figures["p50 of the backend, ms"] >= DELAY, said);
    assert.ok(figures["p50 of acknowledgements, ms"] >= DELAY, said);
  });
});
