"""Closed candidates: the same target for the exact loss, the batch, carried states and cached rows; and no NaN."""

from dataclasses import replace

import pytest
import torch
from core.oracles import COLUMNS, LABEL, ORACLES, closed_by
from core.test_estimators import batch_of
from core.test_objectives import PAIRS, contrast, features, losses_of
from torch.nn.functional import normalize

from emc2dist.config import parse
from emc2dist.core.batch import Batch, Side
from emc2dist.core.certify import FrozenRun, certify
from emc2dist.core.closing import Closing
from emc2dist.core.denominator import Denominator
from emc2dist.core.estimators import CachedRows, Recall, chain
from emc2dist.core.estimators.delayed_acceptance import Proposal, accept
from emc2dist.core.exact import exact_loss
from emc2dist.core.objectives import OBJECTIVES
from emc2dist.errors import SpecError

INF = torch.inf
CLOSING = Closing(0.8, columns=("label", "duplicates"))
OPTIONS = ["negatives.ceiling=0.8", "negatives.close=[label, duplicates]"]


def more_for(negatives):
    return ["negatives.kernel=isir", "negatives.cache_proposals=6"] if negatives == "chain" else []


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("closing", [Closing(0.9), Closing(columns=("label",)), CLOSING, Closing(0.01)])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_exact_loss_equals_explicit_loops_with_gradient(name, closing, views):
    z = features(views, 6, width=3, seed=8).requires_grad_()
    columns = [COLUMNS[column] for column in closing.columns]
    value = exact_loss(OBJECTIVES[name](), z, 0.3, closing=closing, columns=COLUMNS)
    oracle = ORACLES[name](z, 0.3, closed_by(closing.ceiling, *columns))
    reads = name not in ("sirl", "sycl") and (name not in ("hydra", "input_label") or closing.ceiling is not None)
    if reads:  # no candidates, or no candidates of the own class anyway
        plain = exact_loss(OBJECTIVES[name](), z, 0.3, columns=COLUMNS)
        assert value.item() != pytest.approx(plain.item(), abs=1e-3)
    assert value.item() == pytest.approx(oracle.item(), abs=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, z), torch.autograd.grad(oracle, z), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["dcl", "infonce"])
def test_gradcheck(name):
    free = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)

    def loss(x):
        return exact_loss(OBJECTIVES[name](), normalize(x, dim=-1), 0.5, closing=CLOSING, columns=COLUMNS)

    assert torch.autograd.gradcheck(loss, free)


@pytest.mark.parametrize(("objective", "negatives"), PAIRS)
def test_two_ranks_are_two_parts_of_one_batch(objective, negatives):
    index = torch.tensor([3, 17, 8, 0, 21, 5, 11, 14])
    closing = contrast(objective, negatives, *OPTIONS, *more_for(negatives))
    whole, gradient, _ = losses_of(closing, index, 1, COLUMNS)
    parts, parts_gradient, _ = losses_of(closing, index, 2, COLUMNS)
    torch.testing.assert_close(whole, parts, atol=1e-12, rtol=0)
    torch.testing.assert_close(gradient, parts_gradient, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("objective", "negatives"), PAIRS)
def test_over_the_whole_dataset_every_estimator_is_exact_at_first(objective, negatives):
    # Of one view slot alone the batch is not all there is, unless views are alike; nor have all slots one role.
    apart = {what.views for what in OBJECTIVES[objective]().denominators} != {"all"} or objective == "whitenedcse"
    z = features(1 if apart else 2, 24, seed=4)
    more = ["negatives.kernel=isir"] if negatives == "chain" else []
    run = FrozenRun(contrast(objective, negatives, *OPTIONS, *more), z, 24, 0.2, columns=COLUMNS)
    torch.testing.assert_close(run.step(0), run.exact(1), atol=1e-12, rtol=0)


