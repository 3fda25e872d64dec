"""What an anchor is contrasted with: the gathered batch and its chain's carried state.

Every sample is a candidate at most once. The anchor's own sample is none. A carried sample that is in the batch is
taken out of the batch's columns and stands, with its fresh views, as the carried state.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from emc2dist.core.scores import positive_scores, unit_scores


class Candidates(NamedTuple):
    """Scores of A anchors against everything they are contrasted with; -inf where there is no such candidate."""

    positive: Tensor
    """[A]: the anchor's other views."""
    batch: Tensor
    """[A, B]: units of the gathered batch; -inf on the anchor's own sample and on its carried one."""
    carried: Tensor
    """[A]: the carried state."""

    @property
    def negatives(self) -> Tensor:
        """[A, B + 1]: batch, carried; the columns that weights refer to."""
        return torch.cat([self.batch, self.carried.unsqueeze(1)], 1)


@dataclass(frozen=True)
class BatchScores:
    """Scores of A anchors against the gathered batch, whatever their chains carry."""

    positive: Tensor
    """[A]: against the anchor's other views."""
    units: Tensor
    """[A, B]: -inf on the anchor's own sample."""
    index: Tensor
    """int64 [B], dataset index of each slot."""

    def find(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Of one sample per anchor [A]: its score, and bool whether it is in the batch at all (else -inf)."""
        slot, here = locate(samples, self.index)
        score = self.units.gather(1, slot.unsqueeze(1)).squeeze(1)
        return score.masked_fill(~here, -torch.inf), here

    def candidates(self, state: Tensor, carried: Tensor) -> Candidates:
        """Candidates of chains that carry samples `state` [A] with scores `carried` [A], -inf where not visited."""
        taken = (self.index == state.unsqueeze(1)) & (carried > -torch.inf).unsqueeze(1)
        return Candidates(self.positive, self.units.masked_fill(taken, -torch.inf), carried)

    def alone(self) -> Candidates:
        """Candidates without any chain."""
        return Candidates(self.positive, self.units, torch.full_like(self.positive, -torch.inf))


def batch_scores(features: Tensor, units: Tensor, index: Tensor, first_slot: int, temperature: float) -> BatchScores:
    """Contrast one worker's anchors with the gathered batch.

    Args:
        features: [V, b, D], the worker's own features; anchor v * b + i is view v of its i-th sample.
        units: [V, B, D], the gathered features; the worker's samples lie in slots first_slot .. first_slot + b - 1.
        index: int64 [B], dataset index of each slot, without repeats.
        first_slot: where the worker's samples begin.
        temperature: > 0.
    """
    scores = unit_scores(features.flatten(0, 1), units, temperature)
    own = first_slot + torch.arange(features.shape[1], device=scores.device).repeat(features.shape[0])
    is_own = torch.arange(scores.shape[1], device=scores.device) == own.unsqueeze(1)
    return BatchScores(positive_scores(features, temperature), scores.masked_fill(is_own, -torch.inf), index)


def locate(wanted: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Slot int64 of each wanted sample in `index` [B >= 1], and bool whether it is there (else the slot is any)."""
    ordered, slots = index.sort()
    place = torch.searchsorted(ordered, wanted).clamp(max=len(index) - 1)
    return slots[place], ordered[place] == wanted
