"""One worker's side of the chain store: reads run ahead of the steps, writes follow behind.

In step t, once the step's features are gathered, one fused call per shard writes what step t-1 found out, reads the
cached features that step t+1 needs, and reads the chains of step t+2. It runs while step t computes. Two reads are
needed because a chain's state tells which feature to read.

What a read sees is fixed by step numbers, not by timing: call t reads *as of* step t-2, whose commits every rank had
acknowledged before the gather of step t (a barrier). So W workers remember what one worker remembers, at the price of
a state that is up to three steps old, which matters only to samples drawn twice within three steps, at the turn of
an epoch: each of their visits continues from an older visit, still a valid one.

At a checkpoint the pipeline is drained (`settle`) and filled again, in a run that goes on as in one that resumes;
that makes the two the same, bit for bit. In between, an unbroken run drains nowhere; so a checkpoint there takes all
writes but shows none of the last ones (`park`): filled again, the pipeline reads what it would have read.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emc2dist.config import Spec
from emc2dist.core.streams import seed_of
from emc2dist.data.sampler import EpochOrder, rank_slice
from emc2dist.store import ChainStore, Column, Commit, Pending, Rows, Schema, Tables

_CACHE_DRAW = 1  # label of the random stream that draws cache rows


def schema_for(spec: Spec) -> Schema:
    """What the objective remembers of each sample."""
    views = (spec.views.count,)
    if spec.objective == "sogclr":
        return {"chain": {"log_partition": Column("float32", views), "visited": Column("bool", views)}}
    if spec.objective != "emc2":
        return {}
    return {
        "chain": {
            "state": Column("int64", views),
            "visited": Column("bool", views),
            "visited_at": Column("int32", views),
        },
        "feature": {
            "feature": Column(spec.store.feature_dtype, (spec.encoder.features,)),
            "present": Column("bool", ()),
            "written_at": Column("int32", ()),
        },
    }


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


class Recall(NamedTuple):
    """What is remembered for one worker's A = V * b anchors in one step; anchor v * b + i."""

    chain: dict[str, Tensor]
    """The chain table's columns, each [A]."""
    carried: CachedRows | None
    """The cached features of the carried states, A rows (any content where not visited); None without a cache."""
    cache: CachedRows | None
    """The K rows drawn for this step, the same for all workers; None without a cache."""


class _Ahead(NamedTuple):
    """A read under way: features for `step`, chains for the step after it."""

    step: int
    reply: Pending
    carried: NDArray[np.bool_]
    """[b, V]: which anchors of `step` have a carried state, in the order in which their features were asked for."""
    draws: NDArray[np.int64]


