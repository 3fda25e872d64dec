"""The sweep against its definition, closed forms, and the distribution it must leave (certificate 1)."""

import numpy as np
import pytest
import torch

from benchmarks.certificate import digit_features
from emc2dist.core import sweep as kernels
from emc2dist.core.streams import ACCEPT, ORDER, fork, uniforms
from emc2dist.core.walk import metropolis_row

INF = torch.inf


def random_scores(seed, chains, proposals, dtype):
    """Scores with everything that can occur: no proposal, NaN, +inf, unvisited chains."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(chains, proposals, generator=generator, dtype=dtype) * 3
    lottery = torch.rand(chains, proposals, generator=generator)
    scores[lottery < 0.2], scores[lottery > 0.92], scores[lottery > 0.98] = -INF, torch.nan, INF
    carried = torch.randn(chains, generator=generator, dtype=dtype)
    carried[torch.rand(chains, generator=generator) < 0.3] = -INF
    return scores, carried, torch.rand(chains, proposals, generator=generator, dtype=dtype).log()


def readable_sweep(scores, carried, streams, burn_in_fraction, shuffle):
    """Weights, and [A, 3]: state, acceptance rate, proposals; every chain by the definition."""
    carried = carried.masked_fill(carried.isnan(), -INF)
    chains, columns = scores.shape
    order = uniforms(streams, columns, lane=ORDER).argsort(1) if shuffle else torch.arange(columns).expand(chains, -1)
    log_u = uniforms(streams, columns, lane=ACCEPT).log().to(scores.dtype)
    weights = torch.zeros(chains, columns + 1, dtype=scores.dtype)
    ends = []
    for a in range(chains):
        walked = np.zeros(columns + 1, weights.numpy().dtype)
        given = scores[a][order[a]].numpy(), carried[a].numpy(), log_u[a].numpy()
        with np.errstate(invalid="ignore"):
            state, accepted, valid = metropolis_row(*given, burn_in_fraction, walked)
        columns_of = torch.cat([order[a], torch.tensor([columns])])
        weights[a, columns_of] = torch.from_numpy(walked)
        ends.append([int(columns_of[state]), accepted / max(valid, 1), valid])
    return weights, torch.tensor(ends, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("burn_in_fraction", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("proposals", [0, 1, 2, 7, 33])
def test_batched_walks_agree_with_the_readable_one(dtype, burn_in_fraction, proposals):
    scores, carried, log_u = random_scores(proposals, 64, proposals, dtype)
    weights = np.zeros((64, proposals + 1), scores.numpy().dtype)
    with np.errstate(invalid="ignore"):
        ends = [
            metropolis_row(s, c, u, burn_in_fraction, w)
            for s, c, u, w in zip(scores.numpy(), carried.numpy(), log_u.numpy(), weights, strict=True)
        ]
    found = kernels._metropolis_batched(scores, carried, log_u, burn_in_fraction)
    torch.testing.assert_close(found[0], torch.from_numpy(weights))
    assert torch.stack(found[1:], 1).tolist() == [list(end) for end in ends]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("burn_in_fraction", "shuffle"), [(0.0, True), (0.5, True), (0.99, True), (0.5, False)])
@pytest.mark.parametrize(("proposals", "chains"), [(0, 3), (1, 8), (2, 8), (33, 64), (200, 16), (5000, 1)])
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_the_compiled_visit_is_the_readable_one_to_the_bit(dtype, burn_in_fraction, shuffle, proposals, chains, scale):
    scores, carried, _ = random_scores(proposals, chains, proposals, dtype)
    scores, streams = scores * scale, fork(proposals, torch.arange(chains))
    carried[0] = torch.nan
    found = kernels.sweep(scores, carried, burn_in_fraction=burn_in_fraction, shuffle=shuffle, streams=streams)
    weights, ends = readable_sweep(scores, carried, streams, burn_in_fraction, shuffle)
    assert found.weights.equal(weights)
    assert found.state.tolist() == ends[:, 0].tolist()
    torch.testing.assert_close(found.acceptance_rate, ends[:, 1].to(dtype), rtol=1e-7, atol=0)
    assert found.proposals.tolist() == ends[:, 2].tolist()


def test_a_sweep_by_hand():
    # From score 0: c0 (+2) is better: accepted. c1 (-50) is refused. c2 (+90) is accepted. Burn-in drops the first.
    sweep = kernels.sweep(torch.tensor([[2.0, -50.0, 90.0]]), torch.zeros(1), burn_in_fraction=0.34, shuffle=False)
    assert sweep.weights.tolist() == [[0.5, 0.0, 0.5, 0.0]]
    assert sweep.state.tolist() == [2]
    assert sweep.acceptance_rate.item() == pytest.approx(2 / 3)
    assert (sweep.distinct.item(), sweep.effective_sample_size.item(), sweep.proposals.item()) == (2, 2.0, 3)


def test_what_is_no_proposal_is_neither_a_step_nor_a_rejection():
    with_gaps = kernels.sweep(torch.tensor([[-INF, 5.0, -INF, -60.0]]), torch.zeros(1), shuffle=False)
    assert with_gaps.weights.tolist() == [[0, 1.0, 0, 0, 0]]  # two valid steps, one dropped
    assert with_gaps.acceptance_rate.item() == 0.5
    assert with_gaps.proposals.item() == 2


@pytest.mark.parametrize("kernel", ["mh", "isir"])
def test_edges(kernel):
    def visit(scores, carried):
        return kernels.sweep(torch.tensor([scores]), torch.tensor([carried]), kernel=kernel, shuffle=False)

    nothing = visit([-INF, -INF], -INF)
    assert nothing.weights.tolist() == [[0, 0, 0]]
    assert (nothing.state.item(), nothing.acceptance_rate.item()) == (2, 0)
    stays = visit([-INF, torch.nan], 1.0)
    assert stays.weights.tolist() == [[0, 0, 1]]
    assert (stays.state.item(), stays.acceptance_rate.item()) == (2, 0)
    first = visit([torch.nan, -1000.0], -INF)
    assert first.weights.tolist() == [[0, 1, 0]]
    assert first.state.item() == 1
    empty = kernels.sweep(torch.zeros(2, 0), torch.tensor([0.0, -INF]), kernel=kernel)
    assert empty.weights.tolist() == [[1], [0]]


@pytest.mark.parametrize("kernel", ["mh", "isir"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_kept_step_counts_once(kernel, dtype):
    scores, carried, _ = random_scores(3, 200, 9, dtype)
    sweep = kernels.sweep(scores, carried, kernel=kernel, generator=torch.Generator().manual_seed(0))
    exists = (scores.nan_to_num(-INF) > -INF).any(1) | (carried > -INF)
    torch.testing.assert_close(sweep.weights.sum(1), exists.to(dtype))
    assert not sweep.weights[:, :-1][(scores == -INF) | scores.isnan()].any()
    assert sweep.weights.dtype == dtype


def test_isir_weighs_by_softmax_and_accepts_what_is_not_carried():
    scores = torch.randn(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sweep = kernels.sweep(scores, scores[:, 0], kernel="isir")
    expected = torch.cat([scores, scores[:, :1]], 1).softmax(1)
    torch.testing.assert_close(sweep.weights, expected)
    torch.testing.assert_close(sweep.acceptance_rate, 1 - expected[:, -1])


@pytest.mark.parametrize("columns", [1, 2, 5, 64, 301])
def test_sums_by_many_threads_rise_only_where_there_is_weight(columns, monkeypatch):
    """As on a GPU, in both modes; there a chain must not draw what has no weight."""
    generator = torch.Generator().manual_seed(columns)
    weights = torch.rand(500, columns, generator=generator)
    weights[torch.rand(500, columns, generator=generator) < 0.5] = 0
    rough = kernels._doubled_sums(weights)
    torch.testing.assert_close(rough, weights.cumsum(1))
    if columns > 5:
        assert (rough.diff(dim=1)[weights[:, 1:] == 0] != 0).any()  # what it is for
    for deterministic in (True, False):
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda on=deterministic: on)
        sums = kernels._parallel_sums(weights)
        torch.testing.assert_close(sums, weights.cumsum(1))
        rises = sums.diff(dim=1, prepend=torch.zeros(500, 1))
        assert (rises >= 0).all()
        assert not rises[weights == 0].any()


def test_the_order_is_drawn_anew_for_every_anchor():
    # Unvisited chains take their first proposal; with equal scores every one is accepted, so the end is the last.
    scores = torch.zeros(600, 4)
    sweep = kernels.sweep(scores, torch.full((600,), -INF), generator=torch.Generator().manual_seed(0))
    counts = sweep.state.bincount(minlength=4)
    assert counts.min() > 600 / 4 - 5 * (600 * 3 / 16) ** 0.5
    fixed = kernels.sweep(scores, torch.full((600,), -INF), shuffle=False)
    assert fixed.state.unique().tolist() == [3]


def test_a_chain_depends_on_its_stream_alone():
    scores, carried, _ = random_scores(1, 40, 12, torch.float64)
    streams = fork(7, torch.arange(40))
    for kernel in ("mh", "isir"):
        together = kernels.sweep(scores, carried, kernel=kernel, streams=streams)
        apart = kernels.sweep(scores[10:20], carried[10:20], kernel=kernel, streams=streams[10:20])
        assert together.state[10:20].equal(apart.state)
        torch.testing.assert_close(together.weights[10:20], apart.weights)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel": "gibbs"}, "kernel"),
        ({"burn_in_fraction": 1.0}, "burn_in_fraction"),
        ({"burn_in_fraction": -0.1}, "burn_in_fraction"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        kernels.sweep(torch.zeros(2, 3), torch.zeros(2), **arguments)
    with pytest.raises(ValueError, match=r"\[A, P\]"):
        kernels.sweep(torch.zeros(2, 3), torch.zeros(3))
    with pytest.raises(ValueError, match="float32"):
        kernels.sweep(torch.zeros(2, 3), torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("kernel", "temperature"),
    [
        ("mh", 0.07),
        ("isir", 0.2),
        pytest.param("mh", 0.2, marks=pytest.mark.slow),
        pytest.param("isir", 0.07, marks=pytest.mark.slow),
    ],
)
def test_chains_visit_their_target(kernel, temperature):
    """Certificate 1: frozen features of 64 digits; histograms approach pi as 1/sqrt(visits), below 0.03 by 20,000."""
    samples, batch, visits = 64, 16, 20_000
    generator = torch.Generator().manual_seed(0)
    features = digit_features(samples)[0]
    scores = features @ features.T / temperature
    target = scores.clone().fill_diagonal_(-INF).softmax(1)
    anchors = torch.arange(samples)
    state, visited = torch.zeros(samples, dtype=torch.int64), torch.zeros(samples, dtype=torch.bool)
    histogram, distance = torch.zeros_like(target), {}
    for visit in range(1, visits + 1):
        proposals = torch.randperm(samples, generator=generator)[:batch]
        allowed = (proposals != anchors.unsqueeze(1)) & ((proposals != state.unsqueeze(1)) | ~visited.unsqueeze(1))
        proposal_scores = scores[:, proposals].masked_fill(~allowed, -INF)
        carried = scores[anchors, state].masked_fill(~visited, -INF)
        sweep = kernels.sweep(proposal_scores, carried, kernel=kernel, streams=fork(visit, anchors))
        columns = torch.cat([proposals.expand(samples, -1), state.unsqueeze(1)], 1)
        histogram.scatter_add_(1, columns, sweep.weights)
        state = columns.gather(1, sweep.state.unsqueeze(1)).squeeze(1)
        visited |= sweep.weights.sum(1) > 0
        if visit in (visits // 16, visits):
            distance[visit] = (histogram / visit - target).abs().sum(1).mean().item() / 2
    assert distance[visits] < 0.03
    assert distance[visits] < 0.5 * distance[visits // 16]  # 1/4 by the square root, with room
