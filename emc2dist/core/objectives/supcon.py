"""SupCon (Khosla et al., NeurIPS 2020, L_out): the positives of an anchor are all samples of the batch with its label.

    l(a) = -mean_{p in P(a)} s(a, p) + log( sum_{v} exp s(a, a_v) + Z(a) )

P(a) holds all views of the gathered batch's other samples with a's label, and the other views a_v of a's own sample,
which are alone where it has no label. As in the paper positives stand in the denominator too, unless
`negatives.close: [label]` leaves none there but the own views; `decoupled` leaves out these, as DCL does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from emc2dist.core.batch import Batch
from emc2dist.core.denominator import Denominator, Estimate
from emc2dist.core.objectives.base import Objective
from emc2dist.core.scores import other_view_scores, shared_scores


@dataclass(frozen=True)
class SupCon(Objective):
    """InfoNCE whose positives are those of a label."""

    decoupled: bool = False
    """Whether the own sample's views are left out of the denominator, which then needs no log Z itself."""

    columns = ("label",)
    looks_around = True

    @property
    @override
    def denominators(self) -> Sequence[Denominator]:
        return (Denominator(valued=not self.decoupled),)

    @override
    def terms(self, batch: Batch, estimates: Mapping[str, Estimate]) -> dict[str, Tensor]:
        attraction = -shared_scores(batch, "x", "label").mean()
        negatives = estimates["negatives"]
        if self.decoupled:
            return {"attraction": attraction, "repulsion": negatives.mean_log_z}
        own = other_view_scores(batch, "x").logsumexp(0)
        return {"attraction": attraction, "repulsion": torch.logaddexp(own, negatives.log_z).mean()}
