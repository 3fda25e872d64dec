"""The exact global contrastive loss, by brute force: the oracle of everything that estimates it.

    L = 1/(N V) sum_{i,v}  -s(iv, iv+) + log sum_{c in Neg(i)} exp s(iv, c)

Neg(i) is all views of all other samples; the positive is not in the denominator (algorithm.md section 1). With more
than two views, s(iv, iv+) is the mean over the other views of i. O((N V)^2 D) work; memory is linear in N, because
blocks of anchors are recomputed in the backward pass.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from emc2dist.core.scores import positive_scores

_BLOCK_ELEMENTS = 1 << 24  # scores held at once: 64 MiB in float32, a few times that while differentiating


def global_contrastive_loss(features: Tensor, temperature: float) -> Tensor:
    """The exact loss L; differentiable.

    Args:
        features: [V, N, D] unit-norm features, V >= 2 views of N >= 2 samples; the loss has their type.
        temperature: > 0; scores are inner products divided by it.

    Raises:
        ValueError: if the shape has fewer than two views or samples, or the temperature is not positive.
    """
    if features.ndim != 3 or min(features.shape[:2]) < 2:
        raise ValueError(f"features must be [V >= 2, N >= 2, D], got {tuple(features.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    views, samples, _ = features.shape
    block = max(1, _BLOCK_ELEMENTS // (views * samples))
    log_partition = sum(
        checkpoint(
            _log_partitions, features, view, first, min(first + block, samples), temperature, use_reentrant=False
        )
        for view in range(views)
        for first in range(0, samples, block)
    )
    return log_partition / (views * samples) - positive_scores(features, temperature).mean()


def _log_partitions(features: Tensor, view: int, first: int, last: int, temperature: float) -> Tensor:
    """Sum over anchors (view, first..last-1) of log sum_{c in Neg} exp s."""
    scores = torch.einsum("ad,vnd->avn", features[view, first:last], features) / temperature
    own = torch.arange(first, last, device=features.device)
    is_own = own.unsqueeze(1) == torch.arange(features.shape[1], device=features.device)
    return scores.masked_fill(is_own.unsqueeze(1), -torch.inf).flatten(1).logsumexp(1).sum()
