"""A moving average of each anchor's denominator (SogCLR, Yuan et al. 2022).

    u <- (1 - rate) u + rate * mean_c w(a, c) exp s(a, c)        over batch and draws, in log space

The weights are exp s / (|batch| u), which do not sum to 1: a batch that is harder than the average pushes harder. A
closed candidate counts as one of weight 0, so that (N - 1) u is the sum over those that are open.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from emc2dist.core.batch import Batch
from emc2dist.core.columns import Column, Schema
from emc2dist.core.denominator import Denominator, Estimate
from emc2dist.core.estimators.base import Encode, Estimator, Recall, Visit, with_mean


@dataclass(frozen=True)
class MovingAverage(Estimator):
    """log Z from the batch and what earlier batches left."""

    rate: float = 0.1
    """SogCLR's gamma, in (0, 1]."""

    @override
    def tables(self, what: Denominator, views: int, width: int) -> Schema:
        averages = {"log_mean": Column("float32", (views,)), "visited": Column("bool", (views,))}
        return {what.name: averages | ({} if what.values is None else {"mean": Column("float32", (views,))})}

    @override
    def estimate(self, what: Denominator, batch: Batch, recall: Recall, encode: Encode) -> Visit:
        scores, index, one_sided, count = what.candidates(batch)
        visited = recall.columns["visited"]
        log_mean, weights = averaged(scores, count.log(), recall.columns["log_mean"], visited, self.rate)
        others = batch.others(what.keys)
        value = math.log(others) + log_mean
        closed = what.closed(batch, scores.detach())
        estimate = Estimate(value, scores, weights, index.unsqueeze(0), one_sided.unsqueeze(0), closed, count=others)
        # The average begins with the first batch that has an open candidate: from 0 on it would push 1 / rate as hard.
        remember = {"log_mean": log_mean.float(), "visited": log_mean > -torch.inf}
        estimate, mean = with_mean(what, estimate, recall, self.rate)
        return Visit(estimate, remember | mean, {"visited_ratio": visited.double().mean()})


def averaged(
    scores: Tensor, log_count: Tensor | float, before: Tensor, visited: Tensor, rate: float
) -> tuple[Tensor, Tensor]:
    """log u [A] with this step's share in it, and the weights exp s / (count u) [A, C]; both constants.

    Args:
        scores: [A, C]; -inf counts as 0 in the mean.
        log_count: of how many the mean is taken, in log space.
        before: [A], what log u was.
        visited: bool [A]: whether it was anything.
        rate: weight of this step.
    """
    constant = scores.detach()
    log_mean = blended(before, constant.logsumexp(1) - log_count, visited, rate)
    # Where all were closed so far, u is 0, and the difference NaN.
    weights = (constant - (log_count + log_mean).unsqueeze(1)).exp().masked_fill(constant == -torch.inf, 0)
    return log_mean, weights


def blended(before: Tensor, now: Tensor, visited: Tensor, rate: float) -> Tensor:
    """[A]: log((1 - rate) exp before + rate exp now); a first visit takes `now` as it stands."""
    kept = math.log(1 - rate) if rate < 1 else -math.inf
    mean = torch.logaddexp(kept + before.to(now.dtype), math.log(rate) + now)
    return torch.where(visited, mean, now)
