"""WhitenedCSE (Zhuo et al., ACL 2023): a feature, whitened in groups of shuffled channels, picks its other shuffles.

Features of the gathered batch are whitened by K shuffles of their channels (`emc2dist.core.whitening`), and brought to
unit length: z^1 .. z^K, of which z^k is of view k - 1 modulo V. The first picks each of the others among the batch:

    l(i) = mean over k > 1 of -s(z^1_i, z^k_i) + log sum over j of exp s(z^1_i, z^k_j)

InfoNCE with keys of another shuffle; published is the sum over k, with features that were not of unit length before.
Whitening keeps features apart as negatives do, and makes other vectors of the same view, so that views may be alike.

A whitened feature means something in its own batch alone, so there is nothing to carry or to cache. What is evaluated
is the feature as the encoder gives it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import normalize
from typing_extensions import override

from emc2dist.core.batch import Batch, Side
from emc2dist.core.denominator import Denominator, Estimate
from emc2dist.core.estimators.base import Recall
from emc2dist.core.objectives.base import Objective
from emc2dist.core.scores import positive_scores
from emc2dist.core.whitening import ShuffledGroupWhitening


@dataclass(frozen=True)
class WhitenedCse(Objective):
    """Cross-entropy of picking a feature's other shuffles by its first."""

    channels: int = 6
    """Most channels of a group, >= 1; of D there are D / channels groups, or more where that is no whole number."""
    shuffles: int = 3
    """K >= 2."""

    @property
    @override
    def denominators(self) -> Sequence[Denominator]:
        first = Denominator(anchors=_side(0), keys=_side(1), valued=True)
        later = [replace(first, name=_side(turn), keys=_side(turn)) for turn in range(2, self.shuffles)]
        return [first, *later]

    @override
    def prepared(self, batch: Batch, recall: Recall) -> Batch:
        views = batch.sides["x"].all
        groups = groups_of(views.shape[-1], self.channels)
        sides = {}
        for turn in range(self.shuffles):
            head = _head(views.shape[-1], groups, turn, views.device)
            every = normalize(head(views[turn % len(views)]), dim=-1).unsqueeze(0)
            own = every[:, batch.first : batch.first + batch.sides["x"].own.shape[1]]
            sides[_side(turn)] = Side(own, every)
        return replace(batch, sides=sides)

    @override
    def terms(self, batch: Batch, estimates: Mapping[str, Estimate]) -> dict[str, Tensor]:
        every = self.denominators
        positive = torch.stack([positive_scores(batch, what.anchors, what.keys) for what in every])
        log_z = torch.stack([estimates[what.name].log_z for what in every])
        return {"attraction": -positive.mean(), "repulsion": torch.logaddexp(positive, log_z).mean()}


def groups_of(width: int, channels: int) -> int:
    """The least number of even groups of `width` channels that have at most so many each."""
    return next(groups for groups in range(-(-width // channels), width + 1) if width % groups == 0)


def _side(turn: int) -> str:
    return f"shuffle_{turn}"


@lru_cache(64)
def _head(width: int, groups: int, turn: int, device: torch.device) -> ShuffledGroupWhitening:
    return ShuffledGroupWhitening(width, groups, turn).to(device)
