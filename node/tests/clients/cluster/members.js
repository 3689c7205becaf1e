// Three servers of one cluster, and clients on all of them: who is where, in which rooms, and who
// received what.

"use strict";

const { Sockets } = require("../support/clients");
const { until } = require("../support/wait");
const { Peer } = require("./peer");

/** Ada and Bob are on the first server, Cid and Dan on the second, Eve and Fay on the third. */
const PEOPLE = {
  ada: { server: 0, way: "polling", rooms: ["x"] },
  bob: { server: 0, way: "websocket", rooms: ["x", "y"] },
  cid: { server: 1, way: "polling", rooms: ["y"] },
  dan: { server: 1, way: "websocket", rooms: [] },
  eve: { server: 2, way: "polling", rooms: ["x", "y"] },
  fay: { server: 2, way: "websocket", rooms: ["z"] },
};

/** Starts servers of these kinds, one after the other, and waits until they all know each other. */
async function startServers(kinds, config, redis) {
  const servers = [];
  try {
    for (const [i, kind] of kinds.entries()) {
      servers.push(await Peer.start(kind, { ...config, name: `${kind}${i}` }));
    }
    await settled(redis, config, "/", servers.length);
  } catch (error) {
    for (const server of servers) server.signal("SIGKILL");
    throw error;
  }
  return servers;
}

/** Waits until so many servers hear the requests of a namespace, which is how they count each other. */
function settled(redis, { dialect = "classic", prefix = "socket.io" }, namespace, servers) {
  const [command, channel] = dialect === "classic"
    ? ["NUMSUB", `${prefix}-request#${namespace}#`]
    : [dialect === "streams" ? "NUMSUB" : "SHARDNUMSUB", `${prefix}#${namespace}#`];
  const all = redis.primaries ? [...redis.primaries, ...redis.replicas] : [redis];
  return until(`${servers} servers to hear ${channel}`, async () => {
    const counts = await Promise.all(
      all.map((one) => one.command("PUBSUB", command, channel)),
    );
    return counts.reduce((sum, [, count]) => sum + Number(count), 0) === servers;
  });
}

class Cast {
  #servers;
  #namespace;
  #opened = [];
  #log = [];
  #round = 0;

  constructor(servers, namespace) {
    this.#servers = servers;
    this.#namespace = namespace;
    this.sockets = {};
  }

  /** Connects everybody; returns when a broadcast of every server reaches all rooms' members. */
  static async open(servers, namespace) {
    const cast = new Cast(servers, namespace);
    await Promise.all(
      Object.entries(PEOPLE).map(([name, person]) => cast.connect(name, person)),
    );
    await cast.ready();
    return cast;
  }

  async connect(name, { server, way, rooms }) {
    const sockets = new Sockets("4.8", this.#servers[server].url, way);
    this.#opened.push(sockets);
    const socket = await sockets.connected(this.#namespace, { auth: { name } });
    this.sockets[name] = socket;
    socket.onAny((event, ...args) => this.#log.push({ name, event, args }));
    await this.#servers[server].tell("own", {
      namespace: this.#namespace, sid: socket.id, what: "join", rooms,
    });
    await this.#servers[server].tell("own", {
      namespace: this.#namespace, sid: socket.id, what: "data", value: { name },
    });
  }

  /** Subscriptions to rooms follow a join a little later, as with Node's sharded adapter. */
  async ready(people = PEOPLE) {
    const rooms = [...new Set(Object.values(people).flatMap((person) => person.rooms))];
    for (const room of rooms) {
      const names = Object.keys(people).filter((name) => people[name].rooms.includes(room));
      for (const server of this.#servers) {
        const token = `${room} ${(this.#round += 1)}`;
        await until(`${names} to hear of ${room} from ${server.name}`, async () => {
          await this.tell(server, "emit", { to: [room], event: "ready", args: [token] });
          return names.every((name) => this.#log.some((entry) => {
            return entry.name === name && entry.event === "ready" && entry.args[0] === token;
          }));
        });
      }
    }
    await this.fence();
  }

  tell(server, what, fields) {
    return server.tell(what, { namespace: this.#namespace, ...fields });
  }

  /** A server's own socket, as part of a command. */
  on(name) {
    return this.#servers[PEOPLE[name].server];
  }

  /** Who received what `send` says, sorted; twice if it came twice. */
  async receivers(count, send) {
    return (await this.received(count, send)).map(({ name }) => name).sort();
  }

  /**
   * What arrived of the event that `send` is to say: at least so many, and whatever had come by the
   * time of the fence. The event has a new name each time, so that what comes later is nobody else's.
   */
  async received(count, send) {
    const event = `news ${(this.#round += 1)}`;
    this.#log.length = 0;
    const news = () => this.#log.filter((entry) => entry.event === event);
    await send(event);
    await until(`${count} to receive ${event}`, () => news().length >= count);
    await this.fence();
    return news();
  }

  /**
   * Returns when everything that any server had said before has arrived: the broadcasts of one server
   * on one channel arrive in order.
   */
  async fence() {
    const token = (this.#round += 1);
    const rooms = [...new Set(Object.values(PEOPLE).flatMap((person) => person.rooms))];
    // They start in this order, as commands do.
    await Promise.all(this.#servers.flatMap((server) => {
      return [...rooms.map((room) => [room]), []].map((to) => {
        return this.tell(server, "emit", { to, event: "fence", args: [`${server.name} ${to} ${token}`] });
      });
    }));
    await until("all fences", () => Object.keys(PEOPLE).every((name) => {
      const passed = new Set(this.#log.flatMap((entry) => {
        return entry.name === name && entry.event === "fence" ? [entry.args[0]] : [];
      }));
      return this.#servers.every((server) => {
        return [...PEOPLE[name].rooms, ""].every((to) => passed.has(`${server.name} ${to} ${token}`));
      });
    }));
  }

  /** One more socket, which is not among those that are waited for. */
  async extra(server, { way = "websocket", rooms = [] } = {}) {
    const sockets = new Sockets("4.8", this.#servers[server].url, way);
    this.#opened.push(sockets);
    const socket = await sockets.connected(this.#namespace);
    if (rooms.length > 0) {
      await this.tell(this.#servers[server], "own", { sid: socket.id, what: "join", rooms });
    }
    return socket;
  }

  /** A socket in another namespace. */
  stray(server, namespace) {
    const sockets = new Sockets("4.8", this.#servers[server].url, "websocket");
    this.#opened.push(sockets);
    return sockets.connected(namespace);
  }

  close() {
    for (const sockets of this.#opened) sockets.closeAll();
  }
}

module.exports = { Cast, PEOPLE, settled, startServers };
