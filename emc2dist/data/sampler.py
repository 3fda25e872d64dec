"""The order in which samples are seen: pure arithmetic from (seed, step), so the step number is the whole position.

Each epoch is its own random permutation of the samples, cut into batches; what is left over after the last whole
batch is dropped, and is another part of the data in every epoch. Resuming at a step needs nothing but the step.

Without blocks or classes every permutation is as likely. With blocks (rows that are fetched as one), the blocks are
permuted, and then every row moves up to `window` places back from where its block lies: so few blocks are needed at a
time, and a new one every so many rows. What that does to proposals is in docs/data.md.

By class, each batch is made of groups of K samples of one class (P x K batches), and an epoch is still a permutation:

1. Every class is shuffled and cut into groups of K. The groups of a class are spread over the epoch, one in each of as
   many equal parts of it, so that no class comes twice in a batch while there are enough classes.
2. What a class has left, fewer than K, and samples without a class make batches of their own, class by class.
3. The batches are shuffled. What is left after the last whole one is dropped, groups for the most part.

Of pairs the queries have such an order, and each brings one of its documents, drawn anew in every epoch.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from emc2dist.errors import DataError

_Scalar = TypeVar("_Scalar", bound=np.generic)


class Order(Protocol):
    """Which entities stand in a step, side by side (`emc2dist.core.batch`), known for any step."""

    sides: Sequence[str]
    """That of the samples first."""
    samples: int
    """N, entities of all sides."""
    micro_batch_size: int
    steps_per_epoch: int

    def entities(self, side: str) -> range:
        """Those of a side."""

    def batch(self, step: int, side: str | None = None) -> NDArray[np.int64]:
        """int64 [B], the entities of a side, by default of the first, in the step's slots."""

    def draws(self, count: int, seed: int, side: str) -> "Draws":
        """Entities of a side that are drawn in every step, whatever stands in the batch."""

    def named(self, step: int) -> NDArray[np.int64]:
        """int64 [B, n]: candidates that each sample brings besides, -1 where it has fewer."""

    def newest(self, step: int, count: int) -> NDArray[np.int64]:
        """The samples visited last, up to `step` and at most an epoch before, int64 [count], the newest first."""


class Draws(Protocol):
    """Entities that are drawn in every step."""

    def batch(self, step: int) -> NDArray[np.int64]:
        """int64 [M], without repeats."""


