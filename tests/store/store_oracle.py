"""What a store should remember, told in the plainest way, and the schema that the tests use."""

import numpy as np

from emc2dist.store import Column, Commit, Rows, nbytes

SAMPLES, VIEWS, WIDTH = 17, 2, 4

SCHEMA = {
    "chain": {
        "state": Column("int64", (VIEWS,)),
        "visited": Column("bool", (VIEWS,)),
        "visited_at": Column("int32", (VIEWS,)),
    },
    "feature": {
        "feature": Column("float16", (WIDTH,)),
        "present": Column("bool", ()),
        "written_at": Column("int32", ()),
    },
}

ROW_NBYTES = nbytes(SCHEMA, 1)


def random_commit(generator, step, rank):
    """A commit to few samples, so that ranks and steps collide, with repeats inside it."""
    writes = {}
    for table, columns in SCHEMA.items():
        index = generator.integers(0, SAMPLES, size=6)
        values = {
            name: generator.integers(0, 2 if column.dtype == "bool" else 1000, size=(6, *column.shape)).astype(
                column.dtype
            )
            for name, column in columns.items()
        }
        writes[table] = Rows(index, values)
    return Commit(step, rank, writes)


def random_read(generator):
    """A read of some samples of each table, with repeats, in no order."""
    return {table: generator.integers(0, SAMPLES, size=8) for table in SCHEMA}


def expected(commits, read, as_of):
    """Apply every commit up to `as_of` in the order of (step, rank), one row at a time, and read."""
    tables = {
        table: {name: np.zeros((SAMPLES, *column.shape), column.dtype) for name, column in columns.items()}
        for table, columns in SCHEMA.items()
    }
    for commit in sorted(commits, key=lambda commit: (commit.step, commit.rank)):
        if commit.step <= as_of:
            for table, write in commit.writes.items():
                for name, values in write.values.items():
                    for sample, value in zip(write.index, values, strict=True):
                        tables[table][name][sample] = value
    return {table: {name: array[read[table]] for name, array in tables[table].items()} for table in read}


def assert_same(found, wanted):
    """Equal tables, columns, dtypes and values."""
    assert {table: set(columns) for table, columns in found.items()} == {
        table: set(columns) for table, columns in wanted.items()
    }
    for table, columns in wanted.items():
        for name, column in columns.items():
            assert found[table][name].dtype == column.dtype
            np.testing.assert_array_equal(found[table][name], column, err_msg=f"{table}.{name}")


def everything():
    """A read of all samples of all tables."""
    return {table: np.arange(SAMPLES) for table in SCHEMA}
