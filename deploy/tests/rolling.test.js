// Nodes that are restarted one after the other behind HAProxy lose no client. loadtest/rolling publishes the
// rates of it, which a busy machine would spoil here.

"use strict";

const assert = require("node:assert/strict");
const { execFile } = require("node:child_process");
const { mkdtempSync, readFileSync, rmSync } = require("node:fs");
const { tmpdir } = require("node:os");
const { dirname, join } = require("node:path");
const { describe, test } = require("node:test");

const ROLLING = join(__dirname, "../../loadtest/rolling");
const CLIENTS = 300;

describe("nodes that are restarted one after the other", { timeout: 300_000 }, () => {
  test("lose no client and no message, and close connections evenly", async () => {
    const folder = mkdtempSync(join(tmpdir(), "roomcast-rolling-"));
    const json = join(folder, "result.json");
    const size = ["--clients", CLIENTS, "--over", 3, "--pause", 3, "--rate", 20];
    const args = [...size, "--json", json, "--programs", dirname(process.env.ROOMCAST)];
    const said = await new Promise((resolve) => {
      execFile(ROLLING, args.map(String), (error, stdout, stderr) => resolve(`${stdout}${stderr}`));
    });
    const result = JSON.parse(readFileSync(json, "utf8"));
    rmSync(folder, { recursive: true, force: true });

    assert.match(said, /^0 of 300 clients lost$/m);
    const { lost, duplicated, reordered, corrupted, stray } = result.ledger;
    assert.deepEqual([lost, duplicated, reordered, corrupted, stray], [0, 0, 0, 0, 0], said);
    assert.equal(result.waves.length, 2);
    const sum = (name) => result.waves.reduce((total, wave) => total + wave[name], 0);
    for (const { closed } of result.waves) assert.ok(closed > 0, said);
    assert.equal(sum("returned"), sum("closed"), said);
    assert.equal(result.counts.connections, CLIENTS, said);
    // The nodes have closed the connections, and nobody cut them off.
    assert.equal(result.ends.reset, undefined, said);
  });
});