def test_sogclr_averages_what_is_closed_as_nothing():
    """(N - 1) u is the sum over open candidates: its mean over batches of two, one of them closed, is unbiased."""
    what = Denominator(closing=Closing(columns=("label",)))
    z = features(1, 3).expand(2, -1, -1)
    columns = {"label": torch.tensor([0, 0, 1])}
    sogclr = contrast("sogclr", "moving_average", "negatives.rate=1").estimator

    def value(index):
        batch = replace(batch_of(z[:, index], index, samples=3), columns=columns)
        recall = FrozenRun(contrast("sogclr", "moving_average"), z[:1], 2, 0.2)._recall(index)["negatives"]
        return sogclr.estimate(what, batch, recall, None).estimate.value[0].exp()

    of_batches = (value(torch.tensor([0, 1])) + value(torch.tensor([0, 2]))) / 2
    whole = replace(batch_of(z), columns=columns)
    torch.testing.assert_close(of_batches, what.scores(whole, z, torch.arange(3))[0].exp().sum())


def test_a_ceiling_closes_views_and_the_views_at_hand_stand_for_their_sample():
    z = features(3, 5, seed=1)
    batch, index = batch_of(z), torch.tensor([1, 2, 3, 4, 0] * 3)
    for views in ("all", "same"):
        what = Denominator(views=views, closing=Closing(0.9))
        each, among = (
            what.score_each(batch, z[:1, index], index),
            what.scores(batch, z[:1], torch.arange(5)).gather(1, index.unsqueeze(1)).squeeze(1),
        )
        assert (each == -INF).any()
        assert (each > -INF).any()
        torch.testing.assert_close(each, among)
    what = Denominator(closing=Closing(0.9))
    one_by_one = torch.stack([what.scores(batch, z[v : v + 1], torch.arange(5)) for v in range(3)])
    torch.testing.assert_close(what.scores(batch, z, torch.arange(5)), one_by_one.exp().mean(0).log())


def test_a_ceiling_knows_no_temperature_and_a_negative_positive_counts_as_none():
    z = features(2, 8, seed=3)
    warm, cold = (
        Denominator(closing=Closing(0.9)).scores(batch_of(z, temperature=t), z, torch.arange(8)) == -INF
        for t in (1.0, 0.05)
    )
    assert (warm == cold).all()
    near = (z[0] * z[1]).sum(-1)
    assert (near < 0).any()
    highest = Closing(0.9).highest(batch_of(z), "x", "x")
    torch.testing.assert_close(highest, torch.where(near > 0, 0.9 * near, 0).repeat(2))


@pytest.mark.parametrize(("objective", "negatives"), PAIRS)
def test_an_anchor_all_of_whose_candidates_are_closed_is_pulled_alone_and_counted(objective, negatives):
    """All of one label, and then none; the second visit is a first one."""
    z, others = features(2, 8, seed=6), 7
    if objective == "nnclr":  # a neighbour's sample is no candidate, and which it is depends on the cached view
        z, others = z[:1].expand(2, -1, -1), 6
    run = FrozenRun(contrast(objective, negatives, "negatives.close=[label]", *more_for(negatives)), z, 8, 0.2)
    known = {*COLUMNS} - {"duplicates"}
    run.columns = dict.fromkeys(known, torch.zeros(8, dtype=torch.int64))
    for t in range(2):
        outcome = run.outcome(t)
        (gradient,) = torch.autograd.grad(outcome.loss, run.shift)
        pull = -(z[0] * z[1]).sum(-1).mean() / 0.2
        if objective == "dcl":
            assert outcome.loss.item() == pytest.approx(pull.item())
        if objective == "infonce":
            assert gradient.abs().max() < 1e-12  # the positive is all there is
        assert gradient.isfinite().all()
        assert all(torch.as_tensor(fact).isfinite().all() for fact in outcome.facts.values())
        assert outcome.facts["closed_anchors_ratio"] == 1
        anchors = 8 if objective == "whitenedcse" else 16
        assert tuple(map(int, outcome.facts["closed_ratio"])) == (anchors * others, anchors * others)
    run.columns = dict.fromkeys(known, torch.full((8,), -1))
    if objective == "input_label":  # then there is no label to be a candidate
        return
    fresh = FrozenRun(run.contrast, z, 8, 0.2, columns=run.columns)
    fresh._generator.set_state(run._generator.get_state())
    outcome = run.outcome(2)
    assert outcome.facts["closed_anchors_ratio"] == 0
    torch.testing.assert_close(run.gradient(outcome), fresh.step(2), atol=1e-6, rtol=0)


