"""The constants of docs/scaling.json that a race measures, each with its source.

Constants that were measured by hand or assumed are in the same file and left as they are.
"""

import json

from .lines import CPU, MESSAGE_CPU, MOVE_CPU, REDIS_MOVE_CPU, SIZES

IDLE = "idle connection"
# Names of the costs of a delivery.
SIZE = "delivery_us_room_{}"


def update(text, record, results):
    """Returns the file with the measured constants replaced."""
    known = json.loads(text)
    origin = f"race of {record.said['started'][:10]} at {record.said['commit']}"
    for name, (value, line) in measured(results).items():
        if value is not None:
            # Further digits are noise.
            known["constants"][name]["value"] = float(f"{value:.3g}")
            known["constants"][name]["source"] = f"{origin}, line {line}"
    return json.dumps(known, indent=2, ensure_ascii=False) + "\n"


def measured(results):
    """Returns, by name, the value in the unit of the file (None if missing) and the line it is from."""
    of = lambda line, figure: results.median(line, "roomcast", figure)
    bus = lambda line, figure: results.median(line, "roomcast classic", figure)
    found = {SIZE.format(size): (of(f"room-{size}", CPU), f"room-{size}") for size in SIZES}
    kernel = of("idle", f"{IDLE}, kernel objects of both ends")
    idle = of("heartbeat", f"{IDLE}, CPU")
    found |= {
        "connect_us": (of("storm", "server CPU per connect"), "storm"),
        "request_us": (of("echo", "server CPU per request"), "echo"),
        "idle_us_per_second": (idle, "heartbeat"),
        "user_bytes": (of("idle", f"{IDLE} after traffic, resident"), "idle"),
        # The machine has both ends of each connection, which cost the same.
        "kernel_bytes": (kernel and kernel / 2, "idle, half of both ends"),
        "publish_us": (publish(of, bus), "send-1 less an event and a delivery"),
        "receive_us": (receive(bus), "receive-rooms less interest: 100 and 10 deliveries per message"),
        "join_and_leave_us": (bus("churn", MOVE_CPU), "churn, the client's events included"),
        "redis_join_and_leave_us": (bus("churn", REDIS_MOVE_CPU), "churn"),
        "room_bytes": (bytes_per_room(of), "others-100000 less others-10"),
    }
    return found


def publish(of, bus):
    """Cost of a publish for a node, without the event and the sender's own copy, which count elsewhere."""
    few, more, sent = of("room-10", CPU), of("room-100", CPU), bus("send-1", MESSAGE_CPU)
    if not few or not more or not sent:
        return None
    event = max(0, (few - more) / (1 / 10 - 1 / 100))
    return max(0, sent - event - (few - event / 10))


def receive(bus):
    """Cost of a message from the bus for a node, without its deliveries."""
    large, small = bus("receive-rooms", CPU), bus("interest", MESSAGE_CPU)
    if not large or not small:
        return None
    delivery = (100 * large - small) / 90
    return max(0, small - 10 * delivery)


def bytes_per_room(of):
    """Memory of a room with one member."""
    figure = "server resident at the end"
    many, few = of("others-100000", figure), of("others-10", figure)
    return (many - few) * 1e6 / (100_000 - 10) if many and few else None
