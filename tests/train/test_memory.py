"""What is recalled, against an oracle that remembers every write of every step; and who calls the store."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest
import torch
from train.harness import InThisThread, small_spec

from emc2dist.core.estimators import FEATURES
from emc2dist.data.digits import DigitsImages
from emc2dist.data.sampler import rank_slice
from emc2dist.errors import NonFiniteError, StoreError
from emc2dist.store import Layout, LocalStore
from emc2dist.train import collectives, memory
from emc2dist.train.finite import Finite
from emc2dist.train.loop import order_for
from emc2dist.train.memory import Encoded, Memory, schema_for

STEPS, SAMPLES, VIEWS = 20, 48, 2
PROPOSALS = 11  # which two ranks cannot share evenly


class TwoRanks:
    """Two ranks in threads of this process; one goes on alone until it has ended or waits for the other's rows."""

    def __init__(self) -> None:
        self._both, self._paused, self._rank = threading.Barrier(2, timeout=60), threading.Event(), threading.local()
        self._rows = [torch.empty(0)] * 2

    def each(self, order, call):
        """What the call returns for each rank, begun in this order."""
        with ThreadPoolExecutor(2) as pool:
            found = {}
            for rank in order:
                self._paused.clear()
                found[rank] = pool.submit(self._run, rank, call)
                assert self._paused.wait(60)
            return [found[rank].result() for rank in range(2)]

    def gather_rows(self, rows):
        """As that of `collectives`."""
        self._rows[self._rank.number] = rows
        self._paused.set()
        self._both.wait()
        gathered = torch.cat(self._rows)
        self._both.wait()
        return gathered

    def _run(self, rank, call):
        self._rank.number = rank
        try:
            return call(rank)
        finally:
            self._paused.set()


def found_in(step, index):
    """Something that tells sample and step apart, by anchor, and features."""
    index = torch.from_numpy(index)
    state = (index + torch.zeros(VIEWS, 1, dtype=torch.int64)) * 5 + step + torch.arange(VIEWS).unsqueeze(1)
    columns = {
        "state": (state % SAMPLES).flatten(),
        "visited": torch.ones(VIEWS * len(index), dtype=torch.bool),
        "visited_at": torch.full((VIEWS * len(index),), step, dtype=torch.int32),
    }
    features = (index * 100.0 + step).unsqueeze(1).expand(-1, 16)
    return {"negatives": columns}, Encoded(index, features, index % (2 * VIEWS))


def last_write(order, sample, as_of):
    """The last step, up to `as_of`, whose batch held the sample; None before any."""
    return next((step for step in range(as_of, -1, -1) if sample in order.batch(step)), None)


def check(recall, order, step, rank, settled):
    """Chains as of four steps ago and features as of three, or as of the last settling."""
    own = rank_slice(order.batch(step), rank, 2)
    for v in range(VIEWS):
        for i, sample in enumerate(own):
            anchor = v * len(own) + i
            wrote = last_write(order, sample, max(step - 4, settled))
            assert recall.columns["visited"][anchor] == (wrote is not None)
            if wrote is None:
                continue
            state = (sample * 5 + wrote + v) % SAMPLES
            assert recall.columns["state"][anchor] == recall.carried.index[anchor] == state
            assert recall.columns["visited_at"][anchor] == wrote
            cached = last_write(order, state, max(step - 3, settled))
            assert recall.carried.present[anchor] == (cached is not None)
            if cached is not None:
                assert recall.carried.written_at[anchor] == cached
                assert recall.carried.feature[anchor].tolist() == [state * 100.0 + cached] * 16


def check_cached(rows, samples, order, as_of):
    """The newest feature of each of the samples."""
    assert rows.index.tolist() == list(samples)
    wrote = [last_write(order, sample, as_of) for sample in samples]
    assert rows.present.tolist() == [step is not None for step in wrote]
    assert rows.written_at.tolist() == [step or 0 for step in wrote]
    slots = [0 if step is None else sample % (2 * VIEWS) for sample, step in zip(samples, wrote, strict=True)]
    assert rows.slot.tolist() == slots
    expected = [
        [0 if step is None else sample * 100.0 + step] * 16 for sample, step in zip(samples, wrote, strict=True)
    ]
    assert rows.feature.tolist() == expected


def test_recall_is_exactly_as_of_its_steps_whatever_the_order_of_calls(monkeypatch):
    monkeypatch.setattr(memory, "ThreadPoolExecutor", InThisThread)
    group = TwoRanks()
    monkeypatch.setattr(collectives, "gather_rows", group.gather_rows)
    spec = small_spec("negatives.kernel=isir", f"negatives.cache_proposals={PROPOSALS}", "workers=2", "shards=3")
    order = order_for(spec, DigitsImages("train", limit=SAMPLES))
    store = LocalStore(Layout(SAMPLES, 3), schema_for(spec))
    store.reset("g")
    memories = [Memory(spec, store, order, rank, "g", torch.device("cpu")) for rank in range(2)]
    for one in memories:
        one.start(0, settled=-1)
    settled, lottery = -1, np.random.default_rng(0)
    for step in range(STEPS):
        recalled = group.each(lottery.permutation(2), lambda rank: memories[rank].recall(step)["negatives"])  # noqa: B023
        proposals = memories[0]._propose(step).tolist()
        assert len(proposals) == PROPOSALS
        for rank, recall in enumerate(recalled):
            check(recall, order, step, rank, settled)
            check_cached(recall.proposed, proposals, order, max(step - 3, settled))
        for rows in group.each(lottery.permutation(2), lambda rank: memories[rank].features(step, range(SAMPLES))):  # noqa: B023
            check_cached(rows, range(SAMPLES), order, max(step - 2, settled))
        for rank in lottery.permutation(2):
            memories[rank].exchange(step)
        for rank, one in enumerate(memories):
            one.remember(step, *found_in(step, rank_slice(order.batch(step), rank, 2)))
        if step == 8:  # a checkpoint
            for rank in lottery.permutation(2):
                memories[rank].settle(step)
            written = sum(store.snapshot("g", shard, step)["negatives"]["visited_at"].sum() for shard in range(3))
            last = [last_write(order, sample, step) for sample in range(SAMPLES)]
            assert written == VIEWS * sum(step or 0 for step in last)
            for one in memories:
                one.start(step + 1, settled=step)
            settled = step
    assert sum(shard.dropped for shard in store.stats()) == 0


