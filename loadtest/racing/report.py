"""The tables: medians with their range, ratios of one round, and the bars.

Figures are computed by `roomcast-loadtest compare`, so that the race has no second opinion on what
a percentile or a cost is.
"""

import json
import statistics
import subprocess
import tempfile

from .lines import CPU, LAST, OTHER_ROOMS, SIZES, ledger
from .servers import Failed

# What the first figure of a table is divided by: the first of these that ran.
BASES = ["floor", "roomcast", "roomcast classic"]


class Results:
    """Figures by line, server and round."""

    def __init__(self, loadtest, folder):
        self.loadtest = loadtest
        self.folder = folder
        self.figures = {}
        self.ledgers = {}
        self.units = {}

    def read(self, line):
        """Reads the results of a line, as far as there are any."""
        found = {}
        for server in line.servers:
            found[server] = sorted(self.folder.glob(f"round-*/{line.name}/{server}.json"))
        paths = [path for of_server in found.values() for path in of_server]
        if not paths:
            return
        # At least two are compared; one is as good as twice the same.
        rows = self.compare([str(path) for path in paths] * (2 if len(paths) == 1 else 1))
        for row in rows:
            self.units[row["figure"]] = row["unit"]
        values = {row["figure"]: row["values"] for row in rows}
        at = 0
        for server, of_server in found.items():
            for path in of_server:
                number = path.parent.parent.name
                for name in line.figures:
                    value = values.get(name, [])[at:at + 1]
                    if value and value[0] is not None:
                        self.figures.setdefault((line.name, server, name), {})[number] = value[0]
                faults = ledger(path)
                if faults:
                    self.ledgers.setdefault((line.name, server), []).append(faults)
                at += 1

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

    def ratio(self, line, one, other, figure, other_line=None):
        """The median over rounds of one server's figure divided by another's in the same round."""
        ours = self.rounds(line, one, figure)
        theirs = self.rounds(other_line or line, other, figure)
        ratios = [ours[at] / theirs[at] for at in ours if theirs.get(at)]
        return statistics.median(ratios) if ratios else None


def table(line, results, remarks):
    """The table of one line as Markdown."""
    units = results.units
    heads = [f"{name}, {units.get(name, '')}".rstrip(", ") for name in line.figures]
    base = next((name for name in BASES if name in line.servers), line.servers[0])
    text = [f"### `{line.name}`: {line.title}", ""]
    text.append(f"| server | {' | '.join(heads)} | ÷ {base} | ledger |")
    text.append("|---" * (len(heads) + 3) + "|")
    for server in line.servers:
        cells = [cell(results.rounds(line.name, server, name).values()) for name in line.figures]
        ratio = results.ratio(line.name, server, base, line.figures[0])
        faults = results.ledgers.get((line.name, server))
        has_run = any(cells)
        clean = "; ".join(faults) if faults else "clean" if has_run else "no figures"
        ratio = f"{ratio:.2f}" if ratio else ""
        text.append(f"| {server} | {' | '.join(cells)} | {ratio} | {clean} |")
    notes = [f"- {server}, {remark}" for server, remark in remarks]
    return "\n".join([*text, *([""] if notes else []), *notes, ""])


def cell(values):
    values = sorted(values)
    if not values:
        return ""
    median = number(statistics.median(values))
    if len(values) == 1:
        return median
    return f"{median} ({number(values[0])}–{number(values[-1])})"


def number(value):
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def bars(results):
    """What was to be reached: text, figure, bar. A figure that was not measured is None."""
    of = results.median
    ours = lambda line, figure: results.ratio(line, "roomcast", "floor", figure)
    yield "room of 1,000, one outstanding: CPU ÷ floor", ours("room-1000", CPU), 1.10
    yield "room of 5,000, one outstanding: CPU ÷ floor", ours("room-5000", CPU), 1.10
    yield "four outstanding: CPU ÷ floor", ours("four", CPU), 0.35
    yield "200 rooms of ten: CPU ÷ floor", ours("small-rooms", CPU), 1.20
    yield "200 rooms of ten: p99 ÷ floor", ours("small-rooms", LAST), 1.5
    yield "echo: CPU ÷ floor", ours("echo", "server CPU per request"), 1.20
    yield "echo: p99 ÷ floor", ours("echo", "echo p99"), 1.5
    yield "connect: CPU ÷ floor", ours("storm", "server CPU per connect"), 1.60
    idle = "idle connection, resident"
    yield "bytes per idle connection", of("idle", "roomcast", idle), 1280
    sizes = [of(f"room-{size}", "roomcast", CPU) for size in SIZES]
    yield "rooms of 10 to 15,000: dearest ÷ cheapest delivery", spread(sizes), 1.5
    others = [of(f"others-{rooms}", "roomcast", CPU) for rooms in OTHER_ROOMS]
    yield "10 to 100,000 other rooms: dearest ÷ cheapest broadcast", spread(others), 1.2
    yield "15,000 idle connections: % of a core", of("heartbeat", "roomcast", "server CPU"), 3
    yield "ten per second in a room of 1,000: p99 ÷ floor", ours("paced", LAST), 1.3
    yield "echo beside a room of 15,000: p99, ms", of("beside", "roomcast", "echo p99"), 5
    yield "flood from outside: p99, ms", of("emitter", "roomcast classic", "delivery p99"), 500


def spread(values):
    return max(values) / min(values) if all(values) else None


def bars_table(results):
    text = ["### Bars", "", "| | figure | bar | |", "|---|---|---|---|"]
    for name, figure, bar in bars(results):
        if figure is None:
            text.append(f"| {name} | not measured | ≤ {bar:g} | |")
        else:
            met = "met" if figure <= bar else f"missed by {100 * (figure / bar - 1):.0f} %"
            text.append(f"| {name} | {number(figure)} | ≤ {bar:g} | {met} |")
    return "\n".join([*text, ""])


def behind(lines, results):
    """Figures in which another server is ahead of Roomcast, as Markdown."""
    text = []
    for line in lines:
        own = next((name for name in line.servers if name.startswith("roomcast")), None)
        rivals = [name for name in line.servers if name.startswith(("node", "socketioxide", "task"))]
        for figure in line.figures:
            is_yield = "per second" in figure or "per server CPU second" in figure
            for rival in rivals:
                ratio = results.ratio(line.name, own, rival, figure)
                if ratio is not None and (ratio < 1 if is_yield else ratio > 1):
                    text.append(f"- `{line.name}`, {figure}: {own} ÷ {rival} {ratio:.2f}")
    return "\n".join(["### Where another is ahead", "", *(text or ["Nowhere."]), ""])
