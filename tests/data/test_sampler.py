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
    assert [order.epoch(step) for step in (0, 5, 6, 17, 18)] == [0, 0, 1, 2, 3]
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
