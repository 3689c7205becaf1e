// What must work between the servers of a cluster, whoever of them says it and whoever hears it.

"use strict";

const assert = require("node:assert/strict");
const { after, before, describe, test } = require("node:test");

const { next, until } = require("../support/wait");
const { Cast, PEOPLE } = require("./members");

// A target as in node-peer.js, and who is meant by it. `from` names a person, whose server sends.
const TARGETS = [
  [{}, ["ada", "bob", "cid", "dan", "eve", "fay"]],
  [{ to: ["x"] }, ["ada", "bob", "eve"]],
  [{ to: ["x", "y"] }, ["ada", "bob", "cid", "eve"]],
  [{ to: ["x", "y", "z"], except: ["y"] }, ["ada", "fay"]],
  [{ except: ["x"] }, ["cid", "dan", "fay"]],
  [{ except: ["x", "y"] }, ["dan", "fay"]],
  [{ to: ["x"], except: ["y"] }, ["ada"]],
  [{ to: ["nobody is here"] }, []],
  [{ to: ["x", "nobody is here"], except: ["nor here"] }, ["ada", "bob", "eve"]],
];

// What a socket says reaches everybody but itself.
const FROM_SOCKETS = [
  [{}, Object.keys(PEOPLE)],
  [{ to: ["x"] }, ["ada", "bob", "eve"]],
  [{ to: ["x", "y"], except: ["z"] }, ["ada", "bob", "cid", "eve"]],
  [{ except: ["y"] }, ["ada", "dan", "fay"]],
];

const VALUES = [
  1, -1, 1.5, 2 ** 40, 0, "", "ünïcödé 😀", null, true, false, [], {}, [[1, [2]]],
  { deep: { list: [{ a: 1 }] } },
];

const HANDSHAKE = ["address", "auth", "headers", "issued", "query", "secure", "time", "url", "xdomain"];

module.exports = (context) => {
  for (const namespace of ["/", "/org-1"]) {
    describe(`in ${namespace}`, () => {
      let cast;
      before(async () => {
        cast = await Cast.open(context.servers, namespace);
      });
      after(() => cast?.close());
      const environment = {
        get cast() { return cast; },
        get servers() { return context.servers; },
        get sockets() { return cast.sockets; },
        get hasSeveralPrimaries() { return context.hasSeveralPrimaries; },
        isSharded: (context.config.dialect ?? "classic") !== "classic",
      };
      broadcasts(environment);
      if (namespace === "/") {
        acknowledgements(environment);
        sockets(environment);
        servers(environment);
        namespaces(environment);
      }
    });
  }
};

