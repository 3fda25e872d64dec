"""Objectives that read labels: limits, positives of other workers, the exact loss of one that looks around."""

import itertools
import math

import pytest
import torch
from core.oracles import COLUMNS, LABEL, supcon, supremix
from core.test_objectives import contrast, features
from torch.nn.functional import normalize

from emc2dist.core.batch import Batch, Side
from emc2dist.core.certify import FrozenRun, certify
from emc2dist.core.closing import Closing
from emc2dist.core.estimators import CachedRows
from emc2dist.core.exact import exact_loss
from emc2dist.core.objectives import Dcl, InfoNce, SupCon, SupReMix
from emc2dist.core.scores import other_view_scores, shared_scores
from emc2dist.core.streams import fork
from emc2dist.data.sampler import EpochOrder

NOBODY = {"label": torch.full((24,), -1)}


def of_label(z, i):
    """[V * n, D], all views of the samples of i's label."""
    return z[:, [j for j in range(z.shape[1]) if j == i or LABEL[i] == LABEL[j] >= 0]].flatten(0, 1)


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("closing", [Closing(), Closing(columns=("label",))])
def test_decoupled_supcon_equals_explicit_loops(closing, views):
    z = features(views, 6).requires_grad_()
    closed = (lambda z, v, i, w, j: LABEL[i] == LABEL[j] >= 0) if closing else (lambda *_: False)
    value = exact_loss(SupCon(decoupled=True), z, 0.3, closing=closing, columns=COLUMNS)
    oracle = supcon(z, 0.3, closed, decoupled=True)
    torch.testing.assert_close(value, oracle, atol=1e-12, rtol=0)
    torch.testing.assert_close(torch.autograd.grad(value, z), torch.autograd.grad(oracle, z), atol=1e-12, rtol=0)


def test_a_memory_brings_positives_of_other_samples_as_constants():
    z, cached = features(2, 6).requires_grad_(), features(1, 6, seed=9)[0].requires_grad_()
    index = torch.tensor([3, 0, 1, 9, 8, 2])
    present = torch.tensor([True, True, True, True, False, True])
    rows = CachedRows(index, cached, present, index * 0, index * 0)
    value = exact_loss(SupCon(memory=6), z, 0.3, columns=COLUMNS, support=rows)
    there = [(int(j), f.detach()) for j, f, held in zip(index, cached, present, strict=True) if held]
    oracle = supcon(z, 0.3, cached=there)
    torch.testing.assert_close(value, oracle, atol=1e-12, rtol=0)
    torch.testing.assert_close(torch.autograd.grad(value, z), torch.autograd.grad(oracle, z), atol=1e-12, rtol=0)
    assert value.item() != pytest.approx(supcon(z, 0.3).item(), abs=1e-3)
    assert contrast("supcon", "in_batch", "objective.memory=9").objective.support == 9


@pytest.mark.parametrize(("decoupled", "other"), [(True, Dcl()), (False, InfoNce())])
def test_without_labels_it_is_the_objective_of_two_views(decoupled, other):
    z = features(2, 7)
    alone = exact_loss(SupCon(decoupled), z, 0.3, columns=NOBODY)
    torch.testing.assert_close(alone, exact_loss(other, z, 0.3), atol=1e-12, rtol=0)


def test_limits():
    """Features all alike: the number of candidates. No temperature to speak of: the same. One negative: by hand."""
    alike = torch.ones(3, 8, 4, dtype=torch.float64) / 2
    others = 8 * 3 - 1
    assert exact_loss(SupCon(), alike, 0.1, columns=COLUMNS).item() == pytest.approx(math.log(others))
    assert exact_loss(SupCon(), features(3, 8), 1e6, columns=COLUMNS).item() == pytest.approx(
        math.log(others), abs=1e-5
    )
    two = features(2, 2)
    (ax, bx), (ay, by) = two
    s = {(v, i): two[v, i] @ two[1 - v, i] / 0.5 for v in range(2) for i in range(2)}
    far = {
        (0, 0): (ax @ bx, ax @ by),
        (1, 0): (ay @ bx, ay @ by),
        (0, 1): (bx @ ax, bx @ ay),
        (1, 1): (by @ ax, by @ ay),
    }
    by_hand = [torch.stack([s[k], far[k][0] / 0.5, far[k][1] / 0.5]).logsumexp(0) - s[k] for k in s]
    value = exact_loss(SupCon(), two, 0.5, columns={"label": torch.tensor([0, 1])})
    torch.testing.assert_close(value, sum(by_hand) / 4)


