"""Draws as candidates, and what balances a gradient that only one side gets."""

from dataclasses import replace

import pytest
import torch
from core.test_objectives import PAIRS, contrast, features
from torch.nn.functional import normalize

from benchmarks.certificate import digit_features
from emc2dist.core import balance
from emc2dist.core.batch import Batch, Side
from emc2dist.core.certify import FrozenRun, certify
from emc2dist.core.denominator import Denominator, Estimate
from emc2dist.core.objectives import OBJECTIVES
from emc2dist.core.scores import positive_scores

INF = torch.inf
DRAWS = "negatives.draws=32"


def drawing(z, index, drawn, pull=None):
    """A batch of samples `index` of `z` [V, N, D], and `drawn` of its samples by their first view."""
    side = Side(z[:, index], z[:, index], z[:1, drawn].detach(), drawn)
    return Batch(index, 0, {"x": side}, 0.2, z.shape[1], pull=pull)


def test_draws_are_candidates_as_the_batch_is_but_not_twice():
    z, index, drawn = features(1, 12).expand(2, -1, -1), torch.tensor([4, 1, 9]), torch.tensor([7, 1, 0, 11])
    scores, samples, one_sided, _ = Denominator().candidates(drawing(z, index, drawn))
    assert samples.tolist() == [4, 1, 9, 7, 1, 0, 11]
    assert one_sided.tolist() == [False] * 3 + [True] * 4
    everything = torch.arange(12)
    whole, *_ = Denominator().candidates(Batch(everything, 0, {"x": Side(z, z)}, 0.2, 12))
    expected = whole[index.repeat(2) + torch.tensor([0] * 3 + [12] * 3)][:, samples]
    expected[:, 4] = -INF  # in the batch already
    torch.testing.assert_close(scores, expected)


def test_a_draw_gets_no_gradient_and_gives_its_anchors_theirs():
    z = features(2, 12).requires_grad_()
    index, drawn = torch.tensor([4, 1, 9]), torch.tensor([7, 0, 11])
    scores, *_ = Denominator().candidates(drawing(z, index, drawn))
    (gradient,) = torch.autograd.grad(scores[:, 3:].sum(), z)
    assert gradient.norm(dim=2).sum(0).nonzero().flatten().tolist() == [1, 4, 9]


def test_no_sample_is_a_candidate_twice_of_a_chain_with_draws():
    run = FrozenRun(contrast("emc2", "chain", "negatives.kernel=isir", "negatives.draws=5"), features(1, 12), 4, 0.2)
    among_draws = 0
    for t in range(40):
        run.outcome(t)
        index = torch.randperm(12, generator=run._generator)[:4]
        batch, recall = run.batch(index, t), run._recall(index)["negatives"]
        visit = run.contrast.estimator.estimate(Denominator(), batch, recall, run.encode)
        for a, anchor in enumerate(index.repeat(2).tolist()):
            there = visit.estimate.index[a][visit.estimate.scores[a] > -INF].tolist()
            carried = {recall.columns["state"][a].item()} if recall.columns["visited"][a] else set()
            drawn = set(batch.sides["x"].drawn_index.tolist())
            among_draws += bool(carried & drawn)
            assert sorted(there) == sorted({*index.tolist(), *drawn, *carried} - {anchor})
    assert among_draws > 20


class BothSides(FrozenRun):
    """Draws get their gradient, so that the exact one must come out."""

    def _draw(self, step):
        drawn, _ = super()._draw(step)
        return drawn, self.features[:1, drawn]


@pytest.mark.parametrize("cached", [pytest.param(0, marks=pytest.mark.slow), 16])
def test_chains_with_draws_are_unbiased(cached):
    """Views alike: a draw's one view, with log V for those that are not at hand, weighs as a sample of the batch."""
    more = ["negatives.kernel=isir", "negatives.draws=4", f"negatives.cache_proposals={cached}"]
    run = BothSides(replace(contrast("emc2", "chain", *more), balanced=False), digit_features(32)[:1], 4, 0.1)
    found = certify(run, 1_200)
    assert found.ratio < 1.5
    assert found.relbias < 0.16


