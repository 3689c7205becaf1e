// What tests of several nodes share: a Redis and, if it is wanted, a browser for all tests of a file, and
// nodes for each test.

"use strict";

const { createHash } = require("node:crypto");
const { after, afterEach, before, beforeEach } = require("node:test");

const { startRedis } = require("../cluster/redis");
const { startBrowser } = require("./browser");
const { startGateway } = require("./gateway");

/** A key of the HTTP API as a table of the settings. */
function apiKey(name, key, verbs, namespaces = ["*"]) {
  const hash = createHash("sha256").update(key).digest("hex");
  return `
    [[api.keys]]
    name = "${name}"
    hash = "sha256:${hash}"
    namespaces = ${JSON.stringify(namespaces)}
    verbs = ${JSON.stringify(verbs)}
  `;
}

/**
 * Starts them before the tests of the file that calls this, and stops them afterwards. `settings` gets the
 * Redis and returns the text of the settings of two nodes; without it, tests start theirs by `start`.
 * Functions in `closing` run after the present test, before the nodes stop.
 */
function useNodes({ settings, hasBrowser = false }) {
  const parts = {
    browser: undefined,
    redis: undefined,
    nodes: [],
    closing: [],
    async start(text) {
      const node = await startGateway(text);
      parts.nodes.push(node);
      return node;
    },
  };
  before(async () => {
    if (hasBrowser) parts.browser = await startBrowser();
    parts.redis = await startRedis();
  });
  after(async () => {
    await parts.browser?.stop();
    await parts.redis?.stop();
  });
  if (settings) {
    beforeEach(async () => {
      const text = await settings(parts.redis);
      for (let count = 0; count < 2; count++) await parts.start(text);
    });
  }
  afterEach(async () => {
    for (const close of parts.closing.splice(0)) await close();
    for (const node of parts.nodes.splice(0)) await node.stop();
  });
  return parts;
}

module.exports = { apiKey, useNodes };
