"""A moving average of each anchor's denominator (SogCLR, Yuan et al. 2022).

    u <- (1 - rate) u + rate * mean_c w(a, c) exp s(a, c)        over batch and draws, in log space

The weights are exp s / (|batch| u), which do not sum to 1: a batch that is harder than the average pushes harder.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from emc2dist.core.batch import Batch
from emc2dist.core.columns import Column, Schema
from emc2dist.core.denominator import Denominator, Estimate
from emc2dist.core.estimators.base import Encode, Estimator, Recall, Visit


@dataclass(frozen=True)
class MovingAverage(Estimator):
    """log Z from the batch and what earlier batches left."""

    rate: float = 0.1
    """SogCLR's gamma, in (0, 1]."""

    @override
    def tables(self, what: Denominator, views: int, width: int) -> Schema:
        return {what.name: {"log_mean": Column("float32", (views,)), "visited": Column("bool", (views,))}}

    @override
    def estimate(self, what: Denominator, batch: Batch, recall: Recall, encode: Encode) -> Visit:
        scores, index, one_sided = what.candidates(batch)
        visited = recall.columns["visited"]
        constant = scores.detach()
        log_count = (constant > -torch.inf).sum(1).to(scores.dtype).log()
        log_mean = self._blended(recall.columns["log_mean"], constant.logsumexp(1) - log_count, visited)
        weights = (constant - (log_count + log_mean).unsqueeze(1)).exp()
        value = math.log(batch.samples - 1) + log_mean
        estimate = Estimate(value, scores, weights, index.unsqueeze(0), one_sided.unsqueeze(0))
        remember = {"log_mean": log_mean.float(), "visited": torch.ones_like(visited)}
        return Visit(estimate, remember, {"visited_ratio": visited.double().mean()})

    def _blended(self, before: Tensor, now: Tensor, visited: Tensor) -> Tensor:
        """[A]: the new log u; a first visit takes the batch's mean as it stands."""
        kept = math.log(1 - self.rate) if self.rate < 1 else -math.inf
        blended = torch.logaddexp(kept + before.to(now.dtype), math.log(self.rate) + now)
        return torch.where(visited, blended, now)
