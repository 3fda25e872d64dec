"""What an estimator is: from a denominator and what is remembered of it to its estimate and what to remember."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from emc2dist.core.balance import Balance
from emc2dist.core.batch import Batch, locate, view_number
from emc2dist.core.columns import Column, Schema
from emc2dist.core.denominator import Candidates, Denominator, Estimate

FEATURES = "feature"
"""The table of cached features, one row per sample; all other tables hold one value per anchor, [V] for each sample."""

ALL_ROWS = 2**62
"""As many rows as there are."""

Encode = Callable[[str, Tensor, Tensor], Tensor]
"""(side, samples int64 [m], numbers int64 [R, m] of their views, both on the CPU) -> features [R, m, D], with
gradient."""

Fact = Tensor | tuple[Tensor, Tensor]
"""A diagnostic: a scalar, or the total of a mean and its weight."""


@dataclass(frozen=True)
class CachedRows:
    """Rows of the feature cache."""

    index: Tensor
    """int64 [n]: their samples."""
    feature: Tensor
    """[n, D], each sample's newest cached view."""
    present: Tensor
    """bool [n]: False where no feature was ever cached."""
    written_at: Tensor
    """int64 [n]: the step that wrote it."""
    slot: Tensor
    """int64 [n]: in which of that step's 2V slots the view was drawn, see `emc2dist.core.batch`."""

    def number(self, row: Tensor, views: int) -> Tensor:
        """int64 [m]: of `row` int64 [m] the numbers of the cached views; a step has V = `views`."""
        return view_number(self.written_at[row], self.slot[row], views)

    def map(self, change: Callable[[Tensor], Tensor]) -> "CachedRows":
        """With every column changed."""
        return CachedRows(**{name: change(column) for name, column in vars(self).items()})


class Recall(NamedTuple):
    """What is remembered for one worker's A anchors in one step, of one denominator."""

    columns: Mapping[str, Tensor]
    """Each [A], by anchor; empty where the estimator remembers nothing."""
    carried: CachedRows | None = None
    """The cached features of the carried states, A rows (any content where not visited); None without a cache."""
    proposed: CachedRows | None = None
    """The K cached rows of this step, the same for all workers; None without a cache."""
    host: "Recall | None" = None
    """Columns and carried rows on the CPU, where they came from: what the host knows without asking a GPU. None: it has
    to ask."""

    @property
    def on_host(self) -> "Recall":
        """Columns and carried rows on the CPU; waits for a GPU unless `host` is there."""
        return self.map(Tensor.cpu) if self.host is None else self.host

    @property
    def tensors(self) -> list[Tensor]:
        """All of them, those of `host` left out, in the order in which `map` changes them."""
        rows = [rows for rows in (self.carried, self.proposed) if rows is not None]
        return [*self.columns.values(), *(column for one in rows for column in vars(one).values())]

    def map(self, change: Callable[[Tensor], Tensor]) -> "Recall":
        """With every tensor changed, and without `host`."""
        columns = {name: change(column) for name, column in self.columns.items()}
        carried, proposed = (None if rows is None else rows.map(change) for rows in (self.carried, self.proposed))
        return Recall(columns, carried, proposed)


@dataclass(frozen=True)
class Visit:
    """What an estimator found out about one denominator in one step."""

    estimate: Estimate
    remember: Mapping[str, Tensor] = field(default_factory=dict)
    """New values of the columns, each [A], by anchor."""
    facts: Mapping[str, Fact] = field(default_factory=dict)
    """Diagnostics of this worker's batch, without gradient."""
    ages: Mapping[str, Tensor] = field(default_factory=dict)
    """Steps, [A] by anchor; -1 where there is none."""


def with_mean(what: Denominator, estimate: Estimate, recall: Recall, rate: float) -> tuple[Estimate, dict[str, Tensor]]:
    """The estimate with what is remembered of its mean, and what is to be remembered now; where a mean is needed.

    What is remembered is of earlier visits alone: with a share of this one in it, part of the bias would be back.
    """
    if what.values is None:
        return estimate, {}
    before, visited = recall.columns["mean"], recall.columns["visited"]
    estimate = replace(estimate, values=what.values, remembered=before.masked_fill(~visited, torch.nan))
    now = estimate.mean.detach().to(before.dtype)
    is_there = estimate.weights.sum(1) > 0
    blend = torch.where(is_there, (1 - rate) * before + rate * now, before)
    return estimate, {"mean": torch.where(visited, blend, now)}


@dataclass(frozen=True, kw_only=True)
class Estimator(ABC):
    """One way to estimate denominators; its fields are the options of `emc2dist.config.negatives` of the same name."""

    draws: int = 0
    """M, samples that are drawn in every step and encoded without a graph; candidates like the batch's."""
    balance: Balance | None = None
    """What makes up for candidates without gradient (`emc2dist.core.balance`); None: its default."""

    @property
    def cache_proposals(self) -> int:
        """K, rows of the feature cache that it wants at hand in every step; at most all there are."""
        return 0

    @property
    def newest(self) -> bool:
        """Whether these are the samples visited last; else they are drawn uniformly."""
        return False

    @abstractmethod
    def tables(self, what: Denominator, views: int, width: int) -> Schema:
        """What it remembers of each sample with `views` views and features `width` wide."""

    def foreseen(
        self, what: Denominator, columns: Mapping[str, Tensor], batch: Tensor, step: int, views: int
    ) -> tuple[Tensor, Tensor]:
        """The views that `estimate` will have encoded again whatever it finds: samples and numbers, int64 [m] each.

        All on the CPU, and known a step ahead. None by default.

        Args:
            what: is to be estimated.
            columns: what will be recalled, each [A], by anchor.
            batch: int64 [n], the candidates that the gathered batch brings in that step.
            step: its number.
            views: V.
        """
        none = torch.zeros(0, dtype=torch.int64)
        return none, none

    @abstractmethod
    def estimate(self, what: Denominator, batch: Batch, recall: Recall, encode: Encode) -> Visit:
        """Estimate one denominator for the worker's anchors."""


def cached_features(dtype: str, width: int) -> Schema:
    """The table of cached features, `width` wide."""
    columns = {
        "feature": Column(dtype, (width,)),
        "present": Column("bool"),
        "written_at": Column("int32"),
        "slot": Column("int32"),
    }
    return {FEATURES: columns}


def rows_as_candidates(what: Denominator, batch: Batch, rows: CachedRows, beside: Candidates) -> Candidates:
    """Cached rows as candidates of every anchor, one view of each for its sample; -inf for those that stand `beside`.

    With gradient to the anchors alone. Every row but an anchor's own counts in `number`: that one is in the batch.
    """
    keys = rows.feature.to(beside.scores.dtype).unsqueeze(0)
    _, here = locate(rows.index, beside.samples)
    is_there = rows.present & ~here
    scores = what.scores(batch, keys, rows.index).masked_fill(~is_there, -torch.inf)
    return Candidates(scores, rows.index, torch.ones_like(is_there), is_there.sum())
