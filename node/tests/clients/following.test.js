// Following one client in the log with --log-client. ROOMCAST is the program.

"use strict";

const assert = require("node:assert/strict");
const { createServer } = require("node:http");
const { after, before, describe, test } = require("node:test");
const { io } = require("socket.io-client");

const { startGateway } = require("./support/gateway");
const { ask, next, until } = require("./support/wait");

const PATIENCE = 30_000;

describe("following a client", { timeout: 120_000 }, () => {
  let backend;
  let gateway;
  let settings;
  const clients = [];

  before(async () => {
    backend = createServer(async (request, response) => {
      let body = "";
      for await (const part of request.setEncoding("utf8")) body += part;
      const { type, auth } = JSON.parse(body);
      const operations = {
        connect: [{ op: "set_user", user: auth?.user }, { op: "join", rooms: ["lobby"] }],
        event: [
          { op: "emit", event: "secret one", args: ["for one"] },
          { op: "emit", rooms: ["lobby"], event: "secret all", args: ["for all"] },
          { op: "leave", rooms: ["lobby"] },
          { op: "ack", args: ["secret answer"] },
        ],
      };
      response.setHeader("content-type", "application/json");
      response.end(JSON.stringify(operations[type] ?? []));
    });
    await new Promise((resolve) => backend.listen(0, "127.0.0.1", resolve));
    settings = (options) => `access = "hook"\n${options}\n[hooks.app]\nurl = "http://127.0.0.1:${backend.address().port}/"\nevents = ["*"]\n`;
    gateway = await startGateway(settings('log_client = ["ada"]'));
  });

  after(async () => {
    for (const client of clients) client.close();
    await gateway?.stop();
    backend.closeAllConnections();
    backend.close();
  });

  async function connect(user) {
    const client = io(gateway.url, { forceNew: true, auth: { user } });
    clients.push(client);
    await next(client, "connect");
    return client;
  }

  const followed = (from = 0) => gateway.lines.slice(from).filter(({ target }) => target === "roomcast::client");
  const has = (message, from) => until(`the line "${message}"`, () => followed(from).find((line) => line.message === message), PATIENCE);

  test("every step of the user is in the log, no other client is, and no argument", async () => {
    const [ada, bob] = [await connect("ada"), await connect("bob")];
    for (const client of [bob, ada]) assert.equal(await ask(client, "talk", { password: "1234" }), "secret answer");
    const id = ada.id;
    ada.close();
    bob.close();
    const gone = await has("disconnected");
    assert.equal(gone.reason, "client namespace disconnect");
    const lines = followed();
    for (const message of ["connected", "joined", "received", "the hook has decided about the connect", "calls the hook", "emitted", "broadcast", "left", "acknowledged", "the hook is done"]) {
      assert.ok(lines.some((line) => line.message === message), `${message}: ${JSON.stringify(lines)}`);
    }
    assert.ok(lines.every(({ client }) => client.startsWith(`/${id} of "ada" at 127.0.0.1:`)), JSON.stringify(lines));
    const received = lines.find(({ message }) => message === "received");
    assert.equal(received.event, "talk");
    assert.equal(received.bytes, '[{"password":"1234"}]'.length);
    assert.doesNotMatch(JSON.stringify(lines), /1234|for one|for all|secret answer/);
    assert.ok(gateway.lines.every(({ level, target }) => level !== "DEBUG" || target === "roomcast::client"));
  });

  test("a reload follows a client that is connected, by its socket or connection or address, and stops again", async () => {
    const client = await connect("eve");
    for (const name of [client.id, client.io.engine.id, "127.0.0.1"]) {
      const from = gateway.lines.length;
      await gateway.reload(settings(`log_client = ["${name}"]\nlog_level = "info,roomcast::client=trace"`));
      await has("following a socket", from);
      await ask(client, "talk", { password: "1234" });
      const received = await has("received", from);
      assert.equal(received.args, '[{"password":"1234"}]');
    }
    await gateway.reload(settings('log_client = "off"'));
    const from = gateway.lines.length;
    await ask(client, "talk", 1);
    client.close();
    await until("the disconnects", async () => (await gateway.metric('roomcast_sockets{namespace="/"}')) === 0, PATIENCE);
    assert.deepEqual(followed(from), []);
  });
});