class Memory:
    """Recalls and remembers, for one rank. Call `recall(t)`, `exchange(t)`, `remember(t)` in this order in step t."""

    def __init__(
        self, spec: Spec, store: ChainStore, order: EpochOrder, rank: int, generation: str, device: torch.device
    ) -> None:
        self.store, self.schema, self.generation = store, store.schema, generation
        self._spec, self._order, self._rank, self._device = spec, order, rank, device
        self._chains: dict[int, dict[str, NDArray]] = {}
        self._ahead: _Ahead | None = None
        self._commit: Commit | None = None
        self._settled = -1

    def start(self, step: int, settled: int) -> None:
        """Fill the pipeline for a run whose next step is `step`; the store has all before it, and shows `settled`."""
        self._commit, self._settled = None, settled
        self._chains = {}
        for ahead in (step, step + 1):
            if "chain" in self.schema:
                read = {"chain": self._samples(ahead)}
                reply = self.store.exchange(self.generation, None, read, self._settled).result()
                self._chains[ahead] = reply["chain"]
        self._ahead = self._read(step, chains_of=None, as_of=self._settled)

    def recall(self, step: int) -> Recall:
        """What step `step` needs; waits for the read that was sent ahead."""
        ahead = self._ahead
        assert ahead is not None, "start comes first"
        assert ahead.step == step, "recall goes step by step"
        reply = ahead.reply.result()
        if "chain" in reply:
            self._chains[step + 1] = reply["chain"]
        chain = {name: self._by_anchor(column) for name, column in self._chains.get(step, {}).items()}
        return Recall(chain, *self._cached(reply, ahead))

    def exchange(self, step: int) -> None:
        """Send the last step's commit and the next step's read; after the gather of step `step`."""
        as_of = max(step - 2, self._settled)
        self._chains.pop(step, None)
        self._ahead = self._read(step + 1, chains_of=step + 2, as_of=as_of)

    def remember(self, step: int, writes: dict[str, Rows]) -> None:
        """Keep what step `step` found out, to be sent with the next exchange."""
        self._commit = Commit(step, self._rank, writes) if writes else None

    def settle(self, step: int) -> int:
        """Send what is still unsent after step `step`, which the store can show after a barrier; returns that step."""
        self.park(step)
        return step

    def may_park(self, step: int) -> bool:
        """Whether `park(step)` would lose nothing: no sample of the next step was visited since its chain was read."""
        earliest = step - 2
        return earliest <= self._settled or self._order.epoch(earliest) == self._order.epoch(step + 1)

    def park(self, step: int) -> int:
        """Send what is still unsent after step `step`; returns the earlier step that the store must go on showing."""
        if self._ahead is not None:
            self._ahead.reply.result()
        # Not later: another rank's commit of step - 1 may still be on its way.
        as_of = max(step - 2, self._settled)
        self.store.exchange(self.generation, self._commit, {}, as_of).result()
        self._commit, self._ahead = None, None
        return as_of

    def _read(self, step: int, chains_of: int | None, as_of: int) -> _Ahead:
        """Send the commit; read the features of `step` (its chains are at hand) and the chains of a later step."""
        read: dict[str, NDArray[np.int64]] = {}
        if chains_of is not None and "chain" in self.schema:
            read["chain"] = self._samples(chains_of)
        carried, draws = np.zeros((0, 0), bool), np.zeros(0, np.int64)
        if "feature" in self.schema:
            carried, draws = self._chains[step]["visited"], self._draw(step)
            read["feature"] = np.concatenate([self._chains[step]["state"][carried], draws])
        commit, self._commit = self._commit, None
        return _Ahead(step, self.store.exchange(self.generation, commit, read, as_of), carried, draws)

    def _samples(self, step: int) -> NDArray[np.int64]:
        return rank_slice(self._order.batch(step), self._rank, self._spec.workers)

    def _draw(self, step: int) -> NDArray[np.int64]:
        """K samples, uniform without repeats; those that hold no feature yet are told apart by `present`."""
        count = min(self._spec.cache_proposals, self._order.samples)
        generator = np.random.default_rng(seed_of(self._spec.seed, _CACHE_DRAW, step))
        return generator.choice(self._order.samples, count, replace=False, shuffle=False).astype(np.int64)

    def _cached(self, reply: Tables, ahead: _Ahead) -> tuple[CachedRows | None, CachedRows | None]:
        if "feature" not in self.schema:
            return None, None
        asked = int(ahead.carried.sum())
        columns = reply["feature"]
        rows = {name: np.zeros((*ahead.carried.shape, *v.shape[1:]), v.dtype) for name, v in columns.items()}
        for name, values in columns.items():
            rows[name][ahead.carried] = values[:asked]
        state = self._by_anchor(self._chains[ahead.step]["state"])
        carried = CachedRows(state, *(self._by_anchor(rows[name]) for name in ("feature", "present", "written_at")))
        drawn = {name: self._tensor(values[asked:]) for name, values in columns.items()}
        cache = CachedRows(self._tensor(ahead.draws), drawn["feature"], drawn["present"], drawn["written_at"])
        return carried, cache

    def _by_anchor(self, column: NDArray) -> Tensor:
        """[b, V, ...] by sample -> [V * b, ...] by anchor."""
        return self._tensor(np.ascontiguousarray(column.swapaxes(0, 1)).reshape(-1, *column.shape[2:]))

    def _tensor(self, column: NDArray) -> Tensor:
        column = column.astype(np.int64) if column.dtype == np.int32 else column
        return torch.from_numpy(np.ascontiguousarray(column)).to(self._device)
