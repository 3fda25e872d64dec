"""The exact loss of an objective: its denominators over the whole dataset, by brute force. The oracle of estimators.

O((N V)^2 D) work. Memory is linear in N: blocks of anchors are taken one after the other, as if each were a worker's
part of one batch, and recomputed in the backward pass.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from emc2dist.core.batch import Batch, Side
from emc2dist.core.closing import OPEN, Closing
from emc2dist.core.estimators import in_batch
from emc2dist.core.objectives import Objective

_BLOCK_ELEMENTS = 1 << 24  # scores held at once: 64 MiB in float32, a few times that while differentiating


def exact_loss(
    objective: Objective,
    features: Tensor,
    temperature: float,
    anchors: Tensor | None = None,
    closing: Closing = OPEN,
    columns: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """The loss over the whole dataset; differentiable.

    Args:
        objective: whose formula.
        features: [V, N, D] unit-norm features, V >= 2 views of N >= 2 samples; the loss has their type.
        temperature: > 0; scores are inner products divided by it.
        anchors: [U, N, D], the views that are anchors and each other's positives; by default all of `features`.
        closing: which candidates are closed.
        columns: int64 [N] each, what is known of the samples (`Batch.columns`).

    Raises:
        ValueError: if the shape has fewer than two views or samples, or the temperature is not positive.
    """
    if features.ndim != 3 or min(features.shape[:2]) < 2:
        raise ValueError(f"features must be [V >= 2, N >= 2, D], got {tuple(features.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    views, samples, _ = features.shape
    anchors = features if anchors is None else anchors
    block = max(1, _BLOCK_ELEMENTS // (views * views * samples))
    losses = [
        checkpoint(
            _block_loss,
            objective,
            anchors,
            features,
            (first, min(first + block, samples)),
            temperature,
            closing,
            columns or {},
            use_reentrant=False,
        )
        for first in range(0, samples, block)
    ]
    return torch.stack(losses).sum()


def _block_loss(
    objective: Objective,
    anchors: Tensor,
    features: Tensor,
    block: tuple[int, int],
    temperature: float,
    closing: Closing,
    columns: Mapping[str, Tensor],
) -> Tensor:
    """The part of the mean that samples first .. last-1 of the block (first, last) bring."""
    samples, (first, last) = features.shape[1], block
    side = Side(own=anchors[:, first:last], all=features)
    index = torch.arange(samples, device=features.device)
    batch = Batch(index, first, {"x": side}, temperature, samples, columns=columns)
    denominators = [replace(what, closing=closing) for what in objective.denominators]
    estimates = {what.name: in_batch(what, batch) for what in denominators}
    terms = objective.terms(batch, estimates)
    return torch.stack(list(terms.values())).sum() * ((last - first) / samples)
