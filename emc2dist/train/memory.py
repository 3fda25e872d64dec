"""One worker's side of the chain store: reads run ahead of the steps, writes follow behind.

In step t, once the step's features are gathered, one fused call per shard writes what step t-1 found out, reads the
cached features that step t+1 needs, and reads the chains of step t+2. It runs while step t computes. Two reads are
needed because a chain's state tells which feature to read. Rows that all ranks need are read once: each rank reads its
part of them, and the ranks gather the whole on their devices.

All that has to do with the call is a thread's of its own: waiting for what step t-1 found out, building arguments,
sending, waiting for the replies. The step's own thread, which gives the GPU its work, meets an error of it where it
needs the reply, in step t+1.

What a step finds out leaves the device as one copy, and the thread waits for it only to send it, in the next step; what
is recalled comes to the device as one. With the findings come flags of the features that are not finite, so a run that
has diverged stops before anything of that step is sent.

What a read sees is fixed by step numbers, not by timing: call t reads *as of* step t-2, whose commits every rank had
acknowledged before the gather of step t (a barrier). So W workers remember what one worker remembers, at the price of
rows that are up to three steps old. An anchor's own is not: it comes once an epoch, and then the pipeline is drained.

At the end of an epoch the pipeline is drained (`settle`) and filled again, in a run that goes on as in one that resumes
from a checkpoint there; that makes the two the same, bit for bit. Within one, an unbroken run drains nowhere; so a
checkpoint there takes all writes but shows none of the last ones (`park`): filled again, the pipeline reads what it
would have read.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emc2dist.config import Spec
from emc2dist.core.columns import Schema
from emc2dist.core.contrast import contrast_for
from emc2dist.core.estimators import FEATURES, CachedRows, Recall
from emc2dist.core.objectives import OBJECTIVE
from emc2dist.core.streams import seed_of
from emc2dist.core.transfer import Departure, to_device
from emc2dist.data.sampler import Order, rank_slice
from emc2dist.store import ChainStore, Commit, Read, Rows, Tables
from emc2dist.train import collectives
from emc2dist.train.finite import Finite

_CACHE_PROPOSALS, _SUPPORT = 1, 5  # labels of the random streams that draw them
_BEHIND = 3  # steps before the one that reads: the newest features that it may see


def schema_for(spec: Spec) -> Schema:
    """What a run of `spec` remembers of each sample."""
    return contrast_for(spec).tables(spec.views.count, spec.encoder.features)


@dataclass(frozen=True)
class Encoded:
    """Samples with a feature of this step, to be cached."""

    index: Tensor
    """int64 [n], on the CPU; of a sample that comes twice the last one counts."""
    features: Tensor
    """[n, D]"""
    slot: Tensor
    """int64 [n], on the CPU: in which of the step's 2V slots each view was drawn, see `emc2dist.core.batch`."""


@dataclass(frozen=True)
class _Reply:
    """What a read ahead has brought, on the CPU."""

    rows: Tables
    """The columns by anchor of the step after the one that was read for; none at the start."""
    carried: Mapping[str, CachedRows]
    """For each table of chains, the cached features of what the anchors carry."""
    proposals: NDArray[np.int64]
    """[K], the samples of the denominators' cached rows."""
    support: NDArray[np.int64]
    """[S], the samples of the objective's own."""
    part: Mapping[str, NDArray]
    """The cached features of the ones and then the others, this rank's part of them."""


@dataclass(frozen=True)
class _Ahead:
    """A read under way: features for `step`, and the columns by anchor of the step after it."""

    step: int
    reply: Future[_Reply]


@dataclass(frozen=True)
class _Found:
    """What a step found out, on its way to the host."""

    step: int
    rank: int
    own: Mapping[str, NDArray[np.int64]]
    """Of each table by anchor the rank's samples, [b]."""
    columns: Mapping[str, Sequence[str]]
    """The names of the columns by anchor that came from each table, in the order in which they left."""
    cached: NDArray[np.int64] | None
    """[n], the samples whose features are cached; None without a cache."""
    slot: NDArray[np.int64]
    """[n], the slots of their views."""
    finite: Sequence[Finite]
    departure: Departure
    """The columns, by sample; then the features that are cached, if any are; then the flags."""

    @cached_property
    def commit(self) -> Commit | None:
        """All of it, None if it is nothing; waits for a GPU. Raises NonFiniteError where a feature is not finite."""
        arrays = iter(self.departure.arrays())
        writes = {
            table: Rows(self.own[table], {name: next(arrays) for name in names})
            for table, names in self.columns.items()
        }
        if self.cached is not None:
            writes[FEATURES] = _features(self.step, self.cached, self.slot, next(arrays))
        for finite in self.finite:
            finite.check(self.step, next(arrays))
        return Commit(self.step, self.rank, writes) if writes else None


