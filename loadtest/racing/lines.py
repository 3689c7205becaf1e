"""The lines of the race: what is run against which servers, and which figures are taken from it.

Every run has a fresh server. A line is a name, what it says in the table, its servers, and how one
of them is measured; figures are named as the load test names them.
"""

import contextlib
import json
from dataclasses import dataclass, field

from . import channels
from .crowd import other_rooms
from .servers import ALONE, CLUSTERED, EMITTERS, Failed

CPU = "server CPU per delivery"
REDIS_CPU = "Redis CPU per delivery"
PER_CPU = "deliveries per server CPU second"
LAST = "last recipient p99"
# Longer than the longest run takes beyond what it measures: 15,000 connections and their rooms.
OVERHEAD_SECONDS = 240

# Those that a figure of one machine is worth comparing with, where a floor would say nothing.
WHOLE_SERVERS = ["roomcast", "socketioxide", "node"]
ROOMCASTS = ["roomcast classic", "roomcast sharded"]
SIZES = [10, 100, 1000, 5000, 15000]
OTHER_ROOMS = [10, 1000, 100_000]


@dataclass
class Line:
    """One row of figures for each server."""

    name: str
    title: str
    scenario: str
    arguments: list
    figures: list
    servers: list = field(default_factory=lambda: list(ALONE))
    seconds: float = 5
    how: str = "alone"
    other_rooms: int = 0


def lines(quick):
    """All lines; short and small ones to see that everything works."""
    connections = "500" if quick else "10000"
    return [*fan_out(quick), *requests(), *idle(quick, connections), *clusters(quick), busy(quick)]


def fan_out(quick):
    for size in SIZES[:3] if quick else SIZES:
        yield Line(f"room-{size}", f"one room of {size:,}, one broadcast outstanding", "fan-out",
                   ["--members", str(size)], [CPU, PER_CPU, LAST])
    yield Line("four", "one room of 1,000, four outstanding", "fan-out",
               ["--members", "1000", "--window", "4"], [CPU, PER_CPU, LAST])
    yield Line("small-rooms", "200 rooms of ten, one outstanding in each", "fan-out",
               ["--rooms", "200", "--members", "10"], [CPU, PER_CPU, LAST])
    yield Line("paced", "one room of 1,000, ten broadcasts per second", "fan-out",
               ["--members", "1000", "--rate", "10"],
               [CPU, "last recipient p50", LAST], seconds=20)
    for rooms in OTHER_ROOMS[:2] if quick else OTHER_ROOMS:
        yield Line(f"others-{rooms}", f"one room of 100, {rooms:,} other rooms", "fan-out",
                   ["--members", "100"], [CPU, LAST], other_rooms=rooms)


def requests():
    yield Line("echo", "200 clients, one request each", "echo", ["--event", "echo"],
               ["server CPU per request", "echo p50", "echo p99"])
    yield Line("storm", "connect and close", "storm", [],
               ["server CPU per connect", "connects per second", "connect p99"])


def idle(quick, connections):
    yield Line("idle", f"{int(connections):,} idle connections in rooms of ten", "idle",
               ["--connections", connections],
               ["idle connection, resident", "idle connection after traffic, resident",
                "idle connection, kernel objects of both ends"], seconds=2)
    many = "500" if quick else "15000"
    yield Line("heartbeat", f"{int(many):,} idle connections for a minute, default ping interval",
               "idle", ["--connections", many, "--broadcasts", "0"], ["server CPU"],
               servers=WHOLE_SERVERS, seconds=60)


def clusters(quick):
    both = dict(servers=list(CLUSTERED), how="cluster")
    yield Line("cluster", "two nodes: senders on one, 100 members on the other, one outstanding",
               "cluster", ["--members", "101"],
               [CPU, REDIS_CPU, "delivery p50", "delivery p99"], **both)
    yield Line("cluster-paced", "the same, 50 broadcasts per second", "cluster",
               ["--members", "101", "--rate", "50"],
               [CPU, REDIS_CPU, "delivery p50", "delivery p99"], **both)
    flood = 400 if quick else 4000
    yield Line("emitter", f"{flood:,} emits at once from outside, 100 members on each of two nodes",
               "emitter", ["--members", "200", "--flood", str(flood)],
               ["delivery p50", "delivery p99", "delivery max", CPU, REDIS_CPU],
               servers=list(EMITTERS), how="cluster")
    rooms = 1000 if quick else 100_000
    yield Line("channels", f"{rooms:,} rooms of one: the subscribers' connections are closed",
               "channels", [], [channels.FIGURE], servers=ROOMCASTS, how="channels",
               other_rooms=rooms)
    emits = 5000 if quick else 50_000
    yield Line("emits", f"{emits:,} emits into a room that nobody is in: the emitter alone",
               "emitter", ["--members", "1", "--unheard", "--flood", str(emits)],
               ["emitter CPU per emit", "Redis CPU per emit", "emits per second"],
               servers=list(EMITTERS), seconds=30, how="cluster of one")


