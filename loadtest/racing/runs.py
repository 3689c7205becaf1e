"""Runs a line against one server: fresh processes on their cores, and a result as a file."""

import contextlib
import json
import resource
import subprocess
import time

from .lines import HEARD_AGAIN, MOST_CHANNELS, PUBLISH_CPU, PUBLISHES
from .redis import Redis
from .servers import DEADLINE_SECONDS, PUBLISHERS, Failed, process, redis_server

# Upper bound for set-up and end of a run, for example 15,000 connections and their rooms.
OVERHEAD_SECONDS = 240
LOOK_SECONDS = 0.1


class Race:
    """Measures one server on one line at a time and stores the results."""

    def __init__(self, programs, folder, quick):
        self.programs = programs
        self.folder = folder
        self.quick = quick

    def run(self, line, server, number):
        """Makes a run. Returns a remark that its result does not contain, or the reason of a failure; empty if there is none."""
        path = self.folder / f"round-{number}" / line.name / f"{server}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        try:
            with contextlib.ExitStack() as stack:
                return self.measure(stack, line, server, path)
        except Failed as error:
            # A failed run has no figures.
            path.unlink(missing_ok=True)
            return str(error)

    def measure(self, stack, line, server, path):
        if line.scenario == "publish":
            _, redis = stack.enter_context(redis_server(self.programs.server_core))
            return self.publish(line, server, redis, path)
        redis = None
        more = []
        if line.nodes:
            of_redis, redis = stack.enter_context(redis_server(self.programs.server_core))
            more = ["--process", f"Redis={of_redis.pid}", *self.emitting(line, server, redis)]
        # Node.js serves on one thread.
        workers = 1 if server.startswith("node") else line.unpinned or 1
        nodes = [
            stack.enter_context(self.programs.serving(server, redis, workers, not line.unpinned))
            for _ in range(line.nodes or 1)
        ]
        if line.other_rooms:
            stack.enter_context(self.other_rooms(nodes[0][1], line.other_rooms))
        if line.scenario == "channels":
            return hear_again(redis, line.other_rooms, path)
        if line.scenario == "joins":
            return self.churn(line, nodes, redis, path, more)
        if line.beside:
            return self.load_beside_a_room(stack, line, nodes, path)
        return self.load(line, nodes, path, more, pinned=not line.unpinned)

    def emitting(self, line, server, redis):
        if line.emits == "own":
            return ["--emit-with", self.programs.emitting(server, redis)]
        if line.emits == "redis":
            return ["--redis", redis, *(["--sharded"] if "sharded" in server else [])]
        return []

    @contextlib.contextmanager
    def other_rooms(self, url, count):
        """Keeps `count` rooms with one member each while the block runs."""
        loadtest = self.programs.roomcast("roomcast-loadtest")
        command = [loadtest, "joins", url, "--rooms", str(count), "--duration", "1h"]
        with process(command, self.programs.load_core) as members:
            members.line_with("holding", OVERHEAD_SECONDS)
            yield

    def load_beside_a_room(self, stack, line, nodes, path):
        other = path.with_name(f"{path.stem} (room).json")
        # Longer than the echo run including warm-up and end.
        seconds = 2 * self.seconds(line) + 10
        command = self.command("fan-out", nodes, ["--members", str(line.beside)], other, seconds)
        command.remove("--quiet")
        room = stack.enter_context(process(command, None))
        room.line_with("measuring", OVERHEAD_SECONDS)
        # The server and the room's load use all cores. Without priority, the figure would be the time
        # that the echo client itself waits for a core.
        urgent = self.programs.urgent()
        self.load(line, nodes, path, pinned=False, before=urgent)
        if room.child.poll() is not None:
            raise Failed("the load of the large room ended before the echo run")
        status = room.wait(seconds + OVERHEAD_SECONDS)
        check(status, room.lines)
        return "" if urgent else "no permission to set priorities: latencies include the client's own wait for a core"

    def churn(self, line, nodes, redis, path, more):
        """Counts channels in Redis during the run. Fails if some are left at the end."""
        with Redis(redis) as link:
            before = most = link.steady_channels()

            def look():
                nonlocal most
                most = max(most, link.channels())

            self.load(line, nodes, path, more, meanwhile=look)
            if (left := link.channels() - before) > 0:
                raise Failed(f"{left:,} channels were not given up")
        add(path, [(MOST_CHANNELS, "", most - before)])
        return ""

    def load(self, line, nodes, path, more=(), pinned=True, before=(), meanwhile=lambda: None):
        seconds = self.seconds(line)
        watched = nodes[:1] if line.first_only else nodes
        arguments = [*line.arguments, *more]
        command = self.command(line.scenario, nodes, arguments, path, seconds, watched)
        core = self.programs.load_core if pinned else None
        with process([*before, *command], core) as loader:
            until = time.monotonic() + seconds + OVERHEAD_SECONDS
            while loader.child.poll() is None and time.monotonic() < until:
                meanwhile()
                time.sleep(LOOK_SECONDS)
            check(loader.wait(1), loader.lines)
        return ""

    def seconds(self, line):
        # A flood ends by itself.
        is_short = self.quick and "--flood" not in line.arguments
        return min(line.seconds, 1) if is_short else line.seconds

    def command(self, scenario, nodes, arguments, path, seconds, watched=None):
        command = [self.programs.roomcast("roomcast-loadtest"), scenario, *arguments, "--quiet"]
        command += [url for _, url in nodes]
        for server, _ in nodes if watched is None else watched:
            command += ["--server-pid", str(server.pid)]
        return [*command, "--json", str(path), "--label", path.stem, "--duration", f"{seconds}s"]

    def publish(self, line, server, redis, path):
        """Publishes without subscribers. The publisher reports its rate, the kernel its CPU."""
        depth, count = line.arguments
        command = self.programs.publishing(server, redis, depth, count)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False,
                                  timeout=OVERHEAD_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise Failed(f"{server} took longer than {OVERHEAD_SECONDS} s") from error
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        said = done.stdout.splitlines()
        if done.returncode or not said:
            raise Failed(f"{server}: status {done.returncode}: {done.stderr.strip()}")
        # redis-benchmark ends with a line like "PUBLISH …","rate",…
        rate = float(said[-1].split('","')[1] if server in PUBLISHERS[:1] else said[-1])
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        write(path, [(PUBLISHES, "1/s", rate), (PUBLISH_CPU, "µs", used / count * 1e6)])
        return ""


def hear_again(redis, count, path):
    """Closes the connections of all subscribers and waits until Redis knows all channels again."""
    with Redis(redis) as link:
        reached(link, count)
        began = time.monotonic()
        link.ask("CLIENT", "KILL", "TYPE", "pubsub")
        reached(link, count)
        write(path, [(HEARD_AGAIN, "ms", 1000 * (time.monotonic() - began))])
    return ""


def reached(link, count):
    until = time.monotonic() + DEADLINE_SECONDS
    while (known := link.channels()) < count:
        if time.monotonic() > until:
            raise Failed(f"Redis knows {known:,} channels of {count:,}")
        time.sleep(0.005)


def write(path, figures):
    """Writes a result in the format of the load test, as far as the race reads it."""
    path.write_text(json.dumps({"ledger": {}, "limited_by": []}))
    add(path, figures)


def add(path, figures):
    """Adds computed figures to a result."""
    rows = [{"figure": name, "unit": unit, "value": value} for name, unit, value in figures]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"figures": rows}))


def check(status, said):
    """Raises Failed if the load test has no figures."""
    # Statuses 4 and 5: the result has the faults of its ledger, and its limits.
    if status not in (0, 4, 5):
        raise Failed(f"status {status}: {' '.join(said[-2:])}")
