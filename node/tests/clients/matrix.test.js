// Every client version over every way to connect, through everything that a socket can do.
// The suites know no version; the few differences between versions are passed to them.

"use strict";

const { after, afterEach, before, describe } = require("node:test");

const { Sockets, clients, ways } = require("./support/clients");
const { startServer } = require("./support/server");

const suites = [
  require("./suites/connecting"),
  require("./suites/events"),
  require("./suites/rooms"),
  require("./suites/endings"),
  require("./suites/upgrading"),
];

for (const [client, { config }] of Object.entries(clients)) {
  describe(`client ${client}`, () => {
    let server;
    before(async () => {
      server = await startServer(config);
    });
    after(() => server?.stop());

    for (const way of Object.keys(ways)) {
      describe(way, () => {
        const context = { client, way, isV2: client === "2.5", sockets: undefined };
        before(() => {
          context.sockets = new Sockets(client, server.url, way);
        });
        afterEach(() => context.sockets.closeAll());
        for (const suite of suites) suite(context);
      });
    }
  });
}
