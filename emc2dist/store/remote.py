"""The store over one Ray actor per shard; the only file of the store that knows Ray.

A `RayStore` is a value: layout, schema and actor handles. It travels to the workers, for example in Ray Train's
`train_loop_config`, and every copy speaks to the same shards.

How the actors live (Ray 2.60):

- They belong to the process that called `create`: they outlive worker groups, and end with the job or with `close`.
- A shard that dies is restarted by Ray, empty and of no generation, so that it refuses calls (StaleGeneration) until it
  is restored. No call is ever retried by Ray (`max_task_retries=0`): an error may hide a call that was executed, and
  whether to send it again is for the caller to say.
- They take no CPU from the trainer (`num_cpus=0`): one call a step is all they serve. They are spread over the nodes.
- Their rows live on the actor's heap, where Ray does not see them; so their size is declared as `memory`, which keeps
  Ray from piling shards on one node. But a declaration that no node can meet is no error in Ray: calls wait for ever.
  So it is made only where the cluster, as it stands, has room for all shards by Ray's careful count (about 70% of what
  was free when Ray started); elsewhere a warning is logged and the rows, which take memory only when first written,
  have to fit.
- Each serves one call at a time, in order of arrival: that is what makes an exchange atomic.

W workers that call S shards each make W x S calls a step. Where a node has several workers, they exchange through an
actor on their node (`joined`), which makes one exchange of theirs: a step takes one call of each worker, and S of each
node. What they write in a step is one commit then, in the name of the first of their ranks. The actor belongs to the
worker that was first to ask for it, holds nothing beyond a step, and is lost as a shard is lost.
"""

import logging
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from typing_extensions import override

from emc2dist.core.columns import Schema
from emc2dist.errors import SpecError, StoreError, StoreTimeout
from emc2dist.store.base import Pending, ShardedStore
from emc2dist.store.layout import Layout
from emc2dist.store.shard import Commit, Read, Rows, Shard, Tables, nbytes
from emc2dist.terminal import brief

logger = logging.getLogger(__name__)


class RayStore(ShardedStore):
    """A `ChainStore` over actors made of `Shard`, the s-th of which holds `layout.rows(s)` rows."""

    def __init__(self, layout: Layout, schema: Schema, actors: Sequence[Any], timeout_s: float) -> None:
        if len(actors) != layout.shards:
            raise StoreError(f"{layout.shards} shards need as many actors, not {len(actors)}")
        super().__init__(layout, schema, timeout_s)
        self.actors = tuple(actors)
        self._closed = False

    @classmethod
    def create(
        cls,
        layout: Layout,
        schema: Schema,
        *,
        timeout_s: float,
        start_timeout_s: float = 300.0,
        memory: int | None = None,
        labels: dict[str, str] | None = None,
    ) -> "RayStore":
        """Start the actors and wait until all answer. They are of no generation yet: reset or restore them next.

        `timeout_s` bounds every later wait; `start_timeout_s` this one, in which a node may have to be added. `memory`
        is what a shard may take, bytes, and is set aside for it in any case; `labels` those of the nodes that may hold
        shards. Raises SpecError if the rows of a shard take more than `memory`, and StoreTimeout or StoreError if the
        actors do not come up, and leaves none behind.
        """
        options: dict[str, Any] = {
            "num_cpus": 0,
            "max_restarts": -1,
            "max_task_retries": 0,
            "scheduling_strategy": "SPREAD",
        }
        if labels:
            options["label_selector"] = labels
        if memory is not None:
            _check_memory(layout, schema, memory)
        options |= _memory(layout, schema) if memory is None else {"memory": memory}
        shard_class = ray.remote(_ShardActor).options(**options)
        actors = [shard_class.remote(schema, layout.rows(shard)) for shard in range(layout.shards)]
        store = cls(layout, schema, actors, timeout_s)
        try:
            store.wait_ready(start_timeout_s)
        except StoreError:
            store.close()
            raise
        return store

    def wait_ready(self, timeout_s: float | None = None) -> None:
        """Wait until every shard answers, in whatever generation it is; by default for the store's timeout."""
        self._call_all("stats", timeout_s=timeout_s)

    def nodes(self) -> set[str]:
        """Ids of the nodes that the shards are on."""
        return set(self._call_all("node"))

    def close(self) -> None:
        """Kill the actors, for all who hold this store. Through this object nothing reaches them any more."""
        self._closed = True  # Ray kills in its own time: an actor may still answer a call or two
        for actor in self.actors:
            ray.kill(actor)

    @override
    def joined(self, member: int, members: int, start_timeout_s: float) -> "RayStore":
        return _JoinedStore(self, member, members, start_timeout_s) if members > 1 else self

    def _start(self, shard: int, method: str, *arguments: Any) -> Any:
        if self._closed:
            raise StoreError(f"shard {shard} of {self.layout.shards}: the store is closed")
        return getattr(self.actors[shard], method).remote(*arguments)

    def _reply(self, shard: int, handle: Any, timeout_s: float) -> Any:
        where = f"shard {shard} of {self.layout.shards}"
        late = (
            f"{where} did not answer in time: its node is overloaded or cut off, or no node has room for it. "
            f"Raise store.timeout_s (now {self.timeout_s:g}) if it is only slow"
        )
        lost = (
            f"{where} was lost with all it remembered; the run resumes from its last checkpoint, to which all "
            "shards are restored"
        )
        return _outcome(handle, timeout_s, late, lost, f"{where}: ")


