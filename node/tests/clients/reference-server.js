// The conformance server on the official npm `socket.io` package. It validates the tests of this
// folder: whatever they expect is first shown to be what the real server does. The program
// `conformance` in ../programs has the same handlers; a change here is made there as well.
//
//   reference-server.js [--config '<json>']
//
// prints `listening on 127.0.0.1:PORT` and stops on SIGTERM. Keys of the configuration, all optional:
//   transports, pingInterval, pingTimeout, upgradeTimeout, connectTimeout (milliseconds), maxPayload
//   (bytes), allowEio3, parser ("msgpack"), cors {origin, credentials, allowedHeaders}, cookie (true),
//   httpCompression, limits (an object that this server has no use for).
//
// A target is {from: "io" | "socket", to: [rooms], except: [rooms], flags: ["volatile", "local",
// "broadcast"]}; "broadcast" is socket.broadcast. A room list in an answer is sorted and leaves out the
// socket's own id. "-> x" is what the ack carries; where there is none, the event has no ack.
//
// Events of every namespace
//   echo(...args)                    with ack: -> ...args; without: emits echo(...args)
//   echo-ack(...args)                -> ...args
//   ask-me(timeout = 5000)           emits question(1) with ack, then answered(...answer), or
//                                    unanswered() when the time is over
//   join(room | [rooms])             -> own rooms
//   leave(room)                      -> own rooms
//   rooms()                          -> own rooms
//   broadcast(target + {event, args})              -> true
//   broadcast-ack(target + {event, args, timeout}) -> {answers: [first argument of each], missing: n}
//   fetch(target)                    -> [{id, rooms, data}] sorted by id
//   sockets-join(target, [rooms])    -> true
//   sockets-leave(target, [rooms])   -> true
//   disconnect-sockets(target, close)   no ack: the asker may be among them
//   disconnect-me(close = false)     socket.disconnect(close)
//   disconnect-me-close()            socket.disconnect(true)
//   set-data(value)                  keeps the value with the socket, fetch shows it; -> true
//   get-data()                       -> the value, or null
//   whoami([header names])           -> {id, nsp, rooms, query, headers, auth, address, time};
//                                       address and time say whether the handshake has them (booleans),
//                                       headers has those that were asked for
//   volatile-burst(n)                volatile burst(0) … burst(n - 1), then burst-done(n), not volatile
//   many(n)                          number(0) … number(n - 1), then -> n
//   flood(n, size)                   item(0, text) … item(n - 1, text) at once, each text of this size, then -> n
//   multi()                          emits m(1), m(2), m(<ff>, 3)
//   note(i)                          keeps i in the socket's list, emits noted(i)
//   notes()                          -> that list, in the order of arrival
//   panic()                          the handler fails; only this socket is closed
//   slow(key)                        -> key, but not before release(key) of any socket
//   release(key)                     -> true
//   disconnect-reason(id)            -> Node's name of the reason for which the socket with this id
//                                       was disconnected, as soon as it was
//   recorded()                       -> names of the events that the catch-all listener saw
//
// Namespaces
//   /               /chat            open to everybody
//   /admin                           auth.token must be "secret", else "not authorized" {code: 401}
//   /denied                          always refused: "not authorized", data {code: 401}
//   /denied-nodata                   always refused: "nope", no data
//   /greet                           on connection emits welcome(0), welcome(1), welcome(2)
//   /q                               on connection emits hs(query, auth, id)
//   /flood                           on connection emits item(n, text) 20 times at once, 100,000 characters each
//   /org-{id}  /dyn-{id}             dynamic; the id is letters, digits and underscores

"use strict";

const { createServer } = require("node:http");
const { EventEmitter, once } = require("node:events");
const { Server } = require("socket.io");

const config = readConfig(process.argv.slice(2));
const httpServer = createServer();
const io = new Server(httpServer, optionsFrom(config));

