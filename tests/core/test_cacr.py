"""CACR: a mean under the softmax, what its gradient goes around, and its limits. (Oracle: `test_objectives`.)"""

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from core.test_estimators import batch_of
from core.test_objectives import contrast, features

from emc2dist.core.certify import FrozenRun, certify
from emc2dist.core.denominator import Estimate
from emc2dist.core.estimators import chain
from emc2dist.core.exact import exact_loss
from emc2dist.core.objectives import Cacr


def gradient_over_all_pools(scores, remembered):
    """The mean gradient, by the scores [1, C], of isir at rest: each state with each pair of proposals."""
    pi, count = scores.detach().softmax(1)[0], scores.shape[1]
    total = 0
    for state in range(count):
        pairs = list(combinations([c for c in range(count) if c != state], 2))
        for pair in pairs:
            pool = scores[:, [*pair, state]]
            none = torch.zeros(1, 3)
            weights = pool.detach().softmax(1)
            estimate = Estimate(
                none[:, 0], pool, weights, none.long(), none.bool(), none[:, :1].bool(), torch.square, remembered
            )
            (gradient,) = torch.autograd.grad(estimate.mean.sum(), scores)
            total = total + pi[state] / len(pairs) * gradient
    return total


def test_around_the_remembered_mean_the_gradient_is_unbiased_and_around_the_pools_own_it_is_not():
    """By enumeration, to the last digits."""
    scores = torch.tensor([[1.0, -0.5, 0.3, 2.0, -1.0]], dtype=torch.float64, requires_grad=True)
    mean = (scores.softmax(1) * scores.square()).sum(1)
    (exact,) = torch.autograd.grad(mean.sum(), scores)
    torch.testing.assert_close(gradient_over_all_pools(scores, mean.detach()), exact, atol=1e-12, rtol=0)
    own = gradient_over_all_pools(scores, None)
    assert (own - exact).norm() > 0.1 * exact.norm()
    nothing_yet = torch.full((1,), torch.nan, dtype=torch.float64)
    torch.testing.assert_close(gradient_over_all_pools(scores, nothing_yet), own)


def certified(steps=600):
    negatives = ["negatives.kernel=isir", "objective.t_negative=4"]
    return certify(FrozenRun(contrast("cacr", "chain", *negatives), features(1, 24, seed=5), 4, 0.2), steps)


def test_a_chain_that_remembers_the_mean_is_unbiased_and_one_that_does_not_is_biased(monkeypatch):
    found = certified()
    assert found.ratio < 1.6
    with_mean = chain.with_mean

    def forgetful(*arguments):
        estimate, mean = with_mean(*arguments)
        return replace(estimate, remembered=None), mean

    monkeypatch.setattr(chain, "with_mean", forgetful)
    forgets = certified()
    assert forgets.ratio > 2
    assert forgets.relbias > 1.5 * found.relbias


@pytest.mark.parametrize("negatives", ["chain", "moving_average"])
def test_each_anchor_remembers_the_mean_distance_of_its_negatives(negatives):
    z = features(1, 24, seed=5)
    more = ["negatives.kernel=isir"] if negatives == "chain" else []
    run = FrozenRun(contrast("cacr", negatives, *more), z, 8, 0.2)
    for t in range(200):
        run.outcome(t)
    batch = batch_of(z.expand(2, -1, -1))
    (what,) = run.contrast.denominators
    scores = what.scores(batch, z, batch.index)
    expected = (scores.softmax(1) * (2 - scores / 2).nan_to_num(0, 0, 0)).sum(1).view(2, 24)
    errors = run.tables["negatives"]["mean"].T - expected
    assert errors.abs().mean() < 0.5 * (expected - expected.mean()).abs().mean()
    assert errors.mean().abs() < (0.02 if negatives == "chain" else 0.04)


def test_what_is_remembered_is_of_earlier_visits_and_a_visit_with_all_closed_leaves_it():
    z = features(1, 8, seed=6)
    run = FrozenRun(contrast("cacr", "moving_average", "negatives.close=[label]"), z, 8, 0.2)
    run.columns = {"label": torch.full((8,), -1)}
    run.outcome(0)
    before = run.tables["negatives"]["mean"].clone()
    assert before.min() > 0
    run.columns = {"label": torch.zeros(8, dtype=torch.int64)}
    outcome = run.outcome(1)
    assert run.tables["negatives"]["mean"].equal(before)
    (gradient,) = torch.autograd.grad(outcome.loss, run.shift)
    assert gradient.abs().max() < 1e-12  # views alike: nothing is pulled either


def test_limits():
    """A t of 0 weighs all alike, a large one takes the nearest; with one negative there is nothing to weigh."""
    z = features(4, 6).requires_grad_()
    squares = (z.unsqueeze(1) - z.unsqueeze(0)).square().sum(-1)  # positives [V, V, N]
    attraction = squares.sum((0, 1)).mean() / 12
    far = torch.stack([torch.cdist(one, one).square() for one in z])
    off = ~torch.eye(6, dtype=torch.bool)
    torch.testing.assert_close(exact_loss(Cacr(0, 1e-9), z, 0.3), attraction - far[:, off].mean())
    nearest = far.masked_fill(~off, torch.inf).amin(2).mean()
    torch.testing.assert_close(exact_loss(Cacr(0, 1e4), z, 0.3), attraction - nearest)
    torch.testing.assert_close(exact_loss(Cacr(), z, 0.3), exact_loss(Cacr(), z, 7.0))  # no temperature
    two = features(2, 2)
    expected = (two[0] - two[1]).square().sum(-1).mean() - (two[:, 0] - two[:, 1]).square().sum(-1).mean()
    torch.testing.assert_close(exact_loss(Cacr(), two, 0.3), expected)
    alike = torch.ones(2, 5, 4, dtype=torch.float64) / 2
    assert exact_loss(Cacr(), alike, 0.3).item() == pytest.approx(0)
