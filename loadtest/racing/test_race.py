"""What the race publishes, and when, and what is computed from it. Nothing is measured here."""

import json
import shutil
import subprocess
import sys
import tempfile
import unittest
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from . import constants
from .gates import gates_table
from .lines import CPU, HEARD_AGAIN, Line, lines
from .progress import Progress
from .publish import BEGIN, END, between, publish, report
from .record import Record
from .report import ahead, cell
from .results import Results
from .runs import write
from .servers import Failed, Programs

ROOT = Path(__file__).resolve().parents[2]
SCALING = ROOT / "docs/scaling"
SERVERS = ["roomcast", "floor", "task floor", "node"]


def line(name="room-10", figures=(CPU,), servers=SERVERS):
    return Line(name, "a room", "Broadcasts", "fan-out", [], list(figures), servers=list(servers))


def results(figures, folder=Path("/nowhere")):
    """Results of one round, by line, server and figure."""
    known = Results("none", folder)
    known.figures = {key: {"round-1": value} for key, value in figures.items()}
    return known


def record(lines, **more):
    said = {"machine": "a machine", "started": "2026-01-01 10:00 UTC", "commit": "abc", "rounds": 1,
            "quick": False, "lines": {each.name: each.servers for each in lines}, "busy": [0.0]}
    return Record(Path("/nowhere"), said | more)


def costs(**by_server):
    return {("room-10", name.replace("_", " "), CPU): value for name, value in by_server.items()}


class WhoIsAhead(unittest.TestCase):
    def rivals(self, **by_server):
        return [rival for *_, rival, _ in ahead([line()], results(costs(**by_server)))]

    def test_node_is_ahead_where_it_costs_less(self):
        self.assertEqual(self.rivals(roomcast=2, node=1.9, floor=1), ["node"])
        self.assertEqual(self.rivals(roomcast=2, node=2.1, floor=1), [])

    def test_a_task_floor_counts_only_where_it_costs_less_than_the_floor(self):
        self.assertEqual(self.rivals(roomcast=3, floor=2, task_floor=2.5), [])
        self.assertEqual(self.rivals(roomcast=3, floor=2, task_floor=1.5), ["task floor"])

    def test_more_is_better_where_something_is_done_per_second(self):
        figure = "connects per second"
        known = results({("room-10", "roomcast", figure): 10, ("room-10", "node", figure): 20})
        self.assertEqual(len(list(ahead([line(figures=[figure])], known))), 1)

    def test_what_the_kernel_takes_is_nobodys_lead(self):
        figure = "idle connection, kernel objects of both ends"
        known = results({("room-10", "roomcast", figure): 20, ("room-10", "node", figure): 10})
        self.assertEqual(list(ahead([line(figures=[figure])], known)), [])


class Marks(unittest.TestCase):
    def test_a_busy_loader_marks_latency_and_leaves_cost_alone(self):
        latency = "delivery p99"
        known = results({("room-10", "node", figure): 5 for figure in [CPU, latency]})
        known.limits["room-10", "node"] = ["round 1: the loader's own CPU: it was busy"]
        self.assertIn("¹", cell(line(), "node", latency, known))
        self.assertNotIn("¹", cell(line(), "node", CPU, known))

    def test_a_ledger_with_faults_marks_every_figure_and_is_told_below(self):
        known = results(costs(node=5, roomcast=4))
        known.ledgers["room-10", "node"] = ["round 1: 9 arrived, 7 reordered"]
        text = report(record([line()]), [line()], known)
        self.assertIn("5.00 ×", cell(line(), "node", CPU, known))
        self.assertTrue(cell(line(), "node", CPU, known).endswith("²"))
        self.assertIn("- `room-10`, node: round 1: 9 arrived, 7 reordered", text)


