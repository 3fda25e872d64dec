"""The order of an epoch: permutations, seeds, and resuming by number."""

import numpy as np
import pytest

from emc2dist.data.sampler import EpochOrder, rank_slice
from emc2dist.errors import DataError


def epoch_of(order: EpochOrder, epoch: int) -> np.ndarray:
    first = epoch * order.steps_per_epoch
    return np.concatenate([order.batch(step) for step in range(first, first + order.steps_per_epoch)])


def test_an_epoch_is_a_permutation_when_batches_fit():
    order = EpochOrder(24, 6, seed=0)
    assert order.steps_per_epoch == 4
    for epoch in range(3):
        assert sorted(epoch_of(order, epoch)) == list(range(24))
    assert order.batch(0).dtype == np.int64


def test_the_rest_is_dropped_without_repeats_and_changes_by_epoch():
    order = EpochOrder(25, 6, seed=0)
    epochs = [epoch_of(order, epoch) for epoch in range(20)]
    assert all(len(set(indices)) == 24 for indices in epochs)
    assert len({(set(range(25)) - set(indices)).pop() for indices in epochs}) > 5


def test_epochs_and_seeds_differ():
    order = EpochOrder(100, 10, seed=1)
    assert not np.array_equal(epoch_of(order, 0), epoch_of(order, 1))
    assert not np.array_equal(epoch_of(order, 0), epoch_of(EpochOrder(100, 10, seed=2), 0))
    assert not np.array_equal(epoch_of(order, 1), epoch_of(EpochOrder(100, 10, seed=2), 0))


def test_the_step_number_is_the_whole_position():
    order = EpochOrder(50, 8, seed=2**62)
    through = [order.batch(step) for step in range(20)]
    for step in (17, 3, 6, 5, 0, 19):
        assert np.array_equal(EpochOrder(50, 8, seed=2**62).batch(step), through[step])
        assert np.array_equal(order.batch(step), through[step])


def test_prefetching_over_the_end_of_an_epoch_draws_each_permutation_once(monkeypatch):
    order, seeds = EpochOrder(8, 4, seed=0), []
    real = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: seeds.append(seed) or real(seed))
    for step in (0, 1, 2, 1, 2, 3, 4, 3):
        order.batch(step)
    assert seeds == [[0, 0], [0, 1], [0, 2]]


def test_an_unrelated_order_is_of_the_same_samples_in_other_batches():
    order = EpochOrder(24, 6, seed=0)
    other = order.unrelated(8, seed=1)
    assert other.steps_per_epoch == 3
    assert sorted(epoch_of(other, 0)) == list(range(24))
    assert not np.array_equal(epoch_of(other, 0), epoch_of(order, 0))
    blocks = EpochOrder(24, 6, seed=0, blocks=np.array([12, 12]), window=1)
    assert set(epoch_of(blocks.unrelated(12, seed=1), 0)[:12]) in ({*range(12)}, {*range(12, 24)})


def test_a_caller_may_change_its_batch():
    order = EpochOrder(8, 4, seed=0)
    order.batch(0)[:] = -1
    assert order.batch(0).min() >= 0


def test_a_batch_larger_than_the_data_names_both():
    with pytest.raises(DataError, match=r"batch_size: 64 is more than the 10 training images; use at most 10"):
        EpochOrder(10, 64, seed=0)


def test_ranks_share_a_batch_in_contiguous_parts():
    batch = EpochOrder(40, 12, seed=0).batch(0)
    assert np.array_equal(np.concatenate([rank_slice(batch, rank, 3) for rank in range(3)]), batch)
    assert np.array_equal(rank_slice(batch, 1, 3), batch[4:8])


BLOCKS = np.full(200, 100)  # 20,000 rows


def blocked(seed: int = 0, window: int = 2_000, batch_size: int = 50, blocks: np.ndarray = BLOCKS) -> EpochOrder:
    return EpochOrder(int(blocks.sum()), batch_size, seed, blocks=blocks, window=window)


def test_a_block_shuffle_is_a_permutation_and_differs_by_epoch_and_seed():
    uneven = np.array([7, 100, 1, 42])
    order = blocked(batch_size=10, blocks=uneven, window=30)
    epochs = [epoch_of(order, epoch) for epoch in range(2)]
    assert sorted(epochs[0]) == list(range(150))
    assert not np.array_equal(*epochs)
    assert not np.array_equal(epochs[0], epoch_of(blocked(1, 30, 10, uneven), 0))
    assert np.array_equal(EpochOrder(150, 10, 0, blocks=uneven, window=30).batch(20), order.batch(20))


def test_few_blocks_are_needed_at_a_time():
    """Per batch of 50 rows about as many new blocks as the batch is blocks long; none is needed again much later."""
    blocks = epoch_of(blocked(), 0) // 100
    first = np.unique(blocks, return_index=True)[1]
    last = len(blocks) - 1 - np.unique(blocks[::-1], return_index=True)[1]
    assert (last - first).max() < 2_000 + 2 * 100
    new = np.histogram(first, bins=np.arange(0, 20_001, 1_000))[0]
    assert new.max() < 25  # 10 per 1,000 rows on average; more at the start


def test_how_far_a_block_shuffle_is_from_uniform():
    """docs/data.md: rows of one block share a batch about N / window times as often as under a full shuffle."""
    together, batches = 0, 0
    for epoch in range(4):
        blocks = (epoch_of(blocked(epoch), 0) // 100).reshape(-1, 50)
        together += sum((np.bincount(batch) * (np.bincount(batch) - 1)).sum() for batch in blocks)
        batches += len(blocks)
    mates = together / (batches * 50)  # rows of its own block that a row meets in its batch
    assert mates == pytest.approx(99 * 50 / 2_000, rel=0.1)
    uniform = 99 * 49 / 19_999
    assert mates / uniform == pytest.approx(20_000 / 2_000, rel=0.12)


def test_over_epochs_other_blocks_meet_as_often_as_under_a_full_shuffle():
    met = np.zeros((20, 20))
    for seed in range(1_500):
        order = blocked(seed, window=400, batch_size=50, blocks=np.full(20, 50))
        for batch in epoch_of(order, 0).reshape(-1, 50):
            counts = np.bincount(batch // 50, minlength=20)
            met += np.outer(counts, counts)
    others = met[~np.eye(20, dtype=bool)]
    assert others.std() / others.mean() < 0.05
