"""MV-DHEL, multi-view decoupled hyperspherical energy loss (Koromilas et al. 2025): of a sample i with views l, m

    l(i) = -log sum_{l < m} exp s(i_l, i_m) + sum_l log Z(i_l)

All pairs of its views share one logarithm, and Z(i_l) runs over view l alone of the other samples: a chain for every
view slot. The published code multiplies the V denominators before it takes the logarithm, which overflows; here
logarithms are added.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from emc2dist.core.batch import Batch
from emc2dist.core.denominator import Denominator, Estimate
from emc2dist.core.objectives.base import Objective
from emc2dist.core.scores import pair_scores


@dataclass(frozen=True)
class MvDhel(Objective):
    """One attraction of all pairs of views, and a repulsion within each view slot."""

    denominators = (Denominator(views="same"),)
    bends = True  # pairs share a logarithm

    @override
    def terms(self, batch: Batch, estimates: Mapping[str, Estimate]) -> dict[str, Tensor]:
        pairs = pair_scores(batch, "x").flatten(0, 1).logsumexp(0) - math.log(2)  # each pair comes both ways
        return {"attraction": -pairs.mean(), "repulsion": batch.views * estimates["negatives"].mean_log_z}
