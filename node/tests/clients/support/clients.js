// The official clients, each over each way to connect, behind one function. What a test says about a
// socket holds for all of them unless it names a client.

"use strict";

const { deadline } = require("./wait");

const clients = {
  "4.8": { io: require("socket.io-client").io, config: {}, options: {} },
  "3.1": { io: require("socket.io-client-3").io, config: {}, options: {} },
  "2.5": { io: require("socket.io-client-2"), config: { allowEio3: true }, options: {} },
  "4.8 msgpack": {
    io: require("socket.io-client").io,
    config: { parser: "msgpack" },
    options: { parser: require("socket.io-msgpack-parser") },
  },
};

const ways = {
  polling: ["polling"],
  websocket: ["websocket"],
  upgrade: ["polling", "websocket"],
};

/** Opens sockets and closes them all in the end. */
class Sockets {
  #client;
  #url;
  #way;
  #open = new Set();

  constructor(client, url, way) {
    this.#client = clients[client];
    this.#url = url;
    this.#way = way;
  }

  /** A socket on a connection of its own, unless `forceNew` is false. */
  open(namespace = "/", options = {}) {
    const socket = this.#client.io(this.#url + namespace, {
      transports: ways[this.#way],
      forceNew: true,
      reconnection: false,
      ...this.#client.options,
      ...options,
    });
    this.#open.add(socket);
    return socket;
  }

  async connected(namespace, options) {
    const socket = this.open(namespace, options);
    await connection(socket);
    return socket;
  }

  closeAll() {
    for (const socket of this.#open) {
      socket.io.reconnection(false);
      socket.disconnect();
      // A manager whose sockets are all refused keeps its connection.
      socket.io.engine?.close();
    }
    this.#open.clear();
  }
}

/** Resolves when the socket is connected, fails when the server refuses it. */
function connection(socket) {
  const listeners = new Map();
  const settled = new Promise((resolve, reject) => {
    // Version 2 reports a refusal as "error", the later ones as "connect_error".
    const refuse = (error) => {
      reject(new Error(`not connected: ${error?.message ?? JSON.stringify(error)}`));
    };
    listeners.set("connect", resolve).set("connect_error", refuse).set("error", refuse);
  });
  for (const [event, listener] of listeners) socket.on(event, listener);
  return deadline(settled, 10_000, "a connection").finally(() => {
    for (const [event, listener] of listeners) socket.off(event, listener);
  });
}

/** What the server answered to a socket that it refused, in the words of that client version. */
async function refusal(socket) {
  const [event, reason] = await deadline(
    new Promise((resolve) => {
      for (const name of ["connect", "connect_error", "error"]) {
        socket.on(name, (error) => resolve([name, error]));
      }
    }),
    10_000,
    "a refusal",
  );
  if (event === "connect") throw new Error("the server accepted the socket");
  return reason;
}

module.exports = { clients, ways, Sockets, connection, refusal };
