"""What do a step's calls to the store take of a worker, of its node and of the shards?

    python -m benchmarks.calls [--workers 64] [--node 8] [--shards 36] [--batch 16384] [--proposals 512] [--steps 15]

A Ray of this machine holds all the shards, and one process the workers of one node out of many. Each has the Memory of
a real run, which recalls, exchanges and remembers step after step; no encoder, no views. Every chain carries something.
The other nodes' workers are not there, and a gather between workers gives each its own part. Four ways take turns:

    as it was   every worker reads all cache proposals, and calls every shard from the thread of the step
    parts       every worker reads its part of them (what the gather then moves is told beside)
    thread      the store is called by a thread of its own
    together    the workers of the node exchange through one actor, which calls every shard once

Calls are counted by the shards, rows and bytes by what Memory sends and gets. Milliseconds are of CPU, by the clocks of
threads and processes: on a busy machine they say what the work costs, and not how long others kept it waiting. Medians
over rounds, with the quartiles; a ratio compares the same rounds. docs/scale.md holds the output and what follows.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from statistics import median, quantiles
from threading import current_thread, main_thread
from typing import Any
from unittest import mock

import numpy as np
import torch

from emc2dist.run.cluster import connected  # before ray: sets its defaults

import ray  # isort: skip

from emc2dist.config import Spec, parse
from emc2dist.core.estimators import FEATURES
from emc2dist.data.sampler import EpochOrder, rank_slice
from emc2dist.store import ChainStore, Commit, Layout, Pending, Read, Rows, Tables, nbytes
from emc2dist.store.remote import RayStore
from emc2dist.train import memory
from emc2dist.train.memory import Encoded, Memory, schema_for

SAMPLES, ROUNDS, MIB, CPU = 1_000_000, 5, 2**20, torch.device("cpu")
WAYS = ("as it was", "parts", "thread", "together")
DEFAULTS = {"workers": 64, "node": 8, "shards": 36, "batch": 16_384, "proposals": 512, "steps": 15}
DIGITS = {"calls": 0, "rows": 0, "MiB": 2}


class InThisThread:
    """For the store's thread: what it is to do is done before `submit` returns."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Take what a pool of threads takes."""

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Do it."""
        future: Future[Any] = Future()
        future.set_result(function(*arguments))
        return future

    def shutdown(self, **options: Any) -> None:
        """There is nothing to end."""


class Counted:
    """A store that counts what passes."""

    def __init__(self, store: ChainStore) -> None:
        self.store, self.schema, self.layout = store, store.schema, store.layout
        self.rows, self.nbytes = 0, 0

    def exchange(self, generation: str, commit: Commit | None, read: Read, as_of: int) -> Pending:
        """That of the store."""
        pending = self.store.exchange(generation, commit, read, as_of)
        self.rows += len(read.get(FEATURES, ()))
        self.nbytes += sum(index.nbytes for index in read.values())
        if commit is not None:
            self.nbytes += sum(rows.index.nbytes + size_of(rows.values) for rows in commit.writes.values())

        def result() -> Tables:
            reply = pending.result()
            self.nbytes += sum(size_of(columns) for columns in reply.values())
            return reply

        return Pending(result)


class Worker(Memory):
    """The memory of one worker, which knows what its store's thread takes."""

    thread_s, whole = 0.0, False

    def _call(self, *arguments: Any) -> Any:
        began = time.thread_time()
        try:
            return super()._call(*arguments)
        finally:
            if current_thread() is not main_thread():
                self.thread_s += time.thread_time() - began

    def _part(self, index: np.ndarray) -> np.ndarray:
        return index if self.whole else super()._part(index)


def size_of(columns: dict[str, np.ndarray]) -> int:
    """Bytes of all columns."""
    return sum(column.nbytes for column in columns.values())


