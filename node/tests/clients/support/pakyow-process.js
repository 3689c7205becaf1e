// A stand-in for a process of Pakyow: the commands that its registry sends to Redis, and no others.

"use strict";

const { createHash } = require("node:crypto");
const { createClient } = require("redis");

/** The digest of a connection id and its key. */
function digestOf(id, key) {
  return createHash("sha1").update(`--${key}--${id}--`).digest("hex");
}

/** Connects; `hash` has the subscriptions. `heard` collects `[channel, text]` of what others publish on the channels of its sockets. */
async function startProcess(url, hash = "pw:channels") {
  const commands = await createClient({ url, RESP: 2 }).on("error", () => {}).connect();
  const subscriber = await createClient({ url, RESP: 2 }).on("error", () => {}).connect();
  const command = (...args) => commands.sendCommand(args);
  const channels = async (digest) => JSON.parse((await command("HGET", hash, digest)) ?? "[]");
  const heard = [];
  return {
    heard,
    channels,
    /** As `socket.subscribe` does, from any request. */
    async subscribe(digest, ...names) {
      const known = await channels(digest);
      await command("HSET", hash, digest, JSON.stringify([...new Set([...known, ...names])]));
    },
    async unsubscribe(digest, ...names) {
      const known = await channels(digest);
      await command("HSET", hash, digest, JSON.stringify(known.filter((name) => !names.includes(name))));
    },
    /** A socket has connected to this process, which listens to its channels. */
    async register(digest) {
      const own = `pw:socket:${digest}`;
      const known = [...new Set([...(await channels(digest)), own])];
      await command("HSET", hash, digest, JSON.stringify(known));
      await subscriber.subscribe(known, (text, channel) => heard.push([channel, text]));
    },
    /** It has disconnected. */
    async unregister(digest) {
      await subscriber.unsubscribe();
      await command("HDEL", hash, digest);
    },
    push: (message, channel) => command("PUBLISH", channel, JSON.stringify(message)),
    pushTo(message, channel, digest) {
      return command("PUBLISH", `pw:socket:${digest}`, JSON.stringify({ key: digest, channel, message }));
    },
    publish: (channel, text) => command("PUBLISH", channel, text),
    stop() {
      commands.destroy();
      subscriber.destroy();
    },
  };
}

module.exports = { startProcess, digestOf };
