"""The production path, from recall to loss to writes, on frozen features: its average gradient is the exact one.

Both views of a sample are the same here, so that one fresh view, which is what training encodes again, stands for its
sample exactly.
"""

import pytest
import torch
from train.harness import small_spec

from benchmarks.certificate import digit_features
from emc2dist.core.exact import global_contrastive_loss
from emc2dist.core.streams import fork
from emc2dist.data.digits import DigitsImages
from emc2dist.store import Layout, LocalStore
from emc2dist.train.contrast import Batch, contrast_for
from emc2dist.train.loop import order_for
from emc2dist.train.memory import Memory, schema_for

SAMPLES = 16


class Frozen:
    """Steps of the real contrast and memory over frozen features [N, D]."""

    def __init__(self, *overrides):
        self.spec = small_spec("encoder.features=64", *overrides)
        self.order = order_for(self.spec, DigitsImages("train", limit=SAMPLES))
        self.table = digit_features(SAMPLES)[0].requires_grad_()
        self.contrast = contrast_for(self.spec, SAMPLES)
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
        units = self.table[index].expand(2, -1, -1)
        streams = fork(0, step, index, torch.arange(2).unsqueeze(1)).flatten()
        self.memory.exchange(step)
        outcome = self.contrast(
            Batch(step, units, units, index, 0, streams, self.spec.temperature), recall, self.encode
        )
        self.memory.remember(step, outcome.writes)
        return outcome

    def encode(self, index):
        self.encoded.append(index)
        return self.table[index]


@pytest.mark.parametrize(
    ("kernel", "cache_proposals"),
    [
        ("mh", 0),
        ("isir", 6),
        pytest.param("mh", 6, marks=pytest.mark.slow),
        pytest.param("isir", 0, marks=pytest.mark.slow),
    ],
)
def test_the_average_gradient_is_the_exact_one(kernel, cache_proposals):
    run, steps = Frozen(f"kernel={kernel}", f"cache_proposals={cache_proposals}"), 4_000
    mean = sum(torch.autograd.grad(run.step(t).loss, run.table)[0] for t in range(steps)) / steps
    loss = global_contrastive_loss(run.table.expand(2, -1, -1), 0.2)
    (exact,) = torch.autograd.grad(loss, run.table)
    assert ((mean - exact).norm() / exact.norm()).item() < 0.02


def test_mh_encodes_again_just_the_carried_negatives_with_weight_each_once():
    run, seen = Frozen("kernel=mh", "temperature=0.05"), 0
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
        assert set(index.tolist()) <= set(outcome.writes["feature"].index.tolist())
    assert seen > 10


def test_cached_negatives_give_the_anchor_a_gradient_and_get_none():
    run, outside = Frozen("kernel=isir", "carried=cached", "temperature=0.5"), 0.0
    for step in range(30):
        outcome = run.step(step)
        (gradient,) = torch.autograd.grad(outcome.loss, run.table)
        elsewhere = torch.ones(SAMPLES, dtype=torch.bool)
        elsewhere[torch.from_numpy(run.order.batch(step))] = False
        outside += gradient[elsewhere].abs().sum().item()
        assert run.encoded == []
    assert outside == 0
    assert outcome.facts["carried_weight_ratio"] > 0.01
