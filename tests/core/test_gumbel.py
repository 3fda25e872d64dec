"""Negatives drawn from the cache by Gumbel-max: from the right distribution, the right view, unbiased but for age."""

import pytest
import torch
from core.test_objectives import contrast, features
from torch.nn.functional import normalize

from benchmarks.certificate import digit_features
from emc2dist.core.certify import FrozenRun, certify
from emc2dist.core.denominator import Denominator
from emc2dist.core.estimators.gumbel import drawn_row
from emc2dist.core.streams import fork


def test_rows_are_drawn_by_their_softmax():
    scores = torch.tensor([0.0, 2.0, -torch.inf, 1.0, 0.5], dtype=torch.float64)
    streams = fork(7, torch.arange(40_000))
    drawn = drawn_row(scores.expand(40_000, -1), streams).squeeze(1)
    share = torch.bincount(drawn, minlength=5) / 40_000
    assert share[2] == 0
    torch.testing.assert_close(share.double(), scores.softmax(0), atol=0.01, rtol=0)


def test_blocks_of_anchors_draw_what_all_of_them_do(monkeypatch):
    scores, streams = torch.rand(50, 9, dtype=torch.float64), fork(3, torch.arange(50))
    whole = drawn_row(scores, streams)
    monkeypatch.setattr("emc2dist.core.estimators.gumbel._NOISE_ELEMENTS", 20)
    assert drawn_row(scores, streams).equal(whole)


def visit(run, index, step):
    """The visit, the batch and the cached rows of a step that follows others; and what it had encoded."""
    recall, batch, asked = run._recall(index)["negatives"], run.batch(index, step), []

    def encode(side, samples, numbers):
        asked.append((samples, numbers))
        return run.encode(side, samples, numbers)

    found = run.contrast.estimator.estimate(Denominator(), batch, recall, encode)
    return found, batch, recall.proposed, asked


@pytest.mark.parametrize("draws", [0, 3])
def test_the_pool_is_every_sample_once_and_the_drawn_view_is_the_cached_one(draws):
    """Views differ, and what is encoded again is the very view whose feature was scored."""
    run = FrozenRun(contrast("dcl", "gumbel", f"negatives.draws={draws}"), features(5, 12), 4, 0.2)
    for t in range(20):
        run.outcome(t)
    index = torch.tensor([4, 1, 9, 7])
    found, batch, rows, asked = visit(run, index, 20)
    ((samples, numbers),) = asked
    stood = rows.feature[[rows.index.tolist().index(sample) for sample in samples.tolist()]]
    torch.testing.assert_close(run.encode("x", samples, numbers)[0].detach(), stood)
    estimate, ours = found.estimate, {*index.tolist(), *(batch.sides["x"].drawn_index.tolist() if draws else [])}
    assert not ours & set(samples.tolist())
    torch.testing.assert_close(estimate.weights.sum(1), torch.ones(8, dtype=torch.float64))
    what = Denominator()
    fresh, cached = what.candidates(batch).scores, what.scores(batch, rows.feature.unsqueeze(0), rows.index)
    outside = [i for i, sample in enumerate(rows.index.tolist()) if sample not in ours]
    pool = torch.cat([fresh, cached[:, outside]], 1)
    torch.testing.assert_close(estimate.value, pool.logsumexp(1).detach())
    torch.testing.assert_close(estimate.weights[:, :-1], pool.softmax(1)[:, : fresh.shape[1]].detach())


class Aged(FrozenRun):
    """Whose cached features are off."""

    noise = 0.0

    def _cache(self, index, found, step, slot):
        generator = torch.Generator().manual_seed(step)
        off = torch.randn(found.shape, generator=generator, dtype=found.dtype) * self.noise / found.shape[-1] ** 0.5
        super()._cache(index, normalize(found.detach() + off, dim=-1), step, slot)


def test_a_cached_feature_stands_in_without_gradient_of_its_own():
    made = contrast("dcl", "gumbel", "negatives.carried=cached", "encoder.momentum=0.9")
    run = FrozenRun(made, features(5, 12), 4, 0.2)
    for t in range(20):
        run.outcome(t)
    found, batch, rows, asked = visit(run, torch.tensor([4, 1, 9, 7]), 20)
    assert not asked
    estimate = found.estimate
    assert estimate.one_sided[0].tolist() == [True] * 5
    drawn = estimate.index[:, -1]
    expected = Denominator().score_each(batch, rows.feature[rows.index.argsort()][drawn].unsqueeze(0), drawn)
    torch.testing.assert_close(estimate.scores[:, -1], expected)


def test_what_is_drawn_from_a_cache_of_today_is_unbiased_and_from_an_old_one_is_not():
    """A chain over the same old cache is unbiased still: there old features only propose."""

    def found(noise, *options):
        run = Aged(contrast("dcl", *options), digit_features(32)[:1], 4, 0.1)
        run.noise = noise
        return certify(run, 900)

    fresh, old = found(0.0, "gumbel"), found(1.5, "gumbel")
    chain = found(1.5, "chain", "negatives.kernel=isir", "negatives.cache_proposals=16")
    assert fresh.ratio < 1.5
    assert old.ratio > 3
    assert old.facts["stale_score_rms_error"] > 1 > fresh.facts["stale_score_rms_error"]
    assert chain.relbias < 0.5 * old.relbias
