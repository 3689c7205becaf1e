// Replays one captured session: sends what the client sent, compares what the server answers. It
// knows HTTP, WebSocket and how to mask ids; which answers may differ is given to it by the test.

"use strict";

const assert = require("node:assert/strict");
const http = require("node:http");
const zlib = require("node:zlib");
const { WebSocket } = require("ws");
const { Decoder } = require("socket.io-msgpack-parser");

const { deadline } = require("./wait");

const PATIENCE = 5000;
const UNKNOWN_SID = "AAAAAAAAAAAAAAAAAAAA";

class Replay {
  #server;
  #session;
  #records;
  #expectation;
  #sid = null;
  #askId = null;
  #requests = [];
  #early = null;
  #sockets = [];
  #frames = new Queue();
  #closes = new Queue();
  #upgrades = new Queue();

  /** `expectation(record)` gives the alternatives to what was captured, or nothing. */
  constructor(server, session, records, expectation) {
    this.#server = server;
    this.#session = session;
    this.#records = withoutLeftovers(session, records);
    this.#expectation = expectation;
  }

  async run() {
    try {
      for (const record of this.#records) {
        await this.#step(record).catch((error) => {
          error.message = `${this.#session} #${record.seq}: ${error.message}`;
          throw error;
        });
      }
      this.#nothingElse();
    } finally {
      for (const socket of this.#sockets) socket.terminate();
      for (const { request } of this.#requests) request?.destroy();
    }
  }

  #step(record) {
    const instead = this.#expectation(record);
    if (instead?.some(({ skip }) => skip)) return Promise.resolve();
    if (record.outcome) return this.#checkOutcome(instead ?? [record]);
    if (instead?.some(({ outcome }) => outcome)) return this.#checkEither(record, instead);
    if (record.note !== undefined) return this.#follow(record.note);
    if (record.dir === "c->s") return this.#send(record);
    if (record.close !== undefined && !instead) return this.#checkClose(record);
    if (record.via === "http") return this.#checkReply(record, instead);
    if (record.via === "ws-upgrade") return this.#checkUpgrade(record, instead);
    return this.#checkFrame(record, instead);
  }

  async #follow(note) {
    if (note === "io.close()") {
      await this.#fence();
      this.#server.terminate();
    }
    if (note === "client closes") this.#sockets.at(-1).close();
    // The end of an upgrade has no answer of its own, and the poll that follows it uses another
    // connection: an answer on the WebSocket shows that the server has taken it in.
    if (note === "transport mismatch after upgrade") await this.#proveAlive(this.#sockets.at(-1));
  }

  async #send(record) {
    if (record.via === "http") return this.#request(record);
    if (record.via === "ws-upgrade") return this.#openSocket(record);
    const socket = this.#sockets.find(({ readyState }) => readyState === WebSocket.OPEN);
    assert.ok(socket, "no WebSocket is open to send on");
    if (record.frame === "binary") socket.send(Buffer.from(record.hex, "hex"), { binary: true });
    else if (record.hex) socket.send(Buffer.from(record.hex, "hex"), { binary: false });
    else socket.send(this.#answerId(filled(record)));
    // The official server must have left a namespace before it is asked for it again.
    return record.text?.startsWith("41") ? this.#fence() : undefined;
  }

  // The server's own ack ids count over all sockets of the namespace: answer the one it chose.
  #answerId(text) {
    return this.#askId === null ? text : text.replace(/^430\[/, `43${this.#askId}[`);
  }

  async #request(record) {
    const waiting = this.#requests.length > 0;
    // The request before must have reached the server before this one: they use two connections.
    if (waiting) await this.#fence();
    if (record.method === "GET" && this.#early !== null) {
      const reply = Promise.resolve(this.#early);
      this.#requests.push({ method: "GET", request: null, reply, url: record.url });
      this.#early = null;
      return;
    }
    this.#requests.push(this.#http(record.method, record.url, record.headers, payload(record.body)));
  }

  #http(method, url, headers = {}, body = undefined) {
    const { promise, resolve, reject } = withResolvers();
    const target = this.#server.url + this.#withSid(url);
    const request = http.request(target, { method, headers, agent: false }, (response) => {
      const chunks = [];
      response.on("data", (chunk) => chunks.push(chunk));
      response.on("error", reject);
      response.on("end", () => {
        const { statusCode: status, headers: received } = response;
        resolve({ status, headers: received, body: unpacked(response, Buffer.concat(chunks)) });
      });
    });
    request.on("error", reject);
    promise.catch(() => {});
    request.end(body);
    return { method, request, reply: promise, url };
  }

  // A few requests that change nothing, one after the other: what was sent before them on another
  // connection has been taken in by then. There is nothing to observe about a parked poll.
  async #fence() {
    for (let i = 0; i < 5; i += 1) {
      await deadline(this.#http("GET", "/socket.io/?EIO=4&transport=none").reply, PATIENCE, "a fence");
    }
  }

  #withSid(url) {
    // A session without a handshake asks with an id that nobody has, as the cors sessions always do.
    const isStranger = this.#sid === null || this.#session.startsWith("cors-");
    return url.replace("<sid>", isStranger ? UNKNOWN_SID : this.#sid);
  }

  async #checkReply(record, instead) {
    const at = this.#requests.findIndex(({ method }) => method === record.reply_to);
    const [{ reply, url }] = this.#requests.splice(at, 1);
    const wanted = (instead ?? [{}]).map((other) => asReply(record, other));
    const actual = await this.#wholeReply(await this.#arrived(reply, record), wanted, url);
    if (record.reply_to === "GET" && actual.status === 200) this.#learnSid(actual.body);
    if (record.reply_to === "GET") this.#keepEarly(actual, wanted);
    anyOf(wanted, (one) => compareReply(actual, one));
  }

  #arrived(reply, record) {
    return deadline(reply, PATIENCE, `the answer to ${record.reply_to}`);
  }

  // The other way round, a body may bring what was captured only in the next one.
  #keepEarly(actual, wanted) {
    const text = masked(actual.body.toString());
    const isWhole = ({ text: one }) => one === undefined || masked(one) === text;
    if (actual.status !== 200 || wanted.some(isWhole)) return;
    const fitting = wanted.find(({ text: one }) => one !== "" && text.startsWith(masked(one)));
    if (!fitting) return;
    const rest = text.slice(masked(fitting.text).length).replace(/^\u001e/, "");
    this.#early = { ...actual, body: Buffer.from(rest) };
    actual.body = Buffer.from(fitting.text);
  }

  // How packets are spread over poll bodies is the server's choice: a body that is the beginning of
  // the expected one is completed from the next.
  async #wholeReply(actual, wanted, url) {
    while (actual.status === 200 && wanted.some((one) => isBeginning(actual.body, one))) {
      const { body } = await this.#arrived(this.#http("GET", url).reply, { reply_to: "GET" });
      const separator = url.includes("EIO=4") ? "\u001e" : "";
      actual.body = Buffer.concat([actual.body, Buffer.from(separator), body]);
    }
    return actual;
  }

  #learnSid(body) {
    const match = /^(?:\d+:)?0\{"sid":"([^"]+)"/.exec(body.toString());
    if (!match) return;
    this.#sid = match[1];
    assert.match(this.#sid, /^[\w-]{16,}$/);
  }

  #openSocket(record) {
    const url = this.#server.url.replace("http", "ws") + this.#withSid(record.url);
    const socket = new WebSocket(url, { headers: record.headers, perMessageDeflate: false });
    this.#sockets.push(socket);
    socket.on("upgrade", () => this.#upgrades.push({ status: 101, headers: {}, body: Buffer.alloc(0) }));
    socket.on("unexpected-response", (_, response) => {
      const chunks = [];
      response.on("data", (chunk) => chunks.push(chunk));
      response.on("end", () => {
        const { statusCode: status, headers } = response;
        this.#upgrades.push({ status, headers, body: Buffer.concat(chunks) });
      });
    });
    socket.on("message", (data, isBinary) => this.#frames.push({ data, isBinary }));
    socket.on("close", (code) => this.#closes.push(code));
    socket.on("error", () => {});
  }

  async #checkUpgrade(record, instead) {
    const actual = await this.#upgrades.shift("the answer to the upgrade request");
    const wanted = (instead ?? [{}]).map((other) => asReply({ ...record, headers: null }, other));
    anyOf(wanted, (one) => compareReply(actual, one));
    const socket = this.#sockets.at(-1);
    if (actual.status !== 101 || socket.readyState !== WebSocket.CONNECTING) return;
    await deadline(new Promise((resolve) => socket.once("open", resolve)), PATIENCE, "the WebSocket");
  }

  async #checkFrame(record, instead) {
    const { data, isBinary } = await this.#frames.shift(`frame ${record.text ?? record.hex}`);
    assert.equal(isBinary, record.frame === "binary", `kind of frame (${data})`);
    if (isBinary) return compareBinary(data, Buffer.from(record.hex, "hex"), this.#session);
    const text = data.toString();
    const asked = /^42(\d+)\["question"/.exec(text);
    if (asked) this.#askId = asked[1];
    const texts = (instead ?? [record]).map((one) => masked(one.text));
    assert.ok(texts.includes(masked(text)), `${text} instead of ${texts.join(" or ")}`);
    for (const hex of instead?.find((one) => masked(one.text) === masked(text))?.attachments ?? []) {
      const { data: bytes } = await this.#frames.shift(`attachment ${hex}`);
      assert.equal(bytes.toString("hex"), hex, "attachment");
    }
    return undefined;
  }

  async #checkClose(record) {
    if (CLIENT_CLOSES.has(`${this.#session} ${record.seq}`)) {
      this.#sockets.find(({ readyState }) => readyState === WebSocket.OPEN)?.close();
    }
    assert.equal(await this.#closes.shift(`close ${record.close}`), record.close, "close code");
  }

  async #checkOutcome(alternatives) {
    const outcomes = alternatives.map(({ outcome }) => outcome).filter(Boolean);
    const open = this.#sockets.find(({ readyState }) => readyState === WebSocket.OPEN);
    if (outcomes.includes("connection stays open") && open && this.#closes.isEmpty()) {
      return this.#proveAlive(open);
    }
    assert.ok(outcomes.includes("connection closed by server"), "the server closed the connection");
    if (open) assert.equal(await this.#closes.shift("the server to close"), 1005, "close code");
    return undefined;
  }

  // A frame or the end of the connection, whichever of the two the server chose.
  async #checkEither(record, alternatives) {
    if (record.frame === undefined) return this.#checkOutcome([record, ...alternatives]);
    const frames = alternatives.filter(({ text }) => text !== undefined);
    if (frames.length === 0) return this.#checkOutcome(alternatives);
    const closed = this.#closes.peek().then(() => this.#checkOutcome(alternatives));
    return Promise.race([closed, this.#checkFrame(record, frames)]);
  }

  // No session that stays open has joined /chat: its CONNECT gets an answer if anybody is there.
  async #proveAlive(socket) {
    socket.send("40/chat,");
    const { data } = await this.#frames.shift("a sign of life");
    assert.equal(masked(data.toString()), "40/chat,{\"sid\":\"*\"}");
  }

  #nothingElse() {
    assert.ok(this.#frames.isEmpty(), `unexpected frame ${this.#frames.first()?.data}`);
  }
}

// The last record of these sessions is the client's own doing.
const CLIENT_CLOSES = new Set(["upgrade 28", "eio3-upgrade 14", "eio3-ws 26"]);

// The capture has close events that belong to the client's end of the session before.
function withoutLeftovers(session, records) {
  const opened = records.findIndex(({ via, status }) => via === "ws-upgrade" && status === 101);
  return records.filter(({ close, seq }, i) => {
    if (seq === 0) return false;
    if (close === undefined) return true;
    if (session === "http-errors" && [30, 33].includes(seq)) return true;
    return close !== 1006 && i > opened && opened >= 0;
  });
}

function payload(body) {
  if (!body) return undefined;
  return body.hex ? Buffer.from(body.hex, "hex") : filled(body);
}

// Long texts were captured as their beginning and length; all of them are runs of one character.
function filled({ text, text_prefix: prefix, length }) {
  if (text !== undefined) return text;
  const end = prefix.startsWith("42[") ? "\"]" : "";
  return prefix + "x".repeat(length - prefix.length - end.length) + end;
}

function unpacked(response, body) {
  return response.headers["content-encoding"] === "gzip" ? zlib.gunzipSync(body) : body;
}

function asReply(record, other) {
  const { status, headers, body } = { ...record, ...other };
  const isText = typeof body === "string" || body?.hex === undefined;
  const text = typeof body === "string" ? body : body && !body.hex ? filled(body) : undefined;
  return { status, headers, text: isText ? text : undefined, hex: body?.hex };
}

function isBeginning(body, { text, hex }) {
  const whole = hex ?? (text === undefined ? undefined : masked(text));
  const part = hex ? body.toString("hex") : masked(body.toString());
  return whole !== undefined && part.length < whole.length && part.length > 0 && whole.startsWith(part);
}

function compareReply(actual, wanted) {
  assert.equal(actual.status, wanted.status, `status (${actual.body})`);
  if (wanted.hex) assert.equal(actual.body.toString("hex"), wanted.hex, "body");
  else if (wanted.text !== undefined) comparePayload(actual.body.toString(), wanted.text);
  for (const name of wanted.headers ? HEADERS : []) {
    assert.deepEqual(headerForm(name, actual.headers[name]), headerForm(name, wanted.headers[name]), name);
  }
}

const HEADERS = [
  "content-type",
  "cache-control",
  "content-encoding",
  "set-cookie",
  "vary",
  "access-control-allow-origin",
  "access-control-allow-credentials",
  "access-control-allow-methods",
  "access-control-allow-headers",
];

function headerForm(name, value) {
  if (value === undefined) return undefined;
  if (name === "set-cookie") return value.map((cookie) => cookie.replace(/=[\w-]{16,};/, "=*;"));
  if (name === "vary" || name === "access-control-allow-methods") {
    return value.toLowerCase().split(/, */).sort();
  }
  return name === "content-type" ? value.toLowerCase().replace(/; */, "; ") : value;
}

function comparePayload(actual, wanted) {
  const isMsgpack = wanted.startsWith("bg6");
  if (!isMsgpack) return assert.equal(masked(actual), masked(wanted), "body");
  assert.ok(actual.startsWith("b"), actual);
  return compareBinary(Buffer.from(actual.slice(1), "base64"), Buffer.from(wanted.slice(1), "base64"), "msgpack");
}

function compareBinary(actual, wanted, session) {
  if (!session.startsWith("msgpack")) return assert.equal(actual.toString("hex"), wanted.toString("hex"));
  return assert.deepEqual(packet(actual), packet(wanted));
}

// The order of keys is free, and an absent key is the same as an undefined one.
function packet(bytes) {
  let decoded;
  const decoder = new Decoder();
  decoder.on("decoded", (value) => {
    decoded = value;
  });
  decoder.add(bytes);
  if (decoded.data?.sid) {
    assert.match(decoded.data.sid, /^[\w-]{20}$/);
    decoded.data = { sid: "*" };
  }
  return JSON.parse(JSON.stringify(decoded));
}

function masked(text) {
  return text
    .replace(/"sid":"([^"]+)"/g, (_, sid) => (/^([\w-]{20,}|\*)$/.test(sid) ? "\"sid\":\"*\"" : `bad sid ${sid}`))
    .replace(/^(\d+):(?=0\{)/, "*:")
    .replace(/#[\w-]{16,}/g, "#*")
    .replace(/^42\d+\["question"/, "42*[\"question\"");
}

function anyOf(alternatives, check) {
  const failures = [];
  for (const one of alternatives) {
    try {
      return check(one);
    } catch (error) {
      failures.push(error);
    }
  }
  if (failures.length === 1) throw failures[0];
  throw new Error(failures.map(({ message }) => message).join("; or "));
}

function withResolvers() {
  const made = {};
  made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }));
  return made;
}

/** What arrived and was not looked at yet. */
class Queue {
  #items = [];
  #waiting = [];

  push(item) {
    this.#items.push(item);
    for (const wake of this.#waiting.splice(0)) wake();
  }

  async peek() {
    while (this.#items.length === 0) await new Promise((resolve) => this.#waiting.push(resolve));
    return this.#items[0];
  }

  async shift(what) {
    await deadline(this.peek(), PATIENCE, what);
    return this.#items.shift();
  }

  first() {
    return this.#items[0];
  }

  isEmpty() {
    return this.#items.length === 0;
  }
}

module.exports = { Replay };