function broadcasts(context) {
  test("each operator reaches exactly its sockets, each once, from every server", async () => {
    const { cast } = context;
    for (const server of context.servers) {
      for (const [target, expected] of TARGETS) {
        const reached = await cast.receivers(expected.length, (event) => {
          return cast.tell(server, "emit", { ...target, event, args: [] });
        });
        assert.deepEqual(reached, expected, `${server.name} ${JSON.stringify(target)}`);
      }
    }
  });

  test("what two servers publish reaches the members on all in one order, that of its ids", async () => {
    const { cast } = context;
    const publishers = context.servers.filter(({ kind }) => kind === "roomcast");
    const members = ["ada", "bob", "eve"];
    const rounds = publishers.length === 0 ? 0 : 20;
    const ids = new Map();
    const news = await cast.received(publishers.length * rounds * members.length, (event) => {
      return Promise.all(publishers.map(async (server) => {
        for (let round = 0; round < rounds; round += 1) {
          const args = [`${server.name} ${round}`, Buffer.from([round])];
          const { position } = await cast.tell(server, "publish", { to: ["x"], event, args });
          ids.set(args[0], position);
        }
      }));
    });
    const expected = [...ids.keys()].sort((a, b) => ids.get(a) - ids.get(b));
    assert.equal(new Set(ids.values()).size, publishers.length * rounds);
    for (const member of members) {
      const heard = news.filter(({ name }) => name === member);
      assert.deepEqual(heard.map(({ args: [text] }) => text), expected, member);
      // Node's server with a JSON parser hands out the object that JSON makes of a buffer.
      const isWhole = ({ args: [text, bytes] }) => (bytes.data ?? bytes)[0] === Number(text.split(" ")[1]);
      assert.ok(heard.every(isWhole), member);
    }
    assert.equal(news.length, publishers.length * rounds * members.length);
  });

  test("a socket's broadcast leaves out the socket", async () => {
    const { cast } = context;
    for (const name of ["ada", "cid", "fay"]) {
      for (const [target, expected] of FROM_SOCKETS) {
        const others = expected.filter((other) => other !== name);
        const reached = await cast.receivers(others.length, (event) => {
          const from = cast.sockets[name].id;
          return cast.tell(cast.on(name), "emit", { ...target, from, event, args: [] });
        });
        assert.deepEqual(reached, others, `${name} ${JSON.stringify(target)}`);
      }
    }
  });

  test("a message to a socket's own room reaches that socket, wherever it is", async () => {
    const { cast } = context;
    for (const server of context.servers) {
      for (const [name, socket] of Object.entries(cast.sockets)) {
        const reached = await cast.receivers(1, (event) => {
          return cast.tell(server, "emit", { to: [socket.id], event, args: [] });
        });
        assert.deepEqual(reached, [name], `${server.name} to ${name}`);
        const others = await cast.receivers(5, (event) => {
          return cast.tell(server, "emit", { except: [socket.id], event, args: [] });
        });
        assert.deepEqual(others, Object.keys(PEOPLE).filter((other) => other !== name));
      }
    }
  });

  test("what is said locally stays on its server", async () => {
    const { cast } = context;
    for (const [i, server] of context.servers.entries()) {
      const here = (name) => PEOPLE[name].server === i;
      for (const [target, expected] of TARGETS) {
        const locals = expected.filter(here);
        const reached = await cast.receivers(locals.length, (event) => {
          return cast.tell(server, "emit", { ...target, local: true, event, args: [] });
        });
        assert.deepEqual(reached, locals, `${server.name} ${JSON.stringify(target)}`);
      }
    }
  });

  test("what is volatile reaches nobody else, and nobody twice", async () => {
    const { cast } = context;
    for (const server of context.servers) {
      const reached = await cast.receivers(0, (event) => {
        return cast.tell(server, "emit", { to: ["x"], volatile: true, event, args: [] });
      });
      assert.deepEqual(reached.filter((name) => !["ada", "bob", "eve"].includes(name)), []);
      assert.equal(new Set(reached).size, reached.length);
    }
  });

  test("values of all kinds arrive as they were sent", async () => {
    const { cast } = context;
    for (const server of context.servers) {
      const everybody = Object.keys(PEOPLE).length;
      const received = await cast.received(everybody, (event) => {
        return cast.tell(server, "emit", { event, args: VALUES });
      });
      assert.equal(received.length, everybody);
      for (const { name, args } of received) {
        assert.deepEqual(args, VALUES, `${server.name} to ${name}`);
      }
    }
  });

  test("binary arrives, at the top and inside", async () => {
    const { cast } = context;
    const args = [Buffer.from([0, 255, 1]), { list: [Buffer.from("deep")] }, Buffer.alloc(70_000, 7)];
    for (const server of context.servers) {
      const received = await cast.received(3, (event) => {
        return cast.tell(server, "emit", { to: ["x"], event, args });
      });
      assert.deepEqual(received.map(({ name }) => name).sort(), ["ada", "bob", "eve"]);
      for (const { name, args: [first, { list }, large] } of received) {
        const bytes = [first, list[0], large].map((part) => Buffer.from(part.data ?? part));
        assert.deepEqual(bytes, [args[0], args[1].list[0], args[2]], `${server.name} to ${name}`);
      }
    }
  });

  test("room names of every kind work", async () => {
    const { cast } = context;
    const rooms = ["room with spaces, ünïcödé, 😀 and #/,[*]?\\", "a#b#", "x".repeat(20), "42"];
    for (const room of rooms) {
      const socket = await cast.extra(1, { rooms: [room] });
      const heard = new Set();
      socket.on("to a room", (name) => heard.add(name));
      for (const server of context.servers) {
        await until(`${server.name} to reach ${room}`, async () => {
          await cast.tell(server, "emit", { to: [room], event: "to a room", args: [server.name] });
          return heard.has(server.name);
        });
      }
      socket.disconnect();
    }
  });

  test("the broadcasts of one server arrive in order, none twice, none lost", async () => {
    const { cast } = context;
    const count = 200;
    const total = 3 * count * context.servers.length;
    const received = await cast.received(total, (event) => Promise.all(context.servers.flatMap((server) => {
      return Array.from({ length: count }, (_, i) => {
        return cast.tell(server, "emit", { to: ["x"], event, args: [server.name, i] });
      });
    })));
    for (const { name, kind } of context.servers) {
      for (const person of ["ada", "bob", "eve"]) {
        const numbers = received
          .filter((entry) => entry.name === person && entry.args[0] === name)
          .map(({ args }) => args[1]);
        // An official server publishes through any primary, and each has its own way to the others.
        if (kind === "node" && context.hasSeveralPrimaries) numbers.sort((a, b) => a - b);
        assert.deepEqual(numbers, Array.from({ length: count }, (_, i) => i), `${name} to ${person}`);
      }
    }
  });
}

