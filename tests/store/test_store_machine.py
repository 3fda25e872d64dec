"""Any interleaving of what can happen to a store, against a memory told in the plainest way: one value at a time.

Exchanges of several ranks in any order, early, late and repeated; reads of the past; a shard lost; snapshots in pieces;
restores into another number of shards, of now or of earlier; calls of generations that are over.
"""

import copy

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from store_oracle import SAMPLES, SCHEMA, assert_same, everything, random_commit, random_read

from emc2dist.errors import StaleGeneration, StoreError
from emc2dist.store import Commit, Layout, LocalStore, Rows, Shard

SEEDS, SHARDS, AHEAD = st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(-1, 3)


class Plain:
    """What should be remembered: every single write that counts, by its commit's (step, rank)."""

    def __init__(self, shards):
        self.writes = {}
        self.begin(shards, applied=-1)

    def begin(self, shards, applied):
        """Go on with other shards, all of which show `applied`."""
        self.shards, self.applied, self.lost = shards, [applied] * shards, set()
        self.seen = {(key, sample % shards) for key, found in self.writes.items() for *_, sample, _ in found}

    def take(self, commit, shard):
        key = (commit.step, commit.rank)
        if commit.step <= self.applied[shard] or (key, shard) in self.seen:
            return
        for table, rows in commit.writes.items():
            for column, values in rows.values.items():
                for sample, value in zip(rows.index, values, strict=True):
                    if sample % self.shards == shard:
                        self.seen.add((key, shard))
                        self.writes.setdefault(key, []).append((table, column, sample, value))

    def read(self, read, as_of):
        tables = {
            table: {name: np.zeros((SAMPLES, *column.shape), column.dtype) for name, column in columns.items()}
            for table, columns in SCHEMA.items()
        }
        for (step, _), found in sorted(self.writes.items()):
            for table, column, sample, value in found if step <= as_of else ():
                tables[table][column][sample] = value
        return {table: {name: column[read[table]] for name, column in tables[table].items()} for table in read}


def saved(store, generation, as_of):
    """All that a checkpoint holds: tables in the order of samples, and the commits that they do not show."""
    tables = {
        table: {name: np.zeros((SAMPLES, *column.shape), column.dtype) for name, column in columns.items()}
        for table, columns in SCHEMA.items()
    }
    parts = {}
    for shard in range(store.layout.shards):
        rows = store.layout.rows(shard)
        for start, stop in ((0, 1), (1, rows)):
            piece = store.snapshot(generation, shard, as_of, start, stop)
            for table, columns in piece.items():
                for name, column in columns.items():
                    tables[table][name][store.layout.indices(shard, start, stop)] = column
        for commit in store.pending(generation, shard):
            for table, write in commit.writes.items():
                parts.setdefault((commit.step, commit.rank), {}).setdefault(table, []).append(write)
    pending = [Commit(*key, {table: joined(writes) for table, writes in parts[key].items()}) for key in sorted(parts)]
    return tables, pending


def joined(writes):
    names = writes[0].values
    values = {name: np.concatenate([write.values[name] for write in writes]) for name in names}
    return Rows(np.concatenate([write.index for write in writes]), values)


