// Syncano's door with its SDKs for JavaScript, both versions, and the examples of the original guide.
// ROOMCAST is the program. With SYNCANO_PYTHON, a Python up to 3.7 that has the package `syncano`, the
// SDK for Python makes its calls, too; without it, the requests that it was seen to make are replayed.

"use strict";

const assert = require("node:assert/strict");
const { execFile } = require("node:child_process");
const { createHash } = require("node:crypto");
const { join } = require("node:path");
const { after, before, describe, test } = require("node:test");
const { promisify } = require("node:util");

const { startGateway } = require("./support/gateway");
const { deadline, until } = require("./support/wait");

const ACCOUNT = "a".repeat(39) + "2";
const FREE = "b".repeat(39) + "1";
const PLAIN = "c".repeat(39) + "1";
const USERS = ["d", "e", "f"].map((letter) => letter.repeat(39) + "1");

const hash = (key) => `sha256:${createHash("sha256").update(key).digest("hex")}`;

const SETTINGS = `
[doors.syncano.instances.my-instance]
keys = [
  { id = 1, kind = "account", hash = "${hash(ACCOUNT)}" },
  { id = 2, kind = "api", hash = "${hash(FREE)}", ignore_acl = true },
  { id = 3, kind = "api", hash = "${hash(PLAIN)}" },
]
users = [
${USERS.map((key, index) => `  { id = ${index + 1}, hash = "${hash(key)}", groups = [7] },`).join("\n")}
]
[doors.syncano.instances.my-instance.channels]
alerts = { other_permissions = "publish", custom_publish = true }
chatroom = { type = "separate_rooms", group = 7, group_permissions = "publish", custom_publish = true }
[doors.syncano.instances.my-instance.classes.book]
schema = [{ name = "title", type = "string" }, { name = "author", type = "string" }]
`;

let gateway;

before(async () => {
  gateway = await startGateway(SETTINGS);
});
after(() => gateway.stop());

const parked = (count) =>
  until(`${count} parked polls`, async () => (await gateway.metric('roomcast_door_parked{door="syncano"}')) === count);

/** The next event of a poll of the SDK, whose emitter has no `off`. */
const event = (poll, name) => deadline(new Promise((resolve) => poll.on(name, resolve)), 10_000, name);

/** A request as curl sends it. */
async function curl(method, path, body, key = FREE, more = {}) {
  const headers = { "X-API-KEY": key, ...more };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const url = `${gateway.url}/v1.1/instances/my-instance/${path}`;
  const response = await fetch(url, { method, headers, body: body && JSON.stringify(body) });
  const text = await response.text();
  return { status: response.status, body: text ? JSON.parse(text) : null };
}

describe("the examples of the guide", () => {
  test("a data object is created with a channel and a room, and a poll of the room hears of it", async () => {
    const poll = curl("GET", "channels/chatroom/poll/?room=library");
    await parked(1);
    const object = { title: "Emma", author: "Austen", channel: "chatroom", channel_room: "library" };
    const made = await curl("POST", "classes/book/objects/", object);
    assert.equal(made.status, 201);
    const { body } = await poll;
    assert.equal(body.action, "create");
    assert.deepEqual(body.metadata, { type: "object", class: "book" });
    assert.equal(body.payload.title, "Emma");
    assert.equal(body.payload.id, made.body.id);
  });

  test("a custom message is published with a payload and a room, and polled by last_id", async () => {
    const message = { payload: { text: "hello" }, room: "kitchen" };
    const { status, body } = await curl("POST", "channels/chatroom/publish/", message);
    assert.equal(status, 201);
    const polled = await curl("GET", `channels/chatroom/poll/?room=kitchen&last_id=${body.id - 1}`);
    const { links, ...wanted } = body;
    assert.match(links.self, /^\/v1\.1\/instances\/my-instance\/channels\/chatroom\/history\/\d+\/$/);
    assert.deepEqual(polled.body, wanted);
  });

  test("a private message reaches the user who polls a room of its own, and nobody else", async () => {
    const poll = (user) => curl("GET", `channels/chatroom/poll/?room=user-${user}`, undefined, PLAIN, { "X-USER-KEY": USERS[user] });
    const polls = [poll(0), poll(1)];
    await parked(2);
    const send = (user) =>
      curl("POST", "channels/chatroom/publish/", { payload: { for: user }, room: `user-${user}` }, PLAIN, { "X-USER-KEY": USERS[2] });
    assert.equal((await send(1)).status, 201);
    const { body } = await polls[1];
    assert.deepEqual(body.payload, { for: 1 });
    assert.deepEqual(body.author, { api_key: 3, user: 3 });
    await parked(1);
    await send(0);
    assert.deepEqual((await polls[0]).body.payload, { for: 0 });
  });

  test("three users poll one general room, and each hears every message", async () => {
    const heard = USERS.map(() => []);
    const polls = USERS.map(async (key, user) => {
      let last = "";
      while (heard[user].length < 3) {
        const { status, body } = await curl("GET", `channels/chatroom/poll/?room=general&last_id=${last}`, undefined, PLAIN, {
          "X-USER-KEY": key,
        });
        assert.equal(status, 200);
        heard[user].push(body.payload.n);
        last = body.id;
      }
    });
    await parked(3);
    for (const [index, key] of USERS.entries()) {
      const message = { payload: { n: index }, room: "General" };
      const { status } = await curl("POST", "channels/chatroom/publish/", message, PLAIN, { "X-USER-KEY": key });
      assert.equal(status, 201);
    }
    await Promise.all(polls);
    assert.deepEqual(heard, [
      [0, 1, 2],
      [0, 1, 2],
      [0, 1, 2],
    ]);
  });
});

