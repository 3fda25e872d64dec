"""What a shard alone promises, and what it costs."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest

from emc2dist.errors import StaleGeneration, StoreError
from emc2dist.store import Column, Commit, Layout, LocalStore, Rows, Shard, nbytes

SCHEMA = {"chain": {"log_partition": Column("float32", (2,)), "visited": Column("bool", (2,))}}


def test_a_new_shard_refuses_everything_but_stats():
    shard = Shard(SCHEMA, rows=3)
    with pytest.raises(StaleGeneration, match="none since it started"):
        shard.exchange("first", None, {"chain": np.array([0])}, as_of=0)
    with pytest.raises(StaleGeneration):
        shard.snapshot("first", as_of=0)
    assert shard.stats().generation is None


def test_of_repeated_rows_the_last_counts():
    shard = Shard(SCHEMA, rows=3)
    shard.reset("first")
    values = np.arange(8, dtype=np.float32).reshape(4, 2)
    commit = Commit(0, 0, {"chain": Rows(np.array([1, 2, 1, 2]), {"log_partition": values})})
    reply = shard.exchange("first", commit, {"chain": np.array([1, 2])}, as_of=0)
    np.testing.assert_array_equal(reply["chain"]["log_partition"], [[4, 5], [6, 7]])


@pytest.mark.parametrize("row", [-1, 3])
def test_refuses_rows_that_it_does_not_have(row):
    shard = Shard(SCHEMA, rows=3)
    shard.reset("first")
    with pytest.raises(StoreError, match=f"row {row}"):
        shard.exchange("first", None, {"chain": np.array([row])}, as_of=0)
    commit = Commit(0, 0, {"chain": Rows(np.array([row]), {"visited": np.ones((1, 2), bool)})})
    with pytest.raises(StoreError, match=f"row {row}"):
        shard.exchange("first", commit, {}, as_of=0)
    assert shard.stats().buffered == 0


def test_a_restored_shard_owns_its_rows():
    """What Ray hands over is read-only and shared: it must be copied."""
    shard = Shard(SCHEMA, rows=3)
    shard.reset("first")
    tables = shard.snapshot("first", as_of=0)
    for column in tables["chain"].values():
        column.flags.writeable = False
    shard.restore("second", 0, tables)
    commit = Commit(1, 0, {"chain": Rows(np.array([0]), {"visited": np.ones((1, 2), bool)})})
    assert shard.exchange("second", commit, {"chain": np.array([0])}, as_of=1)["chain"]["visited"].all()
    assert not tables["chain"]["visited"].any()


def test_nbytes_is_the_sum_of_the_columns():
    assert nbytes(SCHEMA, 10) == 10 * (2 * 4 + 2)
    assert nbytes({}, 10) == 0


def test_errors_come_out_of_the_wait_and_a_closed_store_says_so():
    store = LocalStore(Layout(3, 1), SCHEMA)
    pending = store.exchange("never-reset", None, {"chain": np.array([0])}, as_of=0)
    with pytest.raises(StaleGeneration):
        pending.result()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.stats()


MEMORY_PROBE = """
    import sys
    import numpy as np
    from emc2dist.store import Column, Commit, Layout, LocalStore, Rows, nbytes

    assert not {"ray", "torch"} & set(sys.modules), "emc2dist.store must not import ray or torch"

    def resident():
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))

    samples, width, chunk = 200_000, 128, 1000
    schema = {
        "chain": {
            "state": Column("int64", (2,)), "visited": Column("bool", (2,)), "visited_at": Column("int32", (2,)),
        },
        "feature": {
            "feature": Column("float16", (width,)), "present": Column("bool"), "written_at": Column("int32"),
        },
    }

    def commit(step):
        index = np.arange(step * chunk, (step + 1) * chunk)
        return Commit(step, 0, {
            table: Rows(index, {
                name: np.ones((chunk, *column.shape), column.dtype) for name, column in columns.items()
            })
            for table, columns in schema.items()
        })

    warm = LocalStore(Layout(chunk, 3), schema)  # so that numpy's own memory is in the baseline
    warm.reset("warm")
    warm.exchange("warm", commit(0), {}, as_of=0).result()
    before = resident()
    store = LocalStore(Layout(samples, 3), schema)
    store.reset("run")
    empty = resident() - before
    for step in range(samples // chunk):
        store.exchange("run", commit(step), {}, as_of=step).result()
    full = resident() - before
    print(nbytes(schema, samples), sum(stats.nbytes for stats in store.stats()), empty, full)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident memory from /proc")
def test_memory_is_the_columns_and_comes_as_rows_are_written():
    probe = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY_PROBE)], check=True, capture_output=True, text=True
    )
    columns, declared, empty, full = map(int, probe.stdout.split())
    assert columns == declared == 200_000 * (2 * (8 + 1 + 4) + 128 * 2 + 1 + 4)
    assert empty < 0.1 * columns
    assert 0.9 * columns < full < 1.1 * columns
