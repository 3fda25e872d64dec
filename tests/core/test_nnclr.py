"""NNCLR: which neighbour it is, what it is never a candidate of, and what balances keys that alone have a gradient."""

from dataclasses import replace

import pytest
import torch
from core.oracles import nnclr
from core.test_draws import clusters, mean_gradient
from core.test_estimators import batch_of
from core.test_objectives import ISIR, contrast, features
from torch.nn.functional import normalize

from emc2dist.core.certify import FrozenRun, certify
from emc2dist.core.denominator import Denominator
from emc2dist.core.estimators import CachedRows, Recall
from emc2dist.core.exact import exact_loss
from emc2dist.core.objectives import NnClr
from emc2dist.core.objectives.nnclr import NEIGHBOUR, predicted
from emc2dist.core.scores import positive_scores


def rows_of(features, index, absent=()):
    index = torch.as_tensor(index)
    present = torch.tensor([sample not in absent for sample in index.tolist()])
    return CachedRows(index, features, present, index * 0, index * 0)


@pytest.mark.parametrize("views", [2, 3])
def test_the_exact_loss_with_a_support_set_equals_explicit_loops_with_gradient(views):
    z, cached = features(views, 6).requires_grad_(), features(1, 5, seed=9)[0]
    index, absent = [3, 0, 4, 9, 2], {4}
    value = exact_loss(NnClr(), z, 0.3, support=rows_of(cached, index, absent))
    there = [(j, feature) for j, feature in zip(index, cached, strict=True) if j not in absent]
    oracle = nnclr(z, 0.3, cached=there)
    torch.testing.assert_close(value, oracle, atol=1e-12, rtol=0)
    torch.testing.assert_close(torch.autograd.grad(value, z), torch.autograd.grad(oracle, z), atol=1e-12, rtol=0)
    assert value.item() != pytest.approx(nnclr(z, 0.3).item(), abs=1e-3)


def test_the_neighbour_is_another_sample_and_no_candidate():
    z = features(2, 6)
    batch = NnClr().prepared(batch_of(z), Recall({}, proposed=rows_of(z[0], range(6))))
    side = batch.sides[NEIGHBOUR]
    for v in range(2):
        for i in range(6):
            near = max((j for j in range(6) if j != i), key=lambda j: z[1 - v, i] @ z[0, j])
            assert side.samples[v, i] == near
            torch.testing.assert_close(side.own[v, i], z[0, near])
    scores = Denominator(anchors=NEIGHBOUR, views="same").scores(batch, z, torch.arange(6)).view(2, 6, 6)
    none = scores == -torch.inf
    expected = torch.eye(6, dtype=torch.bool) | torch.nn.functional.one_hot(side.samples, 6).bool()
    assert none.equal(expected)


def test_without_a_row_at_hand_the_other_view_stands_in_and_the_loss_is_one_half_of_simclr():
    """Cross-view InfoNCE whose anchors are held still."""
    z = features(2, 6).requires_grad_()
    rows = rows_of(z.detach()[0], range(6), absent=range(6))
    loss = contrast("nnclr", "in_batch")(batch_of(z), {"objective": Recall({}, proposed=rows)}, None).loss
    other = z.detach().flip(0)
    oracle = torch.nn.functional.cross_entropy(
        (other @ z.transpose(1, 2) / 0.2).flatten(0, 1), torch.arange(6).repeat(2)
    )
    torch.testing.assert_close(loss, oracle)
    torch.testing.assert_close(torch.autograd.grad(loss, z), torch.autograd.grad(oracle, z))


def test_decoupled_leaves_the_positive_out():
    z = features(2, 6)
    batch = NnClr(decoupled=True).prepared(batch_of(z), Recall({}))
    (what,) = NnClr(decoupled=True).denominators
    assert not what.valued
    loss = contrast("nnclr", "in_batch", "objective.decoupled=true")(batch_of(z), {}, None).loss
    scores = what.scores(batch, z, torch.arange(6))
    positive = (z[0] * z[1]).sum(-1).repeat(2) / 0.2
    torch.testing.assert_close(loss, (scores.logsumexp(1) - positive).mean())


def predictor(width=5):
    torch.manual_seed(4)
    module = NnClr(predictor=7).learns(width).double()
    z = features(2, 6)
    torch.testing.assert_close(module(z), z)  # it begins with nothing
    torch.nn.init.normal_(module.added[-1].weight)
    return module


def test_a_predictor_stands_before_the_keys_alone_and_gets_its_gradient():
    z, cached, module = features(2, 6).requires_grad_(), features(1, 5, seed=9)[0], predictor()
    value = exact_loss(NnClr(predictor=7), z, 0.3, support=rows_of(cached, [3, 0, 4, 9, 2]), learnt=module)
    keys = normalize(module(z), dim=-1)
    oracle = nnclr(z, 0.3, cached=list(zip([3, 0, 4, 9, 2], cached, strict=True)), keys=keys)
    wanted = [z, *module.parameters()]
    torch.testing.assert_close(value, oracle, atol=1e-12, rtol=0)
    torch.testing.assert_close(
        torch.autograd.grad(value, wanted), torch.autograd.grad(oracle, wanted), atol=1e-12, rtol=0
    )


def test_what_is_pulled_gets_its_share_of_the_gradient_through_the_predictor_too():
    z, module = features(2, 6).requires_grad_(), predictor()
    batch = replace(NnClr().prepared(batch_of(z), Recall({})), learnt=module)
    halved = replace(batch, pull=torch.full((12,), 0.5, dtype=torch.float64))
    whole, half = (positive_scores(one, NEIGHBOUR, "x", predicted).sum() for one in (batch, halved))
    torch.testing.assert_close(half, whole)
    (all_of_it,), (found,) = torch.autograd.grad(whole, z), torch.autograd.grad(half, z)
    torch.testing.assert_close(found, all_of_it / 2)
    torch.testing.assert_close(found.abs().sum() > 0.1, torch.tensor(True))


def test_chains_with_a_predictor_come_near_the_exact_gradient_of_its_target():
    z, options = features(1, 24, seed=3), ["objective.predictor=7", "objective.after=1e6"]
    chain, batch = (contrast("nnclr", *negatives, *options) for negatives in (["chain", ISIR[0]], ["in_batch"]))
    found, plain = (certify(FrozenRun(made, z, 4, 0.2, learnt=predictor()), 1000) for made in (chain, batch))
    assert found.excess < 0.02 < 0.05 < plain.excess


def test_draws_push_nobody_and_the_pull_makes_up_for_it():
    """Neighbours are constants, and draws too: what is left of the push meets as much of the pull."""
    z = clusters()

    def found(balanced):
        made = contrast("nnclr", "in_batch", "objective.decoupled=true", "negatives.draws=24")
        return mean_gradient(replace(made, balanced=balanced), z[:1], 8, 0.2, 500)

    cosine, length = found(balanced=True)
    assert cosine > 0.97
    assert found(balanced=False)[0] < 0.9
    assert 0.1 < length < 0.5
