#!/usr/bin/env python3
"""Measures what a journal costs Redis: its CPU per broadcast, beside that of a plain PUBLISH.

Starts a redis-server of its own with one subscriber, then with three. The ways take turns, so that other work on the machine
falls on all of them, and the figures are medians. Usage: loadtest/journal_costs.py [ROUNDS]
"""

import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

SCRIPTS = pathlib.Path(__file__).resolve().parent.parent / "emitter/src/log"
CHANNEL = "socket.io#/#"
# The envelope of a broadcast with one text of 128 bytes to a room, without its place.
HEAD = b'["AbCdEfGhIjKlMnOp",{"type":2,"data":["number","%s"],"nsp":"/"},{"rooms":["news"],"except":[],"flags":{}}' % (b"x" * 128)
SETTINGS = (30 * 86400, 10_000, 16 << 20, 600)
DEEP = 64


def command(*words):
    words = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


class Redis:
    def __init__(self, port):
        deadline = time.monotonic() + 30
        while True:
            try:
                self.socket = socket.create_connection(("127.0.0.1", port))
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.replies = self.socket.makefile("rb")

    def reply(self):
        line = self.replies.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise RuntimeError(rest.decode())
        if kind == b"$":
            return self.replies.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return [self.reply() for _ in range(int(rest))]
        return rest

    def ask(self, *words):
        self.socket.sendall(command(*words))
        return self.reply()

    def cpu(self):
        """User and system time, in µs."""
        lines = self.ask("INFO", "cpu").decode().split()
        return sum(float(line.split(":")[1]) for line in lines if line.startswith(("used_cpu_user:", "used_cpu_sys:"))) * 1e6

    def measure(self, sent, count, depth):
        """CPU per command, with `depth` of them in each write."""
        before = self.cpu()
        for _ in range(count // depth):
            self.socket.sendall(sent * depth)
            for _ in range(depth):
                self.reply()
        return (self.cpu() - before) / (count // depth * depth)


def subscribe(port):
    subscriber = Redis(port)
    subscriber.ask("SUBSCRIBE", CHANNEL)
    threading.Thread(target=lambda: all(iter(lambda: subscriber.socket.recv(1 << 18), b"")), daemon=True).start()


def measure(port, rounds, subscribers):
    redis = Redis(port)
    for _ in range(subscribers):
        subscribe(port)
    script = "".join((SCRIPTS / name).read_text() for name in ("journal.lua", "trim.lua", "upkeep.lua"))
    sha = redis.ask("SCRIPT", "LOAD", script).decode()

    def journaled(heads):
        words = ("EVALSHA", sha, 2, "counter", "journal", CHANNEL, "PUBLISH", *SETTINGS)
        return command(*words, *[HEAD] * heads)

    publish, one, many = command("PUBLISH", CHANNEL, HEAD), journaled(1), journaled(DEEP)
    # Until the journal is full.
    redis.measure(many, 200, 1)
    alone, deep = [], []
    for _ in range(rounds):
        alone.append((redis.measure(publish, 1000, 1), redis.measure(one, 1000, 1)))
        deep.append((redis.measure(publish, 12_800, DEEP), redis.measure(many, 200, 1) / DEEP))
    for name, pairs in (("one at a time", alone), (f"{DEEP} at a time", deep)):
        plain, stored = (statistics.median(side) for side in zip(*pairs))
        ratio = statistics.median(stored / plain for plain, stored in pairs)
        print(f"{subscribers} subscribed, {name}: PUBLISH {plain:.2f} µs, journal {stored:.2f} µs, {ratio:.2f} times")


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    for subscribers in (1, 3):
        with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
            free.close()
            options = ["--port", str(port), "--save", "", "--dir", folder, "--loglevel", "warning"]
            server = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)
            try:
                measure(port, rounds, subscribers)
            finally:
                server.terminate()
                server.wait()


main()
