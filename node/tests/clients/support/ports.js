// Ports for programs that take a number and cannot choose a port themselves.

"use strict";

const { createServer } = require("node:net");

/** A port of 127.0.0.1 that was free a moment ago. */
function sparePort() {
  return new Promise((resolve) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}

module.exports = { sparePort };
