"""Starts the server under test once for all Python tests, and stops it.

It knows the command and the one line that the server prints; the handlers are described at the top of
reference-server.js.
"""

import json
import os
import pathlib
import re
import select
import subprocess

import pytest


DIFFERENCES = json.loads((pathlib.Path(__file__).parent.parent / "differences.json").read_text())


def pytest_collection_modifyitems(items):
    """Leaves out what the official server is known not to pass, when it is the one under test."""
    if os.environ.get("TEST_REFERENCE") != "1":
        return
    for item in items:
        reason = DIFFERENCES["improvements"].get(item.name)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def server_url():
    command = os.environ["TEST_SERVER"]
    process = subprocess.Popen(
        ["/bin/sh", "-c", f'exec {command} "$@"', "sh", "--config", json.dumps({})],
        cwd=os.environ.get("TEST_FOLDER"),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        ready, _, _ = select.select([process.stdout], [], [], 20)
        assert ready, "the server did not say where it listens"
        match = re.fullmatch(r"listening on (127\.0\.0\.1:\d+)\n", process.stdout.readline())
        assert match, "the server did not say where it listens"
        yield f"http://{match[1]}"
    finally:
        process.terminate()
        process.wait(timeout=10)


@pytest.fixture(params=["polling", "websocket", "upgrade"])
def transports(request):
    return {"upgrade": ["polling", "websocket"]}.get(request.param, [request.param])
