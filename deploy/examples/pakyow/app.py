#!/usr/bin/env python3
"""An application behind Roomcast's door for Pakyow's clients, with Python's standard library only.

    ROOMCAST_KEY=… ROOMCAST_CALLS=http://127.0.0.1:3001 ./app.py [PORT]

Its page renders a connection id and subscribes the visitor. Roomcast asks it for the visitor's key, and
calls its routes for clients.
"""

import json
import os
import secrets
import sys
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit
from urllib.request import Request, urlopen

CALLS, KEY = os.environ["ROOMCAST_CALLS"], os.environ["ROOMCAST_KEY"]
SOCKET = os.environ.get("ROOMCAST_SOCKET", "")
SESSIONS = {}  # a real application keeps them where all its processes find them
PAGE = """<!DOCTYPE html><meta charset="utf-8"><title>News</title>
<body data-socket-connection-id="{id}" data-socket="{socket}"><ul></ul><script src="/client.js"></script>"""


def call(name, **body):
    """Calls Roomcast, which has done it when this returns."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    with urlopen(Request(f"{CALLS}/pakyow/{name}", json.dumps(body).encode(), headers)) as response:
        return json.load(response)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        url = urlsplit(self.path)
        session = SimpleCookie(self.headers.get("Cookie")).get("session")
        session = session.value if session and session.value in SESSIONS else secrets.token_hex(16)
        key = SESSIONS.setdefault(session, secrets.token_hex(32))
        if url.path == "/":
            connection_id = secrets.token_hex(32)
            call("subscribe", channels=["news"], connection_id=connection_id, socket_key=key)
            page = PAGE.format(id=connection_id, socket=SOCKET)
            self.respond(page, "text/html", {"Set-Cookie": f"session={session}; HttpOnly; SameSite=Lax"})
        elif url.path == "/client.js":
            with open(os.path.join(os.path.dirname(__file__), "client.js"), encoding="utf-8") as file:
                self.respond(file.read(), "text/javascript")
        elif url.path == "/publish":
            call("push", message=parse_qs(url.query)["text"][0], channels=["news"])
            self.respond("published")
        elif url.path == "/more" and "X-Socket-Digest" in self.headers:
            call("subscribe", channels=["weather"], digest=self.headers["X-Socket-Digest"])
            self.respond(f"subscribed with {url.query}")
        else:
            self.respond("not found", status=404)

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        session = SimpleCookie(self.headers.get("Cookie")).get("session")
        if self.path == "/pakyow/hook" and request["type"] == "connect":
            self.respond(json.dumps({"socket_key": session and SESSIONS.get(session.value)}))
        else:
            self.respond(f"{self.headers.get('X-Socket-Action')}: {sorted(request)}")

    def respond(self, text, kind="text/plain", headers={}, status=200):
        body = text.encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 9000), Handler)
    print(f"http://127.0.0.1:{server.server_port}/", flush=True)
    server.serve_forever()