class Memory:
    """Recalls and remembers, for one rank. Call `recall(t)`, `exchange(t)`, `remember(t)` in this order in step t.

    What it gives and takes is by anchor, [A] tensors on the worker's device; the store keeps numpy rows by sample.
    """

    def __init__(
        self, spec: Spec, store: ChainStore, order: Order, rank: int, generation: str, device: torch.device
    ) -> None:
        self.store, self.schema, self.generation = store, store.schema, generation
        self._spec, self._order, self._rank, self._device = spec, order, rank, device
        contrast = contrast_for(spec)
        self._estimator, self._support = contrast.estimator, contrast.objective.support
        self._keys = {what.name: what.keys for what in contrast.denominators}
        """The side of each denominator's candidates."""
        anchors = {what.name: what.anchors for what in contrast.denominators}
        self._by_anchor = {table: anchors.get(table, order.sides[0]) for table in self.schema if table != FEATURES}
        """The tables by anchor, each with the anchors' side."""
        self._chains = [table for table in self._by_anchor if "state" in self.schema[table]]
        self._read_ahead: dict[int, Tables] = {}
        """By step: the rows of its own samples, of all tables by anchor."""
        self._ahead: _Ahead | None = None
        self._found: _Found | None = None
        self._settled = -1
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")

    def close(self) -> None:
        """End the thread that calls the store, once it has no call under way; does not wait for that."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def start(self, step: int, settled: int) -> None:
        """Fill the pipeline for a run whose next step is `step`; the store has all before it, and shows `settled`.

        Every rank calls it, and waits for the others, who may still be writing a checkpoint: the store's patience with
        workers that exchange together is short.
        """
        collectives.barrier()
        self._found, self._settled = None, settled
        self._read_ahead = {}
        for ahead in (step, step + 1):
            read = self._anchors_of(ahead)
            self._read_ahead[ahead] = self.store.exchange(self.generation, None, read, self._settled).result()
        self._ahead = self._read(step, ahead=None, as_of=self._settled)

    def recall(self, step: int) -> dict[str, Recall]:
        """What step `step` needs, by table, on the device and on the CPU; waits for the read that was sent ahead.

        Every rank calls it. Raises what went wrong in the call: NonFiniteError where a feature of the step before the
        last is not finite, and StoreError.
        """
        ahead = self._ahead
        assert ahead is not None, "start comes first"
        assert ahead.step == step, "recall goes step by step"
        reply = ahead.reply.result()
        if reply.rows:
            self._read_ahead[step + 1] = reply.rows
        columns = self.remembered(step)
        return self._on_device({table: Recall(columns[table], reply.carried.get(table)) for table in columns}, reply)

    def remembered(self, step: int) -> dict[str, dict[str, Tensor]]:
        """The columns of step `step`, by table and by anchor, on the CPU; of the step at hand and of the next one."""
        rows = self._read_ahead.get(step, {})
        return {table: {name: self._anchors(v) for name, v in columns.items()} for table, columns in rows.items()}

    def features(self, step: int, entities: range) -> CachedRows:
        """The cached features of such entities as step `step` may see them, the same on all ranks; waits for them.

        To be asked between the gather of step `step` and `exchange(step)`, by every rank. Needs a cache, and as many
        rows of room.
        """
        index = np.arange(entities.start, entities.stop)
        read = {FEATURES: self._part(index)}
        part = self.store.exchange(self.generation, None, read, self._as_of(step)).result()[FEATURES]
        on_device = to_device([_tensor(index), *map(_tensor, part.values())], self._device)
        return _whole(on_device[0], dict(zip(part, on_device[1:], strict=True)))

    def exchange(self, step: int) -> None:
        """Have the last step's commit and the next step's read sent; after the gather of step `step`.

        Nothing is sent where a feature of the last step is not finite, which the next `recall` raises.
        """
        self._read_ahead.pop(step, None)
        self._ahead = self._read(step + 1, ahead=step + 2, as_of=self._as_of(step))

    def remember(
        self,
        step: int,
        columns: Mapping[str, Mapping[str, Tensor]],
        encoded: Encoded,
        finite: Sequence[Finite] = (),
    ) -> None:
        """Keep what step `step` found out, to be sent with the next exchange: columns by anchor [A], and features.

        Of nothing that is not `finite` is anything sent.
        """
        leaving = [self._samples_of(column) for named in columns.values() for column in named.values()]
        if FEATURES in self.schema:
            leaving.append(encoded.features.to(getattr(torch, self.schema[FEATURES]["feature"].dtype)))
        leaving += [one.rows for one in finite]
        names = {table: list(named) for table, named in columns.items()}
        cached = encoded.index.numpy() if FEATURES in self.schema else None
        parts = (names, cached, encoded.slot.numpy(), finite, Departure(leaving))
        self._found = _Found(step, self._rank, self._anchors_of(step), *parts)

    def confirm(self) -> None:
        """Wait for what the last step found out, and for the call under way.

        Raises NonFiniteError where a feature is not finite, of which nothing will be sent, and StoreError.
        """
        if self._ahead is not None:
            self._ahead.reply.result()  # an error of it belongs to an earlier step
        if self._found is not None:
            _ = self._found.commit

    def settle(self, step: int) -> int:
        """Send what is still unsent after step `step`, which the store can show after a barrier; returns that step."""
        self.park(step)
        return step

    def park(self, step: int) -> int:
        """Send what is still unsent after step `step`; returns the earlier step that the store must go on showing.

        Raises NonFiniteError instead where a feature of that step is not finite.
        """
        self.confirm()
        commit = None if self._found is None else self._found.commit
        # Not later: another rank's commit of step - 1 may still be on its way.
        as_of = self._as_of(step)
        self.store.exchange(self.generation, commit, {}, as_of).result()
        self._found, self._ahead = None, None
        return as_of

    def _as_of(self, step: int) -> int:
        """The step that a read in step `step` sees."""
        return max(step - 2, self._settled)

    def _read(self, step: int, ahead: int | None, as_of: int) -> _Ahead:
        """Send the commit; read the features of `step` (its chains are at hand) and the chains of a later step."""
        found, self._found = self._found, None
        read = {} if ahead is None else self._anchors_of(ahead)
        rows = self._read_ahead.get(step, {})
        newest = None
        if self._estimator.newest:  # here: the order is no thread's but this one's
            newest = self._order.newest(step - _BEHIND, self._estimator.cache_proposals)
        return _Ahead(step, self._thread.submit(self._call, step, found, rows, read, as_of, newest))

    def _call(
        self,
        step: int,
        found: _Found | None,
        rows: Tables,
        read: Read,
        as_of: int,
        newest: NDArray[np.int64] | None,
    ) -> _Reply:
        """In the thread: send what was found, read `read` and the features of `step`, of whose anchors are `rows`.

        Cached rows are the `newest`, where there are any, else drawn.
        """
        commit = None if found is None else found.commit
        visited = {table: rows[table]["visited"] for table in self._chains}
        proposals = self._propose(step) if newest is None else newest
        support = self._uniform(_SUPPORT, self._support, step)
        if FEATURES in self.schema:
            states = [rows[table]["state"][carries] for table, carries in visited.items()]
            both = np.concatenate([proposals, support])
            read = {**read, FEATURES: np.concatenate([*states, self._part(both)])}
        reply = self.store.exchange(self.generation, commit, read, as_of).result()
        columns = reply.pop(FEATURES, {})
        carried, first = {}, 0
        for table, carries in visited.items():
            last = first + int(carries.sum())
            asked = {name: values[first:last] for name, values in columns.items()}
            carried[table] = self._carried(rows[table]["state"], carries, asked)
            first = last
        return _Reply(reply, carried, proposals, support, {name: values[first:] for name, values in columns.items()})

    def _part(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """[ceil(n / W)]: this rank's of samples [n] that all ranks need; the last ones go on with the first samples."""
        workers = self._spec.workers
        return rank_slice(np.resize(index, -(-len(index) // workers) * workers), self._rank, workers)

    def _anchors_of(self, step: int) -> dict[str, NDArray[np.int64]]:
        """[b], this rank's samples whose anchors a table has, by table."""
        own = {
            side: rank_slice(self._order.batch(step, side), self._rank, self._spec.workers)
            for side in set(self._by_anchor.values())
        }
        return {table: own[side] for table, side in self._by_anchor.items()}

    def _propose(self, step: int) -> NDArray[np.int64]:
        return self._uniform(_CACHE_PROPOSALS, self._estimator.cache_proposals, step)

    def _uniform(self, purpose: int, count: int, step: int) -> NDArray[np.int64]:
        """So many candidates, at most all, without repeats; those that hold no feature are told apart by `present`."""
        generator = np.random.default_rng(seed_of(self._spec.seed, purpose, step))
        there = self._order.entities(next(iter(self._keys.values()), self._order.sides[0]))
        drawn = generator.choice(len(there), min(count, len(there)), replace=False, shuffle=False)
        return there.start + drawn.astype(np.int64)

    def _carried(
        self, state: NDArray[np.int64], visited: NDArray[np.bool_], asked: Mapping[str, NDArray]
    ) -> CachedRows:
        """Rows of all anchors, where only those that carry a state were asked for."""
        rows = {name: np.zeros((*visited.shape, *values.shape[1:]), values.dtype) for name, values in asked.items()}
        for name, values in asked.items():
            rows[name][visited] = values
        return CachedRows(self._anchors(state), **{name: self._anchors(values) for name, values in rows.items()})

    def _samples_of(self, values: Tensor) -> Tensor:
        """[V * b, ...] by anchor -> [b, V, ...] by sample."""
        return values.unflatten(0, (self._spec.views.count, -1)).transpose(0, 1)

    def _anchors(self, column: NDArray) -> Tensor:
        """[b, V, ...] by sample -> [V * b, ...] by anchor, on the CPU."""
        return _tensor(column.swapaxes(0, 1)).flatten(0, 1)

    def _on_device(self, recalls: Mapping[str, Recall], reply: _Reply) -> dict[str, Recall]:
        """The recalls, on the CPU, as they are on the device, with the proposals of all ranks; sent as one copy."""
        tensors = [tensor for recall in recalls.values() for tensor in recall.tensors]
        if FEATURES in self.schema:
            index = np.concatenate([reply.proposals, reply.support])
            tensors += [_tensor(index), *map(_tensor, reply.part.values())]
        sent = iter(to_device(tensors, self._device))
        found = {table: recall.map(lambda _: next(sent))._replace(host=recall) for table, recall in recalls.items()}
        if FEATURES not in self.schema:
            return found
        rows, count = _whole(next(sent), dict(zip(reply.part, sent, strict=True))), len(reply.proposals)
        given = dict.fromkeys(self._keys, rows.map(lambda column: column[:count]))
        if self._support:
            given[OBJECTIVE] = rows.map(lambda column: column[count:])
        return found | {table: found.get(table, Recall({}))._replace(proposed=some) for table, some in given.items()}


def _whole(index: Tensor, part: Mapping[str, Tensor]) -> CachedRows:
    """Cached features of samples [n] that all ranks need, where each rank has its part of them, on the device."""
    return CachedRows(index, **{name: collectives.gather_rows(column)[: len(index)] for name, column in part.items()})


def _tensor(column: NDArray) -> Tensor:
    """On the CPU; steps as int64, which numbers of views are reckoned with."""
    column = column.astype(np.int64) if column.dtype == np.int32 else column
    return torch.from_numpy(np.ascontiguousarray(column))


def _features(step: int, index: NDArray[np.int64], slot: NDArray[np.int64], features: NDArray) -> Rows:
    columns = {
        "feature": features,
        "present": np.ones(len(index), bool),
        "written_at": np.full(len(index), step, np.int32),
        "slot": slot.astype(np.int32),
    }
    return Rows(index, columns)