// Released keys and disconnect reasons outlive the question for them: either may come first.
const released = new Latch();
const reasons = new Latch();

for (const name of ["/", "/chat", "/admin", "/denied", "/denied-nodata", "/greet", "/q", "/flood"]) {
  serve(io.of(name));
}
serve(io.of(/^\/org-\w+$/));
serve(io.of(/^\/dyn-\w+$/));

io.of("/admin").use((socket, next) => {
  next(socket.handshake.auth.token === "secret" ? undefined : refusal("not authorized", { code: 401 }));
});
io.of("/denied").use((_, next) => next(refusal("not authorized", { code: 401 })));
io.of("/denied-nodata").use((_, next) => next(refusal("nope")));
io.of("/greet").on("connection", (socket) => {
  for (let i = 0; i < 3; i += 1) socket.emit("welcome", i);
});
io.of("/q").on("connection", (socket) => {
  socket.emit("hs", socket.handshake.query, socket.handshake.auth, socket.id);
});

io.of("/flood").on("connection", (socket) => flood(socket, 20, 100_000));

httpServer.listen(0, "127.0.0.1", () => {
  console.log(`listening on 127.0.0.1:${httpServer.address().port}`);
});
process.on("SIGTERM", () => {
  io.close(() => process.exit(0));
  // Idle keep-alive connections would hold the process for seconds after its last session.
  setImmediate(() => httpServer.closeIdleConnections());
  setTimeout(() => process.exit(0), 1000);
});

function flood(socket, count, size) {
  const text = "x".repeat(size);
  for (let i = 0; i < count; i += 1) socket.emit("item", i, text);
}

function serve(namespace) {
  namespace.on("connection", (socket) => {
    const seen = [];
    const notes = [];
    socket.onAny((name) => seen.push(name));
    socket.on("disconnect", (reason) => reasons.open(socket.id, reason));
    const handlers = {
      ...conversation(socket),
      ...rooms(socket),
      ...endings(socket),
      note: (i) => {
        notes.push(i);
        socket.emit("noted", i);
      },
      notes: (ack) => ack(notes),
      recorded: (ack) => ack(seen),
    };
    for (const [name, handler] of Object.entries(handlers)) {
      socket.on(name, (...args) => guarded(socket, () => handler(...args)));
    }
  });
}

function conversation(socket) {
  return {
    echo: (...args) => {
      if (typeof args.at(-1) === "function") args.pop()(...args);
      else socket.emit("echo", ...args);
    },
    "echo-ack": (...args) => args.pop()(...args),
    "ask-me": (timeout) => {
      socket.timeout(timeout ?? 5000).emit("question", 1, (error, ...answer) => {
        if (error) socket.emit("unanswered");
        else socket.emit("answered", ...answer);
      });
    },
    "set-data": (value, ack) => {
      socket.data.value = value;
      ack(true);
    },
    "get-data": (ack) => ack(socket.data.value ?? null),
    whoami: (names, ack) => ack(describe(socket, names)),
    "volatile-burst": (n) => {
      for (let i = 0; i < n; i += 1) socket.volatile.emit("burst", i);
      socket.emit("burst-done", n);
    },
    many: (n, ack) => {
      for (let i = 0; i < n; i += 1) socket.emit("number", i);
      ack(n);
    },
    flood: (count, size, ack) => {
      flood(socket, count, size);
      ack(count);
    },
    multi: () => {
      socket.emit("m", 1);
      socket.emit("m", 2);
      socket.emit("m", Buffer.from([255]), 3);
    },
    slow: async (key, ack) => ack(await released.wait(key)),
    release: (key, ack) => {
      released.open(key, key);
      ack(true);
    },
  };
}

