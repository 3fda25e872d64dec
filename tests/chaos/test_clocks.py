"""A node's clock is set back; Ray 2.60 takes it for full, or starts no worker there, and the run goes on elsewhere."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from chaos.faults import World, kill_worker
from chaos.machines import Machines
from chaos.test_elastic import losses
from train.harness import SMALL, Run

from emc2dist.config import parse

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Machines.possible(), reason="clocks of their own need root and a C compiler"),
]

SPEC = [
    "name=clocks", "epochs=10", "data.limit=96", "negatives.kernel=isir", "restarts=100", "threads=1",
    "resources.start_s=60",
]  # fmt: skip
HOURS = 20


def test_the_run_goes_on_when_there_is_a_node_with_a_clock_that_goes_on(tmp_path):
    folder = Path(tempfile.mkdtemp(prefix="emc2-"))  # short: sockets lie in it
    (folder / "spec.yaml").write_text(SMALL)
    world = World(folder, [str(folder / "spec.yaml"), *SPEC], "clocks", nodes=1)
    stuck = ("waiting for room for 1 workers", "workers did not start in 60 s (resources.start_s) on 198.18.0.2")

    def is_stuck():
        told = (folder / "driver.log").read_text()
        return any(line in told for line in stuck)

    try:
        world.wait_for(lambda: world.steps() >= 13, 180, "a checkpoint")
        world.cluster.advance_clock("worker-1", -HOURS * 3600)
        while not is_stuck():  # the first start or two may succeed
            assert not world.finished()
            before = world.restores()
            world.strike(kill_worker, np.random.default_rng(0))
            world.wait_for(lambda known=before: world.restores() > known or is_stuck(), 180, "a start, or none")
        world.start_nodes(2)
        world.wait_for_end()
        assert losses(world.run) == Run(parse(SMALL, SPEC), tmp_path).go().column("loss")
        world.check_that_nothing_is_left()
    finally:
        world.close()
    shutil.rmtree(folder)
