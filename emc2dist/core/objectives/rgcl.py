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

    rho: float = 0.4
    """Radius of the weights around uniform ones, in nats; > 0."""
    eta: float = 0.03
    """Step of a temperature, >= 0."""
    beta: float = 0.5
    """Weight of the newest gradient in its average, in (0, 1]."""
    tau_min: float = 0.05
    """> 0."""
    tau_max: float = 1.0
    """> tau_min."""

    denominators = (Denominator(valued=True),)

    @override
    def remembers(self, views: int) -> dict[str, Column]:
        return {"tau": Column("float32", (views,)), "velocity": Column("float32", (views,))}

    @override
    def prepared(self, batch: Batch, recall: Recall) -> Batch:
        if "tau" not in recall.columns:
            return batch
        tau = recall.columns["tau"].to(batch.anchors("x").dtype)
        tau = torch.where(tau > 0, tau, batch.temperature)  # 0: not visited yet
        return batch.at(tau.requires_grad_(torch.is_grad_enabled()))

    @override
    def terms(self, batch: Batch, estimates: Mapping[str, Estimate]) -> dict[str, Tensor]:
        return {
            "attraction": -(batch.temperature * positive_scores(batch, "x", "x")).mean(),
            "repulsion": self._worst(batch, estimates["negatives"]).mean(),
        }

    @override
    def renewed(self, batch: Batch, estimates: Mapping[str, Estimate], recall: Recall) -> dict[str, Tensor]:
        tau, estimate = batch.temperature, estimates["negatives"]
        if not isinstance(tau, Tensor) or not tau.requires_grad:
            return {}
        (slope,) = torch.autograd.grad(self._worst(batch, estimate).sum(), tau, retain_graph=True)
        is_open = estimate.value > -torch.inf
        slope = torch.where(is_open, slope, 0).clamp(-_STEEPEST, _STEEPEST)
        velocity = (1 - self.beta) * recall.columns["velocity"] + self.beta * slope
        moved = (tau.detach() - self.eta * velocity).clamp(self.tau_min, self.tau_max)
        return {"tau": moved.float(), "velocity": velocity.float()}

    @override
    def facts(self, batch: Batch) -> dict[str, Fact]:
        tau = batch.temperature.detach() if isinstance(batch.temperature, Tensor) else batch.temperature
        return {"anchor_temperature": torch.as_tensor(tau, dtype=torch.float64).mean()}

    def _worst(self, batch: Batch, estimate: Estimate) -> Tensor:
        """tau (log mean exp s + rho) [A]."""
        views = torch.as_tensor(batch.views * estimate.count, dtype=estimate.value.dtype)
        return batch.temperature * (estimate.open_log_z - views.log() + self.rho)
