// HTTP proxies as balancers are. A front leads the path of Socket.IO to one server and all other paths to another; a
// balancer leads each request to the next server, whatever its session. The servers may be replaced while it runs.

"use strict";

const { createServer, request: ask } = require("node:http");
const { connect } = require("node:net");

/** `ports.sockets` serves the path of Socket.IO, `ports.site` the rest. */
async function startFront(ports) {
  return { ports, ...(await serve(({ url }) => (url.startsWith("/socket.io/") ? ports.sockets : ports.site))) };
}

/** The servers of the list `ports` take turns. */
async function startBalancer(ports) {
  let turn = 0;
  return { ports, ...(await serve(() => ports[turn++ % ports.length])) };
}

async function serve(portOf) {
  const open = new Set();

  const server = createServer((request, response) => {
    const { method, url: path, headers } = request;
    const upstream = ask({ host: "127.0.0.1", port: portOf(request), method, path, headers, agent: false });
    upstream.on("response", (answer) => {
      response.writeHead(answer.statusCode, answer.headers);
      answer.on("error", () => response.destroy());
      answer.pipe(response);
    });
    upstream.on("error", () => {
      if (response.headersSent) response.destroy();
      else response.writeHead(503).end();
    });
    response.on("close", () => upstream.destroy());
    request.pipe(upstream);
  });

  server.on("upgrade", (request, client, head) => {
    const upstream = connect(portOf(request), "127.0.0.1");
    const lines = [`${request.method} ${request.url} HTTP/1.1`];
    for (let i = 0; i < request.rawHeaders.length; i += 2) {
      lines.push(`${request.rawHeaders[i]}: ${request.rawHeaders[i + 1]}`);
    }
    upstream.write(`${lines.join("\r\n")}\r\n\r\n`);
    upstream.write(head);
    for (const [from, to] of [[client, upstream], [upstream, client]]) {
      open.add(from);
      from.pipe(to);
      from.on("error", () => to.destroy());
      from.on("close", () => {
        open.delete(from);
        to.destroy();
      });
    }
  });

  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    async stop() {
      for (const socket of open) socket.destroy();
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

module.exports = { startBalancer, startFront };
