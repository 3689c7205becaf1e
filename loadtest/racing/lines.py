"""The lines of the race: load, servers and figures.

A line describes a measurement, and `runs` executes it. Figures have the names of the load test.
"""

from dataclasses import dataclass, field

from .servers import ALONE, CLUSTERED, EMITTERS, PUBLISHERS

CPU = "server CPU per delivery"
REDIS_CPU = "Redis CPU per delivery"
PER_CPU = "deliveries per server CPU second"
LAST = "last recipient p99"
MESSAGE_CPU = "server CPU per message"
REDIS_MESSAGE_CPU = "Redis CPU per message"
MOVE_CPU = "server CPU per join and leave"
REDIS_MOVE_CPU = "Redis CPU per join and leave"
COPIES = "copies by Redis per message"
# Measured without the load test.
HEARD_AGAIN = "channels heard again"
MOST_CHANNELS = "channels at most"
PUBLISHES = "publishes per second"
PUBLISH_CPU = "client CPU per publish"

# Servers for lines in which a floor has no meaning.
WHOLE_SERVERS = ["roomcast", "socketioxide", "node"]
ROOMCASTS = ["roomcast classic", "roomcast sharded"]
# Servers that accept messages in Node's formats, which socketioxide does not.
BUSES = ["floor + redis", *ROOMCASTS, "node classic", "node sharded"]
SIZES = [10, 100, 1000, 5000, 15000]
OTHER_ROOMS = [10, 1000, 100_000]
DEPTHS = [1, 16, 64, 512, 10_000]

BROADCASTS, REQUESTS, CONNECTS, IDLE = "Broadcasts", "Requests", "Connects", "Idle connections"
CLUSTER, BUS, OUTSIDE, EMITTER = "Cluster", "The bus", "Emitting from outside", "Emitter"
TWO_CORES = "Two workers, two cores, shared with the load"


@dataclass
class Line:
    """A row of the tables: one measurement per server."""

    name: str
    title: str
    section: str
    # A subcommand of the load test and its arguments, or a measurement of the race itself.
    scenario: str
    arguments: list
    figures: list
    servers: list = field(default_factory=lambda: list(ALONE))
    seconds: float = 5
    # Whether `--seconds` does not apply: a flood ends by itself, and heartbeats come every 25 seconds.
    is_whole: bool = False
    # Number of servers that form a cluster over Redis; 0 means one server without Redis.
    nodes: int = 0
    # Source of messages from outside: "own" is the server's emitter, "redis" the load test itself.
    emits: str = ""
    # Whether only the CPU of the first node counts.
    first_only: bool = False
    # Number of additional rooms with one member each.
    other_rooms: int = 0
    # Size of a large room that receives broadcasts at the same time.
    beside: int = 0
    # Workers of a server that is not pinned; 0 means one worker, pinned to the servers' core.
    unpinned: int = 0


def lines(quick):
    """Returns all lines; with `quick`, short and small ones as a smoke test."""
    return [*fan_out(quick), *requests(), *connects(quick), *idle(quick), *two_cores(quick),
            *clusters(quick), *bus(quick), *outside(quick), *publishes(quick)]


def fan_out(quick):
    for size in SIZES[:3] if quick else SIZES:
        yield Line(f"room-{size}", f"one room of {size:,}, one broadcast outstanding", BROADCASTS,
                   "fan-out", ["--members", str(size)], [CPU, PER_CPU, LAST])
    yield Line("four", "one room of 1,000, four outstanding", BROADCASTS, "fan-out",
               ["--members", "1000", "--window", "4"], [CPU, PER_CPU, LAST])
    yield Line("small-rooms", "200 rooms of ten, one outstanding in each", BROADCASTS, "fan-out",
               ["--rooms", "200", "--members", "10"], [CPU, PER_CPU, "last recipient p50", LAST])
    yield Line("paced", "one room of 1,000, ten broadcasts per second", BROADCASTS, "fan-out",
               ["--members", "1000", "--rate", "10"],
               [CPU, "last recipient p50", LAST], seconds=20)
    for rooms in OTHER_ROOMS[:2] if quick else OTHER_ROOMS:
        yield Line(f"others-{rooms}", f"one room of 100, {rooms:,} other rooms", BROADCASTS,
                   "fan-out", ["--members", "100"], [CPU, LAST], other_rooms=rooms)


def requests():
    yield Line("echo", "200 clients, one request each", REQUESTS, "echo", ["--event", "echo"],
               ["server CPU per request", "echo p50", "echo p99"])


def connects(quick):
    figures = ["server CPU per connect", "connects per second", "connect p99"]
    yield Line("storm", "connect and close", CONNECTS, "storm", [], figures)
    kept = 500 if quick else 8000
    yield Line("storm-kept", f"the same, the last {kept:,} stay open, 64 in progress", CONNECTS, "storm",
               ["--keep", str(kept), "--opening", "64"], figures)


def idle(quick):
    connections = 500 if quick else 10_000
    yield Line("idle", f"{connections:,} idle connections in rooms of ten", IDLE, "idle",
               ["--connections", str(connections)],
               ["idle connection, resident", "idle connection after traffic, resident",
                "idle connection after traffic, proportional",
                "idle connection, kernel objects of both ends",
                # A fresh server's first connections: its code and its memory are not in caches yet.
                "connect p99"], seconds=2)
    many = 500 if quick else 15_000
    yield Line("heartbeat", f"{many:,} idle connections for a minute, default ping interval", IDLE,
               "idle", ["--connections", str(many), "--broadcasts", "0"], ["server CPU"],
               servers=WHOLE_SERVERS, seconds=60, is_whole=True)


