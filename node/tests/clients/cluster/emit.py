"""Emits with the Python port of the emitter: emit.py PORT PREFIX '<json>'.

The JSON is a list of calls, each with a namespace, rooms, an event and arguments; an argument
{"$bin": base64} stands for bytes.
"""

import base64
import json
import sys

from socket_io_emitter import Emitter


def argument(value):
    if isinstance(value, dict) and "$bin" in value:
        return base64.b64decode(value["$bin"])
    return value


def main():
    port, prefix, calls = sys.argv[1:]
    emitter = Emitter({"host": "127.0.0.1", "port": int(port), "key": prefix})
    for call in json.loads(calls):
        emitter.Of(call["namespace"])
        if call["rooms"]:
            emitter.In(*call["rooms"])
        emitter.Emit(call["event"], *map(argument, call["args"]))


main()
