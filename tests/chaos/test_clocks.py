"""A node's clock is set back, and Ray 2.60 starts no worker there any more: the run goes on elsewhere, once it can."""

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

SPEC = ["name=clocks", "epochs=10", "data.limit=96", "kernel=isir", "restarts=100", "threads=1", "resources.start_s=60"]
HOURS = 20


def test_workers_go_where_they_start(tmp_path):
    rng = np.random.default_rng(0)
    folder = Path(tempfile.mkdtemp(prefix="emc2-"))  # short: sockets lie in it
    (folder / "spec.yaml").write_text(SMALL)
    world = World(folder, [str(folder / "spec.yaml"), *SPEC], "clocks", nodes=1)
    late = f"workers did not start in 60 s (resources.start_s) on {world.cluster.address('worker-1')}"

    def told():
        return (folder / "driver.log").read_text()

    try:
        world.wait_for(lambda: world.steps() >= 13, 180, "a checkpoint")
        world.cluster.advance_clock("worker-1", -HOURS * 3600)
        while late not in told():  # the first start or two still succeed
            assert not world.finished()
            before = world.restores()
            world.strike(kill_worker, rng)
            world.wait_for(lambda known=before: world.restores() > known or late in told(), 180, "a start, or none")
        world.wait_for(lambda: "workers may go there again" in told(), 60, "word that there is no other node")
        world.start_nodes(2)
        world.wait_for_end()
        assert losses(world.run) == Run(parse(SMALL, SPEC), tmp_path).go().column("loss")
        world.check_that_nothing_is_left()
    finally:
        world.close()
    shutil.rmtree(folder)