def test_the_facts_count_what_is_closed_and_weigh_what_has_the_anchors_label():
    z = features(2, 8, seed=6)
    columns = {"label": LABEL[:8]}
    same = (LABEL[:8].unsqueeze(1) == LABEL[:8]) & (LABEL[:8] >= 0) & ~torch.eye(8, dtype=torch.bool)
    plain = FrozenRun(contrast("dcl", "in_batch"), z, 8, 0.2, columns=columns)
    outcome = plain.contrast(plain.batch(torch.arange(8), 0), {}, None)
    scores = Denominator().scores(batch_of(z), z, torch.arange(8))
    total, weight = outcome.facts["same_label_weight_ratio"]
    assert float(total) == pytest.approx((scores.softmax(1) * same.repeat(2, 1)).sum().item())
    assert float(weight) == pytest.approx(16)
    assert "closed_ratio" not in outcome.facts

    half = FrozenRun(contrast("dcl", "in_batch", "negatives.ceiling=0.7"), z, 8, 0.2, columns=columns)
    outcome = half.contrast(half.batch(torch.arange(8), 0), {}, None)
    scores = Denominator(closing=Closing(0.7)).scores(batch_of(z), z, torch.arange(8))
    closed = (scores == -INF) & ~torch.eye(8, dtype=torch.bool).repeat(2, 1)
    assert tuple(map(int, outcome.facts["closed_ratio"])) == (int(closed.sum()), 16 * 7)
    found = tuple(map(int, outcome.facts["same_label_closed_ratio"]))
    assert found == (int((closed & same.repeat(2, 1)).sum()), 2 * int(same.sum()))


def test_a_row_that_is_closed_after_all_is_not_moved_to():
    zeros, never = torch.zeros(2, dtype=torch.float64), torch.full((2,), -INF, dtype=torch.float64)
    proposal = Proposal(zeros.long(), torch.ones(2, dtype=torch.bool), zeros)
    fresh = torch.tensor([0.0, -INF], dtype=torch.float64)
    assert accept(proposal, fresh, never, zeros.long()).tolist() == [True, False]


def test_a_ceiling_holds_from_its_epoch_on():
    z = features(2, 8, seed=3)
    contrasts = [
        contrast("emc2", "chain", "negatives.ceiling=0.7", *more) for more in ([], ["negatives.ceiling_after=3"])
    ]
    assert [one.closing for one in contrasts] == [Closing(0.7, 1.0), Closing(0.7, 3.0)]
    for closing in (Closing(0.7, 1.0), Closing(0.7, 1.0, ("label",))):
        what = Denominator(closing=closing)
        young, old = (
            what.scores(replace(batch_of(z), epoch=epoch, columns=COLUMNS), z, torch.arange(8)) == -INF
            for epoch in (0.99, 1.0)
        )
        columns_alone = Denominator(closing=Closing(columns=closing.columns))
        whole = replace(batch_of(z), columns=COLUMNS)
        assert (young == (columns_alone.scores(whole, z, torch.arange(8)) == -INF)).all()
        assert old.sum() > young.sum()


