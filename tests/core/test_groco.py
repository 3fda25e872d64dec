"""GroCo: the sorting network, who the hardest are, and which negatives make sense. (Oracle: `test_objectives`.)"""

import pytest
import torch
from core.test_estimators import batch_of
from core.test_objectives import SPEC, contrast, features

from emc2dist.config import parse
from emc2dist.core.certify import FrozenRun
from emc2dist.core.closing import OPEN
from emc2dist.core.denominator import Denominator
from emc2dist.core.estimators import in_batch
from emc2dist.core.exact import exact_loss
from emc2dist.core.objectives import GroCo
from emc2dist.core.sorting import share_in_last
from emc2dist.errors import SpecError

INF = torch.inf
CACHED = ["negatives.kernel=isir", "negatives.carried=cached", "negatives.cache_proposals=6"]


def test_a_hard_network_sorts_and_a_soft_one_shares():
    numbers = torch.randn(50, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    order = numbers.argsort(1).argsort(1)
    for last in (1, 3):
        hard = share_in_last(numbers, last, 1e9)
        torch.testing.assert_close(hard, (order >= 7 - last).double(), atol=1e-4, rtol=0)
        soft = share_in_last(numbers, last, 2.0)
        torch.testing.assert_close(soft.sum(1), torch.full((50,), float(last), dtype=torch.float64))
        assert ((soft > 0) & (soft < 1)).all()
    free = numbers[:3].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: share_in_last(x, 3, 2.0), free)


def test_what_is_missing_stays_where_it_is_and_gets_no_gradient():
    row = torch.tensor([[-INF, -INF, 0.3, -0.2, 0.1]], dtype=torch.float64, requires_grad=True)
    share = share_in_last(row, 2, 1.0)
    assert share[0, :2].tolist() == [0, 0]
    assert share.sum().item() == pytest.approx(2)
    (gradient,) = torch.autograd.grad(share[0, 2], row)
    assert gradient[0, :2].tolist() == [0, 0]
    assert gradient[0, 2:].abs().min() > 0


def test_the_hardest_are_the_highest_scores_and_those_that_are_missing_come_last():
    estimate = in_batch(Denominator(), batch_of(features(2, 5)))
    hardest = estimate.hardest(7)
    assert hardest.shape == (10, 7)
    torch.testing.assert_close(hardest[:, :4], estimate.scores.sort(1, descending=True).values[:, :4])
    assert (hardest[:, 4:] == -INF).all()


def test_order_is_near_the_least_loss_one_inversion_raises_it_and_gradients_reach_anchors_alone():
    """Three samples on a line of directions: own view nearest, or another sample's."""
    angles = torch.tensor([[0.0, 1.0, 2.0], [0.1, 1.1, 2.1]], dtype=torch.float64)

    def loss(angles, steepness=20.0):
        z = torch.stack([angles.cos(), angles.sin()], -1)
        return exact_loss(GroCo(hardest=2, steepness=steepness), z, 0.3)

    crossed = angles.clone()
    crossed[1, 0] = 0.9  # nearer to the second sample than to its own other view
    assert loss(angles, 1e6) < 1e-4
    assert loss(crossed, 1e6) > 1
    assert loss(angles) < loss(crossed)
    z = features(2, 6).requires_grad_()
    batch = batch_of(z)
    (what,) = GroCo().denominators
    (gradient,) = torch.autograd.grad(in_batch(what, batch).scores[0, 1:].sum(), z)
    assert gradient.norm(dim=2).nonzero().tolist() == [[0, 0]]


def test_limits():
    """One negative: one swap. Identical features: all alike. No temperature."""
    z = features(2, 2)
    near, far = (z[0] * z[1]).sum(1).repeat(2), (z[:, 0] * z[:, 1]).sum(1).repeat_interleave(2)
    stays = torch.atan(near - far) / torch.pi + 0.5  # a second layer has no pair: there are two numbers
    torch.testing.assert_close(exact_loss(GroCo(hardest=1), z, 0.3), -stays.log().mean())
    torch.testing.assert_close(exact_loss(GroCo(), z, 0.3), exact_loss(GroCo(), z, 9.0))
    alike = torch.ones(2, 5, 4, dtype=torch.float64) / 2
    row = torch.ones(1, 5, dtype=torch.float64)
    share = share_in_last(row, 1, 1.0)[0]
    expected = -((1 - share[:4]).log().sum() + share[4].log()) / 5
    assert exact_loss(GroCo(hardest=4), alike, 0.3).item() == pytest.approx(expected.item())
    with pytest.raises(ValueError, match="takes the hardest candidates"):
        exact_loss(GroCo(), z, 0.3, together=2)


