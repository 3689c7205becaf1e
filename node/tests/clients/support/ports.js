// Ports for programs that take a number and cannot choose a port themselves.

"use strict";

const { createServer } = require("node:net");

// Below the ports of outgoing connections, one of which could take a port while its server is away.
const FIRST = 30_000;
const PAIRS = 1_350;

/**
 * A port of 127.0.0.1 that was free a moment ago. No other test file gets it while this process runs: the port behind it
 * is held as a claim.
 */
async function sparePort() {
  for (let attempt = 0; attempt < 200; attempt += 1) {
    const port = FIRST + 2 * Math.floor(Math.random() * PAIRS);
    const claim = await listen(port + 1);
    if (!claim) continue;
    claim.unref();
    const probe = await listen(port);
    if (!probe) continue;
    await new Promise((resolve) => probe.close(resolve));
    return port;
  }
  throw new Error(`no free port from ${FIRST} on`);
}

/** A listening server, or nothing if the port is taken. */
function listen(port) {
  return new Promise((resolve) => {
    const server = createServer();
    server.once("error", () => resolve(undefined));
    server.listen(port, "127.0.0.1", () => resolve(server));
  });
}

module.exports = { sparePort };
