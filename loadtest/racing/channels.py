"""How soon a node hears all its channels again after Redis has closed the connections they were on.

The load test has no part in this: Redis itself says how many channels it knows.
"""

import json
import socket
import time
from urllib.parse import urlsplit

from .servers import DEADLINE_SECONDS, Failed

POLL_SECONDS = 0.005
FIGURE = "channels heard again"


def measure(redis, count, path):
    """Closes every subscriber's connection, waits for `count` channels, and writes a result."""
    with Redis(redis) as link:
        reached(link, count)
        began = time.monotonic()
        link.ask("CLIENT KILL TYPE pubsub")
        reached(link, count)
        write(path, [(FIGURE, "ms", 1000 * (time.monotonic() - began))])


def reached(link, count):
    until = time.monotonic() + DEADLINE_SECONDS
    while (known := link.channels()) < count:
        if time.monotonic() > until:
            raise Failed(f"Redis knows {known:,} channels of {count:,}")
        time.sleep(POLL_SECONDS)


def write(path, figures):
    """A result in the form of the load test, as far as the race reads it, with figures computed already."""
    rows = [{"figure": name, "unit": unit, "value": value} for name, unit, value in figures]
    path.write_text(json.dumps({"figures": rows, "ledger": {}, "limited_by": []}))


class Redis:
    """A connection for one command at a time."""

    def __init__(self, url):
        address = urlsplit(url)
        self.stream = socket.create_connection((address.hostname, address.port), DEADLINE_SECONDS)
        self.file = self.stream.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.stream.close()

    def ask(self, command):
        """The reply as text: of a line, or of a bulk string."""
        self.stream.sendall(f"{command}\r\n".encode())
        head = self.file.readline().decode()
        if head.startswith("-") or not head:
            raise Failed(f"Redis refuses {command}: {head}")
        return self.file.read(int(head[1:]) + 2).decode() if head.startswith("$") else head[1:]

    def channels(self):
        lines = self.ask("INFO stats").splitlines()
        counts = dict(line.split(":", 1) for line in lines if ":" in line)
        return sum(int(counts.get(name, 0)) for name in ["pubsub_channels", "pubsubshard_channels"])
