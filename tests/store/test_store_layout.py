"""Layout: every sample has one place, and a split list comes back in its order."""

import numpy as np
import pytest

from emc2dist.errors import StoreError
from emc2dist.store import Layout


@pytest.mark.parametrize(("samples", "shards"), [(1, 1), (7, 1), (7, 3), (9, 3), (5, 5)])
def test_every_sample_has_exactly_one_row(samples, shards):
    layout = Layout(samples, shards)
    parts = {part.shard: part for part in layout.split(np.arange(samples))}
    assert sum(layout.rows(shard) for shard in range(shards)) == samples
    for shard in range(shards):
        assert sorted(parts[shard].rows) == list(range(layout.rows(shard)))
        np.testing.assert_array_equal(layout.indices(shard)[parts[shard].rows], parts[shard].positions)


def test_a_split_is_undone_by_its_positions_and_keeps_the_order_of_repeats():
    index = np.array([5, 0, 5, 3, 8, 0, 2])
    layout = Layout(9, 3)
    merged = np.full(len(index), -1)
    for part in layout.split(index):
        assert list(part.positions) == sorted(part.positions)
        merged[part.positions] = layout.indices(part.shard)[part.rows]
    np.testing.assert_array_equal(merged, index)


def test_shards_that_hold_nothing_of_a_list_are_left_out():
    assert [part.shard for part in Layout(9, 3).split(np.array([1, 4, 7]))] == [1]
    assert Layout(9, 3).split(np.array([], dtype=np.int64)) == []


@pytest.mark.parametrize(("samples", "shards"), [(3, 4), (3, 0), (0, 1)])
def test_refuses_shards_without_samples(samples, shards):
    with pytest.raises(StoreError, match="shards"):
        Layout(samples, shards)


@pytest.mark.parametrize("index", [[-1], [9], [0.0], [[0]]])
def test_refuses_what_is_no_list_of_samples(index):
    with pytest.raises(StoreError, match="sample"):
        Layout(9, 3).split(np.array(index))


@pytest.mark.parametrize("shard", [-1, 3])
def test_refuses_a_shard_that_is_not_there(shard):
    with pytest.raises(StoreError, match="no shard"):
        Layout(9, 3).rows(shard)
