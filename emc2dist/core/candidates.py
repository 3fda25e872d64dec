"""What an anchor is contrasted with: the gathered batch, its chain's carried state, one row chosen from the cache.

Every sample is a candidate at most once. The anchor's own sample is none. A carried sample that is in the batch is
taken out of the batch's columns and stands, with its fresh views, as the carried state.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from emc2dist.core.scores import positive_scores, unit_scores
from emc2dist.core.streams import uniforms

_CHOICE = 3  # lane of a chain's random stream; `emc2dist.core.chain` uses 0 to 2


class Candidates(NamedTuple):
    """Scores of A anchors against everything they are contrasted with; -inf where there is no such candidate."""

    positive: Tensor
    """[A]: the anchor's other views."""
    batch: Tensor
    """[A, B]: units of the gathered batch; -inf on the anchor's own sample and on its carried one."""
    chosen: Tensor
    """[A]: the row chosen from the cache, standing for all that were drawn."""
    carried: Tensor
    """[A]: the carried state."""

    @property
    def proposals(self) -> Tensor:
        """[A, B + 1]: batch and chosen, what a chain may move to."""
        return torch.cat([self.batch, self.chosen.unsqueeze(1)], 1)

    @property
    def negatives(self) -> Tensor:
        """[A, B + 2]: batch, chosen, carried; the columns that weights refer to."""
        return torch.cat([self.proposals, self.carried.unsqueeze(1)], 1)


class Choice(NamedTuple):
    """First stage of the cache proposals: one of K cached rows for each anchor."""

    row: Tensor
    """int64 [A]: the row chosen."""
    exists: Tensor
    """bool [A]: False where no row was allowed."""
    correction: Tensor
    """[A]: added to the row's fresh score, lets it stand for all K: log sum_k exp s~_k - s~_row."""


class BatchScores(NamedTuple):
    """Scores of A anchors against the gathered batch, the carried state taken out."""

    positive: Tensor
    """[A]"""
    batch: Tensor
    """[A, B]: -inf on the anchor's own sample and on its carried one."""
    carried_here: Tensor
    """bool [A]: the carried state is in the batch."""
    carried: Tensor
    """[A]: its score where it is, else -inf."""

    def candidates(self, carried_elsewhere: Tensor, chosen: Tensor) -> Candidates:
        """All candidates, given the scores [A] of carried states outside the batch and of the rows chosen."""
        carried = torch.where(self.carried_here, self.carried, carried_elsewhere)
        return Candidates(self.positive, self.batch, chosen, carried)


def batch_scores(
    features: Tensor, units: Tensor, index: Tensor, first_slot: int, state: Tensor, visited: Tensor, temperature: float
) -> BatchScores:
    """Contrast one worker's anchors with the gathered batch.

    Args:
        features: [V, b, D], the worker's own features; anchor v * b + i is view v of its i-th sample.
        units: [V, B, D], the gathered features; the worker's samples lie in slots first_slot .. first_slot + b - 1.
        index: int64 [B], dataset index of each slot, without repeats.
        first_slot: where the worker's samples begin.
        state: int64 [A], the carried sample of each anchor's chain; any value where not visited.
        visited: bool [A], whether the chain has a carried state.
        temperature: > 0.
    """
    scores = unit_scores(features.flatten(0, 1), units, temperature)
    own = first_slot + torch.arange(features.shape[1], device=scores.device).repeat(features.shape[0])
    slot, found = locate(state, index)
    found = found & visited
    carried = torch.where(found, scores.gather(1, slot.unsqueeze(1)).squeeze(1), -torch.inf)
    columns = torch.arange(scores.shape[1], device=scores.device)
    taken = (columns == own.unsqueeze(1)) | ((columns == slot.unsqueeze(1)) & found.unsqueeze(1))
    return BatchScores(positive_scores(features, temperature), scores.masked_fill(taken, -torch.inf), found, carried)


def locate(wanted: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Slot int64 of each wanted sample in `index` [B], and bool whether it is there at all (else the slot is any)."""
    ordered, slots = index.sort()
    place = torch.searchsorted(ordered, wanted).clamp(max=len(index) - 1)
    return slots[place], ordered[place] == wanted


def choose(stale_scores: Tensor, streams: Tensor) -> Choice:
    """Draw one of K cached rows per anchor from the softmax of its stale scores [A, K]; -inf marks a row not allowed.

    Stale scores choose but do not weigh: whatever their age, exp(correction + fresh score) has the sum of the K
    fresh exponentiated scores as its expectation (algorithm.md section 5).
    """
    exists = (stale_scores > -torch.inf).any(1)
    stale_scores = torch.where(exists.unsqueeze(1), stale_scores, 0)
    # Gumbel-max: exact, and no ladder of partial sums to round.
    noise = -(-uniforms(streams, stale_scores.shape[1], lane=_CHOICE).log()).log()
    row = (stale_scores.double() + noise).argmax(1)
    correction = stale_scores.logsumexp(1) - stale_scores.gather(1, row.unsqueeze(1)).squeeze(1)
    return Choice(row, exists, correction)
