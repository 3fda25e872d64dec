"""All shards in this process: the store of a single worker, and the fake for every test that needs no cluster."""

from concurrent.futures import Future
from typing import Any

from emc2dist.core.columns import Schema
from emc2dist.errors import StoreError
from emc2dist.store.base import ShardedStore
from emc2dist.store.layout import Layout
from emc2dist.store.shard import Shard


class LocalStore(ShardedStore):
    """A `ChainStore` that computes each call at once. Not for several threads."""

    def __init__(self, layout: Layout, schema: Schema) -> None:
        super().__init__(layout, schema, timeout_s=0.0)  # nothing here ever waits
        self._shards = [Shard(schema, layout.rows(shard)) for shard in range(layout.shards)]

    def nodes(self) -> set[str]:
        """None but this process's own."""
        return set()

    def close(self) -> None:
        """Free the rows; the store cannot be used any more."""
        self._shards.clear()

    def _start(self, shard: int, method: str, *arguments: Any) -> "Future[Any]":
        # The outcome is known now, but an error belongs where a remote store would raise it: to whoever waits.
        outcome: Future[Any] = Future()
        if not self._shards:
            outcome.set_exception(StoreError("the store is closed"))
            return outcome
        try:
            outcome.set_result(getattr(self._shards[shard], method)(*arguments))
        except StoreError as error:
            outcome.set_exception(error)
        return outcome

    def _reply(self, shard: int, handle: "Future[Any]", timeout_s: float) -> Any:
        return handle.result()
