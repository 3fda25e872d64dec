"""What would a write-ahead log or a replica of a shard cost each step, and what would it save when the shard is lost?

    python -m benchmarks.log [--rows 1000000] [--steps 1200] [--folder /tmp]

An exchange is what a worker sends in a step: it writes 256 samples, and reads 256 chains and the features that two
views carry. All kinds of shard start from one checkpoint and do the same steps, in turns of 50 in changing order, first
in this process, then as Ray actors. A log has each commit in a file on `--folder` before it is acknowledged: handed to
the OS, which a killed process survives, or synced, which a power cut survives. A replica is a second shard that is sent
the same commit at the same time; both are waited for. Then a shard is recovered, by the checkpoint and by replaying the
log of all steps, and must be equal to the one that was logged. A real log would have its own format and be cut at every
checkpoint; pickle and one file take its place here. docs/reliability.md holds the output and what follows from it.
"""

import argparse
import os
import pickle
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter

import numpy as np
import torch
from torch import nn

from benchmarks.scale import BATCH, MIB, SPEC, fill, measured
from emc2dist.run.cluster import connected  # before ray: sets its defaults

import ray  # isort: skip

from emc2dist import files
from emc2dist.store import Commit, Layout, LocalStore, Read, Rows, Schema, Shard, ShardedStore
from emc2dist.store.remote import RayStore
from emc2dist.train import checkpoint
from emc2dist.train.memory import schema_for

TURN, SCHEMA, RUN, STEPS_PER_HOUR = 50, schema_for(SPEC), "run", 7200
HEADER = "<II"  # bytes and CRC-32 of a record, so that a torn last one can be told


class LoggedShard(Shard):
    """A shard that has each commit in a file before it takes it."""

    def __init__(self, schema: Schema, rows: int, path: Path, synced: bool) -> None:
        super().__init__(schema, rows)
        self._log, self._synced = path.open("wb"), synced

    def _take(self, commit: Commit) -> None:
        record = pickle.dumps(commit, protocol=5)
        self._log.write(struct.pack(HEADER, len(record), zlib.crc32(record)) + record)
        self._log.flush()
        if self._synced:
            os.fdatasync(self._log.fileno())
        super()._take(commit)


def logged(path: Path) -> Iterator[Commit]:
    """The commits of a log."""
    with path.open("rb") as file:
        while header := file.read(struct.calcsize(HEADER)):
            size, checksum = struct.unpack(HEADER, header)
            record = file.read(size)
            if zlib.crc32(record) != checksum:
                raise ValueError(f"{path} is damaged before byte {file.tell()}")
            yield pickle.loads(record)


