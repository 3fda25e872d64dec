"""InfoNCE: l = -s(a, a+) + log(exp s(a, a+) + Z(a)). With `negatives: in_batch` it is SimCLR (Chen et al., ICML 2020).

The positive's share of the softmax needs log Z itself, not its gradient alone. Over pairs it is the mean over their
directions: both are CLIP's (Radford et al., ICML 2021).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from emc2dist.core.batch import Batch
from emc2dist.core.denominator import Denominator, Estimate
from emc2dist.core.objectives.base import Directions, Objective, directed
from emc2dist.core.scores import positive_scores


@dataclass(frozen=True)
class InfoNce(Objective):
    """Cross-entropy of picking the positive among all candidates."""

    directions: Directions | None = None
    """Of pairs; None: there is one side."""

    @property
    @override
    def denominators(self) -> Sequence[Denominator]:
        return directed(Denominator(valued=True), self.directions)

    @override
    def terms(self, batch: Batch, estimates: Mapping[str, Estimate]) -> dict[str, Tensor]:
        positive = torch.stack([positive_scores(batch, what.anchors, what.keys) for what in self.denominators])
        log_z = torch.stack([estimates[what.name].log_z for what in self.denominators])
        return {"attraction": -positive.mean(), "repulsion": torch.logaddexp(positive, log_z).mean()}
