"""CACR, contrastive attraction and contrastive repulsion (Zheng et al., TMLR 2023), d = |a - b|^2 on the unit sphere:

    l(a) = sum_p softmax_p(t_positive d(a, p)) d(a, p) - sum_c softmax_c(-t_negative d(a, c)) d(a, c)

so far positives pull harder, near negatives push harder, and the weights are differentiated. Positives p are the
sample's other views. Candidates c are the other samples, one view of each: that of the anchor's slot (the published
code takes that of a later slot, and views of all slots are drawn alike). The second sum is the mean of d under
pi ~ exp(2 t_negative cosine): no log Z but an expectation, for d = 2 - 2 cosine. The spec's temperature has no part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from typing_extensions import override

from emc2dist.core.batch import Batch
from emc2dist.core.denominator import Denominator, Estimate
from emc2dist.core.objectives.base import Objective
from emc2dist.core.scores import pair_scores


@dataclass(frozen=True)
class Cacr(Objective):
    """Attraction by far positives, repulsion from near negatives."""

    t_positive: float = 1.0
    """>= 0; 0 takes all positives alike."""
    t_negative: float = 2.0
    """> 0; the larger, the more the nearest negatives alone count."""

    bends = True  # positives share a softmax

    @property
    @override
    def denominators(self) -> Sequence[Denominator]:
        return (Denominator(views="same", scale=2 * self.t_negative, values=self._distance),)

    @override
    def terms(self, batch: Batch, estimates: Mapping[str, Estimate]) -> dict[str, Tensor]:
        near = 2 - 2 * pair_scores(replace(batch, temperature=1.0), "x")
        attraction = ((self.t_positive * near).softmax(1) * near).sum(1)
        return {"attraction": attraction.mean(), "repulsion": -estimates["negatives"].mean.mean()}

    def _distance(self, scores: Tensor) -> Tensor:
        """d by scores 2 t_negative cosine."""
        return 2 - scores / self.t_negative