def clusters():
    """[1, 24, 5] in four clusters, and their labels: every anchor's hardest negatives are false."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    noise = torch.randn(24, 5, generator=generator, dtype=torch.float64)
    label = torch.arange(24) % 4
    return normalize(centres[label] + 0.2 * noise, dim=-1).unsqueeze(0), {"label": label}


def certified(kernel, *options):
    """A chain that was led into false negatives before any were closed."""
    z, columns = clusters()
    run = FrozenRun(contrast("emc2", "chain", f"negatives.kernel={kernel}"), z, 6, 0.1, columns=columns)
    for t in range(60):
        run.outcome(t)
    assert (columns["label"][run.tables["negatives"]["state"]] == columns["label"].unsqueeze(1)).double().mean() > 0.5
    run.contrast = contrast("emc2", "chain", f"negatives.kernel={kernel}", *options)
    return certify(run, 480)


Pool = chain._Pool


class Forgetful(Pool):
    """Only proposals are closed: what is carried scores as if nothing were."""

    def __init__(self, what, *others):
        super().__init__(what, *others)
        self._unclosed = Pool(replace(what, closing=Closing()), *others)

    def find(self, samples):
        return self._unclosed.find(samples)

    def score_cached(self, rows):
        return self._unclosed.score_cached(rows)

    def fresh(self, *arguments):
        return self._unclosed.fresh(*arguments)


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        ("isir", ["negatives.close=[label]", "negatives.cache_proposals=6"]),
        ("mh", ["negatives.close=[label]"]),
        ("isir", ["negatives.ceiling=0.6"]),
    ],
)
def test_a_chain_comes_to_the_exact_gradient_of_the_closed_target_and_does_not_where_it_forgets(
    kernel, options, monkeypatch
):
    found = certified(kernel, *options)
    assert found.ratio < 1.5
    monkeypatch.setattr(chain, "_Pool", Forgetful)
    forgets = certified(kernel, *options)
    assert forgets.ratio > 4


@pytest.mark.parametrize("kernel", ["isir", "mh"])
def test_a_closed_state_that_was_moved_from_is_not_encoded_again(kernel):
    """All anchors carry sample 5, which is closed to those of sample 0, and are offered sample 6."""
    z, samples, views = features(2, 8), torch.arange(3), torch.arange(6)
    columns = {"label": torch.tensor([7, 1, 2, 3, 4, 7, 6, 0])}
    batch = Batch(samples, 0, {"x": Side(z[:, :3], z[:, :3])}, 0.2, 8, 9, views, columns=columns)
    state, offered = torch.full((6,), 5), torch.tensor([6])
    remembered = {"state": state, "view": views, "visited": state > 0, "visited_at": views}
    rows = [CachedRows(index, z[0, index], index > 0, index, index * 0) for index in (state, offered)]
    encoded = []

    def encode(_, samples, numbers):
        encoded.extend(zip(samples.tolist(), numbers[0].tolist(), strict=True))
        return z[0, samples].unsqueeze(0)

    what = Denominator(closing=Closing(columns=("label",)))
    estimator = chain.Chain(kernel=kernel, cache_proposals=1)
    estimate = estimator.estimate(what, batch, Recall(remembered, *rows), encode).estimate
    assert estimate.index[[0, 3], -1].tolist() == [6, 6]
    expected = what.score_each(batch, z[:1, [6] * 6], torch.full((6,), 6))
    torch.testing.assert_close(estimate.scores[[0, 3], -1], expected[[0, 3]])
    carried = {number for sample, number in encoded if sample == 5}
    assert carried.isdisjoint({0, 3})
    if kernel == "isir":
        assert carried == {1, 2, 4, 5}


def test_what_is_refused():
    spec = "name: a\nepochs: 1\nbatch_size: 4\nlr: 1\n"
    for option, message in [
        ("negatives.ceiling=1.5", r"negatives.ceiling: got 1.5; .* at most 1, and 0.95 is usual"),
        ("negatives.ceiling_after=2", r"negatives.ceiling_after: 2.0 needs negatives.ceiling"),
        ("negatives.ceiling=0", r"negatives.ceiling: got 0.0; .* more than 0"),
        ("negatives.close=[label, label]", r"negatives.close: got label, label; name each once"),
        ("negatives.close=[colour]", r"negatives.close.0: got 'colour'; input should be 'label' or 'duplicates'"),
    ]:
        with pytest.raises(SpecError, match=message):
            parse(spec, ["objective=simclr", option])
