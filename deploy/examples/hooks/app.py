#!/usr/bin/env python3
"""A chat as an application behind Roomcast, with Python's standard library only.

    ROOMCAST_SECRET=… ./app.py [PORT [ADDRESS]]

Roomcast posts the events of its clients, and carries out the operations of the response. Clients send arguments of
any number and type. An exception would count as an outage of the application, so each function checks its arguments.
"""

import hashlib
import hmac
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRET = os.environ["ROOMCAST_SECRET"].encode()
# Users by their tokens. A real application asks its sessions or its database.
USERS = {"token-of-ada": "ada", "token-of-bob": "bob"}


def connect(request):
    token = request["auth"].get("token")
    user = USERS.get(token) if isinstance(token, str) else None
    if user is None:
        return [{"op": "refuse", "message": "unknown token", "data": {"code": 401}}]
    return [
        {"op": "set_user", "user": user},
        {"op": "set_data", "data": {"name": user}},
        {"op": "join", "rooms": ["lobby"]},
        {"op": "emit", "event": "welcome", "args": [user]},
        {"op": "emit", "event": "joined", "args": [user], "rooms": ["lobby"], "except": [request["socket"]["id"]]},
    ]


def message(request, text=None, *_):
    if not isinstance(text, str) or not text.strip():
        return [{"op": "refuse", "message": "say something"}]
    sender = request["socket"]["data"]["name"]
    return [
        {"op": "emit", "event": "message", "args": [sender, text], "rooms": ["lobby"]},
        {"op": "ack", "args": ["delivered"]},
    ]


def whisper(request, user=None, text=None, *_):
    if user not in USERS.values() or not isinstance(text, str):
        return [{"op": "refuse", "message": "name a user and say something"}]
    return [
        {"op": "emit", "event": "whisper", "args": [request["socket"]["user"], text], "users": [user]},
        {"op": "ack", "args": ["delivered"]},
    ]


def disconnect(request):
    return [{"op": "emit", "event": "left", "args": [request["socket"]["user"]], "rooms": ["lobby"]}]


EVENTS = {"message": message, "whisper": whisper}


def respond(request):
    match request["type"]:
        case "connect":
            return connect(request)
        case "disconnect":
            return disconnect(request)
        case "batch":
            return [respond(event) for event in request["events"]]
        case "event" if request["event"] in EVENTS:
            return EVENTS[request["event"]](request, *request["args"])
    return [{"op": "refuse", "message": "unknown event"}]


def is_genuine(header, body):
    parts = dict(part.split("=", 1) for part in header.split(",") if "=" in part)
    sent, given = parts.get("t", ""), parts.get("v1", "")
    wanted = hmac.new(SECRET, sent.encode() + b"." + body, hashlib.sha256).hexdigest()
    # As bytes, because characters beyond ASCII cannot be compared. A signed time is a number.
    is_signed = hmac.compare_digest(wanted.encode(), given.encode())
    return is_signed and abs(time.time() - int(sent)) < 300


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # Keeps connections open.

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not is_genuine(self.headers.get("Roomcast-Signature", ""), body):
            self.send_error(403)
            return
        response = json.dumps(respond(json.loads(body))).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(response)))
        self.end_headers()
        self.wfile.write(response)


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    address = sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1"
    ThreadingHTTPServer((address, port), Handler).serve_forever()