class WatchedStore(LocalStore):
    """Notes what is read, and lets no call pass while the gate is closed."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.gate, self.reads, self.broken = threading.Event(), [], False
        self.gate.set()

    def exchange(self, generation, commit, read, as_of):
        assert self.gate.wait(60)
        if self.broken:
            raise StoreError("the store is broken")
        self.reads.append({table: len(index) for table, index in read.items()})
        return super().exchange(generation, commit, read, as_of)


@pytest.fixture
def watched():
    """A memory at the start of a run of one worker, and its store."""
    spec = small_spec("negatives.kernel=isir", f"negatives.cache_proposals={PROPOSALS}")
    store = WatchedStore(Layout(SAMPLES, 1), schema_for(spec))
    store.reset("g")
    order = order_for(spec, DigitsImages("train", limit=SAMPLES))
    with closing(Memory(spec, store, order, 0, "g", torch.device("cpu"))) as found:
        found.start(0, settled=-1)
        yield found


def finite(*rows):
    return [Finite(torch.tensor(rows), lambda row: (0, f"sample {100 + row}"))]


def test_each_rank_reads_its_part_of_the_proposals():
    for workers, part in ((1, 11), (2, 6), (4, 3), (8, 2)):
        spec = small_spec(f"negatives.cache_proposals={PROPOSALS}", f"workers={workers}", "batch_size=16")
        order = order_for(spec, DigitsImages("train", limit=SAMPLES))
        store = WatchedStore(Layout(SAMPLES, 1), schema_for(spec))
        store.reset("g")
        for rank in range(workers):
            with closing(Memory(spec, store, order, rank, "g", torch.device("cpu"))) as one:
                one.start(0, settled=-1)
                one._ahead.reply.result()
                assert store.reads[-1][FEATURES] == part


def test_a_start_calls_the_store_once_all_ranks_are_there(watched, monkeypatch):
    """Others may still write a checkpoint, for which the store has no patience."""
    watched.recall(0)
    calls, found = len(watched.store.reads), []
    monkeypatch.setattr(collectives, "barrier", lambda: found.append(len(watched.store.reads)))
    watched.start(0, settled=-1)
    assert found == [calls]


def test_the_thread_of_the_step_does_not_wait_for_the_store(watched):
    """It goes on while the call stands still, up to the step that needs the reply."""
    watched.recall(0)
    watched.store.gate.clear()
    watched.exchange(0)
    watched.remember(0, *found_in(0, watched._order.batch(0)))
    assert not watched._ahead.reply.done()
    watched.store.gate.set()
    assert watched.recall(1)["negatives"].columns["visited"].tolist() == [False] * 16


def test_what_is_not_finite_is_never_sent_and_told_by_the_next_recall(watched):
    watched.recall(0)
    watched.exchange(0)
    watched.remember(0, *found_in(0, watched._order.batch(0)), finite(True, False, True))
    watched.recall(1)
    watched.exchange(1)
    watched.remember(1, *found_in(1, watched._order.batch(1)), finite(False))
    for ask in (watched.confirm, lambda: watched.recall(2), lambda: watched.settle(1)):
        with pytest.raises(NonFiniteError, match="step 0, sample 101"):  # not step 1: the first one is told
            ask()
    assert watched.store.pending("g", 0) == []


def test_an_error_of_the_store_comes_with_the_reply(watched):
    watched.recall(0)
    watched.store.broken = True
    watched.exchange(0)
    for ask in (lambda: watched.recall(1), watched.confirm, lambda: watched.park(0)):
        with pytest.raises(StoreError, match="the store is broken"):
            ask()


def test_cache_rows_are_drawn_uniformly_without_repeats_and_alike_for_all_ranks():
    spec = small_spec("negatives.kernel=isir", "negatives.cache_proposals=12", "workers=2")
    order = order_for(spec, DigitsImages("train", limit=SAMPLES))
    store = LocalStore(Layout(SAMPLES, 1), schema_for(spec))
    ranks = [Memory(spec, store, order, rank, "g", torch.device("cpu")) for rank in range(2)]
    draws = np.stack([ranks[0]._propose(step) for step in range(4_000)])
    assert all((one._propose(7) == draws[7]).all() for one in ranks)
    assert all(len(set(row)) == 12 for row in draws[:100])
    counts, expected = np.bincount(draws.ravel(), minlength=SAMPLES), 4_000 * 12 / SAMPLES
    assert ((counts - expected) ** 2 / (expected * (1 - 12 / SAMPLES))).sum() < 90  # chi-square, 47 degrees, p = 0.0002
