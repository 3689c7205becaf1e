"""How far a race is, and how long it will take: an estimate from the runs that are over."""

import time

# What a run takes beside what it measures, as long as none is over.
OVERHEAD_SECONDS = 5


class Progress:
    """Runs that are to be made, of which some are over."""

    def __init__(self, runs):
        self.left = list(runs)
        self.all = len(self.left)
        # Of each line, server and run that is over: the time it took.
        self.over = []

    def ran(self, line, server, seconds):
        self.left.remove((line, server))
        self.over.append((line, server, seconds))

    def seconds_left(self):
        return sum(self.estimate(line, server) for line, server in self.left)

    def estimate(self, line, server):
        """As the same run took before, or another server's, or as any takes beside its window."""
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
    """What some work answers, and the seconds that it took."""
    began = time.monotonic()
    answer = work()
    return answer, time.monotonic() - began
