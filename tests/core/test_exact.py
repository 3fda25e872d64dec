"""The exact loss against explicit loops and closed forms."""

import math
import subprocess
import sys

import pytest
import torch
from torch.nn.functional import normalize

from emc2dist.core import exact


def features(views, samples, width=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(views, samples, width, generator=generator, dtype=torch.float64), dim=-1)


def by_loops(z, temperature):
    views, samples, _ = z.shape
    total = 0.0
    for i in range(samples):
        for v in range(views):
            positive = sum(z[v, i] @ z[w, i] for w in range(views) if w != v) / (views - 1)
            negatives = [z[v, i] @ z[w, j] / temperature for j in range(samples) if j != i for w in range(views)]
            total = total - positive / temperature + torch.stack(negatives).logsumexp(0)
    return total / (views * samples)


@pytest.mark.parametrize(("views", "samples"), [(2, 7), (3, 4)])
def test_equals_explicit_loops_with_gradient(views, samples):
    z = features(views, samples).requires_grad_()
    value, oracle = exact.global_contrastive_loss(z, 0.2), by_loops(z, 0.2)
    assert value.item() == pytest.approx(oracle.item(), abs=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, z), torch.autograd.grad(oracle, z), atol=1e-12, rtol=0)


def test_blocks_change_nothing(monkeypatch):
    z = features(2, 23).requires_grad_()
    whole = exact.global_contrastive_loss(z, 0.1)
    monkeypatch.setattr(exact, "_BLOCK_ELEMENTS", 100)
    blocks = exact.global_contrastive_loss(z, 0.1)
    torch.testing.assert_close(blocks, whole, atol=1e-13, rtol=0)
    torch.testing.assert_close(torch.autograd.grad(blocks, z), torch.autograd.grad(whole, z), atol=1e-13, rtol=0)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_a_constant_embedding_scores_the_count_of_negatives(temperature):
    z = torch.ones(2, 50, 4, dtype=torch.float64) / 2
    assert exact.global_contrastive_loss(z, temperature).item() == pytest.approx(math.log(2 * 50 - 2))


def test_refuses():
    with pytest.raises(ValueError, match="V >= 2"):
        exact.global_contrastive_loss(torch.ones(1, 5, 2), 0.1)
    with pytest.raises(ValueError, match="temperature"):
        exact.global_contrastive_loss(torch.ones(2, 5, 2), 0.0)


@pytest.mark.slow
def test_twenty_thousand_samples_fit_in_4_gib():
    code = (
        "import resource, torch\n"
        "from emc2dist.core import exact\n"
        "z = torch.nn.functional.normalize(torch.randn(2, 20_000, 128), dim=-1).requires_grad_()\n"
        "exact.global_contrastive_loss(z, 0.1).backward()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600)
    assert int(result.stdout) < 4 * 1024**2  # KiB
