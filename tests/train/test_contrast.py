"""The whole path, from recall to loss to what is remembered, on frozen features: its average gradient is the exact one.

Both views of a sample are the same here, so that one fresh view, which is what training encodes again, stands for its
sample exactly.
"""

import pytest
import torch
from train.harness import small_spec

from benchmarks.certificate import digit_features
from emc2dist.core.batch import Batch, Side
from emc2dist.core.contrast import contrast_for
from emc2dist.core.exact import exact_loss
from emc2dist.core.objectives import Dcl
from emc2dist.core.streams import fork
from emc2dist.data.digits import DigitsImages
from emc2dist.store import Layout, LocalStore
from emc2dist.train.loop import order_for
from emc2dist.train.memory import Encoded, Memory, schema_for
from emc2dist.train.profile import alone

SAMPLES = 16


class Frozen:
    """Steps of the real contrast and memory over frozen features [N, D]."""

    def __init__(self, *overrides):
        self.spec = small_spec("encoder.features=64", *overrides)
        self.order = order_for(self.spec, DigitsImages("train", limit=SAMPLES))
        self.table = digit_features(SAMPLES)[0].requires_grad_()
        self.contrast = contrast_for(self.spec)
        store = LocalStore(Layout(SAMPLES, 1), schema_for(self.spec))
        store.reset("g")
        self.memory = Memory(self.spec, store, self.order, 0, "g", torch.device("cpu"))
        self.memory.start(0, settled=-1)
        self.encoded = []

    def step(self, step):
        """The outcome of one step; `encoded` then holds what was encoded again."""
        self.encoded = []
        index = torch.from_numpy(self.order.batch(step))
        recall = self.memory.recall(step)
        views = self.table[index].expand(2, -1, -1)
        streams = fork(0, step, index, torch.arange(2).unsqueeze(1)).flatten()
        self.memory.exchange(step)
        sides = {"x": Side(views, views)}
        batch = Batch(index, 0, sides, self.spec.temperature, SAMPLES, step, streams)
        outcome = self.contrast(batch, recall, self.encode)
        seen = torch.cat([index, *self.encoded])
        encoded = Encoded(seen, self.table[seen].detach(), torch.zeros_like(seen))
        self.memory.remember(step, outcome.remember, encoded)
        return outcome

    def encode(self, side, samples, numbers):
        self.encoded.append(samples.unique())
        return self.table[samples].expand(len(numbers), -1, -1)


@pytest.mark.parametrize(
    ("kernel", "cache_proposals"),
    [
        ("isir", 6),
        *(pytest.param("mh", rows, marks=pytest.mark.slow) for rows in (0, 6)),
        pytest.param("isir", 0, marks=pytest.mark.slow),
    ],
)
def test_the_average_gradient_is_the_exact_one(kernel, cache_proposals):
    run, steps = Frozen(f"negatives.kernel={kernel}", f"negatives.cache_proposals={cache_proposals}"), 2_000
    mean = sum(torch.autograd.grad(run.step(t).loss, run.table)[0] for t in range(steps)) / steps
    loss = exact_loss(Dcl(), run.table.expand(2, -1, -1), 0.2)
    (exact,) = torch.autograd.grad(loss, run.table)
    assert ((mean - exact).norm() / exact.norm()).item() < 0.03


def test_mh_encodes_again_just_the_carried_negatives_with_weight_each_once():
    run, seen = Frozen("negatives.kernel=mh", "temperature=0.05"), 0
    for step in range(60):
        outcome = run.step(step)
        assert len(run.encoded) <= 1
        if not run.encoded:
            continue
        (index,) = run.encoded
        seen += len(index)
        assert len(index.unique()) == len(index)
        assert not torch.isin(index, torch.from_numpy(run.order.batch(step))).any()
        (gradient,) = torch.autograd.grad(outcome.loss, run.table)
        assert (gradient[index].norm(dim=1) > 0).all()
    assert seen > 10


def test_cached_negatives_give_the_anchor_a_gradient_and_get_none():
    run, outside = Frozen("negatives.kernel=isir", "negatives.carried=cached", "temperature=0.5"), 0.0
    for step in range(30):
        outcome = run.step(step)
        (gradient,) = torch.autograd.grad(outcome.loss, run.table)
        elsewhere = torch.ones(SAMPLES, dtype=torch.bool)
        elsewhere[torch.from_numpy(run.order.batch(step))] = False
        outside += gradient[elsewhere].abs().sum().item()
        assert run.encoded == []
    assert outside == 0
    assert outcome.facts["carried_weight_ratio"] > 0.01


@pytest.mark.parametrize("carried", ["reencode", "complete", "roulette"])
def test_what_is_encoded_again_are_the_pixels_that_the_chain_was_drawn_with(carried, monkeypatch):
    """A view's seed names its pixels: those asked for in a hurry were drawn in an earlier step, or go beside such."""
    spec = small_spec("negatives.kernel=isir", f"negatives.carried={carried}", "data.loaders=0")
    drawn: set[tuple[int, int]] = set()
    remembered, beside = [], []
    with alone(spec, DigitsImages("train", limit=48), torch.device("cpu")) as trainer:
        loader = trainer._loaders["x"]
        submit = loader.submit

        def recorded(indices, seeds, *, urgent=False):
            views = {(int(i), int(seed)) for row in seeds for i, seed in zip(indices, row, strict=True)}
            if urgent:
                remembered.append(len(views & drawn))
                beside.append(len(views - drawn))
            drawn.update(views)
            return submit(indices, seeds, urgent=urgent)

        monkeypatch.setattr(loader, "submit", recorded)
        for step in range(24):
            trainer.step(step)
    assert sum(remembered) > (30 if carried == "roulette" else 100)
    assert sum(beside) > 50 if carried == "complete" else sum(beside) == 0
    assert all(few <= many for few, many in zip(beside, remembered, strict=True))