def busy(quick):
    size = 500 if quick else 15000
    return Line("beside", f"echo beside broadcasts to a room of {size:,}, two cores", "echo",
                ["--event", "echo", "--clients", "10", "--rate", "200"], ["echo p50", "echo p99"],
                servers=WHOLE_SERVERS, seconds=10, how=f"beside {size}")


class Race:
    """Measures one server on one line at a time, and keeps the results as files."""

    def __init__(self, programs, folder, quick):
        self.programs = programs
        self.folder = folder
        self.quick = quick

    def run(self, line, server, number):
        """Measures; returns what a reader has to know of it, nothing if all went well."""
        path = self.folder / f"round-{number}" / line.name / f"{server}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        try:
            with contextlib.ExitStack() as stack:
                return self.measure(stack, line, server, path)
        except Failed as error:
            # Figures of a run that failed are none.
            path.unlink(missing_ok=True)
            return str(error)

    def measure(self, stack, line, server, path):
        serve = lambda *args, **more: stack.enter_context(self.programs.serving(*args, **more))
        if line.how.startswith("cluster"):
            process, redis = stack.enter_context(self.programs.redis())
            nodes = [serve(server, redis) for _ in range(1 if line.how.endswith("one") else 2)]
            more = ["--process", f"Redis={process.pid}"]
            if line.scenario == "emitter":
                more += ["--emit-with", self.programs.emitting(server, redis)]
            return self.load(line, nodes, path, more)
        if line.how == "channels":
            _, redis = stack.enter_context(self.programs.redis())
            stack.enter_context(other_rooms(serve(server, redis)[1], line.other_rooms))
            channels.measure(redis, line.other_rooms, path)
            return ""
        if line.how == "alone":
            nodes = [serve(server)]
            stack.enter_context(other_rooms(nodes[0][1], line.other_rooms))
            return self.load(line, nodes, path)
        _, size = line.how.split()
        # Who has one thread keeps one; nobody is held to one core.
        nodes = [serve(server, workers=1 if server == "node" else 2, pinned=False)]
        return self.load_beside_a_room(stack, line, nodes, path, int(size))

    def load_beside_a_room(self, stack, line, nodes, path, size):
        other = path.with_name(f"{server_name(path)} (room).json")
        # Longer than the echo with its warm-up and its end.
        seconds = 2 * self.seconds(line) + 10
        command = self.command("fan-out", nodes, ["--members", str(size)], other, seconds)
        command.remove("--quiet")
        room = stack.enter_context(self.programs.process(command, None))
        room.line_with("measuring", OVERHEAD_SECONDS)
        # The server and the load of the room use all there is. Without priority, the figure would
        # be how long the echo's own client waits for a core.
        urgent = self.programs.urgent()
        said = self.load(line, nodes, path, pinned=False, before=urgent)
        if room.child.poll() is not None:
            raise Failed("the large room was done before the echo was")
        status = room.wait(seconds + OVERHEAD_SECONDS)
        beside = verdict(status, room.lines)
        plain = "" if urgent else "may not set priorities: the client's own wait for a core counts"
        return "; ".join(filter(None, [said, beside and f"large room: {beside}", plain]))

    def load(self, line, nodes, path, more=(), pinned=True, before=()):
        seconds = self.seconds(line)
        command = self.command(line.scenario, nodes, [*line.arguments, *more], path, seconds)
        core = self.programs.load_core if pinned else None
        with self.programs.process([*before, *command], core) as loader:
            status = loader.wait(seconds + OVERHEAD_SECONDS)
            return verdict(status, loader.lines)

    def seconds(self, line):
        # A flood ends when it is over.
        is_short = self.quick and line.scenario != "emitter"
        return min(line.seconds, 1) if is_short else line.seconds

    def command(self, scenario, nodes, arguments, path, seconds):
        command = [self.programs.roomcast("roomcast-loadtest"), scenario, *arguments, "--quiet"]
        command += [url for _, url in nodes]
        for server, _ in nodes:
            command += ["--server-pid", str(server.pid)]
        return [*command, "--json", str(path), "--label", server_name(path),
                "--duration", f"{seconds}s"]


def server_name(path):
    return path.stem


def verdict(status, said):
    """What the end of a load test says about its figures."""
    if status == 0:
        return ""
    if status in (4, 5):
        marks = ("ledger:", "LIMITED BY")
        return "; ".join(line.strip() for line in said if line.strip().startswith(marks))
    raise Failed(f"status {status}: {' '.join(said[-2:])}")


def ledger(path):
    """The ledger of a result, in few words; empty if it is clean."""
    tally = json.loads(path.read_text())["ledger"]
    faults = ["lost", "duplicated", "reordered", "corrupted", "stray"]
    return ", ".join(f"{tally[name]:,} {name}" for name in faults if tally.get(name))
