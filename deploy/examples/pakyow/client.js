// A client of the protocol, for pages without Pakyow's own script: it shows pushes as items of a list, and
// calls routes with `socket.call`.

"use strict";

const socket = {
  waiting: new Map(),
  pause: 100,

  connect() {
    const { socketConnectionId: id, socket: address } = document.body.dataset;
    this.id = id;
    this.ws = new WebSocket(`${address || `ws://${location.host}`}/?socket_connection_id=${id}`);
    this.ws.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      const reply = this.waiting.get(message.id);
      if (reply) {
        this.waiting.delete(message.id);
        reply(message);
      } else if ("channel" in message) {
        const item = document.createElement("li");
        item.dataset.channel = message.channel;
        item.textContent = JSON.stringify(message.payload);
        document.querySelector("ul").append(item);
      }
    };
    this.ws.onopen = () => {
      this.alive = setInterval(() => this.send({ action: "ping" }), 30_000);
    };
    this.ws.onclose = () => {
      clearInterval(this.alive);
      setTimeout(() => this.connect(), this.pause);
      this.pause *= 1.25;
    };
  },

  /** Resolves to the reply. */
  send(message) {
    const id = crypto.randomUUID?.() ?? String(Math.random());
    const input = { ...message.input, socket_connection_id: this.id };
    this.ws.send(JSON.stringify({ ...message, id, input }));
    return new Promise((resolve) => this.waiting.set(id, resolve));
  },

  call(method, uri, input = {}) {
    return this.send({ action: "call-route", method, uri, input });
  },
};

socket.connect();