class Node:
    """The workers of one node, that take steps."""

    def __init__(self, spec: Spec, order: EpochOrder, store: RayStore, size: int) -> None:
        self.spec, self.order, self.store, self.size = spec, order, store, size
        self.done = 0
        """The last step that was taken."""
        self._stores = [store.joined(member, size, 600) for member in range(size)]

    def fill(self) -> None:
        """Have every chain carry something, as of step 0."""
        index, rng = np.arange(SAMPLES), np.random.default_rng(0)
        for table, columns in self.store.schema.items():
            if table != FEATURES:
                values = {name: np.ones((SAMPLES, *c.shape), c.dtype) for name, c in columns.items()}
                values["state"] = rng.integers(0, SAMPLES, values["state"].shape)
                commit = Commit(0, self.spec.workers, {table: Rows(index, values)})
                self.store.exchange("run", commit, {}, 0).result()

    def take(self, way: str, steps: int) -> dict[str, float]:
        """Steps in one of the ways; what they took each."""
        with self._workers(way) as (workers, counts):
            first = self.done + 1
            self._take(workers, first, 1)  # the first one waits for processes that slept
            far = self._far_clocks()
            near = self._near_clocks(workers, counts[0])
            self._take(workers, first + 1, steps)
            near = self._near_clocks(workers, counts[0]) - near
            far = self._far_clocks() - far
            self.done = first + steps
        rows, nbytes_sent, step_s, thread_s, process_s = near / steps
        calls, actor_s, shards_s = far / steps
        return {
            "calls": calls * self.spec.workers / self.size,
            "rows": rows,
            "MiB": nbytes_sent / MIB,
            "step's thread": 1000 * step_s / self.size,
            "store's thread": 1000 * thread_s / self.size,
            "worker, all threads": 1000 * process_s / self.size,
            "node's actor": 1000 * actor_s / self.size,
            "shards": 1000 * shards_s / self.size,
        }

    @contextmanager
    def _workers(self, way: str) -> Iterator[tuple[list[Worker], list[Counted]]]:
        stores = self._stores if way == "together" else [self.store] * self.size
        counts = [Counted(store) for store in stores]
        executor = ThreadPoolExecutor if way in ("thread", "together") else InThisThread
        with mock.patch.object(memory, "ThreadPoolExecutor", executor), ExitStack() as stack:
            workers = []
            for rank, store in enumerate(counts):
                worker = Worker(self.spec, store, self.order, rank, "run", CPU)  # type: ignore[arg-type]
                worker.whole = way == "as it was"
                workers.append(stack.enter_context(closing(worker)))
            pool = stack.enter_context(ThreadPoolExecutor(self.size))  # for they wait for each other
            list(pool.map(lambda worker: worker.start(self.done + 1, self.done), workers))
            yield workers, counts
            list(pool.map(lambda worker: worker.settle(self.done), workers))

    def _take(self, workers: list[Worker], first: int, steps: int) -> None:
        for step in range(first, first + steps):
            self._step(workers, step)
        for worker in workers:
            assert worker._ahead is not None
            worker._ahead.reply.result()

    def _step(self, workers: list[Worker], step: int) -> None:
        for worker in workers:
            worker.recall(step)
        for worker in workers:
            worker.exchange(step)
        for rank, worker in enumerate(workers):
            worker.remember(step, *self._found(step, rank_slice(self.order.batch(step), rank, self.spec.workers)))

    def _found(self, step: int, own: np.ndarray) -> tuple[dict[str, dict[str, torch.Tensor]], Encoded]:
        columns = {}
        for table, named in self.store.schema.items():
            if table != FEATURES:
                anchors = self.spec.views.count * len(own)
                columns[table] = {name: torch.ones(anchors, dtype=getattr(torch, c.dtype)) for name, c in named.items()}
        features = torch.ones(len(own), self.spec.encoder.features)
        index = torch.from_numpy(own)
        return columns, Encoded(index, features, torch.zeros_like(index))

    def _near_clocks(self, workers: list[Worker], counted: Counted) -> np.ndarray:
        """Rows and bytes of the first worker; seconds of CPU: of this thread, of the stores', of all this process."""
        thread_s = sum(worker.thread_s for worker in workers)
        return np.array([counted.rows, counted.nbytes, time.thread_time(), thread_s, time.process_time()])

    def _far_clocks(self) -> np.ndarray:
        """Calls of all shards; seconds of CPU of the node's actor, and of all shards."""
        actors = [self._stores[0]._actor, *self.store.actors]  # type: ignore[attr-defined]
        actor, *shards = ray.get([actor.__ray_call__.remote(lambda _: time.process_time()) for actor in actors])
        return np.array([sum(stats.exchanges for stats in self.store.stats()), actor, sum(shards)])


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """The lines of the table."""
    names = list(found[WAYS[0]][0])
    lines = [f"| | {' | '.join(names)} | worker's CPU, ratio |", f"|---|{'---|' * (len(names) + 1)}"]
    for way in WAYS:
        cells = []
        for name in names:
            values = [one[name] for one in found[way]]
            low, _, high = quantiles(values, n=4)
            spread = "" if name in DIGITS else f" ({low:.1f} to {high:.1f})"
            cells.append(f"{median(values):,.{DIGITS.get(name, 1)}f}{spread}")
        pairs = zip(found[way], found[WAYS[0]], strict=True)
        ratio = median(one["worker, all threads"] / first["worker, all threads"] for one, first in pairs)
        lines.append(f"| {way} | {' | '.join(cells)} | {ratio:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in DEFAULTS.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    keys = [f"workers={given.workers}", f"shards={given.shards}", f"negatives.cache_proposals={given.proposals}"]
    text = f"{{name: calls, epochs: 1, lr: 0.1, batch_size: {given.batch}}}"
    spec, alone = parse(text, keys), parse(text)
    order, schema = EpochOrder(SAMPLES, given.batch, 0), schema_for(spec)
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with connected(alone):
        create = RayStore.create(Layout(SAMPLES, given.shards), schema, timeout_s=600, start_timeout_s=600)
        with closing(create) as store:
            store.reset("run")
            node = Node(spec, order, store, given.node)
            node.fill()
            for number in range(ROUNDS):
                for way in WAYS if number % 2 == 0 else reversed(WAYS):
                    found[way].append(node.take(way, given.steps))
    gathered = given.proposals * (given.workers - 1) / given.workers * nbytes({FEATURES: schema[FEATURES]}, 1)
    print("a step: calls of all workers; rows of the feature cache and MiB of one worker; ms of CPU of one worker\n")
    print(table(found))
    print(f"\nof the proposals, where each reads its part, a worker gets {gathered / MIB:.3f} MiB a step from others")


if __name__ == "__main__":
    main()
