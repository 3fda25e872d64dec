"""A batch's way to its loss: the objective's denominators are estimated, then its formula is read.

Only here do an objective and its estimator meet. What is remembered comes in by anchor and goes out by anchor.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from emc2dist.config import Spec
from emc2dist.core import balance
from emc2dist.core.batch import Batch
from emc2dist.core.columns import Schema
from emc2dist.core.denominator import Estimate
from emc2dist.core.estimators import ESTIMATORS, Encode, Estimator, Fact, Recall
from emc2dist.core.objectives import OBJECTIVES, Objective
from emc2dist.core.scores import positive_scores


@dataclass(frozen=True)
class Outcome:
    """What one step's contrast found."""

    loss: Tensor
    """Scalar; its gradient is the estimate."""
    remember: Mapping[str, Mapping[str, Tensor]]
    """For each denominator's table the new values of its columns, each [A], by anchor."""
    facts: Mapping[str, Fact]
    """Diagnostics of this worker's batch, without gradient."""
    ages: Mapping[str, Tensor]
    """Steps, [A] by anchor; -1 where there is none."""


@dataclass(frozen=True)
class Contrast:
    """An objective over the estimates of one estimator."""

    objective: Objective
    estimator: Estimator
    balanced: bool = True
    """False leaves the pull of positives against candidates without gradient, for studies of what that does."""

    def tables(self, views: int, width: int) -> Schema:
        """What is remembered of each sample with `views` views and features `width` wide."""
        schema: Schema = {}
        for what in self.objective.denominators:
            schema |= self.estimator.tables(what, views, width)
        return schema

    def __call__(self, batch: Batch, recalls: Mapping[str, Recall], encode: Encode) -> Outcome:
        """Contrast a batch; `recalls` by the denominators' names."""
        visits = {
            what.name: self.estimator.estimate(what, batch, recalls.get(what.name, Recall({})), encode)
            for what in self.objective.denominators
        }
        estimates = {name: visit.estimate for name, visit in visits.items()}
        loss = self._loss(batch, estimates)
        facts: dict[str, Fact] = {}
        ages: dict[str, Tensor] = {}
        for visit in visits.values():
            facts |= visit.facts
            ages |= visit.ages
        if batch.drawn is not None:
            facts["drawn_weight_ratio"] = drawn_weight(batch, next(iter(estimates.values())))
        facts["loss"] = loss_estimate(batch, next(iter(estimates.values())))
        remember = {name: visit.remember for name, visit in visits.items() if visit.remember}
        return Outcome(loss, remember, facts, ages)

    def _loss(self, batch: Batch, estimates: Mapping[str, Estimate]) -> Tensor:
        if self.balanced and (self.estimator.balance or balance.DEFAULT) == "push":
            estimates = {name: balance.pushed(estimate) for name, estimate in estimates.items()}
        elif self.balanced:
            batch = replace(batch, pull=balance.pull(estimates.values()))
        return torch.stack(list(self.objective.terms(batch, estimates).values())).sum()


def contrast_for(spec: Spec) -> Contrast:
    """The contrast that a spec names."""
    objective = OBJECTIVES[spec.objective.name](**spec.objective.options())
    estimator = ESTIMATORS[spec.negatives.name](**spec.negatives.options())
    return Contrast(objective, estimator)


def drawn_weight(batch: Batch, estimate: Estimate) -> Fact:
    """The weight on draws, and the whole weight."""
    assert batch.drawn is not None
    first, last = len(batch.index), len(batch.index) + len(batch.drawn)
    weights = estimate.weights.double()
    return weights[:, first:last].sum(), weights.sum()


def loss_estimate(batch: Batch, estimate: Estimate) -> Tensor:
    """The logged loss: the global loss with its denominator estimated from the batch, scaled up to N - 1 samples.

    mean_a [ -s(a, a+) + log((N - 1) / |batch|) + logsumexp_batch ]: biased low by Jensen's inequality, the less the
    larger the batch; the same for every objective, so that runs can be compared.
    """
    scores = estimate.scores.detach()[:, : len(batch.index)]
    count = (scores > -torch.inf).sum(1)
    scale = torch.log((batch.samples - 1) / count.clamp(min=1).to(scores.dtype))
    positive = positive_scores(batch, "x", "x").detach()
    return (scale + scores.logsumexp(1) - positive).mean()
