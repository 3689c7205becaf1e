// The Helm chart and the manifests that it renders, checked by Helm and by the schemas of Kubernetes.

"use strict";

const assert = require("node:assert/strict");
const { execFileSync, spawnSync } = require("node:child_process");
const { mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } = require("node:fs");
const { tmpdir } = require("node:os");
const { join, resolve } = require("node:path");
const { after, before, describe, test } = require("node:test");

const DEPLOY = resolve(__dirname, "..");
const CHART = join(DEPLOY, "helm/roomcast");
// The oldest that the chart accepts, and the newest whose schemas the validator contains.
const KUBERNETES = "1.30";
const REDIS = ["--set", "redis.existingSecret=roomcast-redis"];

// Values that render every template and every branch.
const EVERYTHING = `
redis: {url: "redis://user:password@redis:6379", signingSecret: roomcast-signing}
relay: {existingSecret: roomcast-cluster-key}
config: |
  [namespaces."/chat"]
  access = "open"
secretFiles: roomcast-keys
options: {access: open, max-connections: 1000000, client-rooms: true, cors-origin: "https://chat.example"}
env: [{name: ROOMCAST_LOG_FORMAT, value: json}]
image: {digest: "sha256:${"0".repeat(64)}"}
imagePullSecrets: [{name: registry}]
service: {annotations: {a: b}}
ingress: {enabled: true, className: nginx, tlsSecret: chat-tls}
autoscaling: {enabled: true}
serviceAccount: {annotations: {a: b}}
serviceMonitor: {enabled: true, labels: {release: prometheus}}
prometheusRule: {enabled: true, labels: {release: prometheus}}
networkPolicy: {enabled: true}
spread: required
priorityClassName: high
nodeSelector: {disk: ssd}
tolerations: [{key: dedicated, operator: Exists}]
affinity: {nodeAffinity: {}}
podLabels: {team: chat}
podAnnotations: {a: b}
`;

