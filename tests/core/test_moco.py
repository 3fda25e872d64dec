"""Keys of a follower: no gradient for positives and negatives alike, so nothing to balance; and a queue of them."""

import numpy as np
import pytest
import torch
from core.test_draws import clusters
from core.test_objectives import contrast, features
from torch import nn

from emc2dist.core.certify import FrozenRun, certify
from emc2dist.core.contrast import Contrast
from emc2dist.core.estimators import InBatch
from emc2dist.core.exact import exact_loss
from emc2dist.core.objectives import OBJECTIVES
from emc2dist.data.sampler import EpochOrder
from emc2dist.towers.momentum import follow, follower_of

FOLLOWED = "encoder.momentum=0.9"


@pytest.mark.parametrize("name", ["dcl", "infonce", "rgcl"])
def test_the_exact_gradient_by_anchors_alone_is_that_of_the_loss_whose_keys_stand_still(name):
    z = features(2, 6).requires_grad_()
    keys = z.detach()
    loss = exact_loss(OBJECTIVES[name](), z, 0.3, z, followed=True)
    torch.testing.assert_close(loss, exact_loss(OBJECTIVES[name](), z, 0.3))
    (gradient,) = torch.autograd.grad(loss, z)

    def by_loops(own):
        total, rho, n = 0, 0.4, 10
        for v in range(2):
            for i in range(6):
                positive = own[v, i] @ keys[1 - v, i] / 0.3
                others = torch.stack([own[v, i] @ keys[w, j] / 0.3 for w in range(2) for j in range(6) if j != i])
                log_z = others.logsumexp(0)
                total = (
                    total
                    + {
                        "dcl": log_z - positive,
                        "infonce": torch.logaddexp(log_z, positive) - positive,
                        "rgcl": 0.3 * (log_z - np.log(n) + rho - positive),
                    }[name]
                )
        return total / 12

    (expected,) = torch.autograd.grad(by_loops(z), z)
    torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("negatives", "more", "least"),
    [
        ("queue", ["negatives.rows=32"], 0.98),
        ("in_batch", ["negatives.draws=32"], 0.98),
        ("chain", ["negatives.kernel=isir"], 0.94),  # 600 steps leave so much noise
    ],
)
def test_a_followers_keys_need_no_balance(negatives, more, least):
    """All roles summed, the direction is the exact one's, at half its length: anchors' pull and push, and no key's.

    Unbalanced gradients to keys of positives alone have 0.96 and less (tests/core/test_draws.py).
    """
    z = clusters()
    run = FrozenRun(contrast("dcl", negatives, *more, FOLLOWED), z, 8, 0.2)
    whole = FrozenRun(contrast("dcl", "in_batch"), z, 8, 0.2).exact()
    mean = torch.zeros_like(whole)
    for t in range(600):
        outcome = run.outcome(t)
        assert outcome.length == 1
        mean += run.gradient(outcome) / 500 if t >= 100 else 0
    assert ((mean * whole).sum() / (mean.norm() * whole.norm())) > least
    assert 0.4 < mean.norm() / whole.norm() < 0.6


def test_a_longer_queue_is_nearer_to_the_exact_gradient():
    z = features(1, 48, seed=5)
    alone, short, whole = (
        certify(FrozenRun(one, z, 6, 0.2), 600).relbias
        for one in (
            Contrast(OBJECTIVES["dcl"](), InBatch(), follows=True),
            contrast("dcl", "queue", "negatives.rows=12"),
            contrast("dcl", "queue", "negatives.rows=48"),
        )
    )
    assert whole < 0.5 * short < 0.5 * alone


@pytest.mark.parametrize("blocks", [None, np.array([5, 15, 10, 3])])
def test_the_newest_are_the_samples_visited_last(blocks):
    order = EpochOrder(33, 6, 4, parts=2, blocks=blocks, window=5)
    assert order.steps_per_epoch == 10
    visited = [order.batch(step).tolist() for step in range(35)]
    for step in (-3, 0, 2, 9, 10, 13, 25):
        wanted, since = [], max(0, step + 1 - 10)
        for batch in reversed(visited[since : max(0, step + 1)]):
            wanted += [sample for sample in reversed(batch) if sample not in wanted]
        for count in (1, 7, 20, 1000):
            assert order.newest(step, count).tolist() == wanted[:count]


def test_a_follower_goes_a_little_of_the_way_and_counts_as_it_is_told():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    follower = follower_of(encoder)
    expected = {name: value.clone() for name, value in follower.state_dict().items()}
    for _ in range(3):
        encoder(torch.randn(8, 3, dtype=torch.float64))  # moves the running statistics
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter += torch.randn_like(parameter)
        follow(follower, encoder, 0.9)
        for name, value in encoder.state_dict().items():
            mixed = value if name.endswith("num_batches_tracked") else 0.9 * expected[name] + 0.1 * value
            expected[name] = mixed.clone()
    for name, value in follower.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert not follower.training
    assert not any(parameter.requires_grad for parameter in follower.parameters())
