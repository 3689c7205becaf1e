// A minimal Socket.IO client for a demo that has no official bundle: WebSocket only, the main namespace, JSON events,
// acknowledgements, reconnects. The page uses it in the same way as the official client.

"use strict";

(() => {
  class Socket {
    id = undefined;
    connected = false;
    active = false;
    io = { engine: { transport: { name: "websocket" }, on() {} } };
    #handlers = new Map();
    #acks = new Map();
    #nextAck = 0;
    #failures = 0;
    #socket;
    #retry;
    #watch;
    #silence;

    on(event, handler) {
      this.#handlers.set(event, [...this.#handlers.get(event) ?? [], handler]);
      return this;
    }

    connect() {
      if (!this.active) this.#open();
      return this;
    }

    disconnect() {
      this.active = false;
      clearTimeout(this.#retry);
      this.#send("41");
      this.#socket.close();
      this.#lost("io client disconnect");
      return this;
    }

    emit(event, ...args) {
      this.#send(`42${JSON.stringify([event, ...args])}`);
    }

    /** Resolves to the first argument of the acknowledgement. Rejects if the connection is lost before it arrives. */
    emitWithAck(event, ...args) {
      return new Promise((resolve, reject) => {
        if (!this.connected) return reject(new Error("not connected"));
        this.#acks.set(this.#nextAck, { resolve, reject });
        this.#send(`42${this.#nextAck++}${JSON.stringify([event, ...args])}`);
      });
    }

    #open() {
      this.active = true;
      const scheme = location.protocol === "https:" ? "wss:" : "ws:";
      const socket = this.#socket = new WebSocket(`${scheme}//${location.host}/socket.io/?EIO=4&transport=websocket`);
      socket.onmessage = ({ data }) => socket === this.#socket && this.#receive(data);
      socket.onclose = () => socket === this.#socket && this.#lost("transport close");
    }

    #send(packet) {
      if (this.#socket.readyState === WebSocket.OPEN) this.#socket.send(packet);
    }

    #receive(packet) {
      if (typeof packet !== "string") return;
      this.#expect();
      switch (packet[0]) {
        case "0": {
          const { pingInterval, pingTimeout } = JSON.parse(packet.slice(1));
          this.#silence = pingInterval + pingTimeout;
          this.#expect();
          return this.#send("40");
        }
        case "2": return this.#send("3");
        case "4": return this.#packet(packet.slice(1));
      }
    }

    #packet(text) {
      const [, type, ack, json] = /^(\d)(\d*)([^]*)$/.exec(text) ?? [];
      const value = json ? JSON.parse(json) : undefined;
      switch (type) {
        case "0":
          this.#failures = 0;
          this.id = value.sid;
          this.connected = true;
          return this.#notify("connect");
        case "1":
          this.active = false;
          return this.#socket.close();
        case "2": return this.#notify(...value);
        case "3":
          this.#acks.get(Number(ack))?.resolve(value[0]);
          return this.#acks.delete(Number(ack));
        case "4":
          this.active = false;
          this.#notify("connect_error", new Error(value.message));
          return this.#socket.close();
      }
    }

    /** The server pings. A connection that stays silent for longer than it promised is dead. */
    #expect() {
      clearTimeout(this.#watch);
      if (!this.#silence) return;
      this.#watch = setTimeout(() => {
        this.#socket.close();
        this.#lost("ping timeout");
      }, this.#silence);
    }

    #lost(reason) {
      const wasConnected = this.connected;
      this.#socket = { readyState: WebSocket.CLOSED, close() {} };
      this.id = undefined;
      this.connected = false;
      clearTimeout(this.#watch);
      for (const { reject } of this.#acks.values()) reject(new Error("the connection was lost"));
      this.#acks.clear();
      if (this.active) {
        // Jitter around a doubling delay, so that many clients do not return in step.
        const delay = Math.min(1000 * 2 ** this.#failures++, 5000) * (0.5 + Math.random());
        this.#retry = setTimeout(() => this.#open(), delay);
      }
      if (wasConnected) this.#notify("disconnect", reason);
      else if (this.active) this.#notify("connect_error", new Error("the server cannot be reached"));
    }

    #notify(event, ...args) {
      for (const handler of this.#handlers.get(event) ?? []) handler(...args);
    }
  }

  window.io = () => new Socket().connect();
  window.io.isBuiltIn = true;
})();
