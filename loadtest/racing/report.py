"""The race as Markdown: bars, figures in which another server is ahead, and a table per figure.

A cell is the median with its range, and × the median of the ratios, each within one round, to the
floor or, where none has run, to Roomcast. What a reader has to know of a run is a mark in its cell
and a note below.
"""

import statistics

from .bars import Bar, bar_rows, number
from .gates import emitter_bars
from .lines import CPU, LAST, MESSAGE_CPU, OTHER_ROOMS, SIZES

# Ratios are relative to the first of these that has run.
BASES = ["floor", "floor + redis", "redis-benchmark", "roomcast before", "roomcast classic before", "roomcast", "roomcast classic"]
RIVALS = ("node", "socketioxide")
MARKS = {
    "¹": "the loader was busy, which affects throughput and latency, but not CPU",
    "²": "the ledger is not clean",
    "³": "the run had another limit or failure; see below",
}


def tables(lines, results):
    """Renders a table per figure, in sections."""
    text = []
    for title, of_section in sections(lines):
        text += [f"### {title}", ""]
        figures = dict.fromkeys(name for line in of_section for name in line.figures)
        for figure in figures:
            text.append(table(figure, [line for line in of_section if figure in line.figures], results))
    text += [f"{mark} {means}.  " for mark, means in MARKS.items()]
    return "\n".join([*text, ""])


def sections(lines):
    """Groups lines by section."""
    by_title = {}
    for line in lines:
        by_title.setdefault(line.section, []).append(line)
    return by_title.items()


def table(figure, lines, results):
    servers = list(dict.fromkeys(server for line in lines for server in line.servers))
    base = next((name for name in BASES if name in servers), servers[0])
    servers.sort(key=lambda name: name != base)
    unit = results.units.get(figure, "")
    text = [f"**{figure[0].upper()}{figure[1:]}{', ' if unit else ''}{unit}**", ""]
    text.append(f"| | {' | '.join(servers)} |")
    text.append("|---" * (len(servers) + 1) + "|")
    for line in lines:
        cells = [cell(line, server, figure, results) for server in servers]
        text.append(f"| `{line.name}` {line.title} | {' | '.join(cells)} |")
    return "\n".join([*text, ""])


def cell(line, server, figure, results):
    if server not in line.servers:
        return ""
    values = sorted(results.rounds(line.name, server, figure).values())
    if not values:
        return "no figure"
    text = number(statistics.median(values))
    if len(values) > 1:
        text += f" ({number(values[0])}–{number(values[-1])})"
    has_run = [name for name in BASES + line.servers if results.rounds(line.name, name, figure)]
    ratio = results.ratio(line.name, server, has_run[0], figure)
    if server != has_run[0] and ratio:
        text += f" ×{ratio:.2f}"
    marks = marks_of(line.name, server, figure, results)
    return f"{text} {marks}".rstrip()


def marks_of(line, server, figure, results):
    applies = {
        "¹": results.is_limited_by_loader(line, server) and not is_cost(figure),
        "²": (line, server) in results.ledgers,
        "³": results.is_limited_otherwise(line, server) or (line, server) in results.failures,
    }
    return "".join(mark for mark, does in applies.items() if does)


def notes(lines, results):
    """Lists faults in ledgers, limits and failed runs."""
    kinds = [
        ("Ledgers that are not clean", results.ledgers, "All others are clean."),
        ("Limited by the loader or its settings", results.limits, ""),
        ("Runs without figures", results.failures, ""),
    ]
    text = []
    for title, of_kind, rest in kinds:
        rows = [
            f"- `{line.name}`, {server}: {'; '.join(of_kind[line.name, server])}"
            for line in lines for server in line.servers if (line.name, server) in of_kind
        ]
        text += [f"### {title}", "", *(rows or ["None."]), ""]
        text += [rest, ""] if rows and rest else []
    return "\n".join(text)


def is_yield(figure):
    """Whether higher values are better."""
    return "per second" in figure or "per server CPU second" in figure


def is_cost(figure):
    """Whether it is a cost of the server, which a busy loader does not affect."""
    return "CPU" in figure or figure.startswith("idle connection")


