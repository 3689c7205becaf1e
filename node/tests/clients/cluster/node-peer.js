// One server of a cluster, on the official npm packages: `socket.io`, `@socket.io/redis-adapter` and
// `@socket.io/redis-streams-adapter`.
// The program `cluster_node` in ../../programs is the same server on Roomcast; a change here is made there.
//
//   node-peer.js --config '<json>'
//
// Keys of the configuration, all but `redis` optional: redis (a URL: redis://, redis+cluster:// or
// redis+sentinel://), dialect ("classic", "sharded-static", "sharded-dynamic",
// "sharded-dynamic-private", "streams"), prefix, parser ("msgpack" or "json", of the classic dialect),
// specificResponses (bool), recovery (bool: clients can come back; then rooms have no history), privateRooms ("auto", "pattern" or "channel": of Roomcast alone), listenAt (a
// URL: of Node.js alone, the server of a Redis Cluster that it listens at).
//
// Speaks lines of JSON. Prints {"listening": port} once it is a member of the cluster. Reads commands
// {id, do, namespace, …} and prints {id, ok} or {id, error} for each; they start in the order in which
// they come. SIGTERM makes it leave. Binary is {"$bin": base64} in both directions.
//
// Who is meant, in all commands: to: [rooms], except: [rooms], volatile, local (bool), timeout
// (milliseconds), from: the id of a socket of this server that is left out, as by `socket.broadcast`.
//
//   emit {event, args}                -> {}
//   publish {event, args}             -> {position: id}, by which members receive it; of Roomcast alone
//   ask {event, args}                 -> {answers: [first argument of each], complete: bool}
//   fetch                             -> {sockets: [{id, handshake, rooms, data}], complete: bool}
//   rooms                             -> {rooms: [all rooms, private ones included], complete: bool}
//   join {rooms}  leave {rooms}  disconnect {close}                  -> {}
//   serverSideEmit {event, args}      -> {}
//   serverSideAsk {event, args}       -> {answers: [...], complete: bool}
//   remote {sid, what, …}             -> fetches that socket, then does `what` to it: emit, ask, join,
//                                        leave or disconnect; -> what that answers
//   own {sid, what, …}                -> to a socket of this server: join {rooms}, leave {rooms},
//                                        rooms, data {value}; -> {rooms: all but its own id, sorted}
//   metrics                           -> {text}; of Roomcast alone
//
// A server that waits for others in vain says `complete: false`, or {id, error} where it has no
// partial answer to give.
//
// It listens to the server-side events `note` (any arguments; printed as {"note": {namespace, args}})
// and `question` (one argument; answers "<config.name>: <argument>"). Namespaces: /, /chat, /org-{id}.

"use strict";

const { createServer } = require("node:http");
const { createInterface } = require("node:readline");
const { createAdapter, createShardedAdapter } = require("@socket.io/redis-adapter");
const { createAdapter: createStreamsAdapter } = require("@socket.io/redis-streams-adapter");
const { createClient, createCluster, createSentinel } = require("redis");
const { Server } = require("socket.io");

const { decode, encode } = require("./values");

const config = JSON.parse(process.argv[process.argv.indexOf("--config") + 1]);

main();

async function main() {
  const clients = [connectTo(config.redis), connectTo(config.listenAt ?? config.redis)];
  for (const client of clients) client.on("error", () => {});
  await Promise.all(clients.map((client) => client.connect()));
  const httpServer = createServer();
  const recovery = config.recovery ? { connectionStateRecovery: {} } : {};
  const io = new Server(httpServer, { adapter: adapter(...clients), serveClient: false, ...recovery });
  const commands = commandsOf(io);
  for (const name of ["/", "/chat", /^\/org-\w+$/]) serve(io.of(name));
  io.on("new_namespace", listen);

  createInterface({ input: process.stdin }).on("line", async (line) => {
    const command = decode(JSON.parse(line));
    try {
      print({ id: command.id, ok: (await commands[command.do](command)) ?? {} });
    } catch (error) {
      print({ id: command.id, error: error.message });
    }
  });
  process.on("SIGTERM", async () => {
    setTimeout(() => process.exit(0), 1000);
    await io.close();
    process.exit(0);
  });
  httpServer.listen(0, "127.0.0.1", () => print({ listening: httpServer.address().port }));
}

function connectTo(url) {
  const [scheme, , hosts, name] = url.split("/");
  const nodes = hosts.split(",");
  if (scheme === "redis+cluster:") {
    return createCluster({ rootNodes: nodes.map((node) => ({ url: `redis://${node}` })) });
  }
  if (scheme === "redis+sentinel:") {
    const sentinelRootNodes = nodes.map((node) => {
      const [host, port] = node.split(":");
      return { host, port: Number(port) };
    });
    return createSentinel({ name, sentinelRootNodes });
  }
  return createClient({ url });
}

