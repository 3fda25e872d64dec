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
    other = order.draws(8, seed=1)
    assert other.steps_per_epoch == 3
    assert sorted(epoch_of(other, 0)) == list(range(24))
    assert not np.array_equal(epoch_of(other, 0), epoch_of(order, 0))
    blocks = EpochOrder(24, 6, seed=0, blocks=np.array([12, 12]), window=1)
    assert set(epoch_of(blocks.draws(12, seed=1), 0)[:12]) in ({*range(12)}, {*range(12, 24)})


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


def by_class(labels: np.ndarray, batch_size: int, per_class: int, seed: int = 0, parts: int = 1) -> EpochOrder:
    return EpochOrder(len(labels), batch_size, seed, parts=parts, labels=labels, per_class=per_class)


def classes_of(order: EpochOrder, labels: np.ndarray, epoch: int) -> list[list[int]]:
    """How often each class is in each batch of an epoch, without the classes that are not."""
    batches = epoch_of(order, epoch).reshape(-1, order.micro_batch_size)
    return [np.unique(labels[batch], return_counts=True)[1].tolist() for batch in batches]


def test_batches_are_of_k_samples_of_each_of_p_classes_and_an_epoch_is_a_permutation():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(30), 12))
    order = by_class(labels, 24, 4)
    for epoch in range(3):
        assert sorted(epoch_of(order, epoch)) == list(range(360))
    found = [counts for epoch in range(20) for counts in classes_of(order, labels, epoch)]
    assert all(count % 4 == 0 for counts in found for count in counts)
    once = np.mean([counts == [4] * 6 for counts in found])
    assert once > 0.9  # a batch in which one third of the epoch ends and the next begins may have a class twice
    parts = by_class(labels, 48, 4, parts=2)
    assert (parts.micro_batch_size, parts.steps_per_epoch) == (24, 14)


def test_what_classes_have_left_is_seen_too_and_stays_together():
    """Classes of 1 to 7, and eight without a class: all groups of 3, then batches of what is left."""
    labels = np.concatenate([np.repeat(np.arange(28), np.arange(28) % 7 + 1), np.full(8, -1)])
    order = by_class(labels, 12, 3)
    missed = np.zeros(len(labels))
    for epoch in range(400):
        seen = epoch_of(order, epoch)
        assert len(set(seen.tolist())) == len(seen) == 120
        missed[np.setdiff1d(np.arange(len(labels)), seen)] += 1
    assert missed.sum() == 0
    shorter = by_class(labels[:-1], 12, 3)
    for epoch in range(400):
        missed[np.setdiff1d(np.arange(119), epoch_of(shorter, epoch))] += 1
    chance = missed[:119] / 400
    assert chance.min() > 0
    assert chance.max() < 2.5 * chance.mean()
    # Of the pairs of one class that a batch could hold, most are there: 3 groups of two classes of 3 are 9 pairs.
    named = np.where(labels < 0, 99 + np.arange(len(labels)), labels)
    mates = sum(count * (count - 1) for counts in classes_of(order, named, 0) for count in counts)
    assert mates > 180


def test_batches_by_class_are_a_function_of_seed_and_step():
    labels = np.arange(60) % 7
    order = by_class(labels, 12, 3, seed=5)
    through = [order.batch(step) for step in range(12)]
    for step in (7, 2, 11):
        assert np.array_equal(by_class(labels, 12, 3, seed=5).batch(step), through[step])
    assert not np.array_equal(by_class(labels, 12, 3, seed=6).batch(0), through[0])
    draws = order.draws(6, seed=5)
    assert np.array_equal(draws.batch(0), EpochOrder(60, 6, seed=5).batch(0))


def test_beside_an_anchor_every_sample_of_another_class_is_as_likely():
    """What chains and draws take a batch for, once the own class is closed."""
    labels = np.repeat(np.arange(12), [4, 8, 8, 4, 12, 6, 4, 8, 9, 5, 4, 12])
    met = np.zeros((len(labels), len(labels)))
    for seed in range(1_500):
        for batch in epoch_of(by_class(labels, 12, 4, seed), 0).reshape(-1, 12):
            met[np.ix_(batch, batch)] += 1
    others = labels[:, None] != labels
    for anchor in range(0, len(labels), 5):
        rates = met[anchor][others[anchor]]
        assert rates.std() / rates.mean() < 0.2