describe("the chart", { timeout: 120_000 }, () => {
  let folder;
  let values;

  before(() => {
    folder = mkdtempSync(join(tmpdir(), "roomcast-chart-"));
    values = join(folder, "values.yaml");
    writeFileSync(values, EVERYTHING);
  });

  after(() => rmSync(folder, { recursive: true, force: true }));

  function render(...args) {
    const options = ["template", "roomcast", CHART, "--namespace", "roomcast", "--kube-version", KUBERNETES];
    const { status, stdout, stderr, error } = spawnSync("helm", [...options, ...args], { encoding: "utf8" });
    return { status, text: stdout, reason: `${error ?? ""}${stderr}` };
  }

  function rendered(...args) {
    const { status, text, reason } = render(...args);
    assert.equal(status, 0, reason);
    return text;
  }

  /** What the schemas of Kubernetes object to in manifests; empty if nothing. */
  function objections(manifests) {
    const file = join(folder, "manifests.yaml");
    writeFileSync(file, manifests);
    const args = ["--version", KUBERNETES, "--local-crds", process.env.TEST_CRDS, file];
    const { status, stdout, stderr, error } = spawnSync("kubectl-validate", args, { encoding: "utf8" });
    return status === 0 ? "" : `${error ?? ""}${stdout}${stderr}`;
  }

  test("passes Helm's linter", () => {
    for (const args of [REDIS, ["-f", values]]) {
      execFileSync("helm", ["lint", "--strict", CHART, ...args], { encoding: "utf8" });
    }
  });

  test("renders manifests that Kubernetes accepts, with few values and with all", () => {
    assert.equal(objections(rendered(...REDIS)), "");
    const all = rendered("-f", values);
    assert.equal(objections(all), "");
    assert.match(objections(all.replace("jobLabel:", "jobLable:")), /jobLable/);
    assert.match(objections(all.replace("maxUnavailable: 0}", "maxUnavailabel: 0}")), /maxUnavailabel/);
  });

  test("has a template for every kind, and each of them is rendered with all values", () => {
    const all = rendered("-f", values);
    const files = readdirSync(join(CHART, "templates")).filter((name) => name.endsWith(".yaml"));
    for (const file of files) assert.ok(all.includes(`# Source: roomcast/templates/${file}`), file);
    const kinds = [...all.matchAll(/^kind: (\w+)$/gm)].map(([, kind]) => kind);
    for (const kind of ["Deployment", "PodDisruptionBudget", "HorizontalPodAutoscaler", "ServiceMonitor"]) {
      assert.ok(kinds.includes(kind), kind);
    }
  });

  test("gives a node more time than its drain takes", () => {
    const text = rendered(...REDIS, "--set", "drain.timeoutSeconds=60", "--set", "drain.preStopSeconds=7");
    assert.match(text, /terminationGracePeriodSeconds: 72$/m);
    assert.match(text, /ROOMCAST_DRAIN_TIMEOUT, value: "60s"/);
    assert.match(text, /ROOMCAST_DRAIN_OVER, value: "10s"/);
    assert.match(text, /sleep: \{seconds: 7\}/);
  });

  test("passes options to the program as it expects them", () => {
    const text = rendered("-f", values);
    assert.match(text, /name: ROOMCAST_MAX_CONNECTIONS\n +value: "1000000"$/m);
    assert.match(text, /name: ROOMCAST_CLIENT_ROOMS\n +value: "true"$/m);
    const names = new Set([...text.matchAll(/name: (ROOMCAST_\w+)/g)].map(([, name]) => name));
    const table = execFileSync(process.env.ROOMCAST, ["options"], { encoding: "utf8" });
    for (const name of names) assert.ok(table.includes(`| \`${name}\` |`), name);
  });

  test("probes the internal port over TLS if it has certificates", () => {
    assert.doesNotMatch(rendered("-f", values), /HTTPS|scheme: https/);
    const tls = ["internal-tls-cert=/etc/roomcast/secrets/tls.crt", "internal-tls-key=/etc/roomcast/secrets/tls.key"];
    const text = rendered("-f", values, ...tls.flatMap((option) => ["--set", `options.${option}`]));
    assert.equal(objections(text), "");
    assert.equal(text.match(/scheme: HTTPS\}/g).length, 3);
    assert.match(text, /^ +scheme: https$/m);
    assert.match(text, /name: ROOMCAST_INTERNAL_TLS_CERT\n/);
  });

  test("keeps the URL of Redis out of everything but a Secret", () => {
    const documents = rendered("-f", values).split(/^---$/m);
    const named = documents.filter((text) => text.includes("password@redis"));
    assert.equal(named.length, 1);
    assert.match(named[0], /^kind: Secret$/m);
  });

  test("refuses values that would not work, and says why", () => {
    const wrong = {
      "several nodes need Redis": [],
      "set by the chart": [...REDIS, "--set", "options.listen=0.0.0.0:80"],
      "relay.existingSecret needs Redis": ["--set", "replicaCount=1", "--set", "relay.existingSecret=roomcast-cluster-key"],
      "redis.signingSecret needs Redis": ["--set", "replicaCount=1", "--set", "redis.signingSecret=roomcast-signing"],
      "autoscaling needs": [...REDIS, "--set", "autoscaling.enabled=true,autoscaling.connections=0,autoscaling.cpu=0"],
      replicaCont: [...REDIS, "--set", "replicaCont=3"],
      "redis/url": ["--set", "redis.url=http://redis"],
    };
    for (const [reason, args] of Object.entries(wrong)) {
      const { status, reason: said } = render(...args);
      assert.notEqual(status, 0, reason);
      const found = said.includes(reason) || said.includes(reason.replace("/", "."));
      assert.ok(found, `${reason} in ${said}`);
    }
    rendered("--set", "replicaCount=1");
  });

  test("documents every value, and its schema knows the same ones", () => {
    const text = readFileSync(join(CHART, "values.yaml"), "utf8");
    const top = [...text.matchAll(/^(\w+):/gm)].map(([, name]) => name);
    const schema = JSON.parse(readFileSync(join(CHART, "values.schema.json"), "utf8"));
    assert.deepEqual(Object.keys(schema.properties).filter((name) => name !== "global").sort(), top.sort());
    const validate = ["-m", "check_jsonschema", "--schemafile", join(CHART, "values.schema.json")];
    execFileSync("python3", [...validate, join(CHART, "values.yaml"), values], { encoding: "utf8" });
  });

  test("has the versions of the program, and the same rules as Prometheus", () => {
    const [, version] = /^version = "(.*)"$/m.exec(readFileSync(join(DEPLOY, "../Cargo.toml"), "utf8"));
    const chart = readFileSync(join(CHART, "Chart.yaml"), "utf8");
    assert.ok(chart.includes(`appVersion: "${version}"`), version);
    for (const file of readdirSync(join(DEPLOY, "prometheus/rules"))) {
      const [copy, original] = [`helm/roomcast/files/${file}`, `prometheus/rules/${file}`].map((path) => {
        return readFileSync(join(DEPLOY, path), "utf8");
      });
      assert.equal(copy, original, `copy prometheus/rules/${file} to helm/roomcast/files`);
    }
    const rules = rendered("-f", values).split(/^---$/m).find((text) => text.includes("kind: PrometheusRule"));
    const alerts = (text) => [...text.matchAll(/alert: (\w+)/g)].map(([, name]) => name).sort();
    assert.deepEqual(alerts(rules), alerts(readFileSync(join(DEPLOY, "prometheus/rules/alerts.yml"), "utf8")));
  });

  test("renders the plain manifests", () => {
    const file = join(DEPLOY, "kubernetes/roomcast.yaml");
    const expected = rendered("-f", join(DEPLOY, "kubernetes/values.yaml"));
    const command = `helm template roomcast deploy/helm/roomcast --namespace roomcast --kube-version ${KUBERNETES} -f deploy/kubernetes/values.yaml`;
    assert.equal(readFileSync(file, "utf8"), expected, `write the output of \`${command}\` to it`);
    assert.equal(objections(expected), "");
  });
});
