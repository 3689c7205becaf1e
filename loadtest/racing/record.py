"""The options and the machine of a race, stored beside its results.

They allow to complete an interrupted race with the same options and to publish results later. The
record also knows whether the machine had other work.
"""

import hashlib
import json
import os
import statistics
import subprocess
import time
from datetime import datetime, timezone
from pathlib import Path

from .servers import Failed

NAME = "race.json"
# The machine is idle if the median CPU use of other processes is below this.
BUSY_CORES = 0.25
SAMPLE_SECONDS = 0.5


class Record:
    """Options, machine and start of a race, and the CPU use of other processes."""

    def __init__(self, folder, said):
        self.folder = folder
        self.said = said

    @classmethod
    def begin(cls, folder, lines, options, program):
        if (folder / NAME).exists():
            raise Failed(f"{folder} already contains a race: see --continue and --publish")
        said = {
            "machine": machine(),
            "started": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
            "commit": commit(),
            "program": digest(program),
            "before": before(options.before),
            "seconds": options.seconds,
            "rounds": options.rounds,
            "quick": options.quick,
            "lines": {line.name: line.servers for line in lines},
            "busy": [],
        }
        folder.mkdir(parents=True, exist_ok=True)
        record = cls(folder, said)
        record.save()
        return record

    @classmethod
    def load(cls, folder):
        try:
            return cls(folder, json.loads((folder / NAME).read_text()))
        except (OSError, ValueError) as error:
            raise Failed(f"{folder} has no race: {error}") from error

    def save(self):
        # Renamed, so an interruption does not leave an incomplete file.
        written = self.folder / f"{NAME}.new"
        written.write_text(json.dumps(self.said, indent=1) + "\n")
        written.replace(self.folder / NAME)

    def go_on(self, program):
        """Raises Failed unless the machine and the programs are the same as at the start."""
        if self.said["machine"] != machine():
            raise Failed(f"this was measured on another machine: {self.said['machine']}")
        if self.said["program"] != digest(program):
            raise Failed(f"this was measured with another program, built at {self.said['commit']}")
        if self.said.get("before") != before(self.before):
            raise Failed(f"{self.before} has changed since the race began")

    @property
    def before(self):
        """Path of the earlier build, or None."""
        return (self.said.get("before") or {}).get("path")

    def select(self, lines):
        """Returns the lines of the race, with their servers and windows."""
        asked, seconds = self.said["lines"], self.said.get("seconds")
        chosen = [line for line in lines if line.name in asked]
        for line in chosen:
            line.servers = asked[line.name]
            if seconds and not line.is_whole:
                line.seconds = min(line.seconds, seconds)
        return chosen

    def is_partial(self, lines):
        """Whether lines or servers are missing."""
        return any(set(line.servers) - set(self.said["lines"].get(line.name, [])) for line in lines)

    def sample_others(self):
        """Samples the CPU use of other processes while nothing of the race runs."""
        self.said["busy"].append(round(busy_cores(SAMPLE_SECONDS), 3))
        self.save()

    def is_idle(self):
        return not self.said["busy"] or statistics.median(self.said["busy"]) <= BUSY_CORES

    def others(self):
        samples = self.said["busy"]
        if not samples:
            return "Other work on the machine was not measured."
        median, most = statistics.median(samples), max(samples)
        text = (f"Between runs, other work took {100 * median:.0f} % of one core (median of"
                f" {len(samples)} samples; at most {100 * most:.0f} %).")
        return text if self.is_idle() else f"**The machine was not idle.** {text}"


def busy_cores(seconds):
    """Returns the mean number of busy cores of the machine."""
    before = processor_ticks()
    time.sleep(seconds)
    all_ticks, idle = (now - then for now, then in zip(processor_ticks(), before))
    return (all_ticks - idle) / all_ticks * os.cpu_count() if all_ticks else 0


def processor_ticks():
    """Returns the ticks of all cores, and those that were idle."""
    ticks = [int(value) for value in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    return sum(ticks), ticks[3] + ticks[4]


def machine():
    said = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in said if line.startswith("model name")), "")
    release = os.uname()
    system = f"{release.sysname} {release.release.split('-')[0]}"
    versions = [output("rustc", "--version").split(" (")[0], f"Node.js {output('node', '--version')}",
                output("redis-server", "--version").split(" sha=")[0].replace(" server v=", " ")]
    return ", ".join([f"{len(os.sched_getaffinity(0))} cores", model, system, *versions])


def commit():
    here = str(Path(__file__).resolve().parent)
    return output("git", "-C", here, "rev-parse", "--short", "HEAD")


def before(program):
    return program and {"path": str(program), "program": digest(program)}


def digest(program):
    try:
        return hashlib.sha256(Path(program).read_bytes()).hexdigest()
    except OSError as error:
        raise Failed(f"{program}: {error.strerror}; leave out --no-build") from error


def output(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()
