"""Neighbours against scikit-learn's, and against loops."""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from emc2dist.evaluate import neighbours

CHUNKS = [neighbours._MOST_SCORES, 60 * 20, 1]  # all at once, by chunks, one by one


def points(seed, rows, width=5):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [1, 2, 7, 60])
@pytest.mark.parametrize("most", CHUNKS)
def test_the_vote_is_scikit_learns(count, most, monkeypatch):
    monkeypatch.setattr(neighbours, "_MOST_SCORES", most)
    bank, queries, draw = points(0, 60), points(1, 83), np.random.default_rng(0)
    bank[5] = 0  # a vector without a direction
    voters = draw.choice([-3, 0, 2, 7], 60)
    oracle = KNeighborsClassifier(count, metric="cosine", algorithm="brute").fit(bank.numpy(), voters)
    expected = oracle.predict(queries.numpy())
    assert len(set(expected)) > 1 or count == 60
    np.testing.assert_array_equal(neighbours.votes(bank, voters, queries, neighbours=count), expected)


def test_a_rank_may_have_nobody_to_ask_about():
    assert not len(neighbours.votes(points(0, 3), np.arange(3), points(1, 0), neighbours=1))


def found_within(point, label, others, labels, count):
    """Whether a row of the class is among the nearest `count`, by a loop."""
    near = sorted(range(len(others)), key=lambda row: -float(torch.cosine_similarity(point, others[row], dim=0)))
    return any(labels[row] == label for row in near[:count])


@pytest.mark.parametrize("most", CHUNKS)
def test_recall_is_the_share_with_one_of_their_class_among_the_nearest(most, monkeypatch):
    monkeypatch.setattr(neighbours, "_MOST_SCORES", most)
    bank, queries, draw = points(0, 60), points(1, 41), np.random.default_rng(0)
    voters, asked = draw.choice(30, 60), draw.choice(30, 41)
    expected = [
        np.mean([found_within(*pair, bank, voters, count) for pair in zip(queries, asked, strict=True)])
        for count in (1, 5, 60)
    ]
    assert 0 < expected[0] < expected[1] < expected[2] < 1  # some class is not in the bank
    assert neighbours.recall(bank, voters, queries, asked, (1, 5, 60)) == pytest.approx(expected)


@pytest.mark.parametrize("most", CHUNKS)
def test_among_each_other_no_row_is_its_own_neighbour_and_a_class_of_one_is_not_asked_about(most, monkeypatch):
    monkeypatch.setattr(neighbours, "_MOST_SCORES", most)
    rows, labels = points(2, 30), np.array([*np.arange(28) % 9, 50, 51])
    expected = []
    for count in (1, 4):
        hits = []
        for row in range(28):
            others = [other for other in range(30) if other != row]
            hits.append(found_within(rows[row], labels[row], rows[others], labels[others], count))
        expected.append(np.mean(hits))
    assert 0 < expected[0] < expected[1] < 1
    assert neighbours.recall_among(rows, labels, (1, 4)) == pytest.approx(expected)
    assert all(math.isnan(share) for share in neighbours.recall_among(rows, np.arange(30), (1, 4)))