for (const name of ["syncano", "syncano-1-0-1"]) {
  describe(`the SDK for JavaScript, ${name}`, () => {
    // Prefixes of names keep the versions apart.
    const room = (text) => `${name}-${text}`;
    let connection;
    let Channel;

    /** Polls a room of the channel. The old version polls from a channel that it holds. */
    function pollRoom(text) {
      const place = { instanceName: "my-instance", name: "chatroom" };
      const options = { room: room(text) };
      return name === "syncano" ? Channel.please().poll(place, options) : Channel(place).poll(options);
    }

    function publish(message, text) {
      const place = { instanceName: "my-instance", name: "chatroom" };
      return name === "syncano" ? Channel.please().publish(place, message, room(text)) : Channel(place).publish(message, room(text));
    }

    before(() => {
      const module = require(name);
      const Syncano = module.default ?? module;
      connection = Syncano({ accountKey: ACCOUNT, baseUrl: gateway.url });
      ({ Channel } = connection);
    });

    test("creates a channel, shows, changes, lists and deletes it", async () => {
      const channel = `${name}-made`;
      const made = await Channel.please().create({ instanceName: "my-instance", name: channel, type: "separate_rooms", custom_publish: true });
      assert.equal(made.name, channel);
      assert.equal(made.custom_publish, true);
      const place = { instanceName: "my-instance", name: channel };
      assert.equal((await Channel.please().get(place)).type, "separate_rooms");
      const changed = await Channel.please().update(place, { description: "changed" });
      assert.equal(changed.description, "changed");
      const list = async () => (await Channel.please().list({ instanceName: "my-instance" })).map(({ name }) => name);
      const names = await list();
      assert.ok(names.includes(channel) && names.includes("eventlog"), names.join());
      await Channel.please().delete(place);
      assert.ok(!(await list()).includes(channel));
    });

    test("publishes to a room that it polls, and reads its history", async () => {
      const poll = pollRoom("room");
      const messages = [];
      poll.on("message", (message) => messages.push(message.payload.n));
      await parked(1);
      for (const n of [1, 2, 3]) {
        await publish({ n }, "room");
      }
      await until("three messages", () => messages.length === 3);
      assert.deepEqual(messages, [1, 2, 3]);
      const stopped = event(poll, "stop");
      await parked(1);
      poll.stop();
      await publish({ n: 4 }, "room");
      await stopped;
      await parked(0);
      const { body } = await curl("GET", `channels/chatroom/history/?room=${room("room")}`);
      const { objects } = body;
      assert.deepEqual(
        objects.map((entry) => entry.payload.n),
        [4, 3, 2, 1],
      );
    });

    test("hears of the objects that it creates with a channel", async () => {
      const poll = pollRoom("books");
      const created = event(poll, "create");
      await parked(1);
      const { DataObject } = connection;
      const object = await DataObject.please().create({
        instanceName: "my-instance",
        className: "book",
        title: "Emma",
        channel: "chatroom",
        channel_room: room("books"),
      });
      const message = await created;
      assert.equal(message.payload.title, "Emma");
      assert.equal(message.payload.id, object.id);
      await parked(1);
      poll.stop();
      await DataObject.please().delete({ instanceName: "my-instance", className: "book", id: object.id });
      await parked(0);
    });
  });
}

describe("the SDK for Python", { skip: process.env.SYNCANO_PYTHON === undefined && "SYNCANO_PYTHON is not set" }, () => {
  test("makes its calls: channels, objects, publish, poll, history", async () => {
    const script = join(__dirname, "python", "syncano_sdk.py");
    const environment = { ...process.env, SYNCANO_APIROOT: `${gateway.url}/`, ACCOUNT_KEY: ACCOUNT, API_KEY: FREE };
    const { stdout } = await promisify(execFile)(process.env.SYNCANO_PYTHON, [script], { env: environment, timeout: 60_000 });
    assert.match(stdout, /all done/);
  });
});

describe("the requests of the SDK for Python", () => {
  test("publish, poll and history as it was seen to send them", async () => {
    const python = async (method, path, body) => {
      const headers = { Authorization: `token ${FREE}`, "Content-Type": "application/json" };
      const response = await fetch(`${gateway.url}/v1.1/instances/my-instance/${path}`, { method, headers, body });
      return { status: response.status, body: await response.json() };
    };
    assert.equal((await python("GET", "channels/chatroom/")).status, 200);
    const message = JSON.stringify({ payload: JSON.stringify({ from: "python" }), room: "python" });
    const published = await python("POST", "channels/chatroom/publish/", message);
    assert.equal(published.status, 201);
    const { id } = published.body;
    const polled = await python("GET", `channels/chatroom/poll/?room=python&last_id=${id - 1}`);
    assert.deepEqual(polled.body.payload, { from: "python" });
    const all = await python("GET", "channels/chatroom/history/");
    assert.equal(all.body.objects[0].id, id);
    assert.equal((await python("GET", `channels/chatroom/history/${id}/`)).body.id, id);
    assert.equal((await python("GET", "classes/book/")).body.schema.length, 2);
    const made = await python("POST", "classes/book/objects/", JSON.stringify({ title: "A", channel: "chatroom", channel_room: "python" }));
    assert.equal(made.status, 201);
    const changed = await python("POST", `classes/book/objects/${made.body.id}/`, JSON.stringify({ title: "B" }));
    assert.equal(changed.status, 200);
    const update = await python("GET", `channels/chatroom/poll/?room=python&last_id=${id + 1}`);
    assert.ok(["create", "update"].includes(update.body.action), update.body.action);
  });
});