class StoreMachine(RuleBasedStateMachine):
    @initialize(shards=SHARDS)
    def start(self, shards):
        self.plain, self.starts, self.sent = Plain(shards), 0, []
        self.store = LocalStore(Layout(SAMPLES, shards), SCHEMA)
        self.store.reset("generation-0")
        self.save(0)

    @property
    def generation(self):
        return f"generation-{self.starts}"

    def call(self, commit, read, as_of):
        """The same exchange with both; shards that refuse it change nothing, the others take it."""
        called = {int(sample) % self.plain.shards for rows in read.values() for sample in rows}
        if commit is not None:
            called |= {int(sample) % self.plain.shards for rows in commit.writes.values() for sample in rows.index}
        refused = {shard for shard in called if shard in self.plain.lost or as_of < self.plain.applied[shard]}
        for shard in called - refused:
            if commit is not None:
                self.plain.take(commit, shard)
            self.plain.applied[shard] = as_of
        pending = self.store.exchange(self.generation, commit, read, as_of)
        if not refused:
            assert_same(pending.result(), self.plain.read(read, as_of))
            return
        with pytest.raises(StaleGeneration if refused <= self.plain.lost else StoreError):
            pending.result()

    @rule(seed=SEEDS, ahead=AHEAD, early=st.integers(-2, 3), rank=st.integers(0, 2))
    def exchange(self, seed, ahead, early, rank):
        """Of a step that is due, early or late; as of the newest step, a later one, or the past."""
        generator = np.random.default_rng(seed)
        as_of = max(self.plain.applied) + ahead
        commit = random_commit(generator, max(0, as_of + early), rank)
        self.sent.append(commit)
        self.call(commit, random_read(generator), as_of)

    @precondition(lambda self: self.sent)
    @rule(seed=SEEDS, pick=st.integers(0, 5))
    def repeat(self, seed, pick):
        """A commit sent again, or another one under its name."""
        commit = self.sent[-1 - pick % len(self.sent)]
        other = random_commit(np.random.default_rng(seed), commit.step, commit.rank)
        self.call(other if seed % 2 else commit, {}, max(self.plain.applied))

    @rule()
    def read_everything(self):
        self.call(None, everything(), max(self.plain.applied))

    @rule(seed=SEEDS)
    def stale(self, seed):
        commit = random_commit(np.random.default_rng(seed), max(self.plain.applied) + 1, 0)
        with pytest.raises(StaleGeneration):
            self.store.exchange(f"generation-{self.starts + 1}", commit, everything(), 10**6).result()

    @rule(shard=st.integers(0, 3))
    def lose(self, shard):
        """As when its process dies and another one starts in its place."""
        shard %= self.plain.shards
        self.store._shards[shard] = Shard(SCHEMA, self.store.layout.rows(shard))
        self.plain.lost.add(shard)

    @precondition(lambda self: not self.plain.lost)
    @rule(ahead=st.integers(0, 2))
    def save(self, ahead):
        as_of = max(self.plain.applied) + ahead
        self.checkpoint = saved(self.store, self.generation, as_of)
        self.plain.applied = [as_of] * self.plain.shards
        self.plain_then, self.step_then = copy.deepcopy(self.plain.writes), as_of

    @rule(shards=SHARDS, again=st.booleans())
    def restore(self, shards, again):
        """What was saved, in other shards and a new generation; `again` after a first attempt that broke off."""
        tables, pending = self.checkpoint
        if shards != self.plain.shards:
            self.store = LocalStore(Layout(SAMPLES, shards), SCHEMA)
        if again:
            self.break_off(tables)
        self.starts += 1
        for shard in range(shards):
            for start, stop in ((0, 2), (2, self.store.layout.rows(shard))):
                piece = self.share(tables, shard, start, stop)
                self.store.restore(self.generation, self.step_then, shard, piece, start, stop)
        self.plain.writes = copy.deepcopy(self.plain_then)
        self.plain.begin(shards, self.step_then)
        for commit in pending:
            self.store.exchange(self.generation, commit, {}, self.step_then).result()

    def break_off(self, tables):
        """Restore a part of a shard: it then serves nobody, and takes nobody else's next part."""
        first, second = self.share(tables, 0, 0, 1), self.share(tables, 0, 1, 2)
        self.store.restore("broken-off", self.step_then, 0, first, 0, 1)
        for generation in (self.generation, "broken-off"):
            with pytest.raises(StaleGeneration):
                self.store.exchange(generation, None, {"chain": np.array([0])}, 10**6).result()
        with pytest.raises(StoreError, match="not the next to be restored"):
            self.store.restore("another", self.step_then, 0, second, 1, 2)

    def share(self, tables, shard, start, stop):
        index = self.store.layout.indices(shard, start, stop)
        return {table: {name: c[index] for name, c in columns.items()} for table, columns in tables.items()}

    @invariant()
    def shards_show_the_step_that_they_were_asked_for(self):
        for shard, stats in enumerate(self.store.stats()):
            held = (None, -1) if shard in self.plain.lost else (self.generation, self.plain.applied[shard])
            assert (stats.generation, stats.applied) == held


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(derandomize=True, max_examples=150, stateful_step_count=40, deadline=None)
