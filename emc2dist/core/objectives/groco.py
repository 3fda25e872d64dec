"""GroCo, group ordering constraints (Shvetsova et al., Learning by Sorting, ICCV 2023): positives rank above negatives.

An anchor's k hardest negatives and its positives, ascending by cosine, negatives first, go through a differentiable
sorting network (`emc2dist.core.sorting`). With p the share of each that ends in a place of the positives

    l(a) = mean of -log p over positives and of -log(1 - p) over negatives, taken together

Keys are constants, so gradients reach anchors alone. (The published code takes the same for the places of the negatives
and halves the sum; as shares sum to 1 that is twice the same number.) It reads no denominator: estimators only supply
candidates, and nothing is unbiased. A negative that is missing counts as one in its place.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy
from typing_extensions import override

from emc2dist.core.batch import Batch
from emc2dist.core.denominator import Denominator, Estimate
from emc2dist.core.objectives.base import Objective
from emc2dist.core.scores import pair_scores
from emc2dist.core.sorting import share_in_last


@dataclass(frozen=True)
class GroCo(Objective):
    """Cross-entropy of a soft ranking of positives and hard negatives."""

    hardest: int = 10
    """k >= 1, negatives of an anchor that are ranked."""
    steepness: float = 1.0
    """> 0, of swaps; the larger, the harder."""

    denominators = (Denominator(views="same", constant=True, ranked=True),)
    bends = True  # positives are ranked together

    @override
    def terms(self, batch: Batch, estimates: Mapping[str, Estimate]) -> dict[str, Tensor]:
        negatives = estimates["negatives"].hardest(self.hardest).flip(1) * batch.temperature
        no_share = torch.zeros_like(negatives[:, 0])
        pairs = pair_scores(replace(batch, temperature=1.0, pull=no_share), "x")
        positives = pairs.transpose(1, 2).flatten(0, 1).sort(1).values
        target = torch.cat([torch.zeros_like(negatives), torch.ones_like(positives)], 1)
        share = share_in_last(torch.cat([negatives, positives], 1), positives.shape[1], self.steepness)
        return {"ranking": binary_cross_entropy(share.clamp(0, 1), target)}
