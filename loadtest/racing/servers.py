"""The servers of the race: start, readiness and end.

Each is a separate process on a given core, which ends with the block that started it.
"""

import contextlib
import os
import re
import shlex
import socket
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Cargo's target folder.
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
PEERS = ROOT / "loadtest/peers"
NODE_JS = ["node", str(PEERS / "node/server.js")]

# Longer than any start on a busy machine.
DEADLINE_SECONDS = 60
# Length of a published message, and of the argument that gives the emitter's messages this length.
MESSAGE_BYTES = 128
TEXT_BYTES = 64

# Servers without and with Redis: name and command. Programs of the peers are built in `peers/`.
ALONE = {
    "roomcast": ["roomcast", "serve", "--client-rooms", "--access=open"],
    "floor": ["peers/floor"],
    "coalescing floor": ["peers/floor", "--coalesce"],
    "task floor": ["peers/task-floor"],
    "socketioxide": ["peers/socketioxide"],
    "node": NODE_JS,
}
CLUSTERED = {
    "floor + redis": ALONE["floor"],
    "roomcast classic": [*ALONE["roomcast"], "--redis-dialect=classic"],
    "roomcast sharded": [*ALONE["roomcast"], "--redis-dialect=sharded-dynamic"],
    "socketioxide + redis": ALONE["socketioxide"],
    "node classic": NODE_JS,
    "node sharded": [*NODE_JS, "--sharded"],
}
# Suffix of the names of servers of the earlier build.
BEFORE = " before"
# Emitters of the servers with Redis. Node.js has none for its sharded adapter.
EMITTERS = {
    "roomcast classic": ["roomcast", "emit", "-", "--redis-dialect=classic"],
    "roomcast sharded": ["roomcast", "emit", "-", "--redis-dialect=sharded-dynamic"],
    "socketioxide + redis": ["peers/socketioxide-emit"],
    "node classic": ["node", str(PEERS / "node/emit.js")],
}
# Publishers that are not servers. Ratios are relative to the first.
PUBLISHERS = ["redis-benchmark", "roomcast emitter", "roomcast emitter, 2 workers"]
DEEPEST_BENCHMARK = 512


class Failed(Exception):
    """The reason why a run has no figures."""


class Programs:
    """Paths of the programs, and their cores."""

    def __init__(self, target, server_core, load_core, before=None):
        self.target = Path(target)
        # Path of the earlier build of Roomcast, or None.
        self.before = before
        self.server_core = server_core
        self.load_core = load_core

    def roomcast(self, name):
        return str(self.target / "release" / name)

    def command(self, name):
        command = {**ALONE, **CLUSTERED}[name.removesuffix(BEFORE)]
        internal = ["--internal-listen=127.0.0.1:0"] if command[0] == "roomcast" else []
        return [*self.found(command, name), *internal]

    def found(self, command, name):
        """Replaces the program of a command by its path."""
        program, *arguments = command
        if name.endswith(BEFORE):
            return [str(self.before), *arguments]
        if program.startswith("peers/"):
            program = str(self.target / "peers/release" / program.removeprefix("peers/"))
        elif program == "roomcast":
            program = self.roomcast(program)
        return [program, *arguments]

    def emitting(self, name, redis):
        """Returns the shell command of a server's emitter."""
        return shlex.join([*self.found(EMITTERS[name.removesuffix(BEFORE)], name), "--redis", redis])

    def publishing(self, name, redis, depth, count):
        """Returns the command of a publisher of 128-byte messages, pinned to the load's core."""
        if name == PUBLISHERS[0]:
            depth, port = min(depth, DEEPEST_BENCHMARK), redis.rsplit(":", 1)[1]
            command = ["redis-benchmark", "--csv", "-c", "1", "-p", port, "-P", str(depth),
                       "-n", str(count), "PUBLISH", "socket.io#/#room#", "x" * MESSAGE_BYTES]
        else:
            workers = 2 if name == PUBLISHERS[2] else 1
            command = [self.roomcast("roomcast-race-emitter"), "--redis", redis, "--depth", str(depth),
                       "--count", str(count), "--workers", str(workers), "--payload", str(TEXT_BYTES)]
        return ["taskset", "-c", str(self.load_core), *command]

    @contextlib.contextmanager
    def serving(self, name, redis=None, workers=1, pinned=True):
        """Starts a server. Yields its process and its URL once it is ready."""
        command = [*self.command(name), "--listen", "127.0.0.1:0", "--workers", str(workers)]
        if redis:
            command += ["--redis", redis]
        with process(command, self.server_core if pinned else None) as server:
            said = server.line_with("address=")
            address = field(said, "address")
            internal = field(said, "internal")
            if internal:
                wait_until(lambda: get(f"http://{internal}/readyz"), f"{name} is not ready")
            yield server, f"http://{address}"

    def urgent(self):
        """Returns a prefix that gives a command real-time priority; empty without permission."""
        before = ["chrt", "--fifo", "1"]
        allowed = subprocess.run([*before, "true"], capture_output=True, check=False).returncode == 0
        return before if allowed else []


