"""Rooms in which nobody talks, for the question what they cost those who do.

A few connections are in a thousand rooms each. It speaks as much of the protocols as that takes.
"""

import base64
import contextlib
import os
import socket
from urllib.parse import urlsplit

from .servers import Failed

# Below the number of rooms that Roomcast lets a socket join by default.
ROOMS_PER_CONNECTION = 1000
# Joins that are under way at a time.
JOINS_AT_A_TIME = 100


@contextlib.contextmanager
def other_rooms(url, count):
    """Has `count` rooms with one member each."""
    with contextlib.ExitStack() as open_sockets:
        for first in range(0, count, ROOMS_PER_CONNECTION):
            rooms = range(first, min(first + ROOMS_PER_CONNECTION, count))
            member = Member(url)
            open_sockets.callback(member.stream.close)
            for at in range(rooms.start, rooms.stop, JOINS_AT_A_TIME):
                member.join(rooms[at - rooms.start:][:JOINS_AT_A_TIME])
        yield


class Member:
    def __init__(self, url):
        address = urlsplit(url)
        self.stream = socket.create_connection((address.hostname, address.port), 60)
        self.unread = b""
        key = base64.b64encode(os.urandom(16)).decode()
        self.stream.sendall(
            f"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: {address.netloc}\r\n"
            f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        while b"\r\n\r\n" not in self.unread:
            self.receive()
        _, self.unread = self.unread.split(b"\r\n\r\n", 1)
        self.send("40")
        self.wait_for(b"40")

    def join(self, rooms):
        for room in rooms:
            self.send(f'42{room}["join","other-{room}",{{"quiet":true}}]')
        # Servers may answer in any order.
        unanswered = {b"43%d" % room for room in rooms}
        while unanswered:
            unanswered.discard(self.packet().split(b"[", 1)[0])

    def send(self, text):
        # A key of zeros is a legal one.
        head = bytes([0x81, 0x80 | len(text)]) if len(text) < 126 else b""
        if not head:
            raise Failed(f"too long: {text}")
        self.stream.sendall(head + bytes(4) + text.encode())

    def wait_for(self, start):
        while not self.packet().startswith(start):
            pass

    def packet(self):
        """The payload of the next frame. Nobody stays until the second heartbeat."""
        while True:
            head, length = 2, self.unread[1] & 0x7F if len(self.unread) > 1 else 0
            if length == 126:
                head, length = 4, int.from_bytes(self.unread[2:4], "big")
            if len(self.unread) >= max(head + length, 2) and (head == 2 or len(self.unread) >= 4):
                packet = self.unread[head:head + length]
                self.unread = self.unread[head + length:]
                return packet
            self.receive()

    def receive(self):
        bytes_read = self.stream.recv(65536)
        if not bytes_read:
            raise Failed("the server closed a connection that was in other rooms")
        self.unread += bytes_read
