"""The HTTP API as others use it: its description, a client generated from it, and the book's first call."""

import importlib
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
import requests

ROOMCAST = os.environ.get("ROOMCAST")
PAGE = pathlib.Path(__file__).parents[4] / "docs/src/api.md"
KEY = "demo-key"

pytestmark = pytest.mark.skipif(not ROOMCAST, reason="ROOMCAST names no program")


@pytest.fixture(scope="module")
def api():
    """The URL of the API of a running demo."""
    command = [ROOMCAST, "demo", "--listen", "127.0.0.1:0", "--internal-listen", "127.0.0.1:0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        said = ""
        for line in process.stderr:
            said += line
            found = re.search(r"internal=(\S+)", line)
            if found:
                break
        else:
            pytest.fail(f"the demo ended: {said}")
        yield f"http://{found[1]}"
    finally:
        process.kill()
        process.wait()


def run(command, folder):
    # Packages of the tests are in PYTHONPATH, and the programs that they bring beside them.
    path = os.pathsep.join(
        [str(pathlib.Path(folder) / "bin") for folder in sys.path if folder] + [os.environ["PATH"]]
    )
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_program_behaves_as_the_description_says(api, tmp_path):
    # A key that was used for another call is refused with 422, and random requests repeat keys. The
    # description cannot state limits in bytes, so the seed is fixed.
    (tmp_path / "schemathesis.toml").write_text(
        '[checks]\npositive_data_acceptance.expected-statuses = ["2xx", "404", "422"]\n'
    )
    # The namespace of the demo has no recovery, which this flag needs.
    document = requests.get(f"{api}/api/openapi.json", timeout=10).json()
    document["components"]["schemas"]["Flags"]["properties"]["at_least_once"]["enum"] = [False]
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    program = "from schemathesis.cli import schemathesis; schemathesis()"
    said = run(
        [sys.executable, "-c", program, "run", "openapi.json", "--url", api,
         "-H", f"Authorization: Bearer {KEY}", "--max-examples", "15", "--phases", "coverage,fuzzing",
         "--generation-codec", "ascii", "--seed", "1", "--no-color", "--include-path-regex", "^/api/"],
        tmp_path,
    )
    tested = re.search(r"Tested: (\d+)", said)
    assert tested and int(tested[1]) == 12, said


def test_a_client_can_be_generated_and_works(api, tmp_path):
    document = requests.get(f"{api}/api/openapi.json", timeout=10).json()
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    program = "from openapi_python_client.cli import app; app()"
    run(
        [sys.executable, "-c", program, "generate", "--path", "openapi.json", "--meta", "none",
         "--output-path", "roomcast_client"],
        tmp_path,
    )
    sys.path.insert(0, str(tmp_path))
    try:
        package = importlib.import_module("roomcast_client")
        calls = {
            name: importlib.import_module(f"roomcast_client.api.default.{name}")
            for name in ("emit", "node", "rooms")
        }
        models = importlib.import_module("roomcast_client.models")
        client = package.AuthenticatedClient(base_url=api, token=KEY)
        body = models.Emit(event="news", args=["it rains", 7], rooms=["tea"])
        result = calls["emit"].sync(client=client, body=body)
        assert isinstance(result, models.Result), result
        assert result.effect == models.ResultEffect.EMITTED
        assert result.local_sockets == 0
        node = calls["node"].sync(client=client)
        assert node.namespaces == ["/"] and node.health == models.NodeHealth.FLOWING
        assert calls["rooms"].sync(client=client).is_complete is True
        wrong = calls["emit"].sync(client=client, body=models.Emit(event="connect", all_=True))
        assert isinstance(wrong, models.Problem) and wrong.field == "event", wrong
    finally:
        sys.path.remove(str(tmp_path))


def test_every_call_of_the_page_works(api, tmp_path):
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    calls = [block for block in blocks if "curl" in block]
    assert len(calls) > 2
    for call in calls:
        said = run(["bash", "-euc", call.replace("http://127.0.0.1:3001", api)], tmp_path)
        assert "urn:roomcast:problem" not in said, said