function acknowledgements(context) {
  const listening = (cast, answers) => {
    for (const [name, socket] of Object.entries(cast.sockets)) {
      socket.on("vote", (question, answer) => answers(name, question, answer));
    }
    return () => {
      for (const socket of Object.values(cast.sockets)) socket.off("vote");
    };
  };

  test("acknowledgements come from all servers", async () => {
    const { cast } = context;
    const stop = listening(cast, (name, question, answer) => answer(`${name}: ${question}`));
    for (const server of context.servers) {
      for (const [target, names] of TARGETS) {
        const { answers, complete } = await cast.tell(server, "ask", {
          ...target, event: "vote", args: ["tea?"], timeout: 5000,
        });
        const expected = names.map((name) => `${name}: tea?`);
        assert.deepEqual(answers.sort(), expected, `${server.name} ${JSON.stringify(target)}`);
        assert.equal(complete, true, `${server.name} ${JSON.stringify(target)}`);
      }
    }
    stop();
  });

  test("who does not answer does not keep the others' answers back", async () => {
    const { cast } = context;
    const stop = listening(cast, (name, question, answer) => {
      if (name !== "cid" && name !== "eve") answer(name);
    });
    for (const server of context.servers) {
      const { answers, complete } = await cast.tell(server, "ask", {
        event: "vote", args: ["tea?"], timeout: 500,
      });
      assert.deepEqual(answers.sort(), ["ada", "bob", "dan", "fay"], server.name);
      assert.equal(complete, false, server.name);
    }
    stop();
  });

  test("an acknowledgement may be binary, or empty", async () => {
    const { cast } = context;
    const stop = listening(cast, (_, question, answer) => {
      if (question === "empty") answer();
      else answer(Buffer.from(question));
    });
    for (const server of context.servers) {
      const binary = await cast.tell(server, "ask", {
        to: ["z"], event: "vote", args: ["bytes"], timeout: 5000,
      });
      const [bytes] = binary.answers.map((answer) => Buffer.from(answer.data ?? answer));
      assert.deepEqual(bytes, Buffer.from("bytes"), server.name);
      const empty = await cast.tell(server, "ask", {
        to: ["y"], event: "vote", args: ["empty"], timeout: 5000,
      });
      assert.deepEqual(empty, { answers: [null, null, null], complete: true }, server.name);
    }
    stop();
  });
}

