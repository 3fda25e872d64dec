"""A sweep loses its stop requests, a node with the driver of a trial, and its own driver: all trials end as ever."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
import yaml
from chaos.faults import World, end_node, kill_driver
from command import driver_of
from train.harness import SMALL

from emc2dist import files
from emc2dist.launch import processes
from emc2dist.sweep.folder import SweepFolder

pytestmark = pytest.mark.slow

CHANGES = {
    "epochs": 10, "data.limit": 96, "shards": 2, "restarts": 10, "threads": 1, "store.timeout_s": 10,
    "optimiser": {"name": "sgd", "momentum": 0, "warmup_epochs": 0}, "checkpoint.keep": 1,  # their disk is small
}  # fmt: skip
STEPS = 120


class SweepWorld(World):
    """The same, with a sweep in place of the run."""

    COMMAND, RUN_DIR = "sweep", "set.run_dir"

    def finished(self):
        return (self.run / "results.csv").exists()  # one that is killed writes none

    def records(self):
        return SweepFolder(files.at(self.run)).records()

    def states(self):
        return {record.state for record in self.records()}


def test_all_trials_finish_when_a_helper_a_node_and_then_the_driver_are_lost():
    folder = Path(tempfile.mkdtemp(prefix="emc2-"))  # short: sockets lie in it
    world = SweepWorld(folder, [write_sweep(folder)], "chaos")
    try:
        first = world.run / "chaos-000-seed0"
        world.wait_for(lambda: len(losses(first)) > STEPS // 6, 240, "the first steps of the first trial")
        (stops,) = world.processes("ray::StopRequests")
        assert node_of(world, stops.pid) == "head"  # where Ray puts drivers that it finds on no node
        stops.kill()
        end_node(world, node_of(world, driver_of(first)))
        world.start_nodes()
        line = "chaos-000-seed0: its driver was lost and is started again, 1 of 10 restarts spent"
        world.wait_for(lambda: line in (folder / "driver.log").read_text(), 60, "word of the lost driver")
        world.wait_for(lambda: '"resumed": 1' in (first / "metrics.jsonl").read_text(), 120, "its way back")
        world.wait_for(lambda: "finished" in world.states(), 400, "the end of a trial")
        assert world.states() == {"finished", "running"}
        kill_driver(world, None)
        done = [record for record in world.records() if record.state == "finished"]
        before = [(world.run / record.name / "metrics.jsonl").read_bytes() for record in done]
        world.wait_for_end()
        assert [(record.state, record.reason) for record in world.records()] == [("finished", "")] * 3
        assert [(world.run / record.name / "metrics.jsonl").read_bytes() for record in done] == before  # not run twice
        assert [record for record in world.records() if record in done] == done
        for record in world.records():
            assert losses(world.run / record.name) == list(range(1, STEPS + 1))
            assert [epoch for epoch, _ in record.history] == list(range(1, 11))
        world.check_that_nothing_is_left()
    finally:
        world.close()
    assert not world.processes("")
    shutil.rmtree(folder)


def write_sweep(folder):
    path = folder / "sweep.yaml"
    sweep = {
        "name": "chaos", "base": yaml.safe_load(SMALL), "set": CHANGES, "space": {"lr": [0.05, 0.1, 0.2]},
        "search": {"name": "grid"}, "scheduler": {"name": "fifo"}, "budget": {"concurrent": 2},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(sweep))
    return str(path)


def losses(run):
    """The steps that a run's rows tell of."""
    path = run / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [row["step"] for row in rows if "loss" in row]


def node_of(world, pid):
    """The node that a process is on."""
    nodes = {path.stem: int(path.read_text()) for path in world.cluster.folder.glob("*.pid")}
    (name,) = [name for name, leader in nodes.items() if pid in {process.pid for process in processes.members(leader)}]
    return name
