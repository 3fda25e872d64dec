"""One shard: an ordinary object that owns some rows of every table, and answers for exactly which step they show.

A store is a set of named tables with one row per sample; a table is a set of named columns. The caller's `Schema` says
which there are. The shard knows arithmetic and order, never what the columns mean. Everything is zero at first.

**What a read sees depends on step numbers alone.** A commit waits in a buffer under its (step, rank). A call `as_of`
step a first applies the buffered commits with step <= a, in the order of (step, rank), and then reads; later commits
stay unseen. So calls of several ranks may arrive in any order, as long as

1. before any rank calls as of a, every rank's commits up to a have been acknowledged, and
2. no rank calls as of a after another one has called as of a later step.

A training loop has both for nothing when each rank waits for its reply before the step's collective. Where the rule is
broken the shard never guesses: a read as of a step that it has gone past is refused, and a commit that comes after its
step was read changes nothing and is counted in `dropped`.

**Exactly once.** A commit whose (step, rank) is already here, or whose step was already applied, is a repeat: dropped
too. So a call whose reply was lost may be sent again.

**Generations.** A shard serves only calls that name the generation it was last reset or restored to. A process that was
restarted holds zeros and no generation: it refuses everything until restored, so zeros never pass for memory. Name a
new generation at every start of a worker group, and writes of dead workers cannot reach the rows of the living.

Memory: `nbytes(schema, rows)`, touched as rows are first written, plus the commits in the buffer.
"""

from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from emc2dist.core.columns import Column, Schema
from emc2dist.errors import StaleGeneration, StoreError
from emc2dist.store.layout import check_index

Tables = dict[str, dict[str, NDArray]]
"""For each table and column an array [n, *shape]: a reply, or all rows of a snapshot."""

Read = dict[str, NDArray[np.int64]]
"""For each table what to read, [n]: samples where a store is asked, rows where a shard is. Repeats are allowed."""


@dataclass(frozen=True)
class Rows:
    """New values for some rows of one table; columns not named keep theirs. Of repeated rows the last one counts."""

    index: NDArray[np.int64]
    """[n] samples in a store's commit, rows in a shard's."""
    values: dict[str, NDArray]
    """[n, *shape] for each column, of the column's own dtype."""


@dataclass(frozen=True)
class Commit:
    """What one rank writes in one step; (step, rank) is its identity. Steps count from 0."""

    step: int
    rank: int
    writes: dict[str, Rows]


@dataclass(frozen=True)
class ShardStats:
    """What a shard says of itself, in any generation or none."""

    generation: str | None
    rows: int
    nbytes: int
    """Bytes of all columns."""
    applied: int
    """The step that the rows show; -1 before any."""
    buffered: int
    """Commits that wait for their step to be read."""
    dropped: int
    """Commits that changed nothing, being late or repeated, since the process started."""
    exchanges: int
    """Exchanges served since the process started."""
    exchange_s: float
    """Seconds spent on them."""


