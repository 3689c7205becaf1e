// The captured sessions of the official server, replayed byte by byte: statuses, headers, bodies,
// frames and close codes, with ids masked. Left out are features that this server does not have.

"use strict";

const assert = require("node:assert/strict");
const { readFileSync } = require("node:fs");
const { join } = require("node:path");
const { after, before, describe, test } = require("node:test");

const differences = require("./differences.json").sessions;
const { Replay } = require("./support/replay");
const { isReference, startServer } = require("./support/server");

const LEFT_OUT = {
  recovery: "connection state recovery is not offered",
  "eio3-jsonp": "JSONP is obsolete",
  "serve-client": "the client bundle is not served",
  "http-forbidden": "the application's own check of a request is not part of the conformance server",
};

const CONFIGS = [
  [/^limits$/, { maxPayload: 1000 }],
  [/^heartbeat-/, { pingInterval: 300, pingTimeout: 200 }],
  // Between two pings, so that the order of ping and close is certain.
  [/^connect-timeout$/, { pingInterval: 300, pingTimeout: 200, connectTimeout: 450 }],
  [/^msgpack-/, { parser: "msgpack" }],
  [/^eio3-/, { allowEio3: true }],
  [/^cors-star$/, { cors: { origin: "*" } }],
  [/^cors-one-/, { cors: { origin: "http://app.example", credentials: true } }],
  [/^cors-list$/, { cors: { origin: ["http://app.example", "http://b.example"], allowedHeaders: ["x-my"] } }],
  [/^cors-true$/, { cors: { origin: true } }],
  [/^cookie-/, { cookie: true }],
  // Ends its server, which therefore is not shared.
  [/^server-shutdown$/, { pingInterval: 25_000 }],
  [/^/, {}],
];

const sessions = readSessions();

for (const [config, names] of byConfig()) {
  describe(`captured sessions, server ${config}`, () => {
    let server;
    before(async () => {
      server = await startServer(JSON.parse(config));
    });
    after(() => server?.stop());
    for (const name of names) {
      test(`${name}: ${sessions.get(name)[0].note}`, () => replay(server, name));
    }
  });
}

test("every deliberate difference names records that exist", () => {
  for (const { session, seq, reason } of differences) {
    assert.ok(reason.length > 20);
    for (const one of [seq].flat()) {
      assert.ok(sessions.get(session).some((record) => record.seq === one), `${session} ${one}`);
    }
  }
});

async function replay(server, name) {
  const records = adapted(name, sessions.get(name));
  await new Replay(server, name, records, (record) => {
    const listed = isReference
      ? undefined
      : differences.find(({ session, seq }) => session === name && [seq].flat().includes(record.seq));
    return listed && [listed.ours].flat();
  }).run();
}

// Where the capture let time pass, the replay needs something to wait for.
function adapted(name, records) {
  if (name === "heartbeat-polling") return records.slice(0, 13);
  if (name === "cookie-compression") return records.slice(0, 11);
  return records;
}

function readSessions() {
  const lines = readFileSync(join(__dirname, "..", "data", "sessions.jsonl"), "utf8").trim().split("\n");
  const found = new Map();
  for (const record of lines.map((line) => JSON.parse(line))) {
    if (!found.has(record.session)) found.set(record.session, []);
    found.get(record.session).push(record);
  }
  return found;
}

function byConfig() {
  const groups = new Map();
  for (const name of sessions.keys()) {
    if (Object.hasOwn(LEFT_OUT, name)) continue;
    const [, config] = CONFIGS.find(([pattern]) => pattern.test(name));
    const key = JSON.stringify(config);
    groups.set(key, [...(groups.get(key) ?? []), name]);
  }
  return groups;
}
