"""SIRL (Bobu et al., HRI 2023): a person says which two of three are alike, and features have to agree.

    l(a) = max(0, d(a, p) - d(a, n) + margin),    d the squared distance of features

for each of the two that are alike as anchor a, the other as p and the odd one out as n, view slot by view slot. A set
of answers (`emc2dist ask`) has three images for each query: its number is their label, the odd one comes last (column
`odd`). Batches have whole queries (`data.per_class: 3`). An odd image, and one whose query is not in its batch as a
whole, counts 0 in the mean over anchors. No denominator is read.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from emc2dist.core.batch import Batch
from emc2dist.core.denominator import Denominator, Estimate
from emc2dist.core.objectives.base import Objective


@dataclass(frozen=True)
class Sirl(Objective):
    """Triplets of a person's answers."""

    margin: float = 1.0
    """By how much the odd one has to be farther, in squared distances from 0 to 4; > 0."""

    columns = ("label", "odd")
    denominators = (Denominator(),)
    looks_around = True

    @override
    def terms(self, batch: Batch, estimates: Mapping[str, Estimate]) -> dict[str, Tensor]:
        nearer, is_one = self._triplets(batch)
        hinge = (nearer + self.margin).clamp(min=0) * is_one
        each = hinge.sum((2, 3)) / is_one.sum((1, 2)).clamp(min=1)
        return {"triplets": each.mean()}

    def _triplets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """d(a, p) - d(a, n) [V, b, B, B] in each view slot, and bool [b, B, B], where a, p and n are an answer."""
        side, odd = batch.sides["x"], batch.columns["odd"] > 0
        distance = 2 - 2 * side.own @ side.all.mT
        anchor, index = batch.own_index("x").unsqueeze(1), batch.index.unsqueeze(0)
        together = batch.same("label", anchor, index) & (anchor != index) & ~odd[anchor]
        alike, apart = together & ~odd[index], together & odd[index]
        return distance.unsqueeze(3) - distance.unsqueeze(2), alike.unsqueeze(2) & apart.unsqueeze(1)
