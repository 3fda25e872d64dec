"""DCL, decoupled contrastive learning (Yeh et al., ECCV 2022): l = -s(a, a+) + log Z(a).

The positive is not in the denominator. With `negatives: chain` it is EMC^2, with `moving_average` SogCLR. With more
than two views s(a, a+) is the mean over the sample's other views.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from emc2dist.core.batch import Batch
from emc2dist.core.denominator import Denominator, Estimate
from emc2dist.core.objectives.base import Objective
from emc2dist.core.scores import positive_scores


@dataclass(frozen=True)
class Dcl(Objective):
    """The global contrastive loss, where its denominator runs over the whole dataset."""

    denominators = (Denominator(),)

    @override
    def terms(self, batch: Batch, estimates: Mapping[str, Estimate]) -> dict[str, Tensor]:
        return {
            "attraction": -positive_scores(batch, "x", "x").mean(),
            "repulsion": estimates["negatives"].mean_log_z,
        }
