// What a real Prometheus reads from a cluster: metrics, rules, and every query of the dashboards.

"use strict";

const assert = require("node:assert/strict");
const { readFileSync, readdirSync } = require("node:fs");
const { join } = require("node:path");
const { after, before, describe, test } = require("node:test");

const { Sockets } = require("../../node/tests/clients/support/clients");
const { ask, collect } = require("../../node/tests/clients/support/wait");
const { get, startCluster, until } = require("./support/cluster");
const { Prometheus, exposed, metricsOf, tabled } = require("./support/prometheus");

const FOLDER = join(__dirname, "../grafana/dashboards");
const DASHBOARDS = readdirSync(FOLDER).map((file) => JSON.parse(readFileSync(join(FOLDER, file), "utf8")));
const PANELS = DASHBOARDS.flatMap(({ panels }) => panels);
const METRICS = readFileSync(join(__dirname, "../../docs/src/metrics.md"), "utf8");

describe("a cluster that Prometheus watches", { timeout: 120_000 }, () => {
  let cluster;
  let prometheus;
  let sockets;

  before(async () => {
    cluster = await startCluster("--nodes", "2");
    prometheus = new Prometheus(cluster.urls.prometheus);
    sockets = [1, 2].map((node) => new Sockets("4.8", cluster.urls[`node-${node}`], "websocket"));
  });

  after(async () => {
    for (const each of sockets ?? []) each.closeAll();
    await cluster?.stop();
  });

  test("counts clients and deliveries, node by node", async () => {
    const [first, second] = sockets;
    // Demos tell their clients of other nodes when they have found them, before or after this.
    const notices = { first: 0, second: 0 };
    const person = async (name, node) => {
      const socket = await node.connected("/");
      return socket.on("demo:nodes", () => (notices[name] += 1));
    };
    const people = [await person("first", first), await person("first", first), await person("second", second)];
    for (const person of people) await ask(person, "join", "tea");
    const heard = people.map((person) => collect(person, "message", 5));
    for (let round = 0; round < 5; round += 1) await ask(people[0], "message", "tea", round);
    await Promise.all(heard);

    const of = (node) => `instance="${new URL(cluster.urls[`node-${node} internal`]).host}"`;
    const reads = (query, value, more = () => 0) => {
      return until(`${query} = ${value}`, async () => (await prometheus.number(query)) === value + more());
    };
    await reads('sum(up{job="roomcast"})', 2);
    await reads('sum(up{job="haproxy"})', 1);
    await reads(`roomcast_connections{${of(1)}, transport="websocket"}`, 2);
    await reads(`roomcast:connections{${of(2)}}`, 1);
    await reads(`roomcast_events_received_total{${of(1)}}`, 2 + 5);
    // Two members there received five messages, and the first of them two notices of joins.
    await reads(`roomcast_deliveries_total{${of(1)}}`, 2 * 5 + 3, () => notices.first);
    await reads(`roomcast_deliveries_total{${of(2)}}`, 5, () => notices.second);
    await reads("sum(roomcast_ready)", 2);
    await reads(`count(process_open_fds{${of(1)}} > 5 < process_max_fds{${of(1)}})`, 1);
    await reads('sum(haproxy_server_status{proxy="roomcast", state="UP"})', 2);
  });

  test("evaluates every rule", async () => {
    const rules = await until("all rules to be evaluated", async () => {
      const all = await prometheus.rules();
      return all.every(({ health }) => health !== "unknown") && all;
    });
    assert.ok(rules.length > 10);
    for (const rule of rules) assert.equal(rule.health, "ok", `${rule.name}: ${rule.lastError}`);
    const firing = rules.filter(({ state }) => state === "firing").map(({ name }) => name);
    assert.deepEqual(firing, []);
  });

  test("knows every metric in the dashboards and the rules, and accepts every query", async () => {
    const known = new Set([...tabled(METRICS), "up"]);
    for (const url of [cluster.urls["node-1 internal"], cluster.urls.figures]) {
      exposed((await get(`${url}/metrics`)).text).forEach((name) => known.add(name));
    }
    const rules = await prometheus.rules();
    for (const { name, type } of rules) if (type === "recording") known.add(name);

    const queries = PANELS.flatMap(({ targets = [] }) => targets.map(({ expr }) => expr));
    queries.push(...DASHBOARDS.flatMap(({ annotations }) => annotations.list.map(({ expr }) => expr)));
    for (const query of queries) {
      const concrete = query.replaceAll("$__rate_interval", "20s").replaceAll("$instance", ".*");
      assert.ok(!concrete.includes("$"), query);
      await prometheus.query(concrete);
    }
    for (const query of [...queries, ...rules.map((rule) => rule.query)]) {
      for (const name of metricsOf(query)) assert.ok(known.has(name), `${name} in ${query}`);
    }
  });

  test("is queried by the dashboards for every metric that nodes have", () => {
    const shown = new Set(
      PANELS.flatMap(({ targets = [] }) => targets.flatMap(({ expr }) => metricsOf(expr))),
    );
    const metrics = tabled(METRICS);
    assert.ok(metrics.length > 15);
    assert.deepEqual(metrics.filter((name) => !shown.has(name)), []);
  });

  async function state(alert) {
    return (await prometheus.rules()).find(({ name }) => name === alert).state;
  }

  test("alerts on the loss of Redis and on the gap after it", async () => {
    const links = async () => prometheus.number("min(roomcast_bus_link_up)");
    cluster.signal("redis", "SIGKILL");
    await until("a link that is down", async () => (await links()) === 0);
    await until("the alert of it", async () => (await state("RoomcastBusInterrupted")) !== "inactive");
    cluster.again("redis");
    await until("all links to be up", async () => (await links()) === 1);
    await until("the alert of a gap", async () => (await state("RoomcastBusGap")) === "firing");
  });

  test("alerts on the loss of a node and notices its return", async () => {
    const host = new URL(cluster.urls["node-2 internal"]).host;
    cluster.signal("node-2", "SIGKILL");
    await until("up to be 0", async () => (await prometheus.number(`up{instance="${host}"}`)) === 0);
    await until("the alert that it is down", async () => (await state("RoomcastNodeDown")) !== "inactive");
    await until("the alert that HAProxy misses it", async () => {
      return (await state("RoomcastNodeUnused")) !== "inactive";
    });
    cluster.again("node-2");
    await until("up to be 1", async () => (await prometheus.number(`up{instance="${host}"}`)) === 1);
    await until("the alert to go", async () => (await state("RoomcastNodeDown")) === "inactive");
  });
});