function adapter(pubClient, subClient) {
  const { dialect = "classic", prefix = "socket.io" } = config;
  if (dialect === "streams") {
    return createStreamsAdapter(pubClient, { channelPrefix: prefix, streamName: prefix });
  }
  if (dialect !== "classic") {
    const subscriptionMode = dialect.slice("sharded-".length);
    return createShardedAdapter(pubClient, subClient, { channelPrefix: prefix, subscriptionMode });
  }
  return createAdapter(pubClient, subClient, {
    key: prefix,
    publishOnSpecificResponseChannel: config.specificResponses ?? false,
    ...(config.parser === "json" ? { parser: jsonParser } : {}),
  });
}

const jsonParser = {
  encode: (value) => JSON.stringify(value),
  decode: (bytes) => JSON.parse(bytes.toString()),
};

/** A parent of dynamic namespaces makes its children itself; they get their listeners when they appear. */
function serve(namespace) {
  if (!namespace.name.startsWith("/_")) listen(namespace);
}

function listen(namespace) {
  if (namespace.listenerCount("question") > 0) return;
  namespace.on("note", (...args) => print({ note: { namespace: namespace.name, args } }));
  namespace.on("question", (value, answer) => answer?.(`${config.name}: ${value}`));
}

function commandsOf(io) {
  const own = ({ namespace, sid }) => {
    const socket = io.of(namespace).sockets.get(sid);
    if (!socket) throw new Error(`no socket ${sid} here`);
    return socket;
  };
  const target = (command) => {
    const { from, to = [], except = [], volatile, local, timeout } = command;
    let operator = from ? own({ ...command, sid: from }).broadcast : io.of(command.namespace).to([]);
    if (to.length > 0) operator = operator.to(to);
    if (except.length > 0) operator = operator.except(except);
    if (volatile) operator = operator.volatile;
    if (local) operator = operator.local;
    if (timeout) operator = operator.timeout(timeout);
    return operator;
  };
  const actions = {
    emit: (operator, { event, args }) => void operator.emit(event, ...args),
    ask: (operator, { event, args }) => partial(operator.emitWithAck(event, ...args)),
    join: (operator, { rooms }) => void operator.socketsJoin(rooms),
    leave: (operator, { rooms }) => void operator.socketsLeave(rooms),
    disconnect: (operator, { close = false }) => void operator.disconnectSockets(close),
  };
  return {
    ...Object.fromEntries(
      Object.entries(actions).map(([name, act]) => [name, (command) => act(target(command), command)]),
    ),
    async fetch(command) {
      const sockets = await target(command).fetchSockets();
      const plain = ({ id, handshake, rooms, data }) => ({ id, handshake, rooms: [...rooms], data });
      return { sockets: sockets.map(plain), complete: true };
    },
    async rooms({ namespace }) {
      return { rooms: [...(await io.of(namespace).adapter.allRooms())], complete: true };
    },
    serverSideEmit: ({ namespace, event, args }) => void io.of(namespace).serverSideEmit(event, ...args),
    serverSideAsk({ namespace, event, args }) {
      return partial(io.of(namespace).serverSideEmitWithAck(event, ...args));
    },
    async remote(command) {
      const [socket] = await io.of(command.namespace).in(command.sid).fetchSockets();
      if (!socket) throw new Error(`no socket ${command.sid} anywhere`);
      const { what, event, args, rooms, close, timeout } = command;
      switch (what) {
        case "emit": return void socket.emit(event, ...args);
        case "ask": return { answers: [await socket.timeout(timeout).emitWithAck(event, ...args)], complete: true };
        case "join": return void socket.join(rooms);
        case "leave": return void rooms.forEach((room) => socket.leave(room));
        case "disconnect": return void socket.disconnect(close);
      }
    },
    async own(command) {
      const socket = own(command);
      const { what, rooms = [], value } = command;
      if (what === "join") await socket.join(rooms);
      if (what === "leave") await Promise.all(rooms.map((room) => socket.leave(room)));
      if (what === "data") Object.assign(socket.data, value);
      return { rooms: [...socket.rooms].filter((room) => room !== socket.id).sort() };
    },
  };
}

/** A question that times out has answers all the same. */
async function partial(question) {
  try {
    return { answers: await question, complete: true };
  } catch (error) {
    if (!error.responses) throw error;
    return { answers: error.responses, complete: false };
  }
}

function print(value) {
  process.stdout.write(`${JSON.stringify(encode(value))}\n`);
}
