"""One contract, whatever the store and the number of shards."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from store_oracle import ROW_NBYTES, SAMPLES, SCHEMA, assert_same, everything, expected, random_commit, random_read

from emc2dist.errors import StaleGeneration, StoreError
from emc2dist.store import Commit, Layout, LocalStore, Rows

RANKS = 3


@pytest.fixture(scope="module", params=["local-1", "local-3", "ray-1", "ray-3"])
def opened(request):
    kind, shards = request.param.split("-")
    layout = Layout(SAMPLES, int(shards))
    if kind == "local":
        store = LocalStore(layout, SCHEMA)
    else:
        request.getfixturevalue("ray_cluster")
        from emc2dist.store.remote import RayStore

        store = RayStore.create(layout, SCHEMA, timeout_s=30)
    yield store
    store.close()


generations = (f"generation-{number}" for number in itertools.count())


@pytest.fixture
def generation(opened):
    name = next(generations)
    opened.reset(name)
    return name


@pytest.fixture
def store(opened, generation):
    return opened


def one_row(step, sample, value, rank=0):
    """A commit of one value to `feature.written_at`."""
    return Commit(step, rank, {"feature": Rows(np.array([sample]), {"written_at": np.array([value], dtype=np.int32)})})


def written_at(store, generation, sample, as_of):
    return store.exchange(generation, None, {"feature": np.array([sample])}, as_of).result()["feature"]["written_at"][0]


def dropped(store):
    return sum(stats.dropped for stats in store.stats())


@pytest.mark.parametrize("seed", range(5))
def test_every_rank_reads_what_was_committed_whatever_the_order_of_arrival(store, generation, seed):
    generator = np.random.default_rng(seed)
    commits = []
    for step in range(8):
        calls = [(random_commit(generator, step, rank), random_read(generator)) for rank in range(RANKS)]
        generator.shuffle(calls)
        pending = [store.exchange(generation, commit, read, as_of=step - 1) for commit, read in calls]
        for (_, read), reply in zip(calls, pending, strict=True):
            assert_same(reply.result(), expected(commits, read, step - 1))
        commits += [commit for commit, _ in calls]
    assert_same(store.exchange(generation, None, everything(), 7).result(), expected(commits, everything(), 7))


def test_commits_that_come_before_those_of_earlier_steps_wait_for_their_turn(store, generation):
    generator = np.random.default_rng(7)
    commits = [random_commit(generator, step, rank) for step in range(4) for rank in range(RANKS)]
    arrivals = generator.permutation(len(commits))
    for arrival in arrivals:
        store.exchange(generation, commits[arrival], {}, as_of=-1).result()
    for step in range(-1, 4):
        assert_same(
            store.exchange(generation, None, everything(), step).result(), expected(commits, everything(), step)
        )


def test_a_commit_is_seen_by_its_own_call_only_if_its_step_is_due(store, generation):
    read = {"feature": np.array([4])}
    due = store.exchange(generation, one_row(0, 4, value=11), read, as_of=0).result()
    early = store.exchange(generation, one_row(1, 4, value=22), read, as_of=0).result()
    assert due["feature"]["written_at"] == [11]
    assert early["feature"]["written_at"] == [11]
    assert written_at(store, generation, 4, as_of=1) == 22


def test_a_read_of_the_past_is_refused_and_its_commit_not_taken(store, generation):
    written_at(store, generation, 4, as_of=3)
    with pytest.raises(StoreError, match="as of step 2"):
        store.exchange(generation, one_row(5, 4, value=9), {"feature": np.array([4])}, as_of=2).result()
    assert written_at(store, generation, 4, as_of=5) == 0


def test_a_commit_counts_once(store, generation):
    before = dropped(store)
    for value in (1, 2):  # the same step and rank again, before its step is due
        store.exchange(generation, one_row(0, 4, value), {}, as_of=-1).result()
    assert written_at(store, generation, 4, as_of=0) == 1
    assert dropped(store) - before == 1


def test_a_late_commit_changes_nothing(store, generation):
    store.exchange(generation, one_row(0, 4, value=1, rank=0), {"feature": np.array([4])}, as_of=0).result()
    before = dropped(store)
    for rank in (0, 1):  # a repeat of what was applied, and a rank that was too slow
        store.exchange(generation, one_row(0, 4, value=2, rank=rank), {}, as_of=0).result()
    assert written_at(store, generation, 4, as_of=1) == 1
    assert dropped(store) - before == 2
    assert sum(stats.buffered for stats in store.stats()) == 0


def test_writes_of_a_worker_of_an_earlier_generation_change_nothing(store, generation):
    buffered = store.exchange(generation, one_row(2, 4, value=7), {}, as_of=0)
    buffered.result()
    store.reset("a-later-start")
    with pytest.raises(StaleGeneration, match=generation):
        store.exchange(generation, one_row(3, 4, value=8), {}, as_of=2).result()
    with pytest.raises(StaleGeneration):
        store.snapshot(generation, 0, as_of=2)
    assert written_at(store, "a-later-start", 4, as_of=9) == 0


def test_a_shard_that_was_not_called_has_missed_nothing(store, generation):
    """Samples 0 and 1 are on different shards, if there are several; only that of sample 0 is read as of 0 and 1."""
    for step in (0, 1, 2):
        store.exchange(generation, one_row(step, 1, value=10 + step), {}, as_of=-1).result()
    written_at(store, generation, 0, as_of=0)
    assert written_at(store, generation, 1, as_of=0) == 10
    written_at(store, generation, 0, as_of=1)
    written_at(store, generation, 0, as_of=2)
    assert written_at(store, generation, 1, as_of=2) == 12


def test_a_column_that_a_commit_leaves_out_keeps_its_value(store, generation):
    generator = np.random.default_rng(3)
    full = random_commit(generator, 0, 0)
    sample = full.writes["feature"].index[0]
    partial = one_row(1, sample, value=5)
    store.exchange(generation, full, {}, as_of=0).result()
    store.exchange(generation, partial, {}, as_of=0).result()
    found = store.exchange(generation, None, everything(), as_of=1).result()
    assert_same(found, expected([full, partial], everything(), 1))


def test_the_caller_may_go_on_using_its_arrays(store, generation):
    commit = one_row(0, 4, value=6)
    pending = store.exchange(generation, commit, {}, as_of=-1)
    commit.writes["feature"].values["written_at"][:] = 99
    commit.writes["feature"].index[:] = 5
    pending.result()
    reply = store.exchange(generation, None, {"feature": np.array([4, 5])}, as_of=0).result()["feature"]["written_at"]
    assert list(reply) == [6, 0]
    reply[:] = 77
    assert written_at(store, generation, 4, as_of=0) == 6


def test_reading_nothing_gives_columns_without_rows(store, generation):
    found = store.exchange(generation, None, {"feature": np.array([], dtype=np.int64)}, as_of=0).result()
    assert found["feature"]["feature"].shape == (0, 4)
    assert found["feature"]["feature"].dtype == np.float16
    assert store.exchange(generation, None, {}, as_of=0).result() == {}


def snapshot_all(store, generation, as_of):
    return [store.snapshot(generation, shard, as_of) for shard in range(store.layout.shards)]


def restore_all(store, generation, step, snapshots):
    for shard, tables in enumerate(snapshots):
        store.restore(generation, step, shard, tables)


@pytest.mark.parametrize("stop", [0, 3])
def test_going_on_from_a_snapshot_equals_never_having_stopped(store, generation, stop):
    generator = np.random.default_rng(stop)
    commits = [random_commit(generator, step, rank) for step in range(6) for rank in range(RANKS)]

    def send(generation, steps, as_of):
        for commit in commits:
            if commit.step in steps:
                store.exchange(generation, commit, {}, as_of).result()

    # All wait when the snapshot is taken, and one step more than it may show, which the restored run sends again.
    send(generation, range(stop + 2), as_of=-1)
    snapshots = snapshot_all(store, generation, as_of=stop)
    store.reset("forgotten")
    restore_all(store, f"{generation}-again", stop, snapshots)
    found = store.exchange(f"{generation}-again", None, everything(), stop).result()
    assert_same(found, expected(commits, everything(), stop))
    send(f"{generation}-again", range(stop + 1, 6), as_of=stop)
    found = store.exchange(f"{generation}-again", None, everything(), 5).result()
    assert_same(found, expected(commits, everything(), 5))


def test_a_snapshot_is_a_copy_with_the_rows_of_its_shard(store, generation):
    store.exchange(generation, one_row(0, 4, value=1), {}, as_of=0).result()
    shard, row = 4 % store.layout.shards, 4 // store.layout.shards
    snapshot = store.snapshot(generation, shard, as_of=0)
    store.exchange(generation, one_row(1, 4, value=2), {"feature": np.array([4])}, as_of=1).result()
    assert snapshot["feature"]["written_at"][row] == 1
    assert snapshot["chain"]["state"].shape == (store.layout.rows(shard), 2)
    with pytest.raises(StoreError, match="as of step 0"):
        store.snapshot(generation, shard, as_of=0)


def test_a_restored_shard_keeps_nothing_of_before(store, generation):
    empty = snapshot_all(store, generation, as_of=0)
    store.exchange(generation, one_row(1, 4, value=1), {"feature": np.array([4])}, as_of=1).result()
    store.exchange(generation, one_row(2, 4, value=2), {}, as_of=1).result()
    restore_all(store, "restored", 0, empty)
    with pytest.raises(StaleGeneration):
        store.exchange(generation, None, {"feature": np.array([4])}, as_of=3).result()
    assert written_at(store, "restored", 4, as_of=3) == 0


def test_a_restored_shard_shows_the_step_of_its_snapshot(store, generation):
    restore_all(store, "restored", 5, snapshot_all(store, generation, as_of=5))
    assert [stats.applied for stats in store.stats()] == [5] * store.layout.shards
    store.exchange("restored", one_row(5, 4, value=9), {}, as_of=5).result()  # belongs to what was saved
    assert written_at(store, "restored", 4, as_of=6) == 0
    with pytest.raises(StoreError, match="as of step 4"):
        written_at(store, "restored", 4, as_of=4)


def misfit(tables, change):
    """A snapshot with one thing wrong."""
    feature = dict(tables["feature"])
    if change == "dtype":
        feature["feature"] = feature["feature"].astype(np.float32)
    elif change == "shape":
        feature["feature"] = feature["feature"][:-1]
    else:
        del feature["feature"]
    return {**tables, "feature": feature}


@pytest.mark.parametrize("change", ["dtype", "shape", "missing"])
def test_a_snapshot_that_does_not_fit_is_refused_by_name(store, generation, change):
    snapshot = store.snapshot(generation, 0, as_of=0)
    with pytest.raises(StoreError, match=r"feature\.feature"):
        store.restore("other", 0, 0, misfit(snapshot, change))
    assert written_at(store, generation, 0, as_of=0) == 0  # still of its own generation


@pytest.mark.parametrize(
    ("table", "rows", "message"),
    [
        ("chains", Rows(np.array([0]), {}), "no table 'chains'"),
        ("feature", Rows(np.array([0]), {"age": np.zeros(1)}), r"no column feature\.age"),
        ("feature", Rows(np.array([0]), {"feature": np.zeros((1, 4))}), r"feature\.feature"),
        ("feature", Rows(np.array([0]), {"feature": np.zeros((2, 4), np.float16)}), r"feature\.feature"),
        ("feature", Rows(np.array([-1]), {"present": np.ones(1, bool)}), "sample -1"),
        ("feature", Rows(np.array([SAMPLES]), {"present": np.ones(1, bool)}), f"sample {SAMPLES}"),
    ],
)
def test_a_commit_that_does_not_fit_is_refused_before_any_of_it_is_sent(store, generation, table, rows, message):
    good = one_row(0, 4, value=1)
    with pytest.raises(StoreError, match=message):
        store.exchange(generation, replace(good, writes={**good.writes, table: rows}), {}, as_of=0)
    assert written_at(store, generation, 4, as_of=0) == 0


def test_a_read_that_does_not_fit_is_refused(store, generation):
    with pytest.raises(StoreError, match="no table"):
        store.exchange(generation, None, {"nothing": np.array([0])}, as_of=0)
    with pytest.raises(StoreError, match="sample -1"):
        store.exchange(generation, None, {"chain": np.array([-1])}, as_of=0)


def test_stats_tell_what_each_shard_holds(store, generation):
    before = sum(stats.exchanges for stats in store.stats())
    store.exchange(generation, one_row(3, 4, value=1), {"feature": np.array([4])}, as_of=1).result()
    stats = store.stats()
    assert [shard.rows for shard in stats] == [store.layout.rows(shard) for shard in range(store.layout.shards)]
    assert [shard.nbytes for shard in stats] == [shard.rows * ROW_NBYTES for shard in stats]
    assert {shard.generation for shard in stats} == {generation}
    assert sum(shard.buffered for shard in stats) == 1
    assert max(shard.applied for shard in stats) == 1
    assert sum(shard.exchanges for shard in stats) - before == 1  # shards that hold nothing of it were not called
