"""InfoNCE: l = -s(a, a+) + log(exp s(a, a+) + Z(a)). With `negatives: in_batch` it is SimCLR (Chen et al., ICML 2020).

The positive's share of the softmax needs log Z itself, not its gradient alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from emc2dist.core.batch import Batch
from emc2dist.core.denominator import Denominator, Estimate
from emc2dist.core.objectives.base import Objective
from emc2dist.core.scores import positive_scores


@dataclass(frozen=True)
class InfoNce(Objective):
    """Cross-entropy of picking the positive among all candidates."""

    denominators = (Denominator(valued=True),)

    @override
    def terms(self, batch: Batch, estimates: Mapping[str, Estimate]) -> dict[str, Tensor]:
        positive = positive_scores(batch, "x", "x")
        log_sum = torch.logaddexp(positive, estimates["negatives"].log_z)
        return {"attraction": -positive.mean(), "repulsion": log_sum.mean()}