class Bench:
    """One checkpoint, and the steps that follow it."""

    def __init__(self, rows: int, steps: int, folder: Path) -> None:
        self.layout, self.steps, self.folder = Layout(rows, 1), steps, folder
        store, encoder = LocalStore(self.layout, SCHEMA), nn.Linear(1, 1)
        store.reset(RUN)
        self.first = fill(store)
        optimiser = torch.optim.SGD(encoder.parameters(), lr=0.1)
        checkpoint.save(folder, self.first, self.first - 1, SPEC, encoder, optimiser, store, RUN, "")
        self.manifest = checkpoint.verify(files.at(folder))

    def restore(self, store: ShardedStore) -> None:
        checkpoint.restore_store(self.folder, self.manifest, store, RUN)

    def kinds(self, make: Callable[..., ShardedStore], name: str) -> dict[str, list[ShardedStore]]:
        """The stores that each kind sends a commit to; the first one is read from."""
        kinds = {
            "alone": [make(self.layout, Shard)],
            "log, handed to the OS": [make(self.layout, LoggedShard, self.folder / f"{name}.log", False)],
            "log, synced": [make(self.layout, LoggedShard, self.folder / f"{name}-synced.log", True)],
            "replica": [make(self.layout, Shard), make(self.layout, Shard)],
        }
        for store in chain.from_iterable(kinds.values()):
            self.restore(store)
        return kinds

    def measure(self, kinds: dict[str, list[ShardedStore]]) -> dict[str, list[float]]:
        """Median seconds of an exchange, in each turn of each kind."""
        turns: dict[str, list[float]] = {name: [] for name in kinds}
        rng, names = np.random.default_rng(0), list(kinds)
        for start in range(self.first, self.first + self.steps, TURN):
            steps = range(start, min(start + TURN, self.first + self.steps))
            work = [work_of(step, self.layout.samples, rng) for step in steps]
            names = names[1:] + names[:1]
            for name in names:
                turns[name].append(median(exchange(kinds[name], *step) for step in work))
        return turns

    def recover(self, original: ShardedStore) -> str:
        """Restore a shard and replay the log of `original`: a line on what either takes."""
        store, path = here(self.layout, Shard), self.folder / "here.log"
        with measured() as restoring:
            self.restore(store)
        with measured() as replaying:
            for commit in logged(path):
                store.exchange(RUN, commit, {}, commit.step).result()
        last = self.first + self.steps - 1
        np.testing.assert_equal(store.snapshot(RUN, 0, last), original.snapshot(RUN, 0, last))
        step = path.stat().st_size / self.steps
        restored, replayed = (f"{m.seconds:.2f} s ({m.cpu_s:.2f} s of CPU)" for m in (restoring, replaying))
        size = f"{step / 1024:.1f} KiB a step, {step * self.steps / MIB:.0f} MiB in all"
        hour = f"{step * STEPS_PER_HOUR / MIB:,.0f} MiB an hour at {3600 / STEPS_PER_HOUR} s a step"
        return f"checkpoint: {restored}; log of {self.steps:,} steps: {replayed}, {size}, {hour}"


def here(layout: Layout, shard: type[Shard], *arguments: object) -> LocalStore:
    store = LocalStore(layout, SCHEMA)
    store._shards = [shard(SCHEMA, layout.samples, *arguments)]
    return store


def over_ray(layout: Layout, shard: type[Shard], *arguments: object) -> RayStore:
    actor = ray.remote(num_cpus=0)(shard).remote(SCHEMA, layout.samples, *arguments)
    return RayStore(layout, SCHEMA, [actor], timeout_s=SPEC.store.timeout_s)


def work_of(step: int, samples: int, rng: np.random.Generator) -> tuple[Commit, Read]:
    index = rng.choice(samples, BATCH, replace=False)
    writes = {
        table: Rows(index, {name: rng.integers(0, 100, (BATCH, *c.shape)).astype(c.dtype) for name, c in named.items()})
        for table, named in SCHEMA.items()
    }
    carried = rng.integers(0, samples, SPEC.views.count * BATCH)
    return Commit(step, 0, writes), {"negatives": rng.integers(0, samples, BATCH), "feature": carried}


def exchange(stores: list[ShardedStore], commit: Commit, read: Read) -> float:
    """Seconds until all stores have acknowledged the commit, and the first one has been read."""
    began = perf_counter()
    replies = [store.exchange(RUN, commit, {} if n else read, commit.step - 1) for n, store in enumerate(stores)]
    for reply in replies:
        reply.result()
    return perf_counter() - began


def print_rows(where: str, turns: dict[str, list[float]]) -> None:
    """Lines of the table; a ratio is to the turn of a shard alone in the same round."""
    for name, own in turns.items():
        low, ratio, high = quantiles([a / b for a, b in zip(own, turns["alone"], strict=True)], n=4)
        print(f"| {where} | {name} | {1000 * median(own):.2f} | {ratio:.2f} ({low:.2f} to {high:.2f}) |", flush=True)


def main() -> None:
    """Print the table, and what recovering takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--folder", default=tempfile.gettempdir())
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder, connected(SPEC):
        bench = Bench(arguments.rows, arguments.steps, Path(folder))
        print("| shard | kept | ms an exchange | ratio (quartiles) |\n|---|---|---|---|")
        kinds = bench.kinds(here, "here")
        print_rows("in this process", bench.measure(kinds))
        recovered = bench.recover(kinds["log, handed to the OS"][0])
        del kinds
        print_rows("a Ray actor", bench.measure(bench.kinds(over_ray, "ray")))
        print(f"\n{recovered}")


if __name__ == "__main__":
    main()
