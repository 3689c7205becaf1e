#!/usr/bin/env python3
"""Measures what a journal costs Redis: its CPU per broadcast, beside that of a plain PUBLISH.

Starts a redis-server of its own with one subscriber, then with three. The ways take turns, so that other work on the machine
falls on all of them, and the figures are medians. Usage: loadtest/journal_costs.py [ROUNDS]
"""

import pathlib
import statistics
import sys
import threading

from racing.redis import Redis, command
from racing.servers import redis_server

SCRIPTS = pathlib.Path(__file__).resolve().parent.parent / "emitter/src/log"
CHANNEL = "socket.io#/#"
# The envelope of a broadcast with one text of 128 bytes to a room, without its place.
HEAD = b'["AbCdEfGhIjKlMnOp",{"type":2,"data":["number","%s"],"nsp":"/"},{"rooms":["news"],"except":[],"flags":{}}' % (b"x" * 128)
SETTINGS = (30 * 86400, 10_000, 16 << 20, 600)
DEEP = 64


def cpu(redis):
    """User and system time, in µs."""
    used = redis.info("cpu")
    return (float(used["used_cpu_user"]) + float(used["used_cpu_sys"])) * 1e6


def cost(redis, sent, count, depth):
    """CPU per command, with `depth` of them in each write."""
    before = cpu(redis)
    for _ in range(count // depth):
        redis.stream.sendall(sent * depth)
        for _ in range(depth):
            redis.reply()
    return (cpu(redis) - before) / (count // depth * depth)


def subscribe(url):
    subscriber = Redis(url)
    subscriber.ask("SUBSCRIBE", CHANNEL)
    threading.Thread(target=lambda: all(iter(lambda: subscriber.stream.recv(1 << 18), b"")), daemon=True).start()


def measure(url, rounds, subscribers):
    redis = Redis(url)
    for _ in range(subscribers):
        subscribe(url)
    script = "".join((SCRIPTS / name).read_text() for name in ("journal.lua", "trim.lua", "upkeep.lua"))
    sha = redis.ask("SCRIPT", "LOAD", script).decode()

    def journaled(heads):
        words = ("EVALSHA", sha, 2, "counter", "journal", CHANNEL, "PUBLISH", *SETTINGS)
        return command(*words, *[HEAD] * heads)

    publish, one, many = command("PUBLISH", CHANNEL, HEAD), journaled(1), journaled(DEEP)
    # Until the journal is full.
    cost(redis, many, 200, 1)
    alone, deep = [], []
    for _ in range(rounds):
        alone.append((cost(redis, publish, 1000, 1), cost(redis, one, 1000, 1)))
        deep.append((cost(redis, publish, 12_800, DEEP), cost(redis, many, 200, 1) / DEEP))
    for name, pairs in (("one at a time", alone), (f"{DEEP} at a time", deep)):
        plain, stored = (statistics.median(side) for side in zip(*pairs))
        ratio = statistics.median(stored / plain for plain, stored in pairs)
        print(f"{subscribers} subscribed, {name}: PUBLISH {plain:.2f} µs, journal {stored:.2f} µs, {ratio:.2f} times")


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    for subscribers in (1, 3):
        with redis_server() as (_, url):
            measure(url, rounds, subscribers)


main()
