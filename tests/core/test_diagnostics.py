"""Diagnostics against closed forms."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from emc2dist.core.batch import Batch, Side
from emc2dist.core.closing import Closing
from emc2dist.core.denominator import Denominator
from emc2dist.core.diagnostics import (
    alignment,
    cached_log_z,
    effective_rank,
    fact_value,
    isotropy,
    log_z_errors,
    tolerance,
    uniformity,
)
from emc2dist.core.estimators import CachedRows


def test_alignment_is_the_mean_squared_distance_of_views():
    z = normalize(torch.randn(3, 20, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    distances = [(z[v] - z[w]).square().sum(-1).mean() for v in range(3) for w in range(3) if v != w]
    assert alignment(z).item() == pytest.approx(torch.stack(distances).mean().item(), rel=1e-5)
    assert alignment(z[:1].expand(2, -1, -1)).item() == pytest.approx(0, abs=1e-6)


def test_collapse_shows():
    constant = torch.ones(16, 4) / 2
    assert uniformity(constant).item() == pytest.approx(0, abs=1e-5)
    assert effective_rank(constant).item() == pytest.approx(1)
    spread = torch.cat([torch.eye(4), -torch.eye(4)])
    assert effective_rank(spread).item() == pytest.approx(4, rel=1e-5)
    # Of 7 others one is opposite (distance 4 squared), six are orthogonal (2).
    assert uniformity(spread).item() == pytest.approx(math.log((math.exp(-8) + 6 * math.exp(-4)) / 7), rel=1e-5)


def test_isotropy_and_tolerance_are_means_over_pairs():
    z = normalize(torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=-1)
    labels = torch.tensor([2, 0, 2, -1, 2, 0, -1])
    pairs = [(i, j) for i in range(7) for j in range(7) if i != j]
    cosines = {(i, j): float(z[i] @ z[j]) for i, j in pairs}
    assert isotropy(z).item() == pytest.approx(1 - sum(cosines.values()) / 42)
    same = [cosines[i, j] for i, j in pairs if labels[i] == labels[j] >= 0]
    total, count = tolerance(z, labels)
    assert (total.item(), count.item()) == (pytest.approx(sum(same)), 8)
    assert tolerance(z, torch.arange(7))[1] == 0


@pytest.mark.parametrize("closed", [False, True])
def test_log_z_by_cached_features_is_that_of_explicit_loops(closed):
    """Over what is cached, scaled up to all; a closed candidate counts as one of weight 0."""
    z = normalize(torch.randn(3, 9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=-1)
    index, every, labels = torch.tensor([4, 1, 7]), torch.arange(9), torch.tensor([0, 1, 0, 1, 2, 2, 2, 0, 1])
    present = every != 6
    rows = CachedRows(every, z[2], present, every * 0, every * 0)
    side = Side(z[:2, index], z[:2, index])
    batch = Batch(index, 0, {"x": side}, 0.3, 9, columns={"label": labels})
    what = Denominator(closing=Closing(columns=("label",) if closed else ()))
    found = cached_log_z(what, batch, rows).view(2, 3)
    for v in range(2):
        for i, sample in enumerate(index.tolist()):
            others = [c for c in range(9) if c not in (sample, 6)]
            total = sum(
                2 * math.exp(float(z[v, sample] @ z[2, c]) / 0.3)
                for c in others
                if not closed or labels[c] != labels[sample]
            )
            assert found[v, i].item() == pytest.approx(math.log(total * 8 / len(others)))
    nothing = CachedRows(every, z[2], torch.zeros(9, dtype=torch.bool), every * 0, every * 0)
    assert not cached_log_z(what, batch, nothing).isfinite().any()


def test_errors_of_log_z_are_a_mean_and_a_root_mean_square_of_what_is_known():
    found = torch.tensor([1.0, 4.0, -math.inf, 2.0])
    facts = log_z_errors(found, torch.tensor([2.0, 1.0, 1.0, -math.inf]))
    values = {name: fact_value(name, float(total), float(weight)) for name, (total, weight) in facts.items()}
    assert values == pytest.approx({"log_z_error": 1.0, "log_z_rms_error": math.sqrt(5)})