def two_cores(quick):
    size = 500 if quick else 15_000
    yield Line("beside", f"echo beside broadcasts to a room of {size:,}", TWO_CORES, "echo",
               ["--event", "echo", "--clients", "10", "--rate", "200"], ["echo p50", "echo p99"],
               servers=WHOLE_SERVERS, seconds=10, unpinned=2, beside=size)
    both = dict(servers=["floor", "roomcast"], unpinned=2)
    for name, title, more in [
        ("two-1000", "one room of 1,000, one outstanding", ["--members", "1000"]),
        ("two-5000", "one room of 5,000, one outstanding", ["--members", "5000"]),
        ("two-four", "one room of 1,000, four outstanding", ["--members", "1000", "--window", "4"]),
        ("two-small", "200 rooms of ten, one outstanding in each", ["--rooms", "200", "--members", "10"]),
    ]:
        yield Line(name, title, TWO_CORES, "fan-out", more, [CPU, LAST], **both)
    yield Line("two-echo", "200 clients, one request each", TWO_CORES, "echo", ["--event", "echo"],
               ["server CPU per request", "echo p50", "echo p99"], **both)


def clusters(quick):
    both = dict(servers=list(CLUSTERED), nodes=2)
    figures = [CPU, REDIS_CPU, "delivery p50", "delivery p99"]
    yield Line("cluster", "two nodes: senders on one, 100 members on the other, one outstanding",
               CLUSTER, "cluster", ["--members", "101"], figures, **both)
    yield Line("cluster-paced", "the same, 50 broadcasts per second", CLUSTER,
               "cluster", ["--members", "101", "--rate", "50"], figures, **both)
    rooms = 1000 if quick else 100_000
    yield Line("channels", f"{rooms:,} rooms of one: the subscribers' connections are closed",
               CLUSTER, "channels", [], [HEARD_AGAIN], servers=ROOMCASTS, nodes=1, other_rooms=rooms)


def bus(quick):
    """Costs of the bus for a node and for Redis."""
    heard = dict(servers=BUSES, nodes=1, emits="redis")
    for name, title, more in [
        ("receive-one", "one message outstanding, room of 100", ["--window", "1"]),
        ("receive-paced", "1,000 messages per second, room of 100", ["--rate", "1000"]),
        ("receive-window", "16 outstanding, room of 100", ["--window", "16"]),
        ("receive-rooms", "one outstanding in each of 16 rooms of 100", ["--rooms", "16", "--window", "1"]),
    ]:
        yield Line(name, f"from outside: {title}", BUS, "emitter", ["--members", "100", *more],
                   [CPU, REDIS_MESSAGE_CPU], **heard)
    yield Line("interest", "from outside: 100 rooms of ten on four nodes, each room on one node", BUS,
               "emitter", ["--rooms", "100", "--members", "10", "--together", "--window", "1"],
               [MESSAGE_CPU, REDIS_MESSAGE_CPU, COPIES],
               servers=BUSES, nodes=4, emits="redis")
    for window in [1, 64]:
        yield Line(f"send-{window}", f"the sending node: {window} outstanding, the other member on"
                   " another node", BUS, "cluster", ["--members", "2", "--window", str(window)],
                   [MESSAGE_CPU, REDIS_MESSAGE_CPU], servers=BUSES, nodes=2, first_only=True)
    rooms = 1000 if quick else 100_000
    yield Line("churn", f"{rooms:,} rooms joined and left 50 ms later, 20,000 per second", BUS, "joins",
               ["--rooms", str(rooms), "--hold", "50ms", "--rate", "20000"],
               [MOVE_CPU, REDIS_MOVE_CPU, MOST_CHANNELS], servers=BUSES, nodes=1)


def outside(quick):
    flood = 400 if quick else 4000
    yield Line("emitter", f"{flood:,} emits at once from outside, 100 members on each of two nodes",
               OUTSIDE, "emitter", ["--members", "200", "--flood", str(flood)],
               ["delivery p50", "delivery p99", "delivery max", CPU, REDIS_CPU],
               servers=list(EMITTERS), seconds=60, is_whole=True, nodes=2, emits="own")
    emits = 5000 if quick else 50_000
    yield Line("emits", f"{emits:,} emits into a room that nobody is in: the emitter alone", OUTSIDE,
               "emitter", ["--members", "1", "--unheard", "--flood", str(emits)],
               ["emitter CPU per emit", "Redis CPU per emit", "emits per second"],
               servers=list(EMITTERS), seconds=60, is_whole=True, nodes=1, emits="own")


def publishes(quick):
    for depth in DEPTHS:
        count = 20_000 if depth == 1 else 400_000
        yield Line(f"publish-{depth}", f"128 bytes to nobody, {depth:,} at a time", EMITTER, "publish",
                   [depth, count // 20 if quick else count], [PUBLISHES, PUBLISH_CPU],
                   servers=list(PUBLISHERS))
