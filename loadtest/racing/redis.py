"""A small Redis client that counts channels."""

import socket
import time
from urllib.parse import urlsplit

from .servers import DEADLINE_SECONDS, Failed


class Redis:
    """A blocking connection for one command at a time."""

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
        """Executes a command and returns a line or a bulk string."""
        self.stream.sendall(f"{command}\r\n".encode())
        head = self.file.readline().decode()
        if head.startswith("-") or not head:
            raise Failed(f"Redis refuses {command}: {head}")
        return self.file.read(int(head[1:]) + 2).decode() if head.startswith("$") else head[1:]

    def steady_channels(self):
        """Waits until the number of channels is stable, because servers subscribe some after they are ready."""
        known = []
        while len(known) < 5 or len(set(known[-5:])) > 1:
            known.append(self.channels())
            time.sleep(0.1)
        return known[-1]

    def channels(self):
        lines = self.ask("INFO stats").splitlines()
        counts = dict(line.split(":", 1) for line in lines if ":" in line)
        return sum(int(counts.get(name, 0)) for name in ["pubsub_channels", "pubsubshard_channels"])
