// A real browser. TEST_CHROMIUM is its program.

"use strict";

const { mkdtempSync, rmSync } = require("node:fs");
const { tmpdir } = require("node:os");
const { join } = require("node:path");
const { chromium } = require("playwright-core");

/** Time that a step in the browser may take, beside busy neighbours. */
const PATIENCE = 30_000;

/** Starts the browser. `context` is Playwright's. */
async function startBrowser() {
  const profile = mkdtempSync(join(tmpdir(), "roomcast-browser-"));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.TEST_CHROMIUM ?? "/usr/bin/chromium",
    headless: true,
    args: [
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
    ],
  });
  context.setDefaultTimeout(PATIENCE);
  return {
    context,
    async stop() {
      await context.close();
      rmSync(profile, { recursive: true, force: true });
    },
  };
}

module.exports = { startBrowser, PATIENCE };