function sockets(context) {
  test("every server finds the same sockets, with handshake, rooms and data", async () => {
    const { cast } = context;
    for (const [target, names] of TARGETS) {
      const views = await Promise.all(context.servers.map(async (server) => {
        const { sockets, complete } = await cast.tell(server, "fetch", target);
        assert.equal(complete, true, server.name);
        return sockets
          .map((socket) => ({ ...socket, rooms: [...socket.rooms].sort() }))
          .sort((a, b) => (a.data.name < b.data.name ? -1 : 1));
      }));
      for (const [i, view] of views.entries()) {
        const what = `${context.servers[i].name} ${JSON.stringify(target)}`;
        assert.deepEqual(view.map(({ data }) => data.name), names, what);
        assert.deepEqual(view, views[0], what);
      }
      for (const { id, data: { name }, rooms, handshake } of views[0]) {
        assert.equal(id, cast.sockets[name].id);
        assert.deepEqual(rooms, [id, ...PEOPLE[name].rooms].sort());
        assert.deepEqual(Object.keys(handshake).sort(), HANDSHAKE);
        assert.deepEqual(handshake.auth, { name });
        assert.equal(handshake.query.EIO, "4");
      }
    }
  });

  test("every server knows all rooms", async () => {
    const { cast } = context;
    const expected = ["x", "y", "z", ...Object.values(cast.sockets).map(({ id }) => id)].sort();
    for (const server of context.servers) {
      // Node's sharded adapter has no such question.
      if (context.isSharded && server.kind === "node") continue;
      const { rooms, complete } = await cast.tell(server, "rooms");
      assert.deepEqual(rooms.filter((room) => expected.includes(room)).sort(), expected, server.name);
      assert.equal(complete, true, server.name);
    }
  });

  test("every server makes the sockets of all servers join and leave", async () => {
    const { cast } = context;
    for (const [i, server] of context.servers.entries()) {
      const room = `joined ${i}`;
      await cast.tell(server, "join", { to: ["x", "z"], except: ["y"], rooms: [room, "both"] });
      await roomsBecome(cast, { ada: [room, "both"], fay: [room, "both"], bob: [], cid: [] });
      await until(`${room} to be heard`, async () => {
        const reached = await cast.receivers(0, (event) => {
          return cast.tell(server, "emit", { to: [room], event, args: [] });
        });
        return reached.join() === "ada,fay";
      });
      await cast.tell(server, "leave", { to: ["z"], rooms: [room, "both"] });
      await roomsBecome(cast, { ada: [room, "both"], fay: [] });
      await cast.tell(server, "leave", { rooms: [room, "both"] });
      await roomsBecome(cast, { ada: [], fay: [] });
      assert.deepEqual(await cast.receivers(0, (event) => {
        return cast.tell(server, "emit", { to: [room], event, args: [] });
      }), []);
    }
  });

  test("every server disconnects the sockets of all servers", async () => {
    const { cast } = context;
    for (const server of context.servers) {
      for (const close of [false, true]) {
        const room = `doomed by ${server.name} ${close}`;
        const doomed = await Promise.all([0, 1, 2].map((i) => cast.extra(i, { rooms: [room] })));
        const gone = Promise.all(doomed.map((socket) => next(socket, "disconnect")));
        await cast.tell(server, "disconnect", { to: [room], close });
        for (const [reason] of await gone) assert.equal(reason, "io server disconnect");
      }
    }
    const { sockets } = await cast.tell(context.servers[0], "fetch");
    assert.equal(sockets.length, Object.keys(PEOPLE).length);
  });

  test("a fetched socket can be talked to, moved and disconnected", async () => {
    const { cast } = context;
    for (const [i, server] of context.servers.entries()) {
      for (const other of [0, 1, 2].filter((other) => other !== i)) {
        const socket = await cast.extra(other);
        socket.on("question", (value, answer) => answer(`remote ${value}`));
        const remote = (what, fields) => cast.tell(server, "remote", { sid: socket.id, what, ...fields });
        const heard = next(socket, "hello");
        await remote("emit", { event: "hello", args: [1, "two"] });
        assert.deepEqual(await heard, [1, "two"]);
        const { answers } = await remote("ask", { event: "question", args: [7], timeout: 5000 });
        assert.deepEqual(answers, ["remote 7"]);
        const rooms = async () => {
          return (await cast.tell(context.servers[other], "own", { sid: socket.id, what: "rooms" })).rooms;
        };
        await remote("join", { rooms: ["r", "s"] });
        await until("the socket to join", async () => (await rooms()).join() === "r,s");
        await remote("leave", { rooms: ["s"] });
        await until("the socket to leave", async () => (await rooms()).join() === "r");
        const gone = next(socket, "disconnect");
        await remote("disconnect", { close: true });
        assert.deepEqual((await gone)[0], "io server disconnect");
      }
    }
  });

  async function roomsBecome(cast, expected) {
    for (const [name, added] of Object.entries(expected)) {
      const rooms = [...PEOPLE[name].rooms, ...added].sort().join();
      await until(`${name} to be in ${rooms}`, async () => {
        const own = await cast.tell(cast.on(name), "own", { sid: cast.sockets[name].id, what: "rooms" });
        return own.rooms.join() === rooms;
      });
    }
  }
}

