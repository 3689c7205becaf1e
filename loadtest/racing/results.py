"""The results of a race, read from its folder: figures, ledgers, limits and failed runs.

`roomcast-loadtest compare` computes the figures, so percentiles and costs have one definition.
"""

import json
import statistics
import subprocess
import tempfile
from pathlib import Path

from .servers import Failed

# The load test's text for a busy loader.
OWN_LIMIT = "the loader's own CPU"


class Results:
    """Figures by line, server and round."""

    def __init__(self, loadtest, folder):
        self.loadtest = loadtest
        self.folder = folder
        self.figures = {}
        self.units = {}
        # Remarks by line and server.
        self.ledgers = {}
        self.limits = {}
        self.failures = {}

    def read(self, line):
        """Reads the existing results of a line."""
        found = {server: self.paths(line.name, server) for server in line.servers}
        paths = [str(path) for of_server in found.values() for path in of_server]
        for server in line.servers:
            self.read_failures(line.name, server)
        if not paths:
            return
        rows = computed(paths)
        if all(is_of_loadtest(path) for path in paths):
            rows += self.compare(paths)
        self.units.update((row["figure"], row["unit"]) for row in rows)
        runs = [(server, path) for server, of_server in found.items() for path in of_server]
        for at, (server, path) in enumerate(runs):
            self.read_remarks(line.name, server, path)
            for row in rows:
                if row["values"][at] is not None:
                    key = line.name, server, row["figure"]
                    self.figures.setdefault(key, {})[path.parent.parent.name] = row["values"][at]

    def paths(self, line, server):
        return [path for path in sorted(self.folder.glob(f"round-*/{line}/{server}.json"))
                if is_whole(path)]

    def read_remarks(self, line, server, path):
        if (remark := path.with_suffix(".remark")).exists():
            self.note(self.limits, line, server, f"{round_of(path)}: {remark.read_text().strip()}")
        beside = path.with_name(f"{path.stem} (room).json")
        for result, who in [(path, ""), (beside, "large room: ")]:
            if not is_whole(result):
                continue
            outcome = json.loads(result.read_text())
            if faults := ledger(outcome):
                arrived = f"{outcome['ledger']['arrived']:,} arrived"
                self.note(self.ledgers, line, server, f"{round_of(path)}: {who}{arrived}, {faults}")
            for limit in outcome["limited_by"]:
                self.note(self.limits, line, server, f"{round_of(path)}: {who}{limit}")

    def read_failures(self, line, server):
        for path in sorted(self.folder.glob(f"round-*/{line}/{server}.failed")):
            self.note(self.failures, line, server, f"{round_of(path)}: {path.read_text().strip()}")

    def note(self, notes, line, server, text):
        notes.setdefault((line, server), []).append(text)

    def compare(self, paths):
        with tempfile.NamedTemporaryFile(suffix=".json") as out:
            command = [self.loadtest, "compare", *paths, "--json", out.name]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise Failed(f"compare: {done.stderr}")
            return json.load(out)["figures"]

    def rounds(self, line, server, figure):
        return self.figures.get((line, server, figure), {})

    def median(self, line, server, figure):
        values = self.rounds(line, server, figure).values()
        return statistics.median(values) if values else None

    def ratio(self, line, one, other, figure):
        """Returns the median of the ratios of two servers within rounds."""
        ours = self.rounds(line, one, figure)
        theirs = self.rounds(line, other, figure)
        ratios = [ours[at] / theirs[at] for at in ours if theirs.get(at)]
        return statistics.median(ratios) if ratios else None

    def is_limited_by_loader(self, line, server):
        return any(OWN_LIMIT in text for text in self.limits.get((line, server), []))

    def is_limited_otherwise(self, line, server):
        return any(OWN_LIMIT not in text for text in self.limits.get((line, server), []))


def computed(paths):
    """Returns the figures that the race itself has computed."""
    rows = {}
    for at, path in enumerate(paths):
        for row in json.loads(Path(path).read_text()).get("figures", []):
            values = rows.setdefault(row["figure"], row | {"values": [None] * len(paths)})["values"]
            values[at] = row["value"]
    return list(rows.values())


def is_of_loadtest(path):
    return "scenario" in json.loads(Path(path).read_text())


def ledger(outcome):
    """Summarises the faults in the ledger of a result; empty if it is clean."""
    tally = outcome["ledger"]
    faults = ["lost", "duplicated", "reordered", "corrupted", "stray"]
    return ", ".join(f"{tally[name]:,} {name}" for name in faults if tally.get(name))


def is_whole(path):
    """Whether a complete result exists."""
    try:
        return "ledger" in json.loads(path.read_text())
    except (OSError, ValueError):
        return False


def summary(path):
    """The faults and limits of a result."""
    outcome = json.loads(path.read_text())
    return "; ".join(filter(None, [ledger(outcome), *outcome["limited_by"]]))


def round_of(path):
    return path.parent.parent.name.replace("-", " ")