def test_pulled_positives_keep_their_share_as_keys_and_anchors_all_of_theirs():
    z, index = features(3, 4), torch.arange(4)
    own = z.requires_grad_()
    share = torch.linspace(0, 1, 12, dtype=torch.float64)
    weights = torch.rand(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = positive_scores(drawing(own, index, index[:0], share), "x", "x")
    torch.testing.assert_close(scores, positive_scores(drawing(own, index, index[:0]), "x", "x"))
    (gradient,) = torch.autograd.grad((weights * scores).sum(), own)
    expected = torch.zeros_like(z)
    for v in range(3):
        for i in range(4):
            for w in {0, 1, 2} - {v}:
                weight = weights[v * 4 + i] / 2 / 0.2
                expected[v, i] += weight * z[w, i].detach()
                expected[w, i] += weight * share[v * 4 + i] * z[v, i].detach()
    torch.testing.assert_close(gradient, expected)


def test_the_share_without_gradient_is_of_the_whole_weight():
    weights = torch.tensor([[0.5, 0.25, 0.25], [2.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    one_sided = torch.tensor([[False, True, True]])
    none = torch.zeros(3, 3)
    estimate = Estimate(torch.zeros(3), none, weights, torch.zeros(1, 3), one_sided, none.bool())
    assert balance.one_sided_share(estimate).tolist() == [0.5, 0.5, 0.0]
    assert balance.pull([estimate]).tolist() == [0.5, 0.5, 1.0]
    scores = torch.tensor([[1.0, 2.0, -INF]] * 3, requires_grad=True)
    pushed = balance.pushed(replace(estimate, scores=scores))
    assert pushed.scores.equal(scores)
    (gradient,) = torch.autograd.grad(pushed.scores.masked_fill(scores == -INF, 0).sum(), scores)
    assert gradient.tolist() == [[1.0, 2.0, 0.0]] * 3


def test_a_gradient_that_balance_has_shortened_is_certified_at_its_full_length():
    z = clusters()
    for kind in ("push", "pull"):
        run = FrozenRun(contrast("dcl", "in_batch", DRAWS, f"negatives.balance={kind}"), z, 8, 0.2)
        length = sum(run.step(t) for t in range(200)).norm() / 200 / run.exact().norm()
        assert 0.85 < length < 1.15


def clusters(views=2, samples=64, width=16, count=8):
    """Samples near others: where a negative pushes hard, it matters who is pushed back."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(*shape, width, generator=generator, dtype=torch.float64)

    centres = noise(count)[torch.arange(samples) % count]
    return normalize(centres + 0.6 * noise(samples) + 0.4 * noise(views, samples), dim=-1)


def mean_gradient(contrast, z, batch_size, temperature, steps):
    """Cosine with the exact gradient, and length in units of its length, as balance leaves it."""
    run = FrozenRun(contrast, z, batch_size, temperature, columns={"label": torch.arange(z.shape[1]) % 8})
    exact, skipped = run.exact(steps), steps // 6  # of the same steps where the batch is part of the loss
    mean = torch.zeros_like(exact)
    for t in range(steps):
        outcome = run.outcome(t)
        if t >= skipped:
            mean += run.gradient(outcome) * outcome.length / (steps - skipped)
    return ((mean * exact).sum() / (mean.norm() * exact.norm())).item(), (mean.norm() / exact.norm()).item()


@pytest.mark.parametrize(
    ("objective", "negatives", "more"),
    [
        ("dcl", "in_batch", []),
        pytest.param("dcl", "chain", ["negatives.kernel=isir"], marks=pytest.mark.slow),
        *(
            pytest.param(*pair, [], marks=pytest.mark.slow)
            for pair in PAIRS
            if pair[1] in ("in_batch", "moving_average") and pair[0] not in ("dcl", "groco", "nnclr")
            if not OBJECTIVES[pair[0]].looks_around
        ),
    ],
)
def test_balanced_draws_give_the_sum_of_all_roles(objective, negatives, more):
    """The certificate of balance: a sample moved as anchor, positive and negative; one role less turns it aside.

    With gradient to both sides of 32 draws the cosine is 0.990 (0.7 of the rest is the noise of 800 steps).
    """

    def found(*balance, balanced=True):
        made = replace(contrast(objective, negatives, DRAWS, *more, *balance), balanced=balanced)
        return mean_gradient(made, clusters(), 8, 0.2, 800)

    plain, _ = found(balanced=False)
    assert plain < 0.984
    for kind, shortest, longest in (("push", 0.85, 1.1), ("pull", 0.5, 0.7)):
        cosine, length = found(f"negatives.balance={kind}")
        assert cosine > max(0.982, plain + 0.004)
        assert shortest < length < longest


@pytest.mark.slow
@pytest.mark.parametrize("negatives", ["in_batch", "moving_average"])
def test_balanced_draws_beside_positives_by_label(negatives):
    """Each positive of a label keeps as much as key as the anchor's own views do; without, it is the worse the more."""

    def found(*balance, balanced=True):
        made = contrast("supcon", negatives, DRAWS, *balance)
        return mean_gradient(replace(made, balanced=balanced), clusters(), 8, 0.2, 400)

    cosine, _ = found(balanced=False)
    assert cosine < 0.8
    for kind, shortest, longest in (("push", 0.85, 1.1), ("pull", 0.5, 0.7)):
        cosine, length = found(f"negatives.balance={kind}")
        assert cosine > 0.94
        assert shortest < length < longest
