"""DCL, decoupled contrastive learning (Yeh et al., ECCV 2022): l = -s(a, a+) + log Z(a).

The positive is not in the denominator. With `negatives: chain` it is EMC^2, with `moving_average` SogCLR. With more
than two views s(a, a+) is the mean over the sample's other views. Over pairs it is the mean over `both` directions, or
has the sum of several ones' Z for its own, of which it needs the values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from emc2dist.core.batch import Batch
from emc2dist.core.denominator import Denominator, Estimate
from emc2dist.core.objectives.base import Directions, Objective, directed, in_one
from emc2dist.core.scores import over_views, positive_scores


@dataclass(frozen=True)
class Dcl(Objective):
    """The global contrastive loss, where its denominator runs over the whole dataset."""

    directions: Directions | None = None
    """Of pairs; None: there is one side."""

    @property
    @override
    def denominators(self) -> Sequence[Denominator]:
        return directed(Denominator(valued=in_one(self.directions)), self.directions)

    @override
    def terms(self, batch: Batch, estimates: Mapping[str, Estimate]) -> dict[str, Tensor]:
        every = self.denominators
        positive = torch.stack([positive_scores(batch, what.anchors, what.positive_side) for what in every])
        if in_one(self.directions):
            total = over_views(torch.stack([estimates[what.name].log_z for what in every]))
            log_z = total.masked_fill(total == -torch.inf, 0)  # where all are closed
        else:
            log_z = torch.stack([estimates[what.name].mean_log_z for what in every])
        return {"attraction": -positive.mean(), "repulsion": log_z.mean()}
