"""The gathered batch, as one worker sees it.

A *side* is a kind of thing that one tower encodes. Images are one side, `x`, and a sample's views are each other's
positives. Pairs have two, `query` and `document`: what stands in one slot of both is a pair. A side consists of
*entities*, numbered over the whole dataset, the queries first; an image is one. Anchors are laid out view by view:
anchor v * b + i is view v of the worker's i-th sample.

A *view's number* says which step drew it, and in which of the step's 2V slots: slots 0 to V - 1 are the batch's views,
the others are drawn when a sample is encoded again. A view is a function of its sample and its number, so whoever
remembers the number can have the view again.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from emc2dist.core.estimators.base import CachedRows

Slot = TypeVar("Slot", int, Tensor)


@dataclass(frozen=True)
class Side:
    """Unit-norm features of one side of a batch."""

    own: Tensor
    """[V, b, D], this worker's samples, with gradient."""
    all: Tensor
    """[V, B, D], every worker's samples, with gradient; the worker's own lie in slots first .. first + b - 1."""
    drawn: Tensor | None = None
    """[1, M, D], one view of each draw, the same on every worker; None without draws."""
    drawn_index: Tensor | None = None
    """int64 [M], the draws: entities of the side without repeats, some of which may be in the batch too; -1 is none."""
    drawn_learn: bool = False
    """Whether draws carry gradient."""
    keys: Tensor | None = None
    """[V, b, D], `own` as keys, where a follower encodes these, without gradient, and so `all` and `drawn`; None: one
    tower encodes all."""
    samples: Tensor | None = None
    """int64 [V, b], the samples whose features `own` are, where not the slots' own; they are no candidates."""
    index: Tensor | None = None
    """int64 [B], the entity in each slot of `all`; None: the batch's samples."""
    host_index: Tensor | None = None
    """`index` on the CPU."""
    streams: Tensor | None = None
    """int64 [A], one random stream per anchor; None: the batch's."""
    entities: int | None = None
    """How many the side has; None: as many as the dataset."""
    proposes: bool = True
    """Whether the slots are a uniform draw of the side's entities, and so candidates. The positives of judged pairs are
    not: they come as often as they are judged. In-batch softmax takes them all the same."""
    repeats: Tensor | None = None
    """bool [B]: an earlier slot has the same entity, which is a candidate once; None: none does."""


