"""The exact loss: blocks, closed forms, bounds. (`test_objectives` holds it against explicit loops.)"""

import math
import subprocess
import sys
from itertools import combinations

import pytest
import torch
from core.oracles import COLUMNS, ORACLES
from core.test_objectives import contrast, features

from emc2dist.core import exact
from emc2dist.core.certify import FrozenRun
from emc2dist.core.exact import exact_loss
from emc2dist.core.objectives import OBJECTIVES, Dcl


@pytest.mark.parametrize("name", OBJECTIVES)
def test_blocks_change_nothing(name, monkeypatch):
    z = features(2, 23).requires_grad_()
    whole = exact_loss(OBJECTIVES[name](), z, 0.1, columns=COLUMNS)
    monkeypatch.setattr(exact, "_BLOCK_ELEMENTS", 500)
    blocks = exact_loss(OBJECTIVES[name](), z, 0.1, columns=COLUMNS)
    torch.testing.assert_close(blocks, whole, atol=1e-13, rtol=1e-14)
    torch.testing.assert_close(torch.autograd.grad(blocks, z), torch.autograd.grad(whole, z), atol=1e-13, rtol=1e-14)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_a_constant_embedding_scores_the_count_of_negatives(temperature):
    z = torch.ones(2, 50, 4, dtype=torch.float64) / 2
    assert exact_loss(Dcl(), z, temperature).item() == pytest.approx(math.log(2 * 50 - 2))


def test_refuses():
    with pytest.raises(ValueError, match="V >= 2"):
        exact_loss(Dcl(), torch.ones(1, 5, 2), 0.1)
    with pytest.raises(ValueError, match="temperature"):
        exact_loss(Dcl(), torch.ones(2, 5, 2), 0.0)


@pytest.mark.slow
def test_twenty_thousand_samples_fit_in_4_gib():
    code = (
        "import resource, torch\n"
        "from emc2dist.core.exact import exact_loss\n"
        "from emc2dist.core.objectives import Dcl\n"
        "z = torch.nn.functional.normalize(torch.randn(2, 20_000, 128), dim=-1).requires_grad_()\n"
        "exact_loss(Dcl(), z, 0.1).backward()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600)
    assert int(result.stdout) < 4 * 1024**2  # KiB


@pytest.mark.parametrize("name", ["dcl", "infonce"])
def test_views_that_stand_together_are_all_ways_to_choose_them(name):
    z = features(5, 6, 4, seed=3).requires_grad_()
    pairs = [z[list(views)] for views in combinations(range(5), 2)]
    oracle = sum(exact_loss(OBJECTIVES[name](), z, 0.3, anchors) for anchors in pairs) / len(pairs)
    value = exact_loss(OBJECTIVES[name](), z, 0.3, together=2)
    assert value.item() == pytest.approx(oracle.item(), abs=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, z), torch.autograd.grad(oracle, z), atol=1e-12, rtol=0)


def shifted(run):
    return torch.nn.functional.normalize(run.features + run.shift, dim=-1)


def test_a_weight_by_the_positive_is_of_the_views_that_stand_together():
    """DCLW differs from DCL by its positives alone: by explicit loops over all pairs of views, its certificate too."""
    z = features(4, 6, 4, seed=3).requires_grad_()
    pairs = [z[list(views)] for views in combinations(range(4), 2)]
    oracle = sum(ORACLES["dclw"](pair, 0.3) - ORACLES["dcl"](pair, 0.3) for pair in pairs) / len(pairs)
    whole, linear = (exact_loss(OBJECTIVES[name](), z, 0.3, together=2) for name in ("dclw", "dcl"))
    assert (whole - linear).item() == pytest.approx(oracle.item(), abs=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(whole - linear, z), torch.autograd.grad(oracle, z), atol=1e-12, rtol=0
    )
    run = FrozenRun(contrast("dclw", "in_batch"), z.detach(), 4, 0.3)
    expected, all_four = (
        torch.autograd.grad(exact_loss(OBJECTIVES["dclw"](), shifted(run), 0.3, together=views), run.shift)[0]
        for views in (2, 4)
    )
    torch.testing.assert_close(run.exact(), expected, atol=1e-12, rtol=0)
    assert (all_four - expected).norm() > 1e-3 * expected.norm()
    assert not OBJECTIVES["dcl"]().bends