function rooms(socket) {
  const own = () => [...socket.rooms].filter((room) => room !== socket.id).sort();
  return {
    join: (room, ack) => {
      socket.join(room);
      ack(own());
    },
    leave: (room, ack) => {
      socket.leave(room);
      ack(own());
    },
    rooms: (ack) => ack(own()),
    broadcast: (target, ack) => {
      operator(socket, target).emit(target.event, ...target.args);
      ack(true);
    },
    "broadcast-ack": async (target, ack) => {
      const asked = (await operator(socket, target).fetchSockets()).length;
      operator(socket, target)
        .timeout(target.timeout)
        .emit(target.event, ...target.args, (_, answers) => {
          ack({ answers, missing: asked - answers.length });
        });
    },
    fetch: async (target, ack) => {
      const found = await operator(socket, target).fetchSockets();
      const plain = found.map(({ id, rooms, data }) => ({
        id,
        rooms: [...rooms].filter((room) => room !== id).sort(),
        data: data.value ?? null,
      }));
      ack(plain.sort((a, b) => (a.id < b.id ? -1 : 1)));
    },
    "sockets-join": (target, list, ack) => {
      operator(socket, target).socketsJoin(list);
      ack(true);
    },
    "sockets-leave": (target, list, ack) => {
      operator(socket, target).socketsLeave(list);
      ack(true);
    },
    "disconnect-sockets": (target, close) => {
      operator(socket, target).disconnectSockets(close);
    },
  };
}

function endings(socket) {
  return {
    "disconnect-me": (close) => socket.disconnect(close === true),
    "disconnect-me-close": () => socket.disconnect(true),
    panic: () => {
      throw new Error("the handler fails on purpose");
    },
    "disconnect-reason": async (id, ack) => ack(await reasons.wait(id)),
  };
}

// An exception in a listener ends a Node process. The rule that is tested (one socket pays, nobody
// else) is what an application on Node has to build itself, like this.
async function guarded(socket, run) {
  try {
    await run();
  } catch {
    socket.disconnect(true);
  }
}

function operator(socket, target) {
  const flags = target.flags ?? [];
  let chain = target.from === "io" ? socket.nsp : socket;
  if (flags.includes("broadcast")) chain = chain.broadcast;
  for (const room of target.to ?? []) chain = chain.to(room);
  for (const room of target.except ?? []) chain = chain.except(room);
  if (flags.includes("volatile")) chain = chain.volatile;
  if (flags.includes("local")) chain = chain.local;
  return chain;
}

function describe(socket, names) {
  const { query, headers, auth, address, time } = socket.handshake;
  return {
    id: socket.id,
    nsp: socket.nsp.name,
    rooms: [...socket.rooms].filter((room) => room !== socket.id).sort(),
    query,
    headers: Object.fromEntries((names ?? []).map((name) => [name, headers[name] ?? null])),
    auth,
    address: typeof address === "string" && address.length > 0,
    time: typeof time === "string" && time.length > 0,
  };
}

function Latch() {
  const values = new Map();
  const opened = new EventEmitter().setMaxListeners(0);
  this.open = (key, value) => {
    values.set(key, value);
    opened.emit(`key ${key}`);
  };
  this.wait = async (key) => {
    if (!values.has(key)) await once(opened, `key ${key}`);
    return values.get(key);
  };
}

function refusal(message, data) {
  return Object.assign(new Error(message), data === undefined ? {} : { data });
}

function readConfig(args) {
  const at = args.indexOf("--config");
  return at < 0 ? {} : JSON.parse(args[at + 1]);
}

function optionsFrom({ maxPayload, allowEio3, parser, limits, connectTimeout, ...same }) {
  return {
    ...same,
    serveClient: false,
    ...(maxPayload === undefined ? {} : { maxHttpBufferSize: maxPayload }),
    ...(allowEio3 === undefined ? {} : { allowEIO3: allowEio3 }),
    ...(connectTimeout === undefined ? {} : { connectTimeout }),
    ...(parser === "msgpack" ? { parser: require("socket.io-msgpack-parser") } : {}),
  };
}
