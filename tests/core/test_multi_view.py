"""More than two views: pairs of views in one term, a chain for every view slot. (Oracles: `test_objectives`.)"""

import math
from dataclasses import replace
from itertools import combinations, product

import pytest
import torch
from core.test_estimators import batch_of, scattered
from core.test_objectives import contrast, features
from torch.nn.functional import cross_entropy

from emc2dist.core.certify import FrozenRun, certify
from emc2dist.core.exact import exact_loss
from emc2dist.core.objectives import OBJECTIVES, MvDhel, MvInfoNce
from emc2dist.core.scores import pair_scores, positive_scores

MULTI_VIEW = ["mv_dhel", "mv_infonce"]


def test_pairs_are_those_of_which_positives_are_the_mean():
    """Gradient too, where keys get a share of theirs."""
    z = features(4, 3).requires_grad_()
    share = torch.linspace(0, 1, 12, dtype=torch.float64)
    weights = torch.rand(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for pull in (None, share):
        batch = replace(batch_of(z), pull=pull)
        pairs, expected = pair_scores(batch, "x"), positive_scores(batch, "x", "x")
        assert pairs.shape == (4, 3, 3)
        torch.testing.assert_close(pairs.mean(1).flatten(), expected)
        mine, other = (torch.autograd.grad((weights * one).sum(), z)[0] for one in (pairs.mean(1).flatten(), expected))
        torch.testing.assert_close(mine, other)


def test_with_two_views_they_are_closed_forms():
    z = features(2, 6).requires_grad_()
    scores = z[0] @ z[0].T / 0.2, z[1] @ z[1].T / 0.2
    decoupled = -(z[0] * z[1]).sum(1) / 0.2
    for one in scores:
        decoupled = decoupled + one.masked_fill(torch.eye(6, dtype=torch.bool), -torch.inf).logsumexp(1)
    torch.testing.assert_close(exact_loss(MvDhel(), z, 0.2), decoupled.mean())
    # Both views of a sample in one fraction, where SimCLR has one for each.
    flat = z.flatten(0, 1)
    logits = (flat @ flat.T / 0.2).fill_diagonal_(-torch.inf).unflatten(0, (2, 6))
    both = torch.cat([logits[0], logits[1]], 1)
    pair = logits[0][torch.arange(6), torch.arange(6) + 6]
    expected = (both.logsumexp(1) - pair - math.log(2)).mean()
    torch.testing.assert_close(exact_loss(MvInfoNce(), z, 0.2), expected)
    apart = cross_entropy(logits.flatten(0, 1), torch.arange(12).roll(6))
    assert expected.item() != pytest.approx(apart.item(), abs=1e-4)


@pytest.mark.parametrize("name", MULTI_VIEW)
def test_the_order_of_views_changes_nothing(name):
    z = features(4, 6)
    one, other = (exact_loss(OBJECTIVES[name](), x, 0.2) for x in (z, z[[2, 0, 3, 1]]))
    torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


def test_identical_features_warm_temperatures_and_one_negative():
    """What is left is counting."""
    views, samples = 3, 5
    pairs, others = math.comb(views, 2), samples - 1
    dhel = views * math.log(others) - math.log(pairs)
    infonce = math.log(1 + views * views * others / (2 * pairs))
    alike = torch.ones(views, samples, 4, dtype=torch.float64) / 2
    for z, temperature, scores in ((alike, 0.1, 10.0), (features(views, samples), 1e9, 0.0)):
        found = exact_loss(MvDhel(), z, temperature).item(), exact_loss(MvInfoNce(), z, temperature).item()
        assert found == pytest.approx((dhel + (views - 1) * scores, infonce), abs=1e-7)
    z = features(2, 2)
    near = (z[:, 0] @ z[:, 1].T).diagonal().sum() - ((z[0] * z[1]).sum(1)).mean()
    assert exact_loss(MvDhel(), z, 1.0).item() == pytest.approx(near.item())


def test_eight_views_of_a_thousand_samples_do_not_overflow():
    """A product of denominators does, from (M - 1)^V exp(V / temperature) on."""
    z = torch.ones(8, 1024, 4, requires_grad=True) / 2
    for name in MULTI_VIEW:
        loss = exact_loss(OBJECTIVES[name](), z, 0.07)
        (gradient,) = torch.autograd.grad(loss, z)
        assert loss.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", MULTI_VIEW)
def test_over_stored_views_the_loss_is_that_of_all_ways_in_which_views_stand_in_slots(name):
    """For log Z the mean over the views that a candidate may show, not the mean of logarithms: a chain draws both."""
    z = scattered(3, 4).requires_grad_()
    objective, temperature = OBJECTIVES[name](), 0.5
    total = 0
    for stand in combinations(range(3), 2):
        for i in range(4):
            pairs = z[stand[0], i] @ z[stand[1], i] / temperature
            log_z = []
            for view in stand:
                scores = [z[view, i] @ z[w, j] / temperature for w, j in product(range(3), range(4)) if j != i]
                log_z.append(torch.stack(scores).logsumexp(0) - math.log(3))
            if name == "mv_dhel":
                total = total - pairs + sum(log_z)
            else:
                whole = torch.stack([pairs, pairs, *(one + math.log(2) for one in log_z)]).logsumexp(0)
                total = total - pairs - math.log(2) + whole
    expected = total / (3 * 4)
    found = exact_loss(objective, z, temperature, together=2)
    torch.testing.assert_close(found, expected)
    mine, other = (torch.autograd.grad(one, z, retain_graph=True)[0] for one in (found, expected))
    torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("name", MULTI_VIEW)
def test_four_views_by_chains_come_to_the_exact_gradient(name):
    """Views that are drawn anew, of samples that stand still: of the batch alone the bias stays."""
    z = features(1, 24, seed=5)

    def relbias(negatives, *more):
        return certify(FrozenRun(contrast(name, negatives, *more), z, 6, 0.2, views=4), 480).relbias

    assert relbias("chain", "negatives.kernel=isir") < 0.5 * relbias("in_batch")


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["isir", "mh"])
def test_views_that_differ_need_no_completion_in_a_slot_of_their_own(kernel):
    """Anchors stand still: of a sample one view at a time is there, so the one that is carried weighs as any other."""
    z = scattered(6, 12)
    made = contrast("mv_dhel", "chain", f"negatives.kernel={kernel}")
    assert certify(FrozenRun(made, z, 4, 0.15, anchors="fixed"), 4_000).ratio < 1.3
    alone = contrast("mv_dhel", "in_batch")
    assert certify(FrozenRun(alone, z, 4, 0.15, anchors="fixed"), 4_000).ratio > 2.5


def test_a_slot_has_chains_of_its_own_and_encodes_the_view_of_that_slot_again():
    """No completion: of the sample that is carried, one view stands in the slot."""
    run = FrozenRun(contrast("mv_dhel", "chain", "negatives.kernel=isir"), scattered(8, 12), 4, 0.15, views=4)
    assert run.tables["negatives"]["state"].shape == (12, 4)
    numbers = []

    def encode(side, samples, asked):
        numbers.append(asked)
        return FrozenRun.encode(run, side, samples, asked)

    run.encode = encode
    for t in range(30):
        run.outcome(t)
    assert {len(asked) for asked in numbers} == {1}
    slots = run.tables["negatives"]["view"] % 8
    assert (slots == torch.arange(4)).all()


@pytest.mark.parametrize("name", ["mv_dhel", "cacr", "groco"])
def test_the_logged_loss_is_the_same_for_objectives_with_slots_scales_and_rankings(name):
    z = features(4, 6)
    plain, other = (contrast(one, "in_batch")(batch_of(z), {}, None) for one in ("dcl", name))
    torch.testing.assert_close(other.facts["loss"], plain.facts["loss"])
    assert plain.facts["loss"].item() == pytest.approx(plain.loss.item())
