"""The constants of docs/scaling.json that a race measures, each with where it comes from.

Constants of other benchmarks stand in the same file and are left as they are.
"""

import json

from .lines import CPU, SIZES

IDLE = "idle connection"
# How the cost of a delivery is called.
SIZE = "delivery_us_room_{}"


def update(text, record, results):
    """The file with the constants that were measured put in."""
    known = json.loads(text)
    origin = f"race of {record.said['started'][:10]} at {record.said['commit']}"
    for name, (value, line) in measured(results).items():
        if value is not None:
            # Beyond three digits there is noise.
            known["constants"][name]["value"] = float(f"{value:.3g}")
            known["constants"][name]["source"] = f"{origin}, line {line}"
    return json.dumps(known, indent=2, ensure_ascii=False) + "\n"


def measured(results):
    """By name: the value in the unit of the file, None if there is none, and the line it is from."""
    of = lambda line, figure: results.median(line, "roomcast", figure)
    found = {SIZE.format(size): (of(f"room-{size}", CPU), f"room-{size}") for size in SIZES}
    kernel = of("idle", f"{IDLE}, kernel objects of both ends")
    idle = of("heartbeat", f"{IDLE}, CPU")
    found |= {
        "connect_us": (of("storm", "server CPU per connect"), "storm"),
        "request_us": (of("echo", "server CPU per request"), "echo"),
        "idle_us_per_second": (idle, "heartbeat"),
        "user_bytes": (of("idle", f"{IDLE} after traffic, resident"), "idle"),
        # Client and server are on one machine, and their ends alike.
        "kernel_bytes": (kernel and kernel / 2, "idle, half of both ends"),
        "room_bytes": (bytes_per_room(of), "others-100000 less others-10"),
    }
    return found


def bytes_per_room(of):
    """What a room with one member takes in a node."""
    figure = "server resident at the end"
    many, few = of("others-100000", figure), of("others-10", figure)
    return (many - few) * 1e6 / (100_000 - 10) if many and few else None
