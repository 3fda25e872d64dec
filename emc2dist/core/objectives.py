"""What is contrasted with an anchor, and with which weights: one rule for each way to estimate a denominator.

Every objective here has the gradient of

    l = 1/A sum_a [ -(1 - p_a) s(a, a+) + sum_c w_ac s(a, c) ],   p and w detached

over the same candidates: the units of the gathered batch and the carried state of the anchor's chain. They differ in
the weights alone:

    emc2     w from a visit of the anchor's chain (`emc2dist.core.chain`), p = 0; estimates grad L (algorithm.md 3)
    dcl      w = softmax over the batch, p = 0; biased in a small batch (Yeh et al. 2021)
    simclr   w and p = softmax over batch and positive (Chen et al. 2020)
    sogclr   w = exp s / (moving average of the partition function), p = 0 (Yuan et al. 2022)
"""

import torch
from torch import Tensor

from emc2dist.core.candidates import Candidates


def estimator_loss(candidates: Candidates, weights: Tensor, positive_weight: Tensor | float = 0.0) -> Tensor:
    """The loss whose gradient is the estimate; its value is not that of L.

    `weights` [A, B + 1] over `candidates.negatives`, `positive_weight` [A]: constants of the differentiation.
    """
    weights = weights.detach()
    # Where the weight is 0 the score may be -inf; 0 * -inf is NaN, in the gradient too.
    scores = torch.where(weights > 0, candidates.negatives, 0)
    return ((weights * scores).sum(1) - (1 - positive_weight) * candidates.positive).mean()


def in_batch_weights(candidates: Candidates, *, with_positive: bool) -> tuple[Tensor, Tensor]:
    """Weights [A, B + 1] and positive weight [A] of in-batch softmax: InfoNCE, or DCL without the positive."""
    scores = torch.cat([candidates.batch, candidates.positive.unsqueeze(1)], 1).detach()
    if not with_positive:
        scores[:, -1] = -torch.inf
    weights = scores.softmax(1)
    return torch.nn.functional.pad(weights[:, :-1], (0, 1)), weights[:, -1]


def moving_average_weights(
    candidates: Candidates, log_partition: Tensor, visited: Tensor, rate: float
) -> tuple[Tensor, Tensor]:
    """SogCLR's weights [A, B + 1] and the updated log moving average [A] of the mean exponentiated score.

    u <- (1 - rate) u + rate * mean_c exp s(a, c), in log space; the first visit takes the batch mean as it stands.
    """
    scores = candidates.batch.detach()
    count = (scores > -torch.inf).sum(1).to(scores.dtype)
    batch_mean = scores.logsumexp(1) - count.log()
    kept, fresh = torch.tensor([1 - rate, rate], dtype=scores.dtype, device=scores.device).log()
    blended = torch.logaddexp(kept + log_partition.to(scores.dtype), fresh + batch_mean)
    updated = torch.where(visited, blended, batch_mean)
    weights = (scores - (count.log() + updated).unsqueeze(1)).exp()
    return torch.nn.functional.pad(weights, (0, 1)), updated


def loss_estimate(candidates: Candidates, samples: int) -> Tensor:
    """The logged loss: L with each denominator estimated from the batch, scaled up to N - 1 samples.

    mean_a [ -s(a, a+) + log((N - 1) / |batch|) + logsumexp_batch ]: biased low by Jensen's inequality, the less the
    larger the batch; the same for every objective, so that runs can be compared.
    """
    scores = candidates.batch.detach()
    count = (scores > -torch.inf).sum(1)
    scale = torch.log((samples - 1) / count.clamp(min=1).to(scores.dtype))
    return (scale + scores.logsumexp(1) - candidates.positive.detach()).mean()
