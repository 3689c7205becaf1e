// Every file of deploy/ is checked by its own program or by a checker of its format, and references between
// files are checked.

"use strict";

const assert = require("node:assert/strict");
const { spawnSync } = require("node:child_process");
const { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync } = require("node:fs");
const { tmpdir } = require("node:os");
const { join, resolve } = require("node:path");
const { describe, test } = require("node:test");

const { writeConfig } = require("./support/nginx");

const DEPLOY = resolve(__dirname, "..");

const at = (path) => join(DEPLOY, path);
const read = (path) => readFileSync(at(path), "utf8");

/** Runs a program that has to succeed; what it printed is shown otherwise. */
function check(program, ...args) {
  const { status, stdout, stderr, error } = spawnSync(program, args, { cwd: DEPLOY, encoding: "utf8" });
  assert.equal(status, 0, `${program} ${args.join(" ")}: ${error ?? ""}\n${stdout}${stderr}`);
  return stdout + stderr;
}

function inTemporaryFolder(work) {
  const folder = mkdtempSync(join(tmpdir(), "roomcast-files-"));
  try {
    return work(folder);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

describe("files", { timeout: 120_000 }, () => {
  test("haproxy.cfg is valid, and HAProxy rejects another file", () => {
    check("haproxy", "-c", "-f", at("haproxy/haproxy.cfg"));
    check("haproxy", "-c", "-f", at("haproxy/tcp.cfg"));
    const wrong = spawnSync("haproxy", ["-c", "-f", at("nginx/nginx.conf")]);
    assert.notEqual(wrong.status, 0);
  });

  test("nginx.conf is valid", () => {
    inTemporaryFolder((folder) => check("nginx", "-t", ...writeConfig(folder, 8080, ["127.0.0.1:3000"])));
  });

  test("the Caddyfile is valid and formatted", () => {
    const config = ["--adapter", "caddyfile", "--config", at("caddy/Caddyfile")];
    check("caddy", "validate", ...config);
    assert.equal(check("caddy", "fmt", at("caddy/Caddyfile")), read("caddy/Caddyfile"));
  });

  test("envoy.yaml is valid", () => {
    check("envoy", "--mode", "validate", "--log-level", "error", "-c", at("envoy/envoy.yaml"));
  });

  test("Prometheus accepts its configuration and rules, and the alerts pass their tests", () => {
    check("promtool", "check", "config", at("prometheus/prometheus.yml"));
    const rules = readdirSync(at("prometheus/rules")).map((file) => at(`prometheus/rules/${file}`));
    check("promtool", "check", "rules", ...rules);
    check("promtool", "test", "rules", at("prometheus/tests/alerts.yml"));
  });

  test("each alert has a test in which it fires and one in which it does not", () => {
    const alerts = [...read("prometheus/rules/alerts.yml").matchAll(/- alert: (\w+)/g)].map(([, name]) => name);
    assert.ok(alerts.length >= 10);
    const cases = read("prometheus/tests/alerts.yml").split("- alertname: ").slice(1);
    for (const alert of alerts) {
      const own = cases.filter((text) => text.startsWith(`${alert}\n`));
      assert.ok(own.some((text) => text.includes("exp_alerts:")), `${alert} never fires`);
      assert.ok(own.some((text) => !text.includes("exp_alerts:")), `${alert} always fires`);
    }
  });

  test("the scripts pass their linter", () => {
    const scripts = [
      "local/up",
      "local/packages",
      "container/check-ready",
      "tests/run",
      ...["build", "postinst", "postrm", "prerm"].map((name) => `deb/${name}`),
    ];
    check("shellcheck", ...scripts.map(at));
  });

  test("YAML is well-formed, and compose.yaml follows the specification", () => {
    // Templates of the chart are YAML only once they are rendered.
    const chart = ["helm/roomcast/Chart.yaml", "helm/roomcast/values.yaml", "kubernetes/values.yaml"];
    const folders = ["compose", "envoy", "prometheus", "grafana", ...chart];
    check("python3", "-m", "yamllint", "--strict", "-c", at("tests/yamllint.yml"), ...folders.map(at));
    const schema = ["--builtin-schema", "vendor.compose-spec"];
    check("python3", "-m", "check_jsonschema", ...schema, at("compose/compose.yaml"));
  });

  test("the files that compose.yaml mounts exist, and its images have a version", () => {
    const compose = read("compose/compose.yaml");
    const mounts = [...compose.matchAll(/^ +- (\.\.\/\S+?):/gm)].map(([, path]) => path);
    assert.ok(mounts.length >= 5);
    for (const path of mounts) assert.ok(existsSync(resolve(at("compose"), path)), path);
    const images = [...compose.matchAll(/image: (\S+)/g)].map(([, image]) => image);
    for (const image of images.filter((name) => name !== "roomcast")) assert.match(image, /:v?\d+\.\d+/);
  });

  test("the settings in compose.yaml are valid, and name its application and its secret", () => {
    const compose = read("compose/compose.yaml");
    const settings = at("compose/roomcast.toml");
    const env = { ...process.env, ROOMCAST_SECRET: "a secret of sixteen bytes" };
    const { status, stdout, stderr } = spawnSync(process.env.ROOMCAST, ["config", "check", "--config", settings], { env });
    assert.equal(status, 0, `${stdout}${stderr}`);
    const [, host, port] = /^url = "http:\/\/(\w+):(\d+)\/"$/m.exec(read("compose/roomcast.toml"));
    assert.ok(compose.includes(`\n  ${host}:\n`), host);
    assert.ok(compose.includes(`/app.py, "${port}", `), port);
    const [, variable] = /^secret_env = "(\w+)"$/m.exec(read("compose/roomcast.toml"));
    assert.equal([...compose.matchAll(new RegExp(`^ +${variable}: `, "gm"))].length, 2);
    const [, mounted] = /roomcast\.toml:(\S+):ro/.exec(compose);
    assert.ok(compose.includes(`--config=${mounted},`), mounted);
  });

  test("compose.yaml, all balancers and Prometheus name the same nodes", () => {
    const nodes = ["node1", "node2", "node3"];
    const named = (path, pattern) => [...read(path).matchAll(pattern)].map(([, name]) => name);
    assert.deepEqual(named("compose/compose.yaml", /^ {2}(node\d): \*node$/gm), nodes);
    assert.deepEqual(named("haproxy/haproxy.cfg", /^ +server \w+ (\w+):3000 /gm), nodes);
    assert.deepEqual(named("nginx/nginx.conf", /^ +server (\w+):3000 /gm), nodes);
    assert.deepEqual(named("caddy/Caddyfile", /(node\d):3000/g), nodes);
    assert.deepEqual(named("envoy/envoy.yaml", /\{address: (node\d), port_value: 3000\}/g), nodes);
    assert.deepEqual(named("prometheus/targets/roomcast.yml", /- (\w+):3001$/gm), nodes);
    assert.match(read("prometheus/targets/haproxy.yml"), /- haproxy:8404$/m);
    assert.match(read("haproxy/haproxy.cfg"), /bind :8404/);
  });

  test("the lock file of the Node.js server names no registry", () => {
    assert.ok(!read("local/package-lock.json").includes('"resolved"'));
  });

  test("each alert has a section in the runbook, and each section an alert", () => {
    const rules = read("prometheus/rules/alerts.yml");
    const alerts = rules.split("- alert: ").slice(1);
    const page = readFileSync(join(DEPLOY, "../docs/src/runbook.md"), "utf8");
    const sections = [...page.matchAll(/^## (\w+)$/gm)].map(([, name]) => name);
    assert.deepEqual(sections.sort(), alerts.map((text) => text.split("\n")[0]).sort());
    for (const text of alerts) {
      const name = text.split("\n")[0];
      assert.ok(text.includes(`runbook_url: "runbook.html#${name.toLowerCase()}"`), name);
      const [, severity] = /severity: (\w+)/.exec(text);
      const section = page.split(`\n## ${name}\n`)[1];
      assert.ok(section.trim().toLowerCase().startsWith(`**${severity}.**`), `${name} is a ${severity}`);
    }
  });

  for (const file of readdirSync(at("grafana/dashboards"))) describe(`the dashboard ${file}`, () => {
    const dashboard = JSON.parse(read(`grafana/dashboards/${file}`));
    const panels = dashboard.panels.filter(({ type }) => type !== "row");

    test("has panels with a description, which do not overlap", () => {
      const ids = dashboard.panels.map(({ id }) => id);
      assert.equal(new Set(ids).size, ids.length);
      const cells = new Set();
      for (const { title, description, gridPos, fieldConfig, targets } of panels) {
        assert.ok(title && description, title);
        assert.ok(fieldConfig.defaults.unit, title);
        assert.ok(targets.every(({ expr, refId }) => expr && refId), title);
        assert.equal(new Set(targets.map(({ refId }) => refId)).size, targets.length, title);
        assert.ok(gridPos.x + gridPos.w <= 24, title);
        for (let x = gridPos.x; x < gridPos.x + gridPos.w; x += 1) {
          for (let y = gridPos.y; y < gridPos.y + gridPos.h; y += 1) {
            assert.ok(!cells.has(`${x} ${y}`), `${title} lies over another panel`);
            cells.add(`${x} ${y}`);
          }
        }
      }
    });

    test("uses only the data source and the variables that it declares", () => {
      const variables = new Set(dashboard.templating.list.map(({ name }) => name));
      const used = [...JSON.stringify(dashboard).matchAll(/\$\{?(\w+)/g)].map(([, name]) => name);
      for (const name of used.filter((each) => !each.startsWith("__"))) assert.ok(variables.has(name), name);
      for (const { datasource } of panels) assert.equal(datasource.uid, "${datasource}");
    });

    test("is where Grafana is configured to look", () => {
      const folder = read("grafana/provisioning/dashboards/roomcast.yml").match(/path: (\S+)/)[1];
      const compose = read("compose/compose.yaml");
      assert.ok(compose.includes(`../grafana/dashboards:${folder}:ro`));
      assert.ok(compose.includes(`${folder}/roomcast.json`));
    });

    test("links to dashboards that exist", () => {
      const files = readdirSync(at("grafana/dashboards"));
      const uids = files.map((other) => JSON.parse(read(`grafana/dashboards/${other}`)).uid);
      assert.equal(new Set(uids).size, files.length);
      assert.ok(dashboard.links.length > 0);
      for (const { url } of dashboard.links) assert.ok(uids.includes(url.replace("/d/", "")), url);
    });
  });
});
