"""InfoNCE: l = -s(a, a+) + log(exp s(a, a+) + Z(a)). With `negatives: in_batch` it is SimCLR (Chen et al., ICML 2020).

The positive's share of the softmax needs log Z itself, not its gradient alone. Over pairs `both` directions are CLIP's
mean (Radford et al., ICML 2021), whose temperature is learnt; several in one denominator are GTE's (Li et al. 2023)

    l(q, d) = -s(q, d) + log(n exp s(q, d) + sum of the directions' Z)

n of which go from one side to the other, each with the pair in it: with `all` four it stands there twice, as published.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from typing_extensions import override

from emc2dist.core.batch import Batch
from emc2dist.core.denominator import Denominator, Estimate
from emc2dist.core.estimators.base import Fact, Recall
from emc2dist.core.objectives.base import Directions, Objective, directed, in_one
from emc2dist.core.scores import positive_scores

LOWEST = 0.01
"""Of a learnt temperature, as CLIP has it."""


class Scale(nn.Module):
    """What multiplies scores, as its logarithm; 1 in the beginning, and at most 1 / `LOWEST` of the temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.zeros(()))

    @override
    def forward(self, temperature: float) -> Tensor:
        """The learnt temperature, a scalar of at least `LOWEST`; `temperature` is that of the beginning."""
        with torch.no_grad():  # the parameter, not what is made of it: it must be able to come back
            self.log.clamp_(max=max(0.0, math.log(temperature / LOWEST)))
        return temperature * torch.exp(-self.log)


@dataclass(frozen=True)
class InfoNce(Objective):
    """Cross-entropy of picking the positive among all candidates."""

    directions: Directions | None = None
    """Of pairs; None: there is one side."""
    learn_temperature: bool = False
    """Whether the temperature is learnt."""

    @override
    def learns(self, features: int) -> nn.Module | None:
        return Scale() if self.learn_temperature else None

    @override
    def prepared(self, batch: Batch, recall: Recall) -> Batch:
        if not self.learn_temperature:
            return batch
        assert isinstance(batch.learnt, Scale), "the encoder is kept with what its objective learns"
        assert isinstance(batch.temperature, float), "nobody else has set it"
        first, *_ = batch.sides.values()
        return batch.at(batch.learnt(batch.temperature).expand(first.own.shape[0] * first.own.shape[1]))

    @override
    def facts(self, batch: Batch) -> dict[str, Fact]:
        if not isinstance(batch.temperature, Tensor):
            return {}
        return {"anchor_temperature": batch.temperature.detach().mean()}

    @property
    @override
    def denominators(self) -> Sequence[Denominator]:
        return directed(Denominator(valued=True), self.directions)

    @override
    def terms(self, batch: Batch, estimates: Mapping[str, Estimate]) -> dict[str, Tensor]:
        positive, log_sum = scored(batch, estimates, self.denominators, in_one(self.directions))
        return {"attraction": -positive.mean(), "repulsion": log_sum.mean()}


def scored(
    batch: Batch, estimates: Mapping[str, Estimate], denominators: Sequence[Denominator], together: bool
) -> tuple[Tensor, Tensor]:
    """s [n, A] of each anchor and its positive, for each denominator, and log(exp s + Z) [n, A] or of their sum [1, A].

    The latter where all of them stand `together`.
    """
    positive = torch.stack([positive_scores(batch, what.anchors, what.positive_side) for what in denominators])
    log_z = torch.stack([estimates[what.name].log_z for what in denominators])
    if not together:
        return positive, torch.logaddexp(positive, log_z)
    across = positive[[what.anchors != what.keys for what in denominators]]
    return positive, torch.cat([across, log_z]).logsumexp(0, keepdim=True)
