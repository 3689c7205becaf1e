// deploy/local/up as a command: its exit status, its cleanup, and its errors.

"use strict";

const assert = require("node:assert/strict");
const { existsSync } = require("node:fs");
const net = require("node:net");
const { join } = require("node:path");
const { describe, test } = require("node:test");

const { freePorts, isFree, launch } = require("./support/cluster");

const DOORS = join(__dirname, "../examples/doors/roomcast.toml");

describe("deploy/local/up", { timeout: 120_000 }, () => {
  test("leaves nothing behind after SIGTERM, and ends with status 0", async () => {
    const cluster = await launch(["--nodes", "1"]);
    await cluster.line("Ctrl-C stops everything");
    const folder = /files +(\/.*)$/.exec(await cluster.line("  files "))[1];
    assert.ok(existsSync(folder));
    assert.equal(await cluster.stop(), 0, cluster.output);
    assert.ok(!existsSync(folder));
    assert.match(cluster.output, /^node-1 +\| .*draining/m);
    for (const offset of [0, 1, 2, 3, 11, 21]) {
      assert.ok(await isFree(cluster.ports + offset), `port ${offset} of 40`);
    }
  });

  test("reports a process that ended, continues, and ends with status 1", async () => {
    const cluster = await launch(["--nodes", "1"]);
    await cluster.line("Ctrl-C stops everything");
    cluster.folder = /files +(\/.*)$/.exec(await cluster.line("  files "))[1];
    cluster.signal("prometheus", "SIGKILL");
    await cluster.line("prometheus ended with status 137; the others continue");
    assert.ok(!(await isFree(cluster.ports)), "the balancer");
    assert.equal(await cluster.stop(), 1, cluster.output);
  });

  test("can be stopped while it starts", async () => {
    const cluster = await launch(["--nodes", "1"]);
    await cluster.line("redis ");
    assert.equal(await cluster.stop(), 1, cluster.output);
    assert.ok(await isFree(cluster.ports + 3), "the port of Redis");
  });

  test("runs nodes with the settings of all doors, which lead into the same room", async () => {
    const cluster = await launch(["--nodes", "2", "--settings", DOORS]);
    await cluster.line("Ctrl-C stops everything");
    const room = (offset) => `http://127.0.0.1:${cluster.ports + offset}/channels/syncano%2Fshop/rooms/news%23lobby`;
    const publish = { method: "POST", body: JSON.stringify({ data: { text: "hello" } }) };
    const published = await fetch(room(0), publish);
    assert.equal(published.status, 201);
    const { id } = await published.json();
    // By another door of either node.
    for (const offset of [11, 12]) {
      const url = `http://127.0.0.1:${cluster.ports + offset}/v1.1/instances/shop/channels/news/poll/?room=lobby&last_id=0`;
      const polled = await fetch(url, { headers: { "X-API-KEY": `${"e".repeat(39)}1` } });
      assert.equal(polled.status, 200);
      const { id: seen, payload } = await polled.json();
      assert.deepEqual([String(seen), payload], [id, { text: "hello" }]);
    }
    assert.equal(await cluster.stop(), 0, cluster.output);
  });

  test("names a port that is taken, and the option to choose others", async () => {
    const cluster = await occupied();
    assert.equal(await cluster.exited, 1);
    const text = `port ${cluster.ports + 3} is taken: choose others with --ports`;
    assert.ok(cluster.output.includes(text), cluster.output);
  });

  test("wrong options are refused with status 2", async () => {
    for (const wrong of [["--nodes", "0"], ["--nodes"], ["--ports", "80"], ["--app", "/no/such"], ["--settings", "/no/such"], ["--bogus"]]) {
      const cluster = await launch(wrong);
      assert.equal(await cluster.exited, 2, wrong.join(" "));
    }
  });

  /** A start while somebody else has one of the ports. */
  async function occupied() {
    const ports = await freePorts();
    const holder = net.createServer();
    await new Promise((resolve) => holder.listen(ports + 3, "127.0.0.1", resolve));
    const cluster = await launch(["--nodes", "1"], undefined, ports);
    cluster.exited.then(() => holder.close());
    return cluster;
  }
});