function servers(context) {
  test("a server-side event reaches all other servers, once, and not its sender", async () => {
    const { cast } = context;
    for (const server of context.servers) {
      const notes = [];
      const listeners = context.servers.map((other) => {
        const listener = ({ args }) => notes.push([other.name, ...args]);
        other.on("note", listener);
        return () => other.off("note", listener);
      });
      const args = [{ a: [1, null] }, "text", 2.5];
      await cast.tell(server, "serverSideEmit", { event: "note", args });
      await cast.tell(server, "serverSideEmit", { event: "note", args: ["fence"] });
      const others = context.servers.filter((other) => other !== server).map(({ name }) => name);
      // The handlers of a server run side by side, so the fence may come first.
      await until("the others' notes", () => notes.length >= 2 * others.length);
      const expected = others.flatMap((name) => [[name, ...args], [name, "fence"]]);
      assert.deepEqual(notes.sort(byText), expected.sort(byText), server.name);
      for (const stop of listeners) stop();
    }
  });

  test("a server-side question is answered by all other servers", async () => {
    const { cast } = context;
    for (const server of context.servers) {
      const asked = await cast.tell(server, "serverSideAsk", { event: "question", args: ["who?"] });
      const others = context.servers.filter((other) => other !== server);
      const expected = others.map(({ name }) => `${name}: who?`).sort();
      assert.deepEqual(asked.answers.sort(), expected, server.name);
      assert.equal(asked.complete, true, server.name);
    }
  });

  test("a server-side event carries binary in Node's form", async () => {
    const { cast } = context;
    for (const server of context.servers) {
      const others = context.servers.filter((other) => other !== server);
      const arrived = Promise.all(others.map((other) => next(other, "note")));
      await cast.tell(server, "serverSideEmit", { event: "note", args: [Buffer.from("ab")] });
      for (const [{ args: [bytes] }] of await arrived) {
        assert.deepEqual(Buffer.from(bytes.data ?? bytes), Buffer.from("ab"), server.name);
      }
    }
  });

  function byText(a, b) {
    return JSON.stringify(a) < JSON.stringify(b) ? -1 : 1;
  }
}

function namespaces(context) {
  let round = 0;
  const fresh = () => `/org-${(round += 1)}0`;

  test("a namespace that exists for one server's client is reached from all servers", async () => {
    for (const home of [0, 1, 2]) {
      const namespace = fresh();
      const socket = await context.cast.stray(home, namespace);
      const heard = [];
      socket.on("news", (name) => heard.push(name));
      for (const { name, tell } of bound(context.servers)) {
        await until(`${name} to reach ${namespace}`, async () => {
          await tell("emit", { namespace, event: "news", args: [name] });
          return heard.includes(name);
        });
        // A server that emitted leaves the namespace again. If it is counted and does not receive the
        // question, the result names it as silent, or an official server rejects the question, once.
        await until(`${name} to have all responses of ${namespace}`, async () => {
          const found = await tell("fetch", { namespace }).catch((error) => {
            if (!error.message.includes("timeout reached")) throw error;
          });
          if (!found) return false;
          assert.deepEqual(found.sockets.map(({ id }) => id), [socket.id], name);
          return found.complete;
        }, 20_000);
      }
    }
  });

  test("a namespace that clients have left on one server lives on elsewhere", async () => {
    for (const left of [0, 1, 2]) {
      const namespace = fresh();
      const sockets = await Promise.all([0, 1, 2].map((i) => context.cast.stray(i, namespace)));
      const gone = sockets[left].id;
      const stay = sockets.map(({ id }) => id).filter((id) => id !== gone).sort();
      for (const { name, tell } of bound(context.servers)) {
        await until(`${name} to find three sockets`, async () => {
          return (await tell("fetch", { namespace })).sockets.length === 3;
        });
      }
      sockets[left].disconnect();
      for (const { name, tell } of bound(context.servers.filter((_, i) => i !== left))) {
        await until(`${name} to find the two that are left`, async () => {
          const { sockets, complete } = await tell("fetch", { namespace });
          return complete && sockets.map(({ id }) => id).sort().join() === stay.join();
        });
        const heard = Promise.all(sockets.filter((_, i) => i !== left).map((socket) => next(socket, "news")));
        await tell("emit", { namespace, event: "news", args: [1] });
        assert.deepEqual(await heard, [[1], [1]], name);
      }
    }
  });

  test("what is said to a room after a confirmed join arrives", async () => {
    const { cast } = context;
    for (const [home, server] of context.servers.entries()) {
      // Official servers confirm nothing; in the classic dialect they hear everything anyway.
      if (server.kind === "node" && context.isSharded) continue;
      const socket = await cast.extra(home);
      const heard = [];
      socket.on("news", (...args) => heard.push(args.join()));
      const expected = [];
      for (let i = 0; i < 20; i += 1) {
        await cast.tell(server, "own", { sid: socket.id, what: "join", rooms: [`fresh ${i}`] });
        for (const other of context.servers) {
          await cast.tell(other, "emit", { to: [`fresh ${i}`], event: "news", args: [i, other.name] });
          expected.push(`${i},${other.name}`);
        }
      }
      await until("all news", () => heard.length >= expected.length);
      assert.deepEqual(heard.sort(), expected.sort(), server.name);
      socket.disconnect();
    }
  });

  function bound(servers) {
    return servers.map((server) => {
      return { kind: server.kind, name: server.name, tell: server.tell.bind(server) };
    });
  }
}
