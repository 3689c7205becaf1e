// The books of a cluster under faults: every server says numbered messages to a client of each server,
// and whatever did not arrive, came twice or in the wrong order is found out afterwards, with what the
// servers themselves had to say about it.

"use strict";

const { Sockets } = require("../support/clients");
const { deadline, until } = require("../support/wait");

const PAUSE = 20;
const RECOVERY = 30_000;

/** What a server says when a message has certainly not left it. */
const NOT_SENT = /other nodes cannot be reached|waiting to be published/;

class Ledger {
  #servers;
  #clients = [];
  #silent = new Set();
  #timer;
  #sent = new Map();
  #heard = new Map();
  #gaps = new Map();
  #metrics = new Map();

  constructor(servers) {
    this.#servers = servers;
  }

  /** Connects a client to each server, and starts to send once each hears all servers. */
  async open() {
    for (const server of this.#servers) {
      this.#sent.set(server, []);
      this.#gaps.set(server, []);
      server.on("gap", (gap) => this.#gaps.get(server).push(gap));
      const sockets = new Sockets("4.8", server.url, "websocket");
      this.#clients.push(sockets);
      const socket = await sockets.connected();
      const heard = [];
      this.#heard.set(server, heard);
      const ready = new Set();
      socket.on("ready", (name) => ready.add(name));
      socket.on("numbered", (name, number) => heard.push({ name, number, at: Date.now() }));
      await server.tell("own", { sid: socket.id, what: "join", rooms: ["everybody"] });
      for (const sender of this.#servers) {
        await until(`the client of ${server.name} to hear ${sender.name}`, async () => {
          await sender.tell("emit", { to: ["everybody"], event: "ready", args: [sender.name] });
          return ready.has(sender.name);
        });
      }
    }
    for (const server of this.#servers) this.#metrics.set(server, await metrics(server));
    this.begin = Date.now();
    this.#timer = setInterval(() => this.#say(), PAUSE);
    // There is traffic before anything happens.
    await this.#everybodyHears(({ number }) => number >= 20);
  }

  /** A server that is gone or stopped says nothing, and nobody waits for its client. */
  /** Stops sending by a server. Returns when it has answered about all that it was told to send. */
  async silence(server) {
    this.#silent.add(server);
    await Promise.all(this.#sent.get(server).map(({ settled }) => settled));
  }

  resume(server) {
    this.#silent.delete(server);
  }

  /** The fault begins now: what it does is `act`. */
  async fault(act) {
    this.faulted = Date.now();
    await act();
  }

  /** The fault is over: returns when every client hears every server again. */
  async healed() {
    this.healedAt = Date.now();
    await this.#everybodyHears(({ at }) => at >= this.healedAt);
  }

  /** Gives up: nothing is sent or heard any more. */
  abandon() {
    clearInterval(this.#timer);
    for (const sockets of this.#clients) sockets.closeAll();
  }

  /** Stops sending and returns when all that was said has been settled and the last of it has arrived. */
  async close() {
    clearInterval(this.#timer);
    const all = [...this.#sent.values()].flat();
    await deadline(Promise.all(all.map(({ settled }) => settled)), 20_000, "all messages to be settled");
    for (const server of this.#running()) this.#say(server);
    const last = new Map(this.#running().map((server) => [server.name, this.#sent.get(server).at(-1)]));
    await Promise.all([...last.values()].map(({ settled }) => settled));
    await until("the last messages", () => this.#running().every((server) => {
      return [...last].every(([name, { number }]) => {
        return this.#heard.get(server).some((entry) => entry.name === name && entry.number === number);
      });
    }), RECOVERY);
    const changed = new Map();
    for (const server of this.#running()) {
      changed.set(server, difference(this.#metrics.get(server), await metrics(server)));
    }
    this.abandon();
    return this.#running().map((server) => this.#account(server, changed.get(server)));
  }

  #running() {
    return this.#servers.filter((server) => !this.#silent.has(server));
  }

  #say(only) {
    for (const server of only ? [only] : this.#running()) {
      const sent = this.#sent.get(server);
      const message = { number: sent.length, at: Date.now(), settledAt: undefined, error: undefined };
      sent.push(message);
      message.settled = server
        .tell("emit", { to: ["everybody"], event: "numbered", args: [server.name, message.number] })
        .catch((error) => { message.error = error.message; })
        .finally(() => { message.settledAt = Date.now(); });
    }
  }

  async #everybodyHears(counts) {
    const servers = this.#running();
    await until("every client to hear every server", () => servers.every((server) => {
      return servers.every((sender) => {
        const sent = this.#sent.get(sender);
        return this.#heard.get(server).some(({ name, number }) => {
          return name === sender.name && counts(sent[number]);
        });
      });
    }), RECOVERY);
  }

  /** What the client of one server heard, against what all servers said. */
  #account(server, changed) {
    const gaps = this.#gaps.get(server);
    const line = {
      server: server.name,
      heard: this.#heard.get(server).length,
      lost: 0,
      refused: 0,
      unconfirmed: 0,
      inGaps: 0,
      unexplained: [],
      refusedButHeard: [],
      unanswered: [],
      duplicates: [],
      reordered: [],
      gaps,
      repair: 0,
      changed,
    };
    for (const [sender, sent] of this.#sent) {
      const numbers = this.#heard.get(server)
        .filter(({ name }) => name === sender.name)
        .map(({ number }) => number);
      const known = new Set(numbers);
      numbers.forEach((number, i) => {
        if (numbers.indexOf(number) !== i) line.duplicates.push(`${sender.name} ${number}`);
        else if (i > 0 && number < numbers[i - 1]) line.reordered.push(`${sender.name} ${number}`);
      });
      for (const message of sent) {
        const what = `${sender.name} ${message.number} at ${message.at - this.begin} ms: ${message.error ?? "sent"}`;
        const isLocal = sender === server;
        if (message.error?.startsWith("waited ")) line.unanswered.push(what);
        if (known.has(message.number)) {
          if (!isLocal && NOT_SENT.test(message.error)) line.refusedButHeard.push(what);
          continue;
        }
        line.lost += 1;
        if (this.healedAt) line.repair = Math.max(line.repair, message.at - this.healedAt);
        const isInGap = gaps.some(({ from, to }) => message.at <= to && message.settledAt >= from);
        if (isLocal) line.unexplained.push(what);
        else if (message.error && NOT_SENT.test(message.error)) line.refused += 1;
        else if (message.error) line.unconfirmed += 1;
        else if (isInGap) line.inGaps += 1;
        else line.unexplained.push(what);
      }
    }
    return line;
  }
}

/** The counters of the bus, by their names with labels. */
async function metrics(server) {
  if (server.kind === "node") return {};
  const { text } = await server.tell("metrics");
  const values = {};
  for (const line of text.split("\n")) {
    const match = /^(roomcast_bus_\w+(?:\{[^}]*\})?) ([\d.e+-]+)$/.exec(line);
    if (match && !/_bucket|_sum|_count/.test(match[1])) values[match[1]] = Number(match[2]);
  }
  return values;
}

function difference(before, now) {
  return Object.fromEntries(
    Object.entries(now)
      .filter(([name, value]) => value !== (before[name] ?? 0))
      .map(([name, value]) => [name.replace("roomcast_bus_", ""), value - (before[name] ?? 0)]),
  );
}

/** The books as a table, a line for each server's client. */
function table(title, lines) {
  const rows = [[
    "client of", "heard", "lost", "refused", "unconfirmed", "in gaps", "unexplained", "twice", "reordered",
    "gaps (ms)", "repaired after (ms)", "shown by",
  ]];
  for (const line of lines) {
    const shown = Object.entries(line.changed ?? {})
      .filter(([name]) => /gaps_total|reconnects_total|outcome="(?!ok)|dropped|silent/.test(name))
      .map(([name, change]) => `${name} +${Math.round(change)}`);
    rows.push([
      line.server, line.heard, line.lost, line.refused, line.unconfirmed, line.inGaps,
      line.unexplained.length, line.duplicates.length, line.reordered.length,
      line.gaps.map(({ from, to }) => to - from).join(" ") || "-", line.lost > 0 ? line.repair : "-",
      shown.join(", ") || "-",
    ].map(String));
  }
  const widths = rows[0].map((_, i) => Math.max(...rows.map((row) => row[i].length)));
  const text = rows.map((row) => row.map((cell, i) => cell.padEnd(widths[i])).join("  ").trimEnd());
  return [`--- ${title}`, ...text].join("\n");
}

module.exports = { Ledger, table };
