"""The gathered batch and the step's draws as all there is: softmax over them (SimCLR, Chen et al. 2020; DCL, Yeh et al.
2021).

Biased where they are few. Over the whole dataset it is exact, and so the oracle (`emc2dist.core.exact`).
"""

from dataclasses import dataclass

import torch
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
    constant = scores.detach()
    # Where all are closed the softmax is NaN.
    weights = constant.softmax(1).masked_fill(constant == -torch.inf, 0)
    closed = what.closed(batch, constant)
    value = constant.logsumexp(1)
    return Estimate(value, scores, weights, index.unsqueeze(0), one_sided.unsqueeze(0), closed, count)