class BeforeAndAfter(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def row(self, text, figures, before={"path": "/old/roomcast"}):
        table = gates_table(record([line()], before=before), results(figures))
        return next((row for row in table.splitlines() if text in row), "")

    def test_a_dearer_build_misses_its_gate(self):
        key = "cluster", "roomcast classic", CPU
        earlier = "cluster", "roomcast classic before", CPU
        text = "`cluster`, roomcast classic: server CPU"
        self.assertIn("| 1.10 | ≤ 1.05 | missed by 4.8 % |", self.row(text, {key: 3.3, earlier: 3}))
        self.assertIn("| 1.03 | ≤ 1.05 | met |", self.row(text, {key: 3.1, earlier: 3}))
        self.assertIn("| not measured | ≤ 1.05 |", self.row(text, {key: 3.1}))

    def test_a_race_without_an_earlier_build_has_no_gates(self):
        self.assertEqual(gates_table(record([line()]), results({})), "")

    def test_an_earlier_build_is_started_as_the_newer_one(self):
        programs = Programs("/target", 0, 1, "/old/roomcast")
        for name in ["roomcast", "roomcast sharded"]:
            new, old = programs.command(name), programs.command(f"{name} before")
            self.assertEqual(old, ["/old/roomcast", *new[1:]])
        self.assertIn("/old/roomcast emit -", programs.emitting("roomcast classic before", "redis://h"))

    def test_a_race_goes_on_with_the_earlier_build_that_it_began_with(self):
        old = self.folder / "roomcast"
        old.write_bytes(b"old")
        asked = Namespace(rounds=1, quick=False, before=old, seconds=2)
        begun = Record.begin(self.folder / "race", [line()], asked, sys.executable)
        begun.go_on(sys.executable)
        self.assertEqual(begun.select([line()])[0].seconds, 2)
        flood = replace(line(), seconds=60, is_whole=True)
        self.assertEqual(begun.select([flood])[0].seconds, 60)
        old.write_bytes(b"newer")
        with self.assertRaisesRegex(Failed, "has changed"):
            begun.go_on(sys.executable)

    def test_figures_that_the_race_computed_itself_are_read_as_they_are(self):
        for number, value in [(1, 80), (2, 90)]:
            path = self.folder / f"round-{number}/channels/roomcast classic.json"
            path.parent.mkdir(parents=True)
            write(path, [(HEARD_AGAIN, "ms", value)])
        known = Results("none", self.folder)
        known.read(line("channels", [HEARD_AGAIN], ["roomcast classic"]))
        self.assertEqual(known.median("channels", "roomcast classic", HEARD_AGAIN), 85)
        self.assertEqual(known.units[HEARD_AGAIN], "ms")


class Publishing(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)
        shutil.copytree(ROOT / "docs", self.root / "docs")
        (self.root / "BENCHMARKS.md").write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
        self.results = results(costs(roomcast=4.04, floor=4, node=9), self.root)
        self.lines = [line(servers=["roomcast", "floor", "node"])]
        for server in self.lines[0].servers:
            path = self.root / "round-1/room-10" / f"{server}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('{"ledger": {}}')

    def benchmarks(self):
        return (self.root / "BENCHMARKS.md").read_text()

    def refused(self, why, known):
        before = self.benchmarks()
        with self.assertRaisesRegex(Failed, why):
            publish(known, self.lines, self.results, self.root)
        self.assertEqual(self.benchmarks(), before)

    def test_a_whole_race_replaces_what_is_between_the_comments(self):
        publish(record(self.lines), self.lines, self.results, self.root)
        text = self.benchmarks()
        self.assertTrue(text.startswith("before\n") and text.endswith("\nafter\n"))
        self.assertIn("| 4.00 | 4.04 ×1.01 | 9.00 ×2.25 |", text)
        self.assertNotIn("old", text)

    def test_its_constants_and_tables_of_capacity_are_written_with_it(self):
        publish(record(self.lines), self.lines, self.results, self.root)
        known = json.loads((self.root / "docs/scaling.json").read_text())["constants"]
        self.assertEqual(known["delivery_us_room_10"]["value"], 4.04)
        self.assertIn("abc", known["delivery_us_room_10"]["source"])
        self.assertIn("BENCHMARKS.md", known["redis_turn_us"]["source"])
        check = [str(self.root / "docs/scaling"), "--refresh", str(self.root / "docs/scaling.md"), "--check"]
        self.assertEqual(subprocess.run(check, check=False).returncode, 0)

    def test_a_quick_race_is_refused(self):
        self.refused("quick", record(self.lines, quick=True))

    def test_a_race_without_all_servers_is_refused(self):
        self.refused("left out", record([line(servers=["roomcast"])]))

    def test_a_race_without_a_result_is_refused(self):
        (self.root / "round-1/room-10/node.json").write_text('{"ledger": {')
        self.refused("no results of room-10 of node", record(self.lines))

    def test_a_race_that_was_cut_off_says_so(self):
        publish(record(self.lines, rounds=3), self.lines, self.results, self.root)
        self.assertIn("**Cut off**: 3 of 9 runs were made.", self.benchmarks())

    def test_other_work_of_the_machine_is_told(self):
        publish(record(self.lines, busy=[0.1, 0.9, 1.5]), self.lines, self.results, self.root)
        self.assertIn("**The machine was not idle.**", self.benchmarks())

    def test_a_text_without_the_comments_is_left_alone(self):
        with self.assertRaises(Failed):
            between("nothing", "tables")


class GoingOn(unittest.TestCase):
    def test_a_race_is_begun_once_and_read_back(self):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            asked = Namespace(rounds=2, quick=True, before=None, seconds=None)
            begun = Record.begin(folder, [line()], asked, sys.executable)
            self.assertEqual(Record.load(folder).said, begun.said)
            with self.assertRaises(Failed):
                Record.begin(folder, [line()], asked, sys.executable)

    def test_another_program_does_not_go_on_with_a_race(self):
        with tempfile.TemporaryDirectory() as name:
            begun = Record.begin(Path(name), [line()], Namespace(rounds=2, quick=True, before=None, seconds=None), sys.executable)
            begun.go_on(sys.executable)
            with self.assertRaisesRegex(Failed, "another program"):
                begun.go_on(__file__)

    def test_time_left_is_that_of_the_same_run_in_an_earlier_round(self):
        first = line()
        progress = Progress([(first, "node"), (first, "floor"), (first, "node"), (first, "floor")])
        progress.ran(first, "node", 100)
        progress.ran(first, "floor", 20)
        self.assertEqual(progress.seconds_left(), 120)
        self.assertEqual(progress.text(), "[2 of 4, 2 min left]")


class Capacity(unittest.TestCase):
    def scaling(self, *arguments):
        done = subprocess.run([str(SCALING), *arguments, "--json"], capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    def test_the_tables_are_what_is_computed_from_the_constants(self):
        command = [str(SCALING), "--refresh", str(ROOT / "docs/scaling.md"), "--check"]
        self.assertEqual(subprocess.run(command, check=False).returncode, 0)

    def test_every_constant_has_a_source_and_the_race_knows_its_own(self):
        known = json.loads((ROOT / "docs/scaling.json").read_text())["constants"]
        self.assertTrue(all(each["source"] and each["value"] >= 0 for each in known.values()))
        self.assertLessEqual(set(constants.measured(results({}))), set(known))

    def test_a_whole_race_measures_every_constant_of_its_own(self):
        figures = {(each.name, server, name): 2 for each in lines(False) for server in each.servers
                   for name in each.figures}
        # Two that tables do not show.
        figures["heartbeat", "roomcast", "idle connection, CPU"] = 0.2
        for rooms, megabytes in [(10, 9), (100_000, 28)]:
            figures[f"others-{rooms}", "roomcast", "server resident at the end"] = megabytes
        measured = constants.measured(results(figures))
        self.assertEqual([name for name, (value, _) in measured.items() if value is None], [])
        self.assertAlmostEqual(measured["room_bytes"][0], 190, delta=1)

    def test_a_message_goes_to_as_many_nodes_as_have_members(self):
        nodes = lambda *more: self.scaling("--nodes", "10", *more)["nodes_per_message"]
        self.assertAlmostEqual(nodes("--room-size", "1"), 1)
        # Both on one node in one case of ten.
        self.assertAlmostEqual(nodes("--room-size", "2"), 1.9)
        self.assertAlmostEqual(nodes("--room-size", "1000"), 10)
        self.assertAlmostEqual(nodes("--room-size", "1000", "--spread", "1"), 1)

    def test_nodes_are_as_few_as_keep_below_the_utilisation(self):
        load = ["--room-size", "1000", "--emits-per-second", "20000", "--utilisation", "0.5"]
        found = self.scaling(*load)
        self.assertLessEqual(found["cpu_percent"], 50)
        fewer = self.scaling(*load, "--nodes", str(found["nodes"] - 1))
        self.assertGreater(fewer["cpu_percent"], 50)

    def test_redis_servers_are_as_few_as_carry_the_messages(self):
        load = ["--nodes", "20", "--emits-per-second"]
        most = self.scaling(*load, "1000")["redis_emits_per_second_at_most"]
        self.assertEqual(self.scaling(*load, str(most * 0.95))["redis_servers"], 1)
        self.assertEqual(self.scaling(*load, str(most * 1.05))["redis_servers"], 2)


if __name__ == "__main__":
    unittest.main()
