"""RGCL, the robust global contrastive loss (Qiu et al., Not All Semantics are Created Equal, ICML 2023):

    l(a) = min over tau in [tau_min, tau_max] of  tau (log mean_c exp(cos(a, c) / tau) + rho) - cos(a, a+)

Its dual: the mean of cos(a, c) under the worst weights p of the candidates with KL(p | uniform) <= rho. So every anchor
has a temperature of its own, which is remembered and goes down its own gradient

    G = log mean_c exp(s) + rho - E_p[s],    s = cos / tau,    p ~ exp s
    u <- (1 - beta) u + beta clip(G, -3, 3),    tau <- clip(tau - eta u, tau_min, tau_max)

at every visit: it falls while the candidates that push are more than exp(-rho) of all, and rises where they are fewer.
With `negatives: moving_average` it is iSogCLR. Its gradient is tau times that of `dcl`, for the temperature stands
before the logarithm.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from emc2dist.core.batch import Batch
from emc2dist.core.columns import Column
from emc2dist.core.denominator import Denominator, Estimate
from emc2dist.core.estimators.base import Fact, Recall
from emc2dist.core.objectives.base import Objective
from emc2dist.core.scores import positive_scores

_STEEPEST = 3.0  # as published: a first visit to few candidates is far off


@dataclass(frozen=True)
class Rgcl(Objective):
    """DCL with a temperature for every anchor, optimised by its own gradient."""

    rho: float = 4.0
    """Radius of the weights around uniform ones, in nats; > 0."""
    eta: float = 0.01
    """Step of a temperature, >= 0."""
    beta: float = 0.9
    """Weight of the newest gradient in its average, in (0, 1]."""
    tau_min: float = 0.05
    """> 0."""
    tau_max: float = 1.0
    """> tau_min."""

    denominators = (Denominator(valued=True),)

    @override
    def columns(self, views: int) -> dict[str, Column]:
        return {"tau": Column("float32", (views,)), "velocity": Column("float32", (views,))}

    @override
    def prepared(self, batch: Batch, recall: Recall) -> Batch:
        if "tau" not in recall.columns:
            return batch
        tau = recall.columns["tau"].to(batch.anchors("x").dtype)
        return batch.at(torch.where(tau > 0, tau, batch.temperature))  # 0: not visited yet

    @override
    def terms(self, batch: Batch, estimates: Mapping[str, Estimate]) -> dict[str, Tensor]:
        estimate = estimates["negatives"]
        positive, repulsion = positive_scores(batch, "x", "x"), estimate.open_log_z - _log_count(batch, estimate)
        return {
            "attraction": -(batch.temperature * positive).mean(),
            "repulsion": (batch.temperature * (repulsion + self.rho)).mean(),
        }

    @override
    def renewed(self, batch: Batch, estimates: Mapping[str, Estimate], recall: Recall) -> dict[str, Tensor]:
        estimate = estimates["negatives"]
        known = estimate.value > -torch.inf  # something is open
        mean_score = (estimate.weights * torch.where(estimate.weights > 0, estimate.scores.detach(), 0)).sum(1)
        slope = estimate.value - _log_count(batch, estimate) + self.rho - mean_score
        slope = torch.where(known, slope, 0).clamp(-_STEEPEST, _STEEPEST)
        velocity = (1 - self.beta) * recall.columns["velocity"] + self.beta * slope
        tau = (batch.temperature - self.eta * velocity).clamp(self.tau_min, self.tau_max)
        return {"tau": tau.float(), "velocity": velocity.float()}

    @override
    def facts(self, batch: Batch) -> dict[str, Fact]:
        return {"anchor_temperature": torch.as_tensor(batch.temperature, dtype=torch.float64).mean()}


def _log_count(batch: Batch, estimate: Estimate) -> Tensor:
    """Log of how many views log Z sums over."""
    return torch.as_tensor(batch.views * estimate.count, dtype=estimate.value.dtype).log()
