"""Diagnostics against closed forms."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from emc2dist.core.diagnostics import alignment, effective_rank, uniformity


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