def bars(lines, results):
    """Yields all bars of a whole race."""
    of = results.median
    ours = lambda line, figure: results.ratio(line, "roomcast", "floor", figure)
    yield Bar("room of 1,000, one outstanding: CPU ÷ floor", ours("room-1000", CPU), 1.10)
    yield Bar("room of 5,000, one outstanding: CPU ÷ floor", ours("room-5000", CPU), 1.10)
    yield Bar("four outstanding: CPU ÷ floor", ours("four", CPU), 0.35)
    yield Bar("200 rooms of ten: CPU ÷ floor", ours("small-rooms", CPU), 1.20)
    yield Bar("200 rooms of ten: p99 ÷ floor", ours("small-rooms", LAST), 1.5)
    yield Bar("echo: CPU ÷ floor", ours("echo", "server CPU per request"), 1.20)
    yield Bar("echo: p99 ÷ floor", ours("echo", "echo p99"), 1.5)
    yield Bar("connect: CPU ÷ floor", ours("storm", "server CPU per connect"), 1.60)
    yield Bar("connect, 8,000 kept open: p99 ÷ floor", ours("storm-kept", "connect p99"), 2)
    yield Bar("10,000 connects to a fresh server: p99 ÷ floor", ours("idle", "connect p99"), 2)
    idle = "idle connection, resident"
    yield Bar("bytes per idle connection", of("idle", "roomcast", idle), 1280)
    # In small rooms the event that causes a broadcast dominates, and large rooms exceed the caches.
    # Therefore the floor's own spread is shown.
    sizes = lambda server: spread([of(f"room-{size}", server, CPU) for size in SIZES])
    name = "rooms of 10 to 15,000: dearest ÷ cheapest delivery"
    floor = sizes("floor")
    yield Bar(f"{name} (the floor's: {number(floor)})" if floor else name, sizes("roomcast"), 1.5)
    others = [of(f"others-{rooms}", "roomcast", CPU) for rooms in OTHER_ROOMS]
    yield Bar("10 to 100,000 other rooms: dearest ÷ cheapest broadcast", spread(others), 1.2)
    yield Bar("15,000 idle connections: % of a core", of("heartbeat", "roomcast", "server CPU"), 3)
    yield Bar("ten per second in a room of 1,000: p99 ÷ floor", ours("paced", LAST), 1.3)
    yield Bar("echo beside a room of 15,000: p99, ms", of("beside", "roomcast", "echo p99"), 5)
    yield Bar("flood from outside: p99, ms", of("emitter", "roomcast classic", "delivery p99"), 500)
    heard = results.ratio("receive-one", "roomcast classic", "floor + redis", CPU)
    yield Bar("a message from Redis, room of 100: CPU per delivery ÷ floor", heard, 1.2)
    sent = results.ratio("send-1", "roomcast classic", "floor + redis", MESSAGE_CPU)
    yield Bar("the sending node, one outstanding: CPU per message ÷ floor", sent, 1.5)
    yield from emitter_bars(results)
    dirty = [server for _, server in results.ledgers if server.startswith("roomcast")]
    yield Bar("lines in which a ledger of Roomcast is not clean", len(dirty), 0)
    yield Bar("figures in which another is ahead (below)", len(list(ahead(lines, results))), 0)


def spread(values):
    return max(values) / min(values) if all(values) else None


def bars_table(lines, results):
    rows = bar_rows(bars(lines, results))
    return "\n".join(["### Bars", "", *rows, ""])


def behind(lines, results):
    """Renders the figures in which another server is ahead of Roomcast."""
    text = []
    for line, figure, own, rival, ratio in ahead(lines, results):
        marks = marks_of(line.name, rival, figure, results)
        text.append(f"- `{line.name}`, {figure}: {own} ÷ {rival} {ratio:.2f} {marks}".rstrip())
    head = ("Node.js and socketioxide are compared in every figure, the task floor in costs where it is ahead of"
            " the floor. Kernel objects are excluded, because they do not depend on the server.")
    return "\n".join(["### Where another is ahead", "", head, "", *(text or ["Nowhere."]), ""])


def ahead(lines, results):
    """Yields line, figure, own server, rival and ratio where a rival is ahead."""
    for line in lines:
        own = next((name for name in line.servers if name.startswith("roomcast")), None)
        for figure in line.figures:
            for rival in rivals(line, figure, results):
                ratio = results.ratio(line.name, own, rival, figure)
                if ratio is not None and (ratio < 1 if is_yield(figure) else ratio > 1):
                    yield line, figure, own, rival, ratio


def rivals(line, figure, results):
    if "kernel" in figure:
        return []
    named = [name for name in line.servers if name.startswith(RIVALS)]
    floor = results.ratio(line.name, "task floor", "floor", figure)
    # A floor that costs more than the simple one is not a reference.
    if is_cost(figure) and floor and (floor > 1 if is_yield(figure) else floor < 1):
        named.append("task floor")
    return named
