"""The vote of the nearest neighbours against scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from emc2dist.evaluate import knn


def points(seed, rows, width=5):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("neighbours", [1, 2, 7, 60])
def test_the_vote_is_scikit_learns(neighbours, monkeypatch):
    bank, queries, draw = points(0, 60), points(1, 83), np.random.default_rng(0)
    bank[5] = 0  # a vector without a direction
    voters, asked = draw.choice([-3, 0, 2, 7], 60), draw.choice([0, 2, 7, 9], 83)
    oracle = KNeighborsClassifier(neighbours, metric="cosine", algorithm="brute").fit(bank.numpy(), voters)
    expected = int((oracle.predict(queries.numpy()) == asked).sum())
    assert 0 < expected < 83
    for most in (knn._MOST_SCORES, 60 * 20, 1):  # all at once, by chunks, one by one
        monkeypatch.setattr(knn, "_MOST_SCORES", most)
        assert knn.right(bank, voters, queries, asked, neighbours=neighbours) == expected


def test_a_rank_may_have_nobody_to_ask_about():
    assert knn.right(points(0, 3), np.arange(3), points(1, 0), np.zeros(0, np.int64), neighbours=1) == 0
