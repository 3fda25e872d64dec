"""MV-InfoNCE, multi-view InfoNCE (Koromilas et al. 2025): of a sample i with views l, m

    l(i) = -log sum_l P(i_l) + log sum_l (P(i_l) + Z(i_l)),   P(i_l) = sum_{m != l} exp s(i_l, i_m)

One fraction for all views of a sample, where InfoNCE has one for each. Z runs over all views of the other samples.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from emc2dist.core.batch import Batch
from emc2dist.core.denominator import Denominator, Estimate
from emc2dist.core.objectives.base import Objective
from emc2dist.core.scores import pair_scores


@dataclass(frozen=True)
class MvInfoNce(Objective):
    """Cross-entropy of picking one of a sample's pairs of views among all pairs that they take part in."""

    denominators = (Denominator(valued=True),)

    @override
    def terms(self, batch: Batch, estimates: Mapping[str, Estimate]) -> dict[str, Tensor]:
        positive = pair_scores(batch, "x").logsumexp(1)
        whole = torch.logaddexp(positive, estimates["negatives"].log_z.view_as(positive))
        return {"attraction": -positive.logsumexp(0).mean(), "repulsion": whole.logsumexp(0).mean()}
