"""Elasticity: a run moves when a node is about to be taken away, and grows when nodes come."""

from collections.abc import Callable, Collection
from time import monotonic

from emc2dist.config import Spec
from emc2dist.errors import StoreError
from emc2dist.run import cluster

INTERVAL_S = 2.0


class NodeMonitor:
    """A look at the cluster, every few seconds at most: should an attempt's workers be elsewhere, or more?

    `spec.workers` are those that the attempt has, `most` those that it may have; `workers` and `shards` give the ids of
    the nodes that these are on, `avoid` those of nodes that are not to have workers.
    """

    def __init__(
        self,
        spec: Spec,
        most: int,
        workers: Callable[[], set[str]],
        shards: Callable[[], set[str]],
        avoid: Collection[str] = (),
    ) -> None:
        self._spec, self._most, self._workers, self._shards = spec, most, workers, shards
        self._avoid = avoid
        self._looked = monotonic()

    def reason_to_move(self) -> str | None:
        """A reason why the workers should write a checkpoint and start again; None where there is none."""
        if monotonic() - self._looked < INTERVAL_S:
            return None
        self._looked = monotonic()
        if self._leaving():
            return "a node is about to be taken away: a checkpoint is written, and the run goes on without that node"
        larger = self._larger()
        if larger:
            return f"there is room for {larger} workers: a checkpoint is written, and the run goes on with them"
        return None

    def _leaving(self) -> bool:
        leaving = cluster.draining()
        try:
            return bool(leaving) and bool(leaving & (self._workers() | self._shards()))
        except StoreError:  # a shard was lost just now, and the workers will end by that
            return False

    def _larger(self) -> int | None:
        workers = self._spec.workers
        if workers == self._most or not self._workers():  # before they are there, their own places are free
            return None
        possible = self._spec.model_copy(update={"workers": self._most}).fitting(
            workers + cluster.free_places(self._spec, self._avoid)
        )
        return possible if possible is not None and possible > workers else None