class Process:
    """A process whose output is read continuously, so that it never blocks on it."""

    def __init__(self, command):
        self.name = Path(command[-1] if len(command) == 1 else command[0]).name
        try:
            self.child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True, errors="replace",
            )
        except OSError as error:
            raise Failed(f"{command[0]}: {error.strerror}") from error
        self.lines = []
        self.heard = threading.Condition()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    @property
    def pid(self):
        return self.child.pid

    def _read(self):
        for line in self.child.stdout:
            with self.heard:
                # Only the first lines are needed.
                if len(self.lines) < 1000:
                    self.lines.append(line.rstrip())
                self.heard.notify_all()

    def line_with(self, text, seconds=DEADLINE_SECONDS):
        found = lambda: next((line for line in self.lines if text in line), None)
        ended = lambda: self.child.poll() is not None
        until = time.monotonic() + seconds
        with self.heard:
            while not found() and not ended() and time.monotonic() < until:
                self.heard.wait(0.2)
            if not found():
                raise Failed(f"no `{text}` from {self.name}: {self.lines[-3:]}")
            return found()

    def wait(self, seconds):
        """Waits for its exit and returns the status."""
        try:
            status = self.child.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise Failed(f"{self.name} did not end within {seconds} s") from error
        self.reader.join()
        return status

    def end(self):
        if self.child.poll() is None:
            # Killed, because no state needs to be saved.
            self.child.kill()
            self.child.wait()
        self.reader.join()
        self.child.stdout.close()


@contextlib.contextmanager
def process(command, core=None):
    """Starts a process, on one core if it is given. Yields it, and kills it at the end."""
    pin = [] if core is None else ["taskset", "-c", str(core)]
    started = Process([*pin, *map(str, command)])
    try:
        yield started
    finally:
        started.end()


@contextlib.contextmanager
def redis_server(core=None):
    """Starts a Redis without persistence. Yields its process and its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["redis-server", "--port", port, "--bind", "127.0.0.1", "--save", ""]
    with process(command, core) as server:
        wait_until(lambda: pongs(port), "redis does not answer")
        yield server, f"redis://127.0.0.1:{port}"


def field(line, name):
    found = re.search(rf"\b{name}=\"?([^\s\",]+)", line)
    return found and found[1]


def wait_until(holds, otherwise, seconds=DEADLINE_SECONDS):
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            raise Failed(otherwise)
        time.sleep(0.05)


def get(url):
    """Returns the body of a response with status 200, and None if there is none."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.read().decode()
    except OSError:
        return None


def pongs(port):
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as stream:
            stream.sendall(b"PING\r\n")
            return stream.recv(16).startswith(b"+PONG")
    except OSError:
        return False