class Shard:
    """Rows 0 .. rows-1 of every table of a schema, all zero and of no generation."""

    def __init__(self, schema: Schema, rows: int) -> None:
        self.schema = schema
        self.rows = rows
        self._tables = _zeros(schema, rows)
        self._generation: str | None = None
        self._arriving = ("", 0)
        self._applied = -1
        self._buffer: dict[tuple[int, int], dict[str, Rows]] = {}
        self._dropped = 0
        self._exchanges = 0
        self._exchange_s = 0.0

    def exchange(self, generation: str, commit: Commit | None, read: Read, as_of: int) -> Tables:
        """Take a commit and answer a read as of a step: the one call per node, or per worker, and shard and step.

        The commit is seen by this very read if its step is not above `as_of`. Returns copies, in the order asked.
        Raises StaleGeneration for another generation, StoreError if the rows have gone past `as_of` or the call does
        not fit the schema; a refused call changes nothing.
        """
        began = perf_counter()
        self._admit(generation, as_of)
        self._check(commit, read)
        self._exchanges += 1
        if commit is not None:
            self._take(commit)
        self._apply(as_of)
        reply = {
            table: {name: column[rows] for name, column in self._tables[table].items()} for table, rows in read.items()
        }
        self._exchange_s += perf_counter() - began
        return reply

    def reset(self, generation: str) -> None:
        """Forget everything: all zero, no step applied, serving `generation`."""
        self._tables = _zeros(self.schema, self.rows)  # new and lazy, where filling with 0 would touch every page
        self._start(generation, applied=-1)

    def restore(self, generation: str, step: int, tables: Tables, start: int = 0, stop: int | None = None) -> None:
        """Take the contents of a snapshot made as of `step`, and serve `generation` from there.

        They may come in pieces, rows `start` to `stop`, in the order of rows; until the last one is here the shard
        serves nobody. Raises StoreError, naming table and column, if the piece does not fit, or rows if it is not the
        next one; nothing is changed then.
        """
        stop = self._check_span(start, stop)
        check_tables(self.schema, tables, stop - start)
        if start and (generation, start) != self._arriving:
            raise StoreError(f"rows {start} to {stop} are not the next to be restored; begin again with row 0")
        self._generation, self._arriving = None, (generation, stop)
        for table, columns in self._tables.items():
            for name, column in columns.items():
                column[start:stop] = tables[table][name]
        if stop == self.rows:
            self._start(generation, applied=step)

    def snapshot(self, generation: str, as_of: int, start: int = 0, stop: int | None = None) -> Tables:
        """Copies of rows `start` to `stop`, by default all, as of a step; refuses what `exchange` refuses."""
        stop = self._check_span(start, stop)
        self._admit(generation, as_of)
        self._apply(as_of)
        return {table: {name: c[start:stop].copy() for name, c in columns.items()} for table, columns in self._items()}

    def pending(self, generation: str) -> list[Commit]:
        """Commits of steps that the rows do not show yet, in the order of (step, rank)."""
        self._admit(generation, self._applied)
        return [Commit(*key, self._buffer[key]) for key in sorted(self._buffer)]

    def stats(self) -> ShardStats:
        """The state of the shard; needs no generation."""
        return ShardStats(
            generation=self._generation,
            rows=self.rows,
            nbytes=sum(column.nbytes for _, columns in self._items() for column in columns.values()),
            applied=self._applied,
            buffered=len(self._buffer),
            dropped=self._dropped,
            exchanges=self._exchanges,
            exchange_s=self._exchange_s,
        )

    def _admit(self, generation: str, as_of: int) -> None:
        if generation != self._generation:
            held = "none since it started" if self._generation is None else repr(self._generation)
            raise StaleGeneration(
                f"the call names generation {generation!r}, the shard holds {held}: "
                "restore the shard, or end a worker that belongs to an earlier start"
            )
        if as_of < self._applied:
            raise StoreError(f"cannot answer as of step {as_of}: the rows already show step {self._applied}")

    def _check(self, commit: Commit | None, read: Read) -> None:
        for table, rows in read.items():
            columns_of(self.schema, table)
            check_index(rows, self.rows, "row")
        if commit is not None:
            check_writes(self.schema, commit.writes)
            for write in commit.writes.values():
                check_index(write.index, self.rows, "row")

    def _check_span(self, start: int, stop: int | None) -> int:
        stop = self.rows if stop is None else stop
        if not 0 <= start < stop <= self.rows:
            raise StoreError(f"there are no rows {start} to {stop}: the shard has {self.rows}")
        return stop

    def _take(self, commit: Commit) -> None:
        key = (commit.step, commit.rank)
        if commit.step <= self._applied or key in self._buffer:
            self._dropped += 1
        else:
            self._buffer[key] = commit.writes

    def _apply(self, as_of: int) -> None:
        for key in sorted(key for key in self._buffer if key[0] <= as_of):
            for table, write in self._buffer.pop(key).items():
                last = _last_of_each(write.index)
                for name, value in write.values.items():
                    self._tables[table][name][write.index[last]] = value[last]
        self._applied = as_of

    def _start(self, generation: str, applied: int) -> None:
        self._generation, self._arriving = generation, ("", 0)
        self._applied = applied
        self._buffer.clear()

    def _items(self) -> list[tuple[str, dict[str, NDArray]]]:
        return list(self._tables.items())


def nbytes(schema: Schema, rows: int) -> int:
    """Bytes that `rows` rows of every table take."""
    return rows * sum(
        np.dtype(column.dtype).itemsize * int(np.prod(column.shape, dtype=np.int64))
        for columns in schema.values()
        for column in columns.values()
    )


def columns_of(schema: Schema, table: str) -> dict[str, Column]:
    """The columns of a table; StoreError if there is no such table."""
    if table not in schema:
        raise StoreError(f"there is no table {table!r} in the store: it has {', '.join(schema)}")
    return schema[table]


def check_writes(schema: Schema, writes: dict[str, Rows]) -> None:
    """Raise StoreError, naming table and column, unless every value is [n, *shape] of its column's dtype."""
    for table, write in writes.items():
        columns = columns_of(schema, table)
        for name, value in write.values.items():
            if name not in columns:
                raise StoreError(f"there is no column {table}.{name} in the store: it has {', '.join(columns)}")
            _check_array(f"{table}.{name}", columns[name], value, len(write.index))


def check_tables(schema: Schema, tables: Tables, rows: int) -> None:
    """Raise StoreError, naming table and column, unless these are all columns of all tables, with `rows` rows each."""
    named = {(table, name) for table, columns in tables.items() for name in columns}
    wanted = {(table, name) for table, columns in schema.items() for name in columns}
    for table, name in sorted(named ^ wanted):
        wrong = "missing from" if (table, name) in wanted else "not in the schema but in"
        raise StoreError(f"column {table}.{name} is {wrong} the snapshot: it belongs to another objective")
    for table, name in sorted(wanted):
        _check_array(f"{table}.{name}", schema[table][name], tables[table][name], rows)


def _check_array(what: str, column: Column, value: NDArray, rows: int) -> None:
    # Equal dtypes, not castable ones: a cast would lose digits where nobody looks.
    if value.dtype != np.dtype(column.dtype) or value.shape != (rows, *column.shape):
        raise StoreError(
            f"column {what} takes {column.dtype} {[rows, *column.shape]}, not {value.dtype} {list(value.shape)}"
        )


def _last_of_each(index: NDArray[np.int64]) -> NDArray[np.intp]:
    # Where an index is repeated, numpy promises no order of assignment; so assign the last one only.
    _, first_from_end = np.unique(index[::-1], return_index=True)
    return len(index) - 1 - first_from_end


def _zeros(schema: Schema, rows: int) -> Tables:
    return {
        table: {name: np.zeros((rows, *column.shape), column.dtype) for name, column in columns.items()}
        for table, columns in schema.items()
    }
