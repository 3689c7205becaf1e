// A TCP proxy between client and server that can lose connections, or hold them without a word, the
// way a network does. It can be pointed at another server, as if the old one had come back.

"use strict";

const { createServer, connect } = require("node:net");
const { once } = require("node:events");

/** Node cannot reset a socket that has ended its side: the handle would stay, and with it the process. */
function lose(socket) {
  if (socket.writableEnded) socket.destroy();
  else socket.resetAndDestroy();
}

async function startProxy(port) {
  const pairs = new Set();
  let target = port;
  let silent = false;
  let isDown = false;
  const listener = createServer((client) => {
    if (isDown) {
      client.resetAndDestroy();
      return;
    }
    const server = connect(target, "127.0.0.1");
    const pair = { client, server, isFrozen: false };
    pairs.add(pair);
    for (const [from, to] of [[client, server], [server, client]]) {
      from.on("data", (chunk) => {
        if (!silent && !pair.isFrozen) to.write(chunk);
      });
      from.on("end", () => {
        if (!pair.isFrozen) to.end();
      });
      from.on("close", () => {
        if (pair.isFrozen) return;
        to.destroy();
        pairs.delete(pair);
      });
      from.on("error", () => to.destroy());
    }
  });
  listener.listen(0, "127.0.0.1");
  await once(listener, "listening");
  return {
    url: `http://127.0.0.1:${listener.address().port}`,
    /** Loses all connections and takes no new ones until `up`: a polling client has moments with none. */
    down() {
      isDown = true;
      for (const { client, server } of pairs) {
        lose(client);
        lose(server);
      }
    },
    up() {
      isDown = false;
    },
    silence() {
      silent = true;
    },
    /** Neither side of the connections that there are hears of the other any more; new ones work. */
    freeze() {
      for (const pair of pairs) pair.isFrozen = true;
    },
    redirect(other) {
      target = other;
    },
    close() {
      this.down();
      listener.close();
    },
  };
}

module.exports = { startProxy };