def test_positives_are_of_all_workers_and_get_their_gradient_there():
    """This worker has samples 0 and 2 of the label 0, another one sample 6, which is of label 2, and 7 of label 2."""
    z = features(2, 24).requires_grad_()
    index, own = torch.tensor([0, 6, 2, 7]), torch.tensor([0, 6])
    batch = Batch(index, 0, {"x": Side(z[:, own], z[:, index])}, 0.2, 24, columns=COLUMNS)
    scores = shared_scores(batch, "x", "label").unflatten(0, (2, 2))
    for v in range(2):
        for slot, (i, mate) in enumerate(((0, 2), (6, 7))):
            positives = torch.stack([z[1 - v, i], z[0, mate], z[1, mate]])
            torch.testing.assert_close(scores[v, slot], (positives @ z[v, i]).mean() / 0.2)
    (gradient,) = torch.autograd.grad(scores.sum(), z)
    assert gradient.norm(dim=2).sum(0).nonzero().flatten().tolist() == [0, 2, 6, 7]


def test_positives_keep_their_share_as_keys_and_anchors_all_of_theirs():
    z, index = features(3, 4).requires_grad_(), torch.arange(4)
    share = torch.linspace(0, 1, 12, dtype=torch.float64)
    whole, pulled = (Batch(index, 0, {"x": Side(z, z)}, 0.2, 4, columns=COLUMNS, pull=pull) for pull in (None, share))
    for scores in (
        lambda batch: shared_scores(batch, "x", "label"),
        lambda batch: other_view_scores(batch, "x").sum(0),
    ):
        torch.testing.assert_close(scores(pulled), scores(whole))
        jacobian = torch.stack([torch.autograd.grad(one, z, retain_graph=True)[0] for one in scores(whole)])
        found = torch.stack([torch.autograd.grad(one, z, retain_graph=True)[0] for one in scores(pulled)])
        anchors = torch.eye(12, dtype=torch.bool).reshape(12, 3, 4)
        expected = torch.where(anchors.unsqueeze(-1), jacobian, share.reshape(12, 1, 1, 1) * jacobian)
        torch.testing.assert_close(found, expected)


def test_the_exact_gradient_of_what_looks_around_is_the_mean_over_batches(monkeypatch):
    """A batch of all samples: the exact loss. Of three of six: each mate by its chance of being there, by the book."""
    label = torch.tensor([0, 0, 0, 1, 1, -1])
    z = features(1, 6, seed=5)
    everyone = FrozenRun(contrast("supcon", "in_batch"), z, 6, 0.2, columns={"label": label})
    shifted = normalize(everyone.features + everyone.shift, dim=-1).expand(2, -1, -1)
    (expected,) = torch.autograd.grad(exact_loss(SupCon(), shifted, 0.2, columns={"label": label}), everyone.shift)
    torch.testing.assert_close(everyone.exact(24), expected, atol=1e-12, rtol=0)
    batches = itertools.cycle(torch.tensor(list(itertools.combinations(range(6), 3))))  # 20, as many as are kept of 24
    monkeypatch.setattr(FrozenRun, "_visited", lambda *_: next(batches))
    run = FrozenRun(contrast("supcon", "in_batch", "objective.decoupled=true"), z, 3, 0.2, columns={"label": label})
    shifted = normalize(run.features + run.shift, dim=-1)
    loss = exact_loss(Dcl(), shifted.expand(2, -1, -1), 0.2)  # for its log Z; own views, being alike, have no gradient
    for i in range(6):
        mates = [j for j in range(6) if j != i and label[i] == label[j] >= 0]
        for count in range(1, len(mates) + 1):
            chance = math.comb(len(mates), count) * math.comb(5 - len(mates), 2 - count) / math.comb(5, 2)
            near = torch.stack([shifted[0, i] @ shifted[0, j] for j in mates]).mean() / 0.2
            loss = loss - chance * 2 * count / (2 * count + 1) * near / 6
    (expected,) = torch.autograd.grad(loss, run.shift)
    torch.testing.assert_close(run.exact(24), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("views", "window"), [(2, 5), (2, 2), (3, 3)])