class EpochOrder:
    """Global batches of `batch_size` indices out of `samples`, epoch after epoch.

    With `parts` > 1 each batch is cut into so many micro-batches, and a step takes one of them. `blocks` are the rows
    of each block, [G], of neighbouring samples; they sum up to `samples`. With `labels`, int64 [samples], -1 for none,
    and no blocks, batches are groups of `per_class` samples of a class, which divides `batch_size / parts`.

    Raises:
        DataError: `batch_size` is more than `samples`.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        seed: int,
        *,
        parts: int = 1,
        blocks: NDArray[np.int64] | None = None,
        window: int = 1,
        labels: NDArray[np.int64] | None = None,
        per_class: int = 1,
    ) -> None:
        if batch_size > samples:
            raise DataError(
                f"batch_size: {batch_size} is more than the {samples} training images; "
                f"use at most {samples}, or raise data.limit"
            )
        self.samples = samples
        self.seed = seed
        self.window = window
        self._blocks, self._labels, self._per_class = blocks, labels, per_class
        self.micro_batch_size = batch_size // parts
        self.steps_per_epoch = samples // batch_size * parts
        self._permutations: dict[int, NDArray[np.int64]] = {}

    sides: Sequence[str] = ("x",)

    def entities(self, side: str) -> range:
        """Those of the one side."""
        return range(self.samples)

    def named(self, step: int) -> NDArray[np.int64]:
        """None, [B, 0]."""
        return np.zeros((self.micro_batch_size, 0), np.int64)

    def draws(self, count: int, seed: int, side: str = "x") -> "EpochOrder":
        """Another order of the same samples, that of other batches, whatever their classes."""
        return EpochOrder(self.samples, count, seed, blocks=self._blocks, window=self.window)

    def batch(self, step: int, side: str | None = None) -> NDArray[np.int64]:
        """Indices of the step's micro-batch over all ranks, int64 [batch_size / parts]; none twice in an epoch."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.micro_batch_size
        return self._permutation(epoch)[start : start + self.micro_batch_size].copy()

    def newest(self, step: int, count: int) -> NDArray[np.int64]:
        """The samples visited last, up to `step` and at most an epoch before, int64 [count], the newest first.

        Fewer in the beginning, and where an epoch has no more.
        """
        steps = min(step + 1, self.steps_per_epoch, -(-2 * count // self.micro_batch_size))  # none more than twice
        visited = [self.batch(step - before)[::-1] for before in range(steps)]
        samples = np.concatenate([np.empty(0, np.int64), *visited])
        _, first = np.unique(samples, return_index=True)
        return samples[np.sort(first)][:count]

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._permutations:
            # Prefetching asks for the next epoch before this one is over, queues for the one before: the oldest goes.
            if len(self._permutations) == 3:
                del self._permutations[next(iter(self._permutations))]
            self._permutations[epoch] = self._draw(np.random.default_rng([self.seed, epoch]))
        return self._permutations[epoch]

    def _draw(self, rng: np.random.Generator) -> NDArray[np.int64]:
        if self._labels is not None:
            rows = _by_class(rng, self._labels, self._per_class)
            batches = rows[: self.steps_per_epoch * self.micro_batch_size].reshape(self.steps_per_epoch, -1)
            return rng.permutation(batches).flatten()
        if self._blocks is None:
            return rng.permutation(self.samples)
        order = rng.permutation(len(self._blocks))
        ends = np.cumsum(self._blocks)
        starts = ends - self._blocks
        rows = np.concatenate([np.arange(starts[block], ends[block]) for block in order])
        return rows[np.argsort(np.arange(self.samples) + rng.random(self.samples) * self.window)]


class PairOrder:
    """Pairs, step after step: queries in their own order, each with one of the documents that answer it.

    `queries` is the queries' order; `relevance` are rows of a query and of a document, int64 [R, 2], in order of both,
    with at least one of each query; `documents` is how many there are. `named` are such rows of documents that do not
    answer, [K, 2], of which each query of a batch brings `each`; a query with fewer named ones brings those.
    """

    sides: Sequence[str] = ("query", "document")

    def __init__(
        self,
        queries: EpochOrder,
        relevance: NDArray[np.int64],
        documents: int,
        named: NDArray[np.int64] | None = None,
        each: int = 0,
    ) -> None:
        self._queries, self._documents = queries, documents
        self.samples = queries.samples + documents
        self.micro_batch_size, self.steps_per_epoch = queries.micro_batch_size, queries.steps_per_epoch
        self._answers = relevance[:, 1]
        self._first = np.searchsorted(relevance[:, 0], np.arange(queries.samples + 1))
        self._each, self._named = each, np.zeros((0, 2), np.int64) if named is None else named
        self._first_named = np.searchsorted(self._named[:, 0], np.arange(queries.samples + 1))

    def entities(self, side: str) -> range:
        """Queries first, then documents."""
        return range(self._queries.samples) if side == "query" else range(self._queries.samples, self.samples)

    def batch(self, step: int, side: str | None = None) -> NDArray[np.int64]:
        """int64 [B]: queries, none twice in an epoch, or a document of each."""
        queries = self._queries.batch(step)
        if side != "document":
            return queries
        first, count = self._first[queries], self._first[queries + 1] - self._first[queries]
        shares = self._random(_ANSWERS, step).random(len(queries))
        return self._queries.samples + self._answers[first + (shares * count).astype(np.int64)]

    def named(self, step: int) -> NDArray[np.int64]:
        """int64 [B, n]: documents that are named as negatives of each query, n of each, -1 where there are fewer."""
        found = np.full((self.micro_batch_size, self._each), -1, np.int64)
        random = self._random(_NAMED, step)
        for slot, query in enumerate(self._queries.batch(step)):
            mine = self._named[self._first_named[query] : self._first_named[query + 1], 1]
            chosen = random.permutation(mine)[: self._each]
            found[slot, : len(chosen)] = self._queries.samples + chosen
        return found

    def draws(self, count: int, seed: int, side: str) -> Draws:
        """Entities of a side in an order of their own."""
        there = self.entities(side)
        # Else both sides would draw the same rows, which in a bijection are pairs.
        apart = (seed + self.sides.index(side)) % 2**63
        return _Shifted(EpochOrder(len(there), count, apart), there.start)

    def _random(self, purpose: int, step: int) -> np.random.Generator:
        # Epoch e is permuted by [seed, e], which [seed, e, 0] would be, too.
        return np.random.default_rng([purpose, step, self._queries.seed, 1])

    def newest(self, step: int, count: int) -> NDArray[np.int64]:
        """Of one side alone: no spec of pairs asks for them."""
        raise NotImplementedError


class _Shifted:
    """The entities of a side, by an order of its rows."""

    def __init__(self, order: EpochOrder, first: int) -> None:
        self._order, self._first = order, first

    def batch(self, step: int) -> NDArray[np.int64]:
        return self._first + self._order.batch(step)


_ANSWERS, _NAMED = 1, 2  # labels of random streams


def _by_class(rng: np.random.Generator, labels: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """All samples: what classes have left over, groups of `size` samples of one class, fewer than `size` more that are
    left over.
    """
    alone = labels.max(initial=-1) + 1 + np.arange(len(labels))
    labels = np.where(labels < 0, alone, labels)  # without a class is a class of one's own
    rows = rng.permutation(len(labels))
    rows = rows[labels[rows].argsort(kind="stable")]
    _, first, kind, count = np.unique(labels[rows], return_index=True, return_inverse=True, return_counts=True)
    group, place = np.divmod(np.arange(len(rows)) - first[kind], size)
    groups = (count // size)[kind]
    whole = group < groups
    heads = whole & (place == 0)
    when = (group[heads] + rng.random(heads.sum())) / groups[heads]
    grouped = rows[whole].reshape(-1, size)[when.argsort()].flatten()
    left = rows[~whole][rng.random(len(count))[kind[~whole]].argsort()]
    odd = len(left) // size * size
    return np.concatenate([left[:odd], grouped, left[odd:]])


def rank_slice(batch: NDArray[_Scalar], rank: int, workers: int) -> NDArray[_Scalar]:
    """The rank's contiguous share of a global batch, [n] -> [n / workers]. `workers` must divide n."""
    return batch.reshape(workers, -1)[rank]
