// Rooms, every broadcast operator, and the operations on other sockets.

"use strict";

const assert = require("node:assert/strict");
const { beforeEach, describe, test } = require("node:test");

const { ask, collect, next } = require("../support/wait");

// Ada is in x, Bob in x and y, Cid in y, Dan in no room; Ada is the one who sends.
const TARGETS = [
  [{ from: "io" }, ["ada", "bob", "cid", "dan"]],
  [{ from: "io", to: ["x"] }, ["ada", "bob"]],
  [{ from: "socket", to: ["x"] }, ["bob"]],
  [{ from: "io", to: ["x", "y"] }, ["ada", "bob", "cid"]],
  [{ from: "socket", to: ["x", "y"] }, ["bob", "cid"]],
  [{ from: "io", except: ["x"] }, ["cid", "dan"]],
  [{ from: "io", except: ["x", "y"] }, ["dan"]],
  [{ from: "socket", except: ["y"] }, ["dan"]],
  [{ from: "io", to: ["x"], except: ["y"] }, ["ada"]],
  [{ from: "socket", to: ["x"], except: ["y"] }, []],
  [{ from: "socket", flags: ["broadcast"] }, ["bob", "cid", "dan"]],
  [{ from: "socket", to: ["y"], flags: ["broadcast"] }, ["bob", "cid"]],
  [{ from: "socket", except: ["x"], flags: ["broadcast"] }, ["cid", "dan"]],
  [{ from: "io", to: ["y"], flags: ["local"] }, ["bob", "cid"]],
  [{ from: "io", to: ["nobody is here"] }, []],
  [{ from: "io", to: ["x", "nobody is here"], except: ["nor here"] }, ["ada", "bob"]],
];

