"""Any process or node may die at any moment: the run continues, and ends as if nothing had happened.

Each seed draws two to four faults and the steps at which they strike, on a real Ray of a head and three nodes. A run of
one worker ends bit for bit where one that was never disturbed does; one that was moved between one and two workers ends
within 1e-6 of it, in float64. One that lost or repeated a chain's write, or mixed parts of different steps, would not.
"""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from chaos.faults import FAULTS, World
from train.harness import SMALL, Run
from train.test_parity import contents

from emc2dist.config import parse
from emc2dist.data.sampler import EpochOrder

pytestmark = pytest.mark.slow

SPEC = [
    "name=chaos", "epochs=10", "data.limit=96", "negatives.kernel=isir", "negatives.cache_proposals=12", "shards=2",
    "restarts=100",
    "precision=float64", "optimiser.name=sgd", "optimiser.momentum=0", "lr=0.1", "eval.every=0", "threads=1",
    "store.timeout_s=10", "resources.start_s=90",
]  # fmt: skip
STEPS = 120


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return contents(Run(parse(SMALL, SPEC), folder).go().checkpoints[STEPS])


@pytest.mark.parametrize("seed", range(20))
def test_the_run_ends_as_if_nothing_had_happened(seed, undisturbed):
    print(f"\nseed {seed}")
    rng = np.random.default_rng(seed)
    folder = Path(tempfile.mkdtemp(prefix="emc2-"))  # short: sockets lie in it
    workers = 1 + seed % 2
    (folder / "spec.yaml").write_text(SMALL)
    size = [f"workers={workers}", "min_workers=1"]
    world = World(folder, [str(folder / "spec.yaml"), *SPEC, *size], "chaos")
    try:
        for step in np.sort(rng.integers(0, STEPS, rng.integers(2, 5))):
            fault = FAULTS[rng.integers(len(FAULTS))]
            world.wait_for(lambda due=step: world.steps() >= due or world.finished(), 600, f"step {step}")
            world.strike(fault, rng)
        world.wait_for_end()
        check_rows(world.run)
        check_store(sorted(world.run.glob("checkpoint-*"))[-1], undisturbed, atol=0 if workers == 1 else 1e-6)
        world.check_that_nothing_is_left()
    finally:
        world.close()
    assert not world.processes("")
    shutil.rmtree(folder)


def check_rows(run):
    """Every step is told of exactly once."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, STEPS + 1))
    assert json.loads((run / "summary.json").read_text())["steps"] == STEPS


def check_store(checkpoint, undisturbed, atol):
    """Every row is valid: a state is a negative of its anchor, a feature has norm 1; and all is as undisturbed.

    And the writes of the last epoch are counted out as they went in: each chain bears the step whose batch it was in,
    each feature that one, or a later one in which it was carried.
    """
    found = contents(checkpoint)
    samples = torch.arange(96)[:, None]
    state = found["negatives/state"]
    assert found["negatives/visited"].all()
    assert ((state >= 0) & (state < 96) & (state != samples)).all()
    spec = parse(SMALL, SPEC)
    order = EpochOrder(96, spec.batch_size, spec.seed)
    for step in range(STEPS - order.steps_per_epoch, STEPS):
        batch = order.batch(step)
        assert (found["negatives/visited_at"][batch] == step).all()
        assert ((found["feature/written_at"][batch] >= step) & (found["feature/written_at"][batch] < STEPS)).all()
    torch.testing.assert_close(found["feature/feature"].norm(dim=1), torch.ones(96).double(), atol=1e-5, rtol=0)
    assert found.keys() == undisturbed.keys()
    for name, value in undisturbed.items():
        torch.testing.assert_close(found[name], value, atol=atol, rtol=0, msg=name)