@dataclass(frozen=True)
class Batch:
    """One worker's part of a gathered batch."""

    index: Tensor
    """int64 [B], the dataset index of each slot, without repeats."""
    first: int
    """Slot of the worker's first sample."""
    sides: Mapping[str, Side]
    temperature: float | Tensor
    """> 0; a score is a cosine divided by it. Of all anchors, or [A] where each has its own."""
    samples: int
    """N, entities of the dataset, on all sides."""
    step: int = 0
    """Counted from 0."""
    streams: Tensor | None = None
    """int64 [A], one random stream per anchor (`emc2dist.core.streams`); None where nothing is drawn."""
    epoch: float = math.inf
    """Epochs before this step, a fraction; infinite where nothing is trained."""
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    """int64 [N] each, by name: what is known of every sample of the dataset, say its `label`; -1: nothing."""
    grades: tuple[Tensor, Tensor] | None = None
    """int64 [R], ascending: q * N + d of judged pairs of a query and a document, and how well each answers, float [R];
    None: nobody asks."""
    guide: Tensor | None = None
    """float16 [N, E], unit-norm features of all samples by a frozen model; None: there is none."""
    judged: Tensor | None = None
    """int64 [R], ascending: a * N + c of all pairs of entities that are each other's positives, both ways round; None:
    what stands in one slot is all."""
    host_index: Tensor | None = None
    """`index` on the CPU, where the host has it anyway; None: it has to ask a GPU."""
    pull: Tensor | None = None
    """[A], the share of its gradient that a positive gets as key (`emc2dist.core.balance`); None: all of it."""
    learnt: nn.Module | None = None
    """What the objective itself learns (`Objective.learns`); None: nothing."""
    partner: Tensor | None = None
    """int64 [A], the label that each anchor is contrasted with, -1 is none; of an objective that pairs labels."""
    gates: Tensor | None = None
    """[A, D], in (0, 1): how much of each coordinate counts for an anchor; of an objective that has some."""
    remembered: "CachedRows | None" = None
    """Cached rows that terms read; of an objective that wants some."""

    def index_of(self, side: str) -> Tensor:
        """int64 [B], the entity in each slot of a side."""
        index = self.sides[side].index
        return self.index if index is None else index

    def index_on_host(self, side: str) -> Tensor:
        """int64 [B], the same on the CPU; waits for a GPU unless `host_index` is there."""
        here = self.sides[side].host_index if self.sides[side].index is not None else self.host_index
        return self.index_of(side).cpu() if here is None else here

    def streams_of(self, side: str) -> Tensor | None:
        """int64 [A], one random stream per anchor of a side; None where nothing is drawn."""
        own = self.sides[side].streams
        return self.streams if own is None else own

    def others(self, side: str) -> int:
        """How many entities of a side a denominator sums over, those that are closed included."""
        entities = self.sides[side].entities
        # An anchor's own is one of what a batch brings; of draws alone any may be.
        return (self.samples if entities is None else entities) - self.sides[side].proposes

    def own_index(self, side: str) -> Tensor:
        """int64 [b], the worker's samples."""
        return self.index_of(side)[self.first : self.first + self.sides[side].own.shape[1]]

    def view_numbers(self, first: int, count: int) -> Tensor:
        """int64 [count, 1]: the numbers of this step's views in slots `first` and on."""
        slots = torch.arange(first, first + count, device=self.index.device)
        return view_number(self.step, slots, self.views).unsqueeze(1)

    @property
    def views(self) -> int:
        """V."""
        return len(next(iter(self.sides.values())).own)

    def anchors(self, side: str) -> Tensor:
        """[A, D], the worker's features, view by view."""
        return self.sides[side].own.flatten(0, 1)

    def anchor_index(self, side: str) -> Tensor:
        """int64 [A], the sample of each anchor."""
        return self.own_index(side).repeat(self.sides[side].own.shape[0])

    def at(self, temperature: float | Tensor) -> "Batch":
        """With another temperature, or with one [A] of each anchor."""
        return replace(self, temperature=temperature)

    def standing(self, side: str) -> "Batch":
        """With anchors, and what is theirs alone, that are constants of the differentiation."""
        own = replace(self.sides[side], own=self.sides[side].own.detach())
        gates = None if self.gates is None else self.gates.detach()
        return replace(self, sides={**self.sides, side: own}, gates=gates)

    def is_own(self, anchors: str, keys: str, index: Tensor) -> Tensor:
        """bool [A, C]: which of `keys`' entities int64 [A or 1, C] are no candidates of an anchor, being its own.

        That is the one in its slot, any that is judged to be its positive, and the one whose feature the anchor is.
        """
        views, samples = len(self.sides[anchors].own), self.sides[anchors].samples
        own = index == self.own_index(keys).repeat(views).unsqueeze(1)
        if samples is not None:
            own = own | (index == samples.flatten().unsqueeze(1))
        if self.judged is None or anchors == keys:
            return own
        pairs = self.anchor_index(anchors).unsqueeze(1) * self.samples + index
        place = torch.searchsorted(self.judged, pairs).clamp(max=len(self.judged) - 1)
        return own | (self.judged[place] == pairs)

    def grade(self, query: Tensor, document: Tensor) -> Tensor:
        """[Q, D]: how well documents int64 [1, D] answer queries int64 [Q, 1]; 0 where nobody judged it."""
        assert self.grades is not None, "the set's scores come with the batch"
        judged, values = self.grades
        pairs = query * self.samples + document
        place = torch.searchsorted(judged, pairs).clamp(max=len(judged) - 1)
        return torch.where(judged[place] == pairs, values[place], 0)

    def guided(self, one: Tensor, other: Tensor) -> Tensor:
        """float32 [A, C]: cosines by the guide of samples int64 [A, 1] with int64 [A or 1, C]."""
        assert self.guide is not None, "the set comes with a guide's features"
        of_one, of_other = self.guide[one[:, 0]].float(), self.guide[other].float()
        return of_one @ of_other[0].T if len(other) == 1 else torch.einsum("ae,ace->ac", of_one, of_other)

    def same(self, column: str, one: Tensor, other: Tensor) -> Tensor:
        """bool: whether samples int64 (broadcast) have one value in a column; -1 is nobody's."""
        values = self.columns[column]
        return (values[one] == values[other]) & (values[one] >= 0)


def judged_pairs(pairs: Tensor, queries: int, entities: int) -> Tensor | None:
    """What `Batch.judged` is of pairs int64 [R, 2], of a query and a document by rows of their sides; None where every
    query has a document to itself.

    Args:
        pairs: each once.
        queries: Q, entities of the first side.
        entities: N, those of both.
    """
    if len(pairs) == queries == entities - queries and all(len(column.unique()) == queries for column in pairs.T):
        return None
    query, document = pairs[:, 0], pairs[:, 1] + queries
    return torch.cat([query * entities + document, document * entities + query]).sort().values


def view_number(step: int | Tensor, slot: Slot, views: int) -> Slot:
    """The number of the view of step `step` in a slot in 0..2V - 1, or of int64 [n] of them."""
    number: Any = step * 2 * views + slot
    return number


def fresh_numbers(step: int, count: int, views: int) -> Tensor:
    """int64 [count, 1], on the CPU: the numbers of the first `count` views of step `step` that no batch has."""
    return view_number(step, torch.arange(views, views + count), views).unsqueeze(1)


def drawn_in(number: Tensor, views: int) -> tuple[Tensor, Tensor]:
    """The step that drew each view, and its slot there."""
    return number // (2 * views), number % (2 * views)


def locate(wanted: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Slot int64 of each wanted sample in `index` [B], and bool whether it is there (else the slot is any)."""
    if not len(index):
        return torch.zeros_like(wanted), torch.zeros_like(wanted, dtype=torch.bool)
    ordered, slots = index.sort()
    place = torch.searchsorted(ordered, wanted).clamp(max=len(index) - 1)
    return slots[place], ordered[place] == wanted
