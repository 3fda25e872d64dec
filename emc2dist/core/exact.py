"""The exact loss of an objective: its denominators over the whole dataset, by brute force. The oracle of estimators.

O((N V)^2 D) work. Memory is linear in N: blocks of anchors are taken one after the other, as if each were a worker's
part of one batch, and recomputed in the backward pass.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from emc2dist.core.batch import Batch, Side
from emc2dist.core.closing import OPEN, Closing
from emc2dist.core.denominator import Estimate
from emc2dist.core.estimators import CachedRows, Recall, in_batch
from emc2dist.core.objectives import Objective
from emc2dist.core.scores import log_ratio

_BLOCK_ELEMENTS = 1 << 24  # scores held at once: 64 MiB in float32, a few times that while differentiating


def exact_loss(
    objective: Objective,
    features: Tensor,
    temperature: float,
    anchors: Tensor | None = None,
    together: int | None = None,
    closing: Closing = OPEN,
    columns: Mapping[str, Tensor] | None = None,
    support: CachedRows | None = None,
    followed: bool = False,
) -> Tensor:
    """The loss over the whole dataset; differentiable.

    Args:
        objective: whose formula.
        features: [V, N, D] unit-norm features, V >= 2 views of N >= 2 samples; the loss has their type.
        temperature: > 0; scores are inner products divided by it.
        anchors: [U, N, D], the views that are anchors and each other's positives; by default all of `features`.
        together: of the U only so many stand together, as the V of a step do; the mean over all ways to choose them.
            By default all of them do.
        closing: which candidates are closed.
        columns: int64 [N] each, what is known of the samples (`Batch.columns`).
        support: the cached rows that an objective wants at hand.
        followed: keys, positives among them, are constants of the differentiation, as a follower's are.

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
            together,
            closing,
            columns or {},
            support,
            followed,
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
    together: int | None,
    closing: Closing,
    columns: Mapping[str, Tensor],
    support: CachedRows | None,
    followed: bool,
) -> Tensor:
    """The part of the mean that samples first .. last - 1 of the block (first, last) bring."""
    samples, (first, last) = features.shape[1], block
    index = torch.arange(samples, device=features.device)
    denominators = [replace(what, closing=closing) for what in objective.denominators]

    def batch_of(own: Tensor, every: Tensor) -> Batch:
        own = own[:, first:last]
        side = Side(own, every.detach(), keys=own.detach()) if followed else Side(own, every)
        batch = Batch(index, first, {"x": side}, temperature, samples, columns=columns)
        return objective.prepared(batch, Recall({}, proposed=support))

    def estimates(own: Tensor) -> dict[str, Estimate]:
        return {what.name: in_batch(what, batch_of(own, features)) for what in denominators}

    if together is None:
        loss = _sum(objective, batch_of(anchors, features), estimates(anchors))
        return loss * ((last - first) / samples)
    # Without a ceiling an anchor's log Z does not depend on who stands with it, unless the anchor itself does.
    varies = closing.ceiling is not None or any(what.anchors != "x" for what in denominators)
    log_z = {
        name: estimate.log_z.unflatten(0, (len(anchors), -1)) + log_ratio(together, len(anchors))
        for name, estimate in ({} if varies else estimates(anchors)).items()
    }
    each, losses = anchors.unbind(), []  # apart, for the gradient of a slice is as large as the whole
    for views in combinations(range(len(anchors)), together):
        stand = torch.stack([each[view] for view in views])
        some = {n: _known(values[list(views)].flatten(), samples - 1) for n, values in log_z.items()}
        some = some or estimates(stand)
        losses.append(_sum(objective, batch_of(stand, stand), some))
    return torch.stack(losses).mean() * ((last - first) / samples)


def _sum(objective: Objective, batch: Batch, estimates: dict[str, Estimate]) -> Tensor:
    return torch.stack(list(objective.terms(batch, estimates).values())).sum()


def _known(log_z: Tensor, count: int) -> Estimate:
    """log Z [A] over so many samples, with gradient, as an estimate."""
    column = log_z.unsqueeze(1)
    none = torch.zeros(1, 1, dtype=torch.int64, device=log_z.device)
    return Estimate(log_z, column, torch.ones_like(column), none, none.bool(), none.bool(), count)
