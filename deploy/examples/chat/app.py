#!/usr/bin/env python3
"""The chat of server.js behind Roomcast, with Python's standard library only.

    JWT_SECRET=… ROOMCAST_SECRET=… ./app.py [PORT]

It serves the page and logs users in. Roomcast verifies their tokens (roomcast.toml), posts what clients do to /hook,
and carries out the operations that are returned. The balancer leads /socket.io/ to Roomcast and the rest to here.
Clients send arguments of any number and type. An exception would count as an outage of the application, so each
function checks its arguments.
"""

import base64
import hashlib
import hmac
import json
import os
import sys
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

JWT_SECRET = os.environ["JWT_SECRET"].encode()
ROOMCAST_SECRET = os.environ["ROOMCAST_SECRET"].encode()
PAGE = (Path(__file__).parent / "index.html").read_bytes()
# Users with their passwords. A real application has hashes of them in a database.
PASSWORDS = {"ada": "lovelace", "bob": "baker"}

# The user of each socket in each room. Several applications behind one cluster would share it in a database.
members = defaultdict(dict)
lock = threading.Lock()


def encoded(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def issue(user):
    parts = {"alg": "HS256", "typ": "JWT"}, {"sub": user, "exp": int(time.time()) + 3600}
    text = ".".join(encoded(json.dumps(part).encode()) for part in parts)
    return f"{text}.{encoded(hmac.digest(JWT_SECRET, text.encode(), 'sha256'))}"


def others(socket, event, rooms, **argument):
    """Emits to rooms, except to the socket: `socket.to(…).emit(…)` of Node.js."""
    return {"op": "emit", "event": event, "args": [argument], "rooms": rooms, "except": [socket["id"]]}


def ack(**argument):
    return {"op": "ack", "args": [argument]}


def join(socket, room=None, *_):
    if not isinstance(room, str) or not room.strip():
        return [ack(error="a room needs a name")]
    with lock:
        members[room][socket["id"]] = socket["user"]
        users = sorted(set(members[room].values()))
    name = f"room:{room}"
    joined = others(socket, "joined", [name], room=room, user=socket["user"])
    return [{"op": "join", "rooms": [name]}, joined, ack(members=users)]


def forget(socket, room):
    with lock:
        members[room].pop(socket["id"], None)
        if not members[room]:
            del members[room]
    return others(socket, "left", [f"room:{room}"], room=room, user=socket["user"])


def leave(socket, room=None, *_):
    if not isinstance(room, str):
        return [ack(error="a room needs a name")]
    return [{"op": "leave", "rooms": [f"room:{room}"]}, forget(socket, room), ack()]


def message(socket, room=None, text=None, *_):
    if f"room:{room}" not in socket["rooms"]:
        return [ack(error="join the room first")]
    if not isinstance(text, str) or not text.strip():
        return [ack(error="say something")]
    return [others(socket, "message", [f"room:{room}"], room=room, **{"from": socket["user"]}, text=text), ack()]


def private_message(socket, user=None, text=None, *_):
    if not isinstance(user, str) or user not in PASSWORDS:
        return [ack(error="no such user")]
    argument = {"from": socket["user"], "text": text}
    return [{"op": "emit", "event": "private message", "args": [argument], "users": [user]}, ack()]


def typing(socket, room=None, is_typing=False, *_):
    if f"room:{room}" not in socket["rooms"]:
        return []
    return [others(socket, "typing", [f"room:{room}"], room=room, user=socket["user"], isTyping=is_typing)]


EVENTS = {"join": join, "leave": leave, "message": message, "private message": private_message, "typing": typing}


def respond(request):
    socket = request["socket"]
    if request["type"] == "disconnect":
        rooms = [room.removeprefix("room:") for room in socket["rooms"] if room.startswith("room:")]
        return [forget(socket, room) for room in rooms]
    if request["type"] == "event" and request["event"] in EVENTS:
        return EVENTS[request["event"]](socket, *request["args"])
    return []  # A connect: the token was valid, and nothing more is asked.


def is_genuine(header, body):
    parts = dict(part.split("=", 1) for part in header.split(",") if "=" in part)
    sent, given = parts.get("t", ""), parts.get("v1", "")
    wanted = hmac.new(ROOMCAST_SECRET, sent.encode() + b"." + body, hashlib.sha256).hexdigest()
    # As bytes, because characters beyond ASCII cannot be compared. A signed time is a number.
    is_signed = hmac.compare_digest(wanted.encode(), given.encode())
    return is_signed and abs(time.time() - int(sent)) < 300


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # Keeps connections open.

    def do_GET(self):
        if self.path != "/":
            return self.send_error(404)
        return self.send(PAGE, "text/html; charset=utf-8")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/login":
            given = json.loads(body)
            if (given["name"], given["password"]) not in PASSWORDS.items():
                return self.send_error(401)
            return self.send(json.dumps({"token": issue(given["name"])}).encode())
        if self.path != "/hook" or not is_genuine(self.headers.get("Roomcast-Signature", ""), body):
            return self.send_error(403)
        return self.send(json.dumps(respond(json.loads(body))).encode())

    def send(self, body, kind="application/json"):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 8000), Handler).serve_forever()
