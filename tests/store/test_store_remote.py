"""What only real actors can show: death, silence, travel and the end of a store."""

import logging
import os
import pickle
import signal
import threading
import time

import numpy as np
import pytest
from store_oracle import SAMPLES, SCHEMA, assert_same, everything, expected, random_commit, random_read

from emc2dist.errors import StaleGeneration, StoreError, StoreTimeout
from emc2dist.store import Layout


@pytest.fixture
def store(ray_cluster):
    from emc2dist.store.remote import RayStore

    store = RayStore.create(Layout(SAMPLES, 2), SCHEMA, timeout_s=30)
    store.reset("first")
    yield store
    store.close()


def process_of(ray, actor):
    return ray.get(actor.__ray_call__.remote(lambda shard: os.getpid()), timeout=30)


def call_until_it_is_back(call):
    """Repeat a call on a restarting shard: its errors, up to the first that the new process gave itself."""
    errors = []
    while not (errors and isinstance(errors[-1], StaleGeneration)):
        with pytest.raises(StoreError) as caught:
            call()
        errors.append(caught.value)
        assert len(errors) < 1000
    return errors


def test_a_killed_shard_comes_back_empty_and_refuses_until_it_is_restored(ray_cluster, store):
    commits = [random_commit(np.random.default_rng(step), step, 0) for step in range(3)]
    for commit in commits[:2]:
        store.exchange("first", commit, {}, as_of=commit.step).result()
    saved = [store.snapshot("first", shard, as_of=1) for shard in range(2)]

    os.kill(process_of(ray_cluster, store.actors[1]), signal.SIGKILL)
    errors = call_until_it_is_back(lambda: store.exchange("first", None, everything(), as_of=1).result())

    assert "shard 1 of 2" in str(errors[-1])
    assert all("lost" in str(error) and "checkpoint" in str(error) for error in errors[:-1])
    assert store.stats()[1].generation is None
    with pytest.raises(StaleGeneration):
        store.exchange("first", commits[2], {}, as_of=1).result()

    for shard, tables in enumerate(saved):
        store.restore("second", 1, shard, tables)
    found = store.exchange("second", commits[2], everything(), as_of=2).result()
    assert_same(found, expected(commits, everything(), 2))


def test_a_call_to_a_dying_shard_says_that_it_was_lost(ray_cluster, store):
    process = process_of(ray_cluster, store.actors[0])
    os.kill(process, signal.SIGSTOP)  # so that the call is certainly under way when its process dies
    pending = store.exchange("first", None, {"feature": np.array([0])}, as_of=0)
    os.kill(process, signal.SIGKILL)
    with pytest.raises(StoreError, match=r"shard 0 of 2 was lost.*checkpoint") as caught:
        pending.result()
    assert type(caught.value) is StoreError


def test_a_silent_shard_times_out_by_name_and_its_commit_still_counts_once(ray_cluster, store):
    from emc2dist.store.remote import RayStore

    hasty = RayStore(store.layout, store.schema, store.actors, timeout_s=0.2)
    commit = random_commit(np.random.default_rng(0), 0, 0)
    process = process_of(ray_cluster, store.actors[1])
    os.kill(process, signal.SIGSTOP)
    try:
        with pytest.raises(StoreTimeout, match=r"shard 1 of 2.*store\.timeout_s \(now 0\.2\)"):
            hasty.exchange("first", commit, everything(), as_of=-1).result()
    finally:
        os.kill(process, signal.SIGCONT)
    found = store.exchange("first", commit, everything(), as_of=0).result()
    assert_same(found, expected([commit], everything(), 0))
    assert [stats.dropped for stats in store.stats()] == [1, 1]


def test_a_survey_goes_round_the_silent_shard(ray_cluster, store):
    process = process_of(ray_cluster, store.actors[0])
    os.kill(process, signal.SIGSTOP)
    try:
        silent, healthy = store.survey(timeout_s=1.0)
    finally:
        os.kill(process, signal.SIGCONT)
    assert silent is None
    assert healthy.generation == "first"


def test_calls_are_under_way_before_anybody_waits(ray_cluster, store):
    """With the first shard silent, the second one still takes its share."""
    process = process_of(ray_cluster, store.actors[0])
    os.kill(process, signal.SIGSTOP)
    try:
        pending = store.exchange("first", random_commit(np.random.default_rng(0), 3, 0), {}, as_of=0)
        assert ray_cluster.get(store.actors[1].stats.remote(), timeout=30).buffered == 1
    finally:
        os.kill(process, signal.SIGCONT)
    pending.result()


def test_a_slow_shard_slows_its_callers(ray_cluster, store):
    """A caller that waits for each reply, as a worker does, sends no more while one shard stands still."""
    commits = [random_commit(np.random.default_rng(step), step, 0) for step in range(5)]

    def work():
        for commit in commits:
            store.exchange("first", commit, everything(), as_of=-1).result()

    def arrived():
        return ray_cluster.get(store.actors[1].stats.remote(), timeout=30).exchanges

    caller = threading.Thread(target=work)
    process = process_of(ray_cluster, store.actors[0])
    os.kill(process, signal.SIGSTOP)
    try:
        caller.start()
        deadline = time.monotonic() + 30
        while arrived() == 0:
            assert time.monotonic() < deadline
        assert {arrived() for _ in range(50)} == {1}
    finally:
        os.kill(process, signal.SIGCONT)
    caller.join(timeout=30)
    assert arrived() == 5


