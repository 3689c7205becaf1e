"""A small client of Redis, which counts channels and measures commands."""

import socket
import time
from urllib.parse import urlsplit

from .servers import DEADLINE_SECONDS, Failed


def command(*words):
    """The bytes of a command."""
    words = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


class Redis:
    """A blocking connection."""

    def __init__(self, url):
        address = urlsplit(url)
        self.stream = socket.create_connection((address.hostname, address.port), DEADLINE_SECONDS)
        self.stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.stream.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.stream.close()

    def ask(self, *words):
        self.stream.sendall(command(*words))
        return self.reply()

    def reply(self):
        line = self.file.readline()
        kind, rest = line[:1], line[1:-2]
        if kind in (b"-", b""):
            raise Failed(f"Redis refuses a command: {rest.decode()}")
        if kind == b"$":
            return self.file.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return [self.reply() for _ in range(int(rest))]
        return rest

    def info(self, section):
        lines = self.ask("INFO", section).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def steady_channels(self):
        """Waits until the number of channels is stable, because servers subscribe some after they are ready."""
        known = []
        while len(known) < 5 or len(set(known[-5:])) > 1:
            known.append(self.channels())
            time.sleep(0.1)
        return known[-1]

    def channels(self):
        counts = self.info("stats")
        return sum(int(counts.get(name, 0)) for name in ["pubsub_channels", "pubsubshard_channels"])