class _JoinedStore(RayStore):
    """A RayStore whose exchanges the workers of a node make together; all else goes to the shards as before."""

    def __init__(self, store: RayStore, member: int, members: int, start_timeout_s: float) -> None:
        super().__init__(store.layout, store.schema, store.actors, store.timeout_s)
        self._member, node = member, ray.get_runtime_context().get_node_id()
        options = {
            "name": f"exchange-{store.actors[0]._actor_id.hex()}-{node}",
            "get_if_exists": True,
            "num_cpus": 0,
            "max_concurrency": members,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
        }
        self._actor = ray.remote(_NodeExchange).options(**options).remote(store, members)
        self._outcome(self._actor.__ray_ready__.remote(), start_timeout_s, "resources.start_s")

    @override
    def exchange(self, generation: str, commit: Commit | None, read: Read, as_of: int) -> Pending:
        if self._closed:
            raise StoreError("the store is closed")
        handle = self._actor.exchange.remote(self._member, _Exchange(generation, commit, read, as_of))
        # The actor waits for the shards for as long as one worker would, and for the other workers before.
        return Pending(lambda: _own(self._outcome(handle, 2 * self.timeout_s, "store.timeout_s")))

    def _outcome(self, handle: Any, timeout_s: float, key: str) -> Any:
        where = "the actor by which this node's workers exchange"
        late = (
            f"{where} did not answer in {timeout_s:g} s: it, or another worker of the node, stands still. Raise "
            f"{key} if it is only slow"
        )
        return _outcome(handle, timeout_s, late, f"{where} was lost; the run resumes from its last checkpoint")


class _Exchange(NamedTuple):
    """What one worker has written and read."""

    generation: str
    commit: Commit | None
    read: Read
    as_of: int


class _NodeExchange:
    """The exchanges of a node's workers as one, which the last of them to come makes for all."""

    def __init__(self, store: RayStore, members: int) -> None:
        self._store = store
        self._exchanges = [_Exchange("", None, {}, -1)] * members
        self._outcome: list[Tables] | StoreError = []
        self._all_there = threading.Barrier(members, action=self._make)

    def exchange(self, member: int, exchange: _Exchange) -> Tables:
        """The member's reply; each is in a thread of its own. Nobody comes again before all have their replies."""
        self._exchanges[member] = exchange
        self._all_there.wait()
        if isinstance(self._outcome, StoreError):
            raise self._outcome
        return self._outcome[member]

    def _make(self) -> None:
        try:
            self._outcome = self._replies()
        except StoreError as error:  # for each of them, not for the last alone
            self._outcome = error

    def _replies(self) -> list[Tables]:
        asked = {(one.generation, one.as_of, one.commit and one.commit.step) for one in self._exchanges}
        if len(asked) > 1:
            raise StoreError(f"workers that exchange together differ in generation or step: {sorted(map(str, asked))}")
        generation, _, _, as_of = self._exchanges[0]
        reads = [one.read for one in self._exchanges]
        commits = [one.commit for one in self._exchanges if one.commit is not None]
        whole = {table: np.concatenate([read[table] for read in reads]) for table in reads[0]}
        reply = self._store.exchange(generation, _joined(commits) if commits else None, whole, as_of).result()
        replies: list[Tables] = [{} for _ in reads]
        for table, columns in reply.items():
            ends = np.cumsum([len(read[table]) for read in reads])
            for name, column in columns.items():
                for own, part in zip(replies, np.split(column, ends[:-1]), strict=True):
                    own.setdefault(table, {})[name] = part
        return replies


def _joined(commits: Sequence[Commit]) -> Commit:
    """One commit, in the name of the first rank, that writes what those of several ranks would write in their order."""
    ordered = sorted(commits, key=lambda commit: commit.rank)
    first = ordered[0]
    writes = {}
    for table, rows in first.writes.items():
        parts = [commit.writes[table] for commit in ordered]
        values = {name: np.concatenate([part.values[name] for part in parts]) for name in rows.values}
        writes[table] = Rows(np.concatenate([part.index for part in parts]), values)
    return Commit(first.step, first.rank, writes)


class _ShardActor(Shard):
    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()


def _outcome(handle: Any, timeout_s: float, late: str, lost: str, where: str = "") -> Any:
    """What a call of an actor gives. Raises StoreError: the actor's own, behind `where`, or that it is late or lost."""
    try:
        return ray.get(handle, timeout=timeout_s)
    except GetTimeoutError:
        raise StoreTimeout(late) from None
    except RayTaskError as error:
        if isinstance(error.cause, StoreError):
            raise type(error.cause)(f"{where}{error.cause}") from None
        raise
    except RayError as error:
        raise StoreError(f"{lost} ({type(error).__name__}: {brief(error)})") from error


def _own(tables: Tables) -> Tables:
    """The tables as copies: what lies in Ray's store cannot be written to."""
    return {table: {name: column.copy() for name, column in columns.items()} for table, columns in tables.items()}


def _check_memory(layout: Layout, schema: Schema, memory: int) -> None:
    size = nbytes(schema, layout.rows(0))
    if size > memory:
        raise SpecError(
            f"resources.shard_mib: a shard of {layout.rows(0)} rows takes {-(-size >> 20)} MiB, {memory >> 20} are set "
            f"aside for it; raise shard_mib or shards (now {layout.shards})"
        )


def _memory(layout: Layout, schema: Schema) -> dict[str, int]:
    size = max(1, nbytes(schema, layout.rows(0)))  # shard 0 is the largest, by one row at most
    nodes = [node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"]]
    places = sum(int(memory) // size for memory in nodes)
    free = ray.available_resources().get("memory", 0)
    if places >= layout.shards and free >= layout.shards * size:
        return {"memory": size}
    logger.warning(
        "the cluster has not declared room for %d shards of %d bytes each (%d bytes are free): they are placed without",
        layout.shards,
        size,
        free,
    )
    return {}
