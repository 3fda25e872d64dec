"""The store as the trainer sees it, and the sharding that every store shares.

`ChainStore` is the contract. `ShardedStore` implements it once, over a seam of two methods: start a call on a shard,
wait for its reply. `LocalStore` and `RayStore` fill in the seam and differ in nothing else: same results, same errors,
and an error of a shard comes out of `Pending.result()` in both.

**A shard that has nothing to write or read in an exchange is not called**, so it does not learn of `as_of`. That is
harmless: commits wait at the shard that they concern, and whichever call comes next applies all that are due in the
order of (step, rank), so the rows are the same as if the shard had been called each time. It only forgets less: it can
still answer as of an earlier step, and still take a commit that another shard would call late, in both cases exactly,
because nobody has read it past that step.

An exchange that failed on one shard may have been taken by the others. Send it again (a commit counts once), or roll
all shards back together with `restore`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol

import numpy as np
from typing_extensions import override

from emc2dist.core.columns import Schema
from emc2dist.errors import StoreError
from emc2dist.store.layout import Layout, Part
from emc2dist.store.shard import (
    Commit,
    Read,
    Rows,
    ShardStats,
    Tables,
    check_writes,
    columns_of,
)


@dataclass(frozen=True)
class Pending:
    """An exchange under way."""

    result: Callable[[], Tables]
    """Wait for the reply: each column of each table read, [n, *shape], in the order asked; the caller's own arrays.

    Raises StaleGeneration, StoreTimeout, or StoreError, as `ChainStore.exchange` says.
    """


class ChainStore(Protocol):
    """Dataset-wide memory: the tables of a schema, one row per sample, as of a step. See `shard` for the semantics.

    One caller at a time resets or restores a shard; anybody may exchange. Every method that waits raises StoreTimeout
    after the store's timeout, and StoreError when a shard was lost.
    """

    layout: Layout
    schema: Schema

    def exchange(self, generation: str, commit: Commit | None, read: Read, as_of: int) -> Pending:
        """Start writing a commit and reading samples as of a step; `commit` and `read` carry dataset-wide indices.

        Raises StoreError at once if they do not fit the schema or the dataset, and sends nothing. `result()` raises
        StaleGeneration if a shard serves another generation, StoreError if its rows have gone past `as_of`.
        """

    def resend(self, generation: str, commits: Sequence[Commit], as_of: int) -> None:
        """Write commits that a snapshot as of a step does not show, whoever's they are; one caller does it for all."""

    def joined(self, member: int, members: int, start_timeout_s: float) -> "ChainStore":
        """This store for one, counted from 0, of so many workers of this node, all of whom ask for it.

        They may then make their exchanges together. So each of them has to exchange as often as the others, as of the
        same steps, and waits for the last of them. Raises StoreError where what joins them does not start.
        """

    def reset(self, generation: str) -> None:
        """Zero all shards and have them serve `generation`."""

    def snapshot(self, generation: str, shard: int, as_of: int, start: int = 0, stop: int | None = None) -> Tables:
        """Rows `start` to `stop` of one shard, by default all, as of a step. May be read-only.

        Ranks can save different shards at once; and a shard in pieces, so that it is never in memory twice.
        """

    def pending(self, generation: str, shard: int) -> list[Commit]:
        """One shard's share of the commits that its rows do not show yet, in the order of (step, rank)."""

    def restore(
        self, generation: str, step: int, shard: int, tables: Tables, start: int = 0, stop: int | None = None
    ) -> None:
        """Give one shard a snapshot made as of `step` and have it serve `generation`; StoreError if it does not fit.

        It may be given in pieces, rows `start` to `stop`, in the order of rows; it serves when the last one is there.
        """

    def stats(self) -> list[ShardStats]:
        """What each shard says of itself, in the order of shards."""

    def survey(self, timeout_s: float) -> list[ShardStats | None]:
        """The same, with None for a shard that is lost or does not answer in so many seconds."""

    def nodes(self) -> set[str]:
        """Ids of the nodes that the shards are on, where these are not this process's own."""

    def close(self) -> None:
        """Let go of all shards and what they remember."""


