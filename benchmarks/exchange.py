"""What does an exchange with a shard cost beyond the call and the bytes? RayStore against numpy behind one Ray call.

    python -m benchmarks.exchange [--rows 100000] [--calls 40] [--rounds 15]

An exchange of 256 samples, which are 512 chains: it writes their chains and their features (128 float16), and reads the
chains of 256 others and the cached features of 512 that chains carry. As a worker's `Memory` asks a single shard.

    RayStore   `exchange`: checks, parts by shard, the commit that counts once, reads as of a step
    columns    an actor with the same columns as numpy arrays: writes rows and reads rows by index, nothing else
    one array  an actor that copies as many bytes as come in into an array, and sends back as many as an exchange does

All in one Ray on this machine, in turns, a few calls each. Milliseconds by the clock, and of CPU: of this process and
of the actor, all threads. Medians over rounds, with quartiles; a ratio compares the same rounds.
"""

import argparse
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.rounds import Cost, compared, in_turns, load
from emc2dist.run.cluster import connected  # before ray: sets its defaults

import ray  # isort: skip

from emc2dist.config import parse
from emc2dist.core.estimators import FEATURES
from emc2dist.store import Commit, Layout, Rows, Schema, Tables
from emc2dist.store.remote import RayStore
from emc2dist.train.memory import schema_for

SPEC = parse("{name: exchange, epochs: 1, batch_size: 256, lr: 0.1}")
SAMPLES = SPEC.batch_size


class Exchange(NamedTuple):
    """What is written and read."""

    writes: dict[str, Rows]
    reads: dict[str, NDArray[np.int64]]

    @classmethod
    def drawn(cls, schema: Schema, rows: int, draws: np.random.Generator) -> "Exchange":
        """One of random rows."""
        writes = {}
        for table, columns in schema.items():
            values = {name: np.ones((SAMPLES, *column.shape), column.dtype) for name, column in columns.items()}
            writes[table] = Rows(draws.choice(rows, SAMPLES, replace=False), values)
        chains = SPEC.views.count * SAMPLES
        reads = {table: draws.integers(0, rows, chains if table == FEATURES else SAMPLES) for table in schema}
        return cls(writes, reads)


class Columns:
    """Columns of numpy, with rows written and read by index."""

    def __init__(self, schema: Schema, rows: int) -> None:
        self._columns: Tables = {
            table: {name: np.zeros((rows, *column.shape), column.dtype) for name, column in columns.items()}
            for table, columns in schema.items()
        }

    def exchange(self, writes: dict[str, Rows], reads: dict[str, NDArray[np.int64]]) -> Tables:
        for table, rows in writes.items():
            for name, values in rows.values.items():
                self._columns[table][name][rows.index] = values
        return {
            table: {name: column[index] for name, column in self._columns[table].items()}
            for table, index in reads.items()
        }


class Array:
    """An array of bytes."""

    def __init__(self, size: int) -> None:
        self._held = np.zeros(size, np.uint8)

    def exchange(self, sent: NDArray[np.uint8], wanted: int) -> NDArray[np.uint8]:
        self._held[: len(sent)] = sent
        return self._held[:wanted].copy()


def timed(call: Callable[[], Any], actor: Any, calls: int) -> Cost:
    """The milliseconds that a call takes, of so many."""
    call()  # the first one waits for processes that slept
    before, began = _cpu_s(actor), time.perf_counter()
    for _ in range(calls):
        call()
    wall = time.perf_counter() - began
    return Cost(1000 * wall / calls, 1000 * (_cpu_s(actor) - before) / calls)


def _cpu_s(actor: Any) -> float:
    """Seconds of CPU of this process and the actor's, all threads."""
    there: float = ray.get(actor.__ray_call__.remote(lambda _: time.process_time()))
    return there + time.process_time()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="samples that the shard holds")
    parser.add_argument("--calls", type=int, default=40, help="of a turn")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    schema, draws = schema_for(SPEC), np.random.default_rng(0)
    asked = [Exchange.drawn(schema, args.rows, draws) for _ in range(args.calls)]
    sent = sum(r.index.nbytes + sum(v.nbytes for v in r.values.values()) for r in asked[0].writes.values())
    sent += sum(index.nbytes for index in asked[0].reads.values())
    before, steps = load(), iter(range(1, 2**31))
    with (
        connected(SPEC),
        closing(RayStore.create(Layout(args.rows, 1), schema, timeout_s=600, start_timeout_s=600)) as store,
    ):
        store.reset("run")
        columns = ray.remote(Columns).options(num_cpus=0).remote(schema, args.rows)
        reply = ray.get(columns.exchange.remote(*asked[0]))
        wanted = sum(column.nbytes for named in reply.values() for column in named.values())
        array = ray.remote(Array).options(num_cpus=0).remote(max(sent, wanted))
        content = np.ones(sent, np.uint8)

        def by_store() -> object:
            step = next(steps)
            writes, reads = asked[step % args.calls]
            return store.exchange("run", Commit(step, 0, writes), reads, step).result()

        def by_columns() -> object:
            return ray.get(columns.exchange.remote(*asked[next(steps) % args.calls]))

        def by_array() -> object:
            return ray.get(array.exchange.remote(content, wanted))

        found = in_turns(
            {
                "RayStore": lambda: timed(by_store, store.actors[0], args.calls),
                "columns": lambda: timed(by_columns, columns, args.calls),
                "one array": lambda: timed(by_array, array, args.calls),
            },
            args.rounds,
        )
    print(f"{sent:,} bytes there, {wanted:,} back; load {before} to {load()}\n")
    print("| | ms | ms of CPU | RayStore / this, by the clock | by CPU time |\n|---|---|---|---|---|")
    print(compared("RayStore", found))


if __name__ == "__main__":
    main()
