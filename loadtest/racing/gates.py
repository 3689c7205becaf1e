"""Gates: upper bounds for the cost of a change, relative to an earlier build in the same race (`--before`)."""

from .bars import Bar, bar_rows
from .lines import CPU, DEPTHS, HEARD_AGAIN, PUBLISHES, REDIS_CPU, ROOMCASTS
from .servers import BEFORE, PUBLISHERS

# Line, figure, and its maximum ratio to the earlier build.
LIMITS = [
    ("cluster", CPU, 1.05),
    ("cluster-paced", CPU, 1.05),
    ("cluster", REDIS_CPU, 1.1),
    ("cluster-paced", REDIS_CPU, 1.1),
    ("channels", HEARD_AGAIN, 2),
]
FLOOD_MS = 150


def gates(results):
    for line, figure, most in LIMITS:
        for server in ROOMCASTS:
            ratio = results.ratio(line, server, server + BEFORE, figure)
            yield Bar(f"`{line}`, {server}: {figure} ÷ before", ratio, most)
    for server in ROOMCASTS:
        yield Bar(f"`emitter`, {server}: p99, ms", results.median("emitter", server, "delivery p99"), FLOOD_MS)
        dirty = ("emitter", server) in results.ledgers if results.rounds("emitter", server, "delivery p99") else None
        yield Bar(f"`emitter`, {server}: ledgers that are not clean", dirty if dirty is None else int(dirty), 0)
    yield from emitter_bars(results)


def emitter_bars(results):
    """The emitter's rate relative to redis-benchmark, which sends bytes that it prepared once."""
    base, *emitters = PUBLISHERS
    for depth in DEPTHS:
        line = f"publish-{depth}"
        for name in emitters:
            ratio = results.ratio(line, name, base, PUBLISHES)
            yield Bar(f"`{line}`, {name}: publishes per second ÷ {base}", ratio, 0.8 if depth <= 64 else 0.6, True)


def gates_table(record, results):
    """Returns the gates as Markdown; empty for races without an earlier build."""
    if not record.before:
        return ""
    head = "Medians of ratios within rounds, to the build that `--before` named."
    return "\n".join(["### Before and after", "", head, "", *bar_rows(gates(results)), ""])