def test_a_store_travels_to_workers_that_share_its_shards(ray_cluster, store):
    commits = [random_commit(np.random.default_rng(rank), 0, rank) for rank in range(2)]

    @ray_cluster.remote(num_cpus=1)
    def work(config, commit):
        config["store"].exchange("first", commit, {}, as_of=-1).result()

    ray_cluster.get([work.remote({"store": store}, commit) for commit in commits], timeout=30)
    found = store.exchange("first", None, everything(), as_of=0).result()
    assert_same(found, expected(commits, everything(), 0))


@pytest.fixture
def members(store):
    """The store as two workers of one node have it."""
    return [store.joined(member, 2, start_timeout_s=120) for member in range(2)]


def test_workers_that_exchange_together_call_each_shard_once_and_see_what_they_would_alone(store, members):
    rng = np.random.default_rng(0)
    commits = []
    for step in range(6):
        new = [random_commit(rng, step, rank) for rank in range(2)]
        reads = [random_read(rng) for _ in range(2)]
        order = rng.permutation(2)
        started = {rank: members[rank].exchange("first", new[rank], reads[rank], max(step - 2, -1)) for rank in order}
        for rank in range(2):
            found = started[rank].result()
            assert_same(found, expected(commits, reads[rank], max(step - 2, -1)))
            assert all(column.flags.writeable for columns in found.values() for column in columns.values())
        commits += new
    assert_same(store.exchange("first", None, everything(), as_of=5).result(), expected(commits, everything(), 5))
    assert [(stats.exchanges, stats.dropped) for stats in store.stats()] == [(7, 0), (7, 0)]


def test_workers_that_are_not_in_the_same_step_are_refused(store, members):
    for pending in [one.exchange("first", None, everything(), as_of=step) for step, one in enumerate(members)]:
        with pytest.raises(StoreError, match="differ in generation or step"):
            pending.result()
    assert [stats.exchanges for stats in store.stats()] == [0, 0]


def test_who_exchanges_with_others_resends_alone(store, members):
    commits = [random_commit(np.random.default_rng(rank), 0, rank) for rank in range(2)]
    members[0].resend("first", commits, as_of=-1)
    assert_same(store.exchange("first", None, everything(), as_of=0).result(), expected(commits, everything(), 0))


def test_an_error_of_a_shard_reaches_every_worker_of_the_node(ray_cluster, store, members):
    for pending in [one.exchange("another", None, everything(), as_of=0) for one in members]:
        with pytest.raises(StaleGeneration, match=r"^shard 0 of 2: ") as caught:
            pending.result()
        assert type(caught.value) is StaleGeneration
    for pending in [one.exchange("first", None, everything(), as_of=0) for one in members]:
        assert_same(pending.result(), expected([], everything(), 0))  # and they go on


def test_a_silent_shard_is_named_to_every_worker_of_the_node(ray_cluster, store):
    from emc2dist.store.remote import RayStore

    hasty = RayStore(store.layout, store.schema, store.actors, timeout_s=1)
    members = [hasty.joined(member, 2, start_timeout_s=120) for member in range(2)]
    process = process_of(ray_cluster, store.actors[1])
    os.kill(process, signal.SIGSTOP)
    try:
        for pending in [one.exchange("first", None, everything(), as_of=-1) for one in members]:
            with pytest.raises(StoreTimeout, match=r"shard 1 of 2.*store\.timeout_s \(now 1\)"):
                pending.result()
    finally:
        os.kill(process, signal.SIGCONT)


def test_a_worker_whose_fellow_does_not_come_is_told_so(ray_cluster, store):
    from emc2dist.store.remote import RayStore

    hasty = RayStore(store.layout, store.schema, store.actors, timeout_s=0.2)
    alone = hasty.joined(0, 2, start_timeout_s=120)
    with pytest.raises(StoreTimeout, match=r"in 0\.4 s: .*another worker of the node, stands still.*store\.timeout_s"):
        alone.exchange("first", None, everything(), as_of=0).result()
    assert [stats.exchanges for stats in store.stats()] == [0, 0]


def test_the_death_of_what_joins_workers_is_a_loss(ray_cluster, store, members):
    started = members[0].exchange("first", None, everything(), as_of=0)  # waits for the other one
    ray_cluster.kill(members[0]._actor)
    with pytest.raises(StoreError, match=r"exchange was lost.*checkpoint") as caught:
        started.result()
    assert type(caught.value) is StoreError
    assert_same(store.exchange("first", None, everything(), as_of=0).result(), expected([], everything(), 0))


def test_a_single_worker_calls_the_shards_itself(store):
    assert store.joined(0, 1, start_timeout_s=120) is store


def test_errors_survive_pickling_with_their_type_and_words(ray_cluster, store):
    with pytest.raises(StaleGeneration, match="shard 0 of 2") as caught:
        store.exchange("another", None, {"feature": np.array([0])}, as_of=0).result()
    assert type(caught.value) is StaleGeneration
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_closed_store_refuses(ray_cluster, store):
    store.close()
    with pytest.raises(StoreError, match="the store is closed"):
        store.stats()


def test_memory_is_declared_only_where_there_is_room(ray_cluster, caplog):
    from emc2dist.store.remote import _memory
    from emc2dist.store.shard import nbytes

    assert _memory(Layout(10, 3), SCHEMA) == {"memory": nbytes(SCHEMA, 4)}
    with caplog.at_level(logging.WARNING):
        assert _memory(Layout(10**15, 3), SCHEMA) == {}  # a declaration that no node can meet would wait for ever
    assert "room for 3 shards" in caplog.text


def test_as_many_actors_as_shards(ray_cluster, store):
    from emc2dist.store.remote import RayStore

    with pytest.raises(StoreError, match="2 shards"):
        RayStore(store.layout, store.schema, store.actors[:1], timeout_s=1)
