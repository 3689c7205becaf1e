"""Publishes a race: writes Markdown into the part of BENCHMARKS.md between two comments,
and the constants of the capacity model into docs/. Surrounding text is not changed.
"""

import subprocess

from . import constants
from .gates import gates_table
from .report import bars_table, behind, notes, tables
from .servers import Failed

BEGIN = "<!-- race: begin. What follows is written by loadtest/race -->"
END = "<!-- race: end -->"


def report(record, lines, results):
    """Returns the whole race as Markdown."""
    said = record.said
    text = [
        f"{said['machine']}. Begun {said['started']} at commit {said['commit']};"
        f" {said['rounds']} {'round' if said['rounds'] == 1 else 'rounds'} by `loadtest/race`."
        f" {record.others()}",
        "",
    ]
    if cut := cut_off(record, lines, results):
        text += [cut, ""]
    if said["quick"]:
        text += ["**A quick run**: it shows that everything works, and nothing else.", ""]
    else:
        text += [bars_table(lines, results), behind(lines, results)]
    if gates := gates_table(record, results):
        text.append(gates)
    return "\n".join([*text, tables(lines, results), notes(lines, results)])


def cut_off(record, lines, results):
    """Returns a remark if runs are missing."""
    wanted = record.said["rounds"] * sum(len(line.servers) for line in lines)
    made = sum(
        len(results.paths(line.name, server)) + len(results.failures.get((line.name, server), []))
        for line in lines for server in line.servers
    )
    return f"**Cut off**: {made} of {wanted} runs were made." if made < wanted else ""


def publish(record, lines, results, root):
    """Writes the results under the project's root. Raises Failed if the race is not publishable."""
    refuse(record, lines, results)
    benchmarks, scaling = root / "BENCHMARKS.md", root / "docs/scaling.json"
    text = between(benchmarks.read_text(), report(record, lines, results))
    known = constants.update(scaling.read_text(), record, results)
    benchmarks.write_text(text)
    scaling.write_text(known)
    command = [str(root / "docs/scaling"), "--refresh", str(root / "docs/scaling.md")]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise Failed(f"docs/scaling.md was not written: {done.stderr}")


def refuse(record, lines, results):
    """Raises Failed unless each line and server has a result or a failure."""
    missing = [
        f"{line.name} of {server}" for line in lines for server in line.servers
        if not results.paths(line.name, server) and (line.name, server) not in results.failures
    ]
    if record.said["quick"]:
        raise Failed("not published: it was a quick run")
    if record.is_partial(lines):
        raise Failed("not published: lines or servers were left out")
    if missing:
        raise Failed(f"not published: no results of {', '.join(missing)}")


def between(text, inner):
    """Replaces the text between the comments."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise Failed("BENCHMARKS.md has lost the comments between which the race writes")
    return f"{before}{begin}\n\n{inner.strip()}\n\n{end}{after}"