def supplied(*more):
    """A run over scattered features, and of each visit the ranked candidates' scores and samples."""
    run = FrozenRun(contrast("groco", "chain", *more), features(1, 24, seed=5), 6, 0.1)
    (what,) = run.contrast.denominators
    for t in range(40):
        run.outcome(t)
        index = torch.randperm(24, generator=run._generator)[:6]
        batch, recall = run.batch(index, t), run._recall(index)["negatives"]
        yield run, batch, recall, run.contrast.estimator.estimate(what, batch, recall, run.encode).estimate


def test_a_chain_supplies_the_batch_what_it_carries_and_its_cached_rows_each_once():
    carried_outside = 0
    for _, batch, recall, estimate in supplied(*CACHED, "negatives.draws=3"):
        assert estimate.scores.shape == (12, 6 + 3 + 1 + 6)
        assert not estimate.one_sided.any()
        assert (estimate.weights[:, -6:] == 0).all()
        rows = recall.proposed.index[recall.proposed.present].tolist()
        for a, anchor in enumerate(batch.anchor_index("x").tolist()):
            there = estimate.index[a][estimate.scores[a] > -INF].tolist()
            carried = {estimate.index[a, 9].item()} if estimate.scores[a, 9] > -INF else set()
            carried_outside += bool(carried - {*batch.index.tolist(), *batch.sides["x"].drawn_index.tolist(), *rows})
            others = {*batch.index.tolist(), *batch.sides["x"].drawn_index.tolist(), *carried, *rows} - {anchor}
            assert sorted(there) == sorted(others)
    assert carried_outside > 20


def test_more_candidates_find_more_of_the_hardest():
    """Of each anchor's three nearest among all, those that were among the candidates."""
    z = features(1, 24, seed=5)[0]
    nearest = (z @ z.T).fill_diagonal_(-2).topk(3, 1).indices

    def found(*more, drop=0):
        hits = total = 0
        for _, batch, _, estimate in supplied(*more):
            scores = estimate.scores[:, : estimate.scores.shape[1] - drop]
            index = estimate.index[:, : scores.shape[1]].masked_fill(scores == -INF, -1)
            wanted = nearest[batch.anchor_index("x")]
            hits += (wanted.unsqueeze(2) == index.unsqueeze(1)).any(2).sum().item()
            total += wanted.numel()
        return hits / total

    alone, carried, cached = found(*CACHED[:2], drop=1), found(*CACHED[:2]), found(*CACHED)
    assert alone == pytest.approx(5 / 23, abs=0.05)
    assert carried > alone + 0.1
    assert cached > carried + 0.1


def test_closed_candidates_are_not_ranked():
    z = features(1, 8, seed=6)
    label = torch.tensor([0, 1] * 4)
    run = FrozenRun(contrast("groco", "in_batch", "negatives.close=[label]"), z, 8, 0.2, columns={"label": label})
    views = z.expand(2, -1, -1)
    exact, everything = (
        exact_loss(run.contrast.objective, views, 0.2, closing=closing, columns={"label": label}).item()
        for closing in (run.contrast.closing, OPEN)
    )
    assert run.outcome(0).loss.item() == pytest.approx(exact)
    assert exact < everything - 0.003


@pytest.mark.parametrize(
    ("negatives", "words"),
    [
        (["negatives=moving_average"], r"negatives: moving_average remembers log Z, and objective: groco reads none"),
        (["negatives=chain", "negatives.carried=roulette"], r"negatives.carried: roulette .* give cached"),
        (["negatives.draws=2", "negatives.balance=push"], r"negatives.balance: push .* leave it out"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(negatives, words):
    with pytest.raises(SpecError, match=words):
        parse(SPEC, ["objective=groco", *negatives])
