"""Progress of a race, with an estimate of the remaining time."""

import time

# Estimated overhead of a run before any has finished.
OVERHEAD_SECONDS = 5


class Progress:
    """The runs of a race, finished and pending."""

    def __init__(self, runs):
        self.left = list(runs)
        self.all = len(self.left)
        # Line, server and duration of each finished run.
        self.over = []

    def ran(self, line, server, seconds):
        self.left.remove((line, server))
        self.over.append((line, server, seconds))

    def seconds_left(self):
        return sum(self.estimate(line, server) for line, server in self.left)

    def estimate(self, line, server):
        """Estimates from the same run in earlier rounds, else from other servers, else from the mean overhead."""
        same = [took for over, by, took in self.over if over is line and by == server]
        alike = same or [took for over, _, took in self.over if over is line]
        if alike:
            return sum(alike) / len(alike)
        beside = [max(0, took - over.seconds) for over, _, took in self.over]
        return line.seconds + (sum(beside) / len(beside) if beside else OVERHEAD_SECONDS)

    def text(self):
        minutes = round(self.seconds_left() / 60)
        left = f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"
        return f"[{len(self.over)} of {self.all}, {left} left]"


def timed(work):
    """Returns the result of a call and its duration in seconds."""
    began = time.monotonic()
    answer = work()
    return answer, time.monotonic() - began
