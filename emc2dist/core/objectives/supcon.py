"""SupCon (Khosla et al., NeurIPS 2020, L_out): the positives of an anchor are all samples of the batch with its label.

    l(a) = -mean_{p in P(a)} s(a, p) + log( sum_{v} exp s(a, a_v) + Z(a) )

P(a) holds all views of the gathered batch's other samples with a's label, and the other views a_v of a's own sample,
which are alone where it has no label. As in the paper positives stand in the denominator too, unless
`negatives.close: [label]` leaves none there but the own views; `decoupled` leaves out these, as DCL does.

With `memory` cached rows are drawn uniformly, and those of other samples with a's label are in P(a) too, as constants
(XBM: Wang et al., Cross-Batch Memory for Embedding Learning, CVPR 2020). Negatives beyond the batch are chains' and
draws'.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from typing_extensions import override

from emc2dist.core.batch import Batch
from emc2dist.core.denominator import Denominator, Estimate
from emc2dist.core.estimators.base import Recall
from emc2dist.core.objectives.base import Objective
from emc2dist.core.scores import other_view_scores, shared_count, shared_scores


@dataclass(frozen=True)
class SupCon(Objective):
    """InfoNCE whose positives are those of a label."""

    decoupled: bool = False
    """Whether the own sample's views are left out of the denominator, which then needs no log Z itself."""
    memory: int = 0
    """Cached rows of which those of the anchor's label are positives."""

    columns = ("label",)
    looks_around = True

    @property
    @override
    def denominators(self) -> Sequence[Denominator]:
        return (Denominator(valued=not self.decoupled),)

    @property
    @override
    def support(self) -> int:
        return self.memory

    @override
    def prepared(self, batch: Batch, recall: Recall) -> Batch:
        return replace(batch, remembered=recall.proposed if self.memory else None)

    @override
    def terms(self, batch: Batch, estimates: Mapping[str, Estimate]) -> dict[str, Tensor]:
        attraction = -_shared_scores(batch).mean()
        negatives = estimates["negatives"]
        if self.decoupled:
            return {"attraction": attraction, "repulsion": negatives.mean_log_z}
        own = other_view_scores(batch, "x").logsumexp(0)
        return {"attraction": attraction, "repulsion": torch.logaddexp(own, negatives.log_z).mean()}


def _shared_scores(batch: Batch) -> Tensor:
    """[A]: each anchor's mean score over all its positives, of the batch and of what is remembered."""
    of_batch = shared_scores(batch, "x", "label")
    rows = batch.remembered
    if rows is None:
        return of_batch
    anchor = batch.anchor_index("x").unsqueeze(1)
    is_one = batch.same("label", anchor, rows.index) & (rows.index != anchor) & rows.present
    scores = batch.anchors("x") @ rows.feature.to(of_batch.dtype).T / batch.temperature
    count = shared_count(batch, "x", "label")
    return (count * of_batch + (scores * is_one).sum(1)) / (count + is_one.sum(1))