class ShardedStore(ChainStore, ABC):
    """A `ChainStore` over shards that are reached through `_start` and `_reply`."""

    def __init__(self, layout: Layout, schema: Schema, timeout_s: float) -> None:
        self.layout = layout
        self.schema = schema
        self.timeout_s = timeout_s

    @abstractmethod
    def _start(self, shard: int, method: str, *arguments: Any) -> Any:
        """Call a method of `Shard` and return a handle at once; calls from here reach a shard in this order."""

    @abstractmethod
    def _reply(self, shard: int, handle: Any, timeout_s: float) -> Any:
        """Wait for the result of a call, or raise the StoreError it ended in."""

    @abstractmethod
    def close(self) -> None:
        """Let go of all shards and what they remember."""

    @override
    def exchange(self, generation: str, commit: Commit | None, read: Read, as_of: int) -> Pending:
        commits = {} if commit is None else self._split_commit(commit)
        reads = self._split_read(read)
        handles = {}
        for shard in sorted(commits.keys() | reads.keys()):
            rows = {table: part.rows for table, part in reads.get(shard, {}).items()}
            handles[shard] = self._start(shard, "exchange", generation, commits.get(shard), rows, as_of)
        sizes = {table: len(index) for table, index in read.items()}
        return Pending(lambda: self._merge(sizes, reads, self._replies(handles)))

    @override
    def resend(self, generation: str, commits: Sequence[Commit], as_of: int) -> None:
        for commit in commits:
            ShardedStore.exchange(self, generation, commit, {}, as_of).result()  # not joined with anybody's

    @override
    def joined(self, member: int, members: int, start_timeout_s: float) -> ChainStore:
        return self

    @override
    def reset(self, generation: str) -> None:
        self._call_all("reset", generation)

    @override
    def snapshot(self, generation: str, shard: int, as_of: int, start: int = 0, stop: int | None = None) -> Tables:
        return self._call(shard, "snapshot", generation, as_of, start, stop)

    @override
    def pending(self, generation: str, shard: int) -> list[Commit]:
        return [
            Commit(
                commit.step,
                commit.rank,
                {
                    table: Rows(self.layout.sample(shard, write.index), write.values)
                    for table, write in commit.writes.items()
                },
            )
            for commit in self._call(shard, "pending", generation)
        ]

    @override
    def restore(
        self, generation: str, step: int, shard: int, tables: Tables, start: int = 0, stop: int | None = None
    ) -> None:
        self._call(shard, "restore", generation, step, tables, start, stop)

    @override
    def stats(self) -> list[ShardStats]:
        return self._call_all("stats")

    @override
    def survey(self, timeout_s: float) -> list[ShardStats | None]:
        deadline = monotonic() + timeout_s
        handles = [self._start(shard, "stats") for shard in range(self.layout.shards)]
        return [
            self._stats_or_none(shard, handle, max(0.0, deadline - monotonic())) for shard, handle in enumerate(handles)
        ]

    def _stats_or_none(self, shard: int, handle: Any, timeout_s: float) -> ShardStats | None:
        try:
            return self._reply(shard, handle, timeout_s)
        except StoreError:
            return None

    def _split_commit(self, commit: Commit) -> dict[int, Commit]:
        # All of it is checked before any of it is sent, so that no shard takes what another one refuses.
        check_writes(self.schema, commit.writes)
        shares: dict[int, dict[str, Rows]] = {}
        for table, write in commit.writes.items():
            for part in self.layout.split(write.index):
                # Indexing copies: the shard may keep its share while the caller goes on using the arrays.
                values = {name: value[part.positions] for name, value in write.values.items()}
                shares.setdefault(part.shard, {})[table] = Rows(part.rows, values)
        return {shard: Commit(commit.step, commit.rank, writes) for shard, writes in shares.items()}

    def _split_read(self, read: Read) -> dict[int, dict[str, Part]]:
        parts: dict[int, dict[str, Part]] = {}
        for table, index in read.items():
            columns_of(self.schema, table)
            for part in self.layout.split(index):
                parts.setdefault(part.shard, {})[table] = part
        return parts

    def _merge(self, sizes: dict[str, int], reads: dict[int, dict[str, Part]], replies: dict[int, Tables]) -> Tables:
        merged: Tables = {
            table: {name: np.empty((size, *column.shape), column.dtype) for name, column in self.schema[table].items()}
            for table, size in sizes.items()
        }
        for shard, parts in reads.items():
            for table, part in parts.items():
                for name, column in merged[table].items():
                    column[part.positions] = replies[shard][table][name]
        return merged

    def _replies(self, handles: dict[int, Any], timeout_s: float | None = None) -> dict[int, Any]:
        # One deadline for all, waited for one by one, so that an error can name its shard.
        deadline = monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        return {
            shard: self._reply(shard, handle, max(0.0, deadline - monotonic())) for shard, handle in handles.items()
        }

    def _call(self, shard: int, method: str, *arguments: Any) -> Any:
        self.layout.check_shard(shard)
        return self._replies({shard: self._start(shard, method, *arguments)})[shard]

    def _call_all(self, method: str, *arguments: Any, timeout_s: float | None = None) -> list[Any]:
        handles = {shard: self._start(shard, method, *arguments) for shard in range(self.layout.shards)}
        return list(self._replies(handles, timeout_s).values())
