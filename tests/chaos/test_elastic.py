"""A run that starts on what there is, grows when a node comes and shrinks when it goes, and computes the same."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from chaos.faults import World, end_node
from train.harness import SMALL, Run

from emc2dist.config import parse

pytestmark = pytest.mark.slow

SPEC = [
    "name=elastic", "epochs=150", "data.limit=96", "negatives.kernel=isir", "shards=2", "restarts=5",
    "precision=float64",
    "optimiser.name=sgd", "optimiser.momentum=0", "lr=0.1", "eval.every=0", "threads=1", "checkpoint.every=5",
]  # fmt: skip


def test_it_grows_and_shrinks_and_computes_the_same(tmp_path):
    folder = Path(tempfile.mkdtemp(prefix="emc2-"))  # short: sockets lie in it
    (folder / "spec.yaml").write_text(SMALL)
    size = ["workers=2", "min_workers=1"]
    world = World(folder, [str(folder / "spec.yaml"), *SPEC, *size], "elastic", nodes=1)
    try:
        world.wait_for(lambda: world.steps() >= 3, 180, "the start on one worker")
        world.start_nodes(2)
        world.wait_for(lambda: "there is room for 2 workers" in world.tail(), 120, "word of the second node")
        world.wait_for(lambda: len(world.processes("ray::RayTrainWorker")) == 2, 120, "the second worker")
        grown = world.steps()
        world.wait_for(lambda: world.steps() >= grown + 3 or world.finished(), 120, "steps of two workers")
        end_node(world, "worker-2")
        world.wait_for_end()
        told = losses(world.run)
    finally:
        world.close()
    assert told == pytest.approx(Run(parse(SMALL, SPEC), tmp_path).go().column("loss"), abs=1e-6)
    shutil.rmtree(folder)


def losses(run):
    """Of each step that a run's rows tell of."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]