module.exports = (context) => {
  describe("rooms", () => {
    let people;
    // Namespaces don't end with a test; a fresh one keeps sockets that are still leaving out of it.
    let round = 0;
    beforeEach(async () => {
      round += 1;
      const namespace = `/org-${context.way}${round}`;
      const names = ["ada", "bob", "cid", "dan"];
      const sockets = await Promise.all(names.map(() => context.sockets.connected(namespace)));
      people = Object.fromEntries(names.map((name, i) => [name, sockets[i]]));
      await Promise.all([
        ask(people.ada, "join", "x"),
        ask(people.bob, "join", ["x", "y"]),
        ask(people.cid, "join", "y"),
      ]);
    });

    test("joining twice is joining once, leaving a strange room changes nothing", async () => {
      assert.deepEqual(await ask(people.ada, "join", "x"), ["x"]);
      assert.deepEqual(await ask(people.ada, "leave", "unknown"), ["x"]);
      const odd = "room with spaces, ünïcödé, 😀 and #/,[*]?\\";
      assert.deepEqual(await ask(people.ada, "join", odd), [odd, "x"]);
      assert.deepEqual(await receivers({ from: "io", to: [odd] }), ["ada"]);
      assert.deepEqual(await ask(people.ada, "leave", odd), ["x"]);
      assert.deepEqual(await receivers({ from: "io", to: [odd] }), []);
    });

    test("each operator reaches exactly its sockets, each once", async () => {
      for (const [target, expected] of TARGETS) {
        assert.deepEqual(await receivers(target), expected, JSON.stringify(target));
      }
      const { ada, bob } = people;
      assert.deepEqual(await receivers({ from: "io", to: [bob.id] }), ["bob"]);
      assert.deepEqual(await receivers({ from: "socket", to: [ada.id] }), []);
      assert.deepEqual(await receivers({ from: "io", except: [bob.id] }), ["ada", "cid", "dan"]);
    });

    test("a volatile broadcast reaches nobody else", async () => {
      const reached = await receivers({ from: "io", to: ["x"], flags: ["volatile"] });
      assert.deepEqual(reached.filter((name) => !["ada", "bob"].includes(name)), []);
      assert.equal(new Set(reached).size, reached.length);
    });

    test("a broadcast carries binary and many arguments", async () => {
      const news = next(people.cid, "news");
      const args = [Buffer.from("abc"), { list: [Buffer.from("de")] }, "text"];
      await ask(people.ada, "broadcast", { from: "io", to: ["y"], event: "news", args });
      const [first, second, third] = await news;
      assert.equal(Buffer.from(first).toString(), "abc");
      assert.equal(Buffer.from(second.list[0]).toString(), "de");
      assert.equal(third, "text");
    });

    test("broadcasts of one sender arrive in order", async () => {
      const seen = collect(people.dan, "news", 200);
      for (let i = 0; i < 200; i += 1) {
        people.ada.emit("broadcast", { from: "io", event: "news", args: [i] }, () => {});
      }
      assert.deepEqual(await seen, Array.from({ length: 200 }, (_, i) => i));
    });

    test("a broadcast with ack gathers the answers", async () => {
      for (const [name, socket] of Object.entries(people)) {
        socket.on("vote", (question, answer) => answer(`${name}: ${question}`));
      }
      const target = { from: "io", to: ["x", "y"], event: "vote", args: ["tea?"], timeout: 5000 };
      const votes = await ask(people.ada, "broadcast-ack", target);
      assert.deepEqual(votes.answers.sort(), ["ada: tea?", "bob: tea?", "cid: tea?"]);
      assert.equal(votes.missing, 0);
      const others = await ask(people.ada, "broadcast-ack", { ...target, from: "socket" });
      assert.deepEqual(others.answers.sort(), ["bob: tea?", "cid: tea?"]);
    });

    test("a broadcast with ack reports who did not answer", async () => {
      people.bob.on("vote", (answer) => answer("yes"));
      people.cid.on("vote", () => {});
      const target = { from: "io", to: ["y"], event: "vote", args: [], timeout: 300 };
      const votes = await ask(people.ada, "broadcast-ack", target);
      assert.deepEqual(votes, { answers: ["yes"], missing: 1 });
      const nobody = await ask(people.ada, "broadcast-ack", { ...target, to: ["empty"] });
      assert.deepEqual(nobody, { answers: [], missing: 0 });
    });

    test("fetching sockets shows ids, rooms and data", async () => {
      await ask(people.bob, "set-data", { name: "Bob" });
      const found = await ask(people.ada, "fetch", { from: "io", to: ["x", "y"] });
      const expected = [
        { id: people.ada.id, rooms: ["x"], data: null },
        { id: people.bob.id, rooms: ["x", "y"], data: { name: "Bob" } },
        { id: people.cid.id, rooms: ["y"], data: null },
      ];
      assert.deepEqual(found, expected.sort((a, b) => (a.id < b.id ? -1 : 1)));
      const all = await ask(people.ada, "fetch", { from: "io" });
      assert.equal(all.length, 4);
      const rest = await ask(people.ada, "fetch", { from: "io", except: ["x"] });
      assert.equal(rest.length, 2);
    });

    test("other sockets can be made to join and leave", async () => {
      await ask(people.ada, "sockets-join", { from: "io", to: ["y"] }, ["z", "w"]);
      assert.deepEqual(await ask(people.cid, "rooms"), ["w", "y", "z"]);
      assert.deepEqual(await receivers({ from: "io", to: ["z"] }), ["bob", "cid"]);
      await ask(people.ada, "sockets-leave", { from: "io", to: ["x"] }, ["z", "x"]);
      assert.deepEqual(await ask(people.bob, "rooms"), ["w", "y"]);
      assert.deepEqual(await receivers({ from: "io", to: ["z"] }), ["cid"]);
      assert.deepEqual(await receivers({ from: "io", to: ["x"] }), []);
    });

    test("other sockets can be disconnected", async () => {
      const gone = Promise.all([next(people.bob, "disconnect"), next(people.cid, "disconnect")]);
      people.ada.emit("disconnect-sockets", { from: "io", to: ["y"] }, true);
      const [[bob], [cid]] = await gone;
      assert.deepEqual([bob, cid], ["io server disconnect", "io server disconnect"]);
      const left = await ask(people.ada, "fetch", { from: "io" });
      assert.deepEqual(left.map(({ id }) => id).sort(), [people.ada.id, people.dan.id].sort());
    });

    test("who disconnects is in no room any more", async () => {
      const { id } = people.bob;
      people.bob.disconnect();
      await ask(people.ada, "disconnect-reason", id);
      assert.deepEqual(await ask(people.ada, "fetch", { from: "io", to: [id] }), []);
      const left = await ask(people.ada, "fetch", { from: "io", to: ["x", "y"] });
      assert.deepEqual(left.map((found) => found.id).sort(), [people.ada.id, people.cid.id].sort());
    });

    // An event that must not arrive shows by what came before the next broadcast to everybody: one
    // sender's broadcasts arrive in order.
    async function receivers(target) {
      const reached = [];
      const fences = Object.entries(people).map(([name, socket]) => {
        const listener = () => reached.push(name);
        socket.on("news", listener);
        return next(socket, "fence").finally(() => socket.off("news", listener));
      });
      await ask(people.ada, "broadcast", { ...target, event: "news", args: [] });
      await ask(people.ada, "broadcast", { from: "io", event: "fence", args: [] });
      await Promise.all(fences);
      return reached.sort();
    }
  });
};