def test_supremix_mixes_positives_between_neighbours(views, window):
    label = torch.tensor([0, 1, 2, 3, 7, 9, -1, 2])
    z = features(views, 8).requires_grad_()
    value = exact_loss(SupReMix(window, (5, 5)), z, 0.3, columns={"target": label})
    oracle = supremix(z, 0.3, window=window, beta=(5, 5), label=label)
    torch.testing.assert_close(value, oracle, atol=1e-12, rtol=0)
    torch.testing.assert_close(torch.autograd.grad(value, z), torch.autograd.grad(oracle, z), atol=1e-12, rtol=0)
    other = exact_loss(SupReMix(window + 3, (5, 5)), z, 0.3, columns={"target": label})
    assert abs(value - other) > 1e-3


def test_features_all_alike_count_weights():
    """Labels 0, 1, 2 in two views: own view, candidates by |t - t'| + 1, mixed negatives alike, mixed positives."""
    alike = torch.ones(2, 3, 4, dtype=torch.float64) / 2
    middle = 1 + 4 * 2 + 4 * 1.8 + 4
    end = 1 + 2 * 2 + 2 * 3 + 2 * 1.8 + 2 * 2.6
    value = exact_loss(SupReMix(), alike, 0.1, columns={"target": torch.arange(3)})
    assert value.item() == pytest.approx((math.log(middle) + 2 * math.log(end)) / 3)


def test_shares_are_drawn_of_their_beta_distribution_by_the_anchors_streams():
    z, index = features(2, 12), torch.arange(12)
    streams = fork(0, 3, torch.arange(24))
    batch = Batch(index, 0, {"x": Side(z, z)}, 0.2, 12, streams=streams, columns=COLUMNS)
    scores = torch.zeros(24, 400, dtype=torch.float64)
    drawn = SupReMix(beta=(2, 8))._shares(batch, scores)
    assert drawn.mean().item() == pytest.approx(0.2, abs=0.005)
    assert drawn.var().item() == pytest.approx(0.2 * 0.8 / 11, rel=0.05)
    assert len(drawn.unique()) == drawn.numel()
    assert SupReMix(beta=(8, 2))._shares(batch, scores).mean().item() == pytest.approx(0.8, abs=0.005)


def test_batches_by_class_are_fair_where_the_own_class_is_closed_and_only_there():
    """Six classes of four, near one another; batches of two of each of three. The spec refuses the second."""
    label = torch.arange(24) // 4
    generator = torch.Generator().manual_seed(1)
    centres, noise = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (6, 24))
    z = normalize(normalize(centres, dim=-1)[label] + 0.5 * noise, dim=-1).unsqueeze(0)
    order = EpochOrder(24, 6, 0, labels=label.numpy(), per_class=2)

    def found(*closing):
        made = contrast("supcon", "chain", "negatives.kernel=isir", "objective.decoupled=true", *closing)
        batches = {"columns": {"label": label}, "batches": lambda t: torch.from_numpy(order.batch(t))}
        return certify(FrozenRun(made, z, 6, 0.2, **batches), 900)

    assert found("negatives.close=[label]").ratio < 1.7
    assert found().ratio > 2.3
