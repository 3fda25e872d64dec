"""The gathered batch and the step's draws as all there is: softmax over them (SimCLR, Chen et al. 2020; DCL, Yeh et al.
2021).

Biased where they are few. Over the whole dataset it is exact, and so the oracle (`emc2dist.core.exact`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from emc2dist.core.batch import Batch
from emc2dist.core.columns import Schema
from emc2dist.core.denominator import Denominator, Estimate
from emc2dist.core.estimators.base import Encode, Estimator, Recall, Visit


@dataclass(frozen=True)
class InBatch(Estimator):
    """log Z over the batch's own samples and the draws; nothing is remembered."""

    @override
    def tables(self, what: Denominator, views: int, width: int) -> Schema:
        return {}

    @override
    def estimate(self, what: Denominator, batch: Batch, recall: Recall, encode: Encode) -> Visit:
        return Visit(in_batch(what, batch))


def in_batch(what: Denominator, batch: Batch) -> Estimate:
    """The estimate from the gathered batch and its draws alone."""
    scores, index, one_sided, count = what.candidates(batch)
    return among(what, batch, scores, index, one_sided, count)


def among(
    what: Denominator, batch: Batch, scores: Tensor, index: Tensor, one_sided: Tensor, count: Tensor | float
) -> Estimate:
    """The estimate that takes these candidates for all there are.

    Args:
        what: is estimated.
        batch: whose anchors.
        scores: [A, C], those of the gathered batch first.
        index: int64 [C], the candidates' samples.
        one_sided: bool [C]: the candidate's feature carries no gradient.
        count: how many samples they are for an anchor, closed ones included.
    """
    constant = scores.detach()
    # Where all are closed the softmax is NaN.
    weights = constant.softmax(1).masked_fill(constant == -torch.inf, 0)
    closed = what.closed(batch, constant)
    index, one_sided = index.unsqueeze(0), one_sided.unsqueeze(0)
    return Estimate(constant.logsumexp(1), scores, weights, index, one_sided, closed, what.values, count=count)
