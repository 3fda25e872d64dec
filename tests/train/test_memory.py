"""What is recalled, against an oracle that remembers every write of every step."""

import numpy as np
import torch
from train.harness import small_spec

from emc2dist.data.digits import DigitsImages
from emc2dist.data.sampler import rank_slice
from emc2dist.store import Layout, LocalStore
from emc2dist.train.loop import order_for
from emc2dist.train.memory import Encoded, Memory, schema_for

STEPS, SAMPLES, VIEWS = 20, 48, 2


def found_in(step, index):
    """Something that tells sample and step apart, by anchor, and features."""
    index = torch.from_numpy(index)
    state = (index + torch.zeros(VIEWS, 1, dtype=torch.int64)) * 5 + step + torch.arange(VIEWS).unsqueeze(1)
    columns = {
        "state": (state % SAMPLES).flatten(),
        "visited": torch.ones(VIEWS * len(index), dtype=torch.bool),
        "visited_at": torch.full((VIEWS * len(index),), step, dtype=torch.int32),
    }
    return {"negatives": columns}, Encoded(index, (index * 100.0 + step).unsqueeze(1).expand(-1, 16))


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


def check_all(rows, order, as_of):
    """The newest feature of every sample."""
    assert rows.index.tolist() == list(range(SAMPLES))
    wrote = [last_write(order, sample, as_of) for sample in range(SAMPLES)]
    assert rows.present.tolist() == [step is not None for step in wrote]
    assert rows.written_at.tolist() == [step or 0 for step in wrote]
    expected = [[0 if step is None else sample * 100.0 + step] * 16 for sample, step in enumerate(wrote)]
    assert rows.feature.tolist() == expected


def test_recall_is_exactly_as_of_its_steps_whatever_the_order_of_calls():
    spec = small_spec("negatives.kernel=isir", "negatives.cache_proposals=10", "workers=2", "shards=3")
    order = order_for(spec, DigitsImages("train", limit=SAMPLES))
    store = LocalStore(Layout(SAMPLES, 3), schema_for(spec))
    store.reset("g")
    memories = [Memory(spec, store, order, rank, "g", torch.device("cpu")) for rank in range(2)]
    for memory in memories:
        memory.start(0, settled=-1)
    settled, lottery = -1, np.random.default_rng(0)
    for step in range(STEPS):
        for rank in lottery.permutation(2):
            recall = memories[rank].recall(step)["negatives"]
            check(recall, order, step, rank, settled)
        for rank in lottery.permutation(2):
            check_all(memories[rank].features(step), order, max(step - 2, settled))
        for rank in lottery.permutation(2):
            memories[rank].exchange(step)
        for rank, memory in enumerate(memories):
            memory.remember(step, *found_in(step, rank_slice(order.batch(step), rank, 2)))
        if step == 8:  # a checkpoint
            for rank in lottery.permutation(2):
                memories[rank].settle(step)
            written = sum(store.snapshot("g", shard, step)["negatives"]["visited_at"].sum() for shard in range(3))
            last = [last_write(order, sample, step) for sample in range(SAMPLES)]
            assert written == VIEWS * sum(step or 0 for step in last)
            for memory in memories:
                memory.start(step + 1, settled=step)
            settled = step
    assert sum(shard.dropped for shard in store.stats()) == 0


def test_cache_rows_are_drawn_uniformly_without_repeats_and_alike_for_all_ranks():
    spec = small_spec("negatives.kernel=isir", "negatives.cache_proposals=12", "workers=2")
    order = order_for(spec, DigitsImages("train", limit=SAMPLES))
    store = LocalStore(Layout(SAMPLES, 1), schema_for(spec))
    ranks = [Memory(spec, store, order, rank, "g", torch.device("cpu")) for rank in range(2)]
    draws = np.stack([ranks[0]._propose(step) for step in range(4_000)])
    assert all((memory._propose(7) == draws[7]).all() for memory in ranks)
    assert all(len(set(row)) == 12 for row in draws[:100])
    counts, expected = np.bincount(draws.ravel(), minlength=SAMPLES), 4_000 * 12 / SAMPLES
    assert ((counts - expected) ** 2 / (expected * (1 - 12 / SAMPLES))).sum() < 90  # chi-square, 47 degrees, p = 0.0002
