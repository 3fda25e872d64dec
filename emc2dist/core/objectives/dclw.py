"""DCLW, weighted DCL (Yeh et al., ECCV 2022): l = -w(a) s(a, a+) + log Z(a).

    w(a) = 2 - exp(c(a) / sigma) / mean over anchors a' of exp(c(a') / sigma),   c the cosine of anchor and positive

so a pair that is far apart pulls harder. The weight is a constant of the differentiation. The mean runs over the
gathered batch's samples of the same view slot; over the whole dataset it is exact.
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
class Dclw(Objective):
    """DCL whose positives are weighted by how far apart they are."""

    sigma: float = 0.5
    """Width of the weight, in cosines; > 0. The larger, the nearer to DCL."""

    denominators = (Denominator(),)
    bends = True  # the weight is a function of the positive

    @override
    def terms(self, batch: Batch, estimates: Mapping[str, Estimate]) -> dict[str, Tensor]:
        attraction = self.weights(batch) * positive_scores(batch, "x", "x")
        return {"attraction": -attraction.mean(), "repulsion": estimates["negatives"].mean_log_z}

    def weights(self, batch: Batch) -> Tensor:
        """w [A]."""
        features = batch.sides["x"].all.detach()
        views, samples, _ = features.shape
        others = features.sum(0) - features
        cosines = (features * others).sum(-1) / (views - 1)
        weights = 2 - samples * (cosines / self.sigma).softmax(1)
        last = batch.first + batch.sides["x"].own.shape[1]
        return weights[:, batch.first : last].flatten()
