"""Search and its measures against plain loops and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score
from torch.utils._python_dispatch import TorchDispatchMode

from emc2dist.errors import DataError, NonFiniteError
from emc2dist.evaluate import retrieval
from emc2dist.evaluate.retrieval import Judged, measures, ranked, search


def features(seed, rows, width=6):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def by_loop(queries, documents, k):
    """Rows [Q, k], by sorting (score, row)."""
    scores = (queries.double() @ documents.double().T).float()
    order = [sorted(range(len(documents)), key=lambda row: (-float(line[row]), row)) for line in scores]
    return torch.tensor(order)[:, :k], scores


@pytest.fixture
def small(monkeypatch):
    """Pieces of 7 documents and of 3 queries at k = 5."""
    monkeypatch.setattr(retrieval, "_PIECE", 7)
    monkeypatch.setattr(retrieval, "MOST_SCORES", 3 * (7 + 5))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("sizes", [[50], [1] * 50, [8, 0, 30, 12]])
def test_search_finds_the_greatest_products_of_either_sign_whatever_the_chunks(sizes):
    queries, documents = features(0, 11), features(1, 50)
    queries[4] = 0  # all of its scores are equal
    documents[[3, 20, 44]] = documents[9].clone()
    documents[[10, 11]] = -documents[9]
    expected, all_scores = by_loop(queries, documents, 50)
    for k in (1, 5, 50, 80):
        scores, rows = search(queries, iter(documents.split(sizes)), k)
        assert scores.dtype == torch.float32
        assert torch.equal(rows, expected[:, :k])
        torch.testing.assert_close(scores, all_scores.gather(1, rows))
    assert rows[4].tolist() == list(range(50))
    assert torch.equal(search(queries, documents, 5)[1], expected[:, :5])


def test_equal_scores_are_told_apart_by_the_lower_row_and_minus_zero_is_zero():
    scores = torch.tensor([[-0.0, -1, 0.0, 2, 2, -1], [-3, -2, -2, -3, -5, -2]])
    found, columns = ranked(scores, 6)
    assert columns.tolist() == [[3, 4, 0, 2, 1, 5], [1, 2, 5, 0, 3, 4]]
    assert torch.equal(found, scores.gather(1, columns))
    assert ranked(scores, 2)[1].tolist() == [[3, 4], [1, 2]]


def test_equal_documents_have_equal_scores_wherever_they_stand():
    """In float32 a product depends on the shape of the matrices."""
    queries, document = features(0, 33, 301), features(1, 1, 301)
    scores, rows = search(queries, iter([document.expand(n, -1) for n in (1, 3, 16, 64, 129, 1000)]), 1213)
    assert (scores == scores[:, :1]).all()
    assert torch.equal(rows, torch.arange(1213).expand(33, -1))


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that is made inside."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else [made]:
            if isinstance(one, torch.Tensor):
                self.numbers = max(self.numbers, one.numel())
        return made


def test_neither_all_scores_nor_all_documents_are_held_at_once(monkeypatch):
    monkeypatch.setattr(retrieval, "_PIECE", 16)
    monkeypatch.setattr(retrieval, "MOST_SCORES", 1_000)
    queries = features(0, 300, 2)
    with Largest() as largest:
        search(queries, (features(chunk, 40, 2) for chunk in range(20)), 3)
        assert largest.numbers <= 1_000  # of 240,000 scores and 1,600 numbers of documents; the answer is 900
        queries @ features(0, 40, 2).T
        assert largest.numbers == 12_000


def test_of_no_query_and_of_no_document_nothing_is_found():
    assert search(features(0, 0), features(1, 4), 3)[1].shape == (0, 3)
    assert search(features(0, 4), iter([]), 3)[1].shape == (4, 0)
    assert search(features(0, 4), features(1, 0), 3)[1].shape == (4, 0)


def test_a_feature_that_is_not_finite_is_named_by_its_row(monkeypatch):
    queries, documents = features(0, 5), features(1, 12)
    documents[9, 2] = torch.nan
    with pytest.raises(NonFiniteError, match="document 9"):
        search(queries, iter(documents.split(5)), 2)
    queries[3, 0] = torch.inf
    with pytest.raises(NonFiniteError, match="query 3"):
        search(queries, documents, 2)
    monkeypatch.setattr(retrieval, "_MOST_DOCUMENTS", 11)
    with pytest.raises(DataError, match="more than 11"):
        search(queries[:2], documents, 2)


def judgements(seed, queries, documents, share=0.1):
    """Grades 0 to 3 [Q, N]; only some pairs are judged, some of them as not relevant."""
    draw = np.random.default_rng(seed)
    grades = draw.integers(1, 4, (queries, documents)) * (draw.random((queries, documents)) < share)
    told = (grades > 0) | (draw.random(grades.shape) < 0.05)
    pairs = draw.permutation(np.argwhere(told))
    return grades, Judged(pairs, grades[tuple(pairs.T)].astype(np.int16))


def test_the_measures_are_those_of_loops_and_of_scikit_learn():
    grades, judged = judgements(0, 40, 150)
    grades[[5, 17]] = 0
    kept = ~np.isin(judged.relevance[:, 0], [5, 17])
    judged = Judged(judged.relevance[kept], judged.gains[kept])
    scores = np.random.default_rng(1).normal(size=grades.shape) + 0.7 * grades
    found = ranked(torch.from_numpy(scores), 120)[1]
    asked = [query for query in range(40) if query not in (5, 17)]
    reciprocals, recalls = [], {1: [], 10: [], 100: []}
    for query in asked:
        hits = [grades[query, row] > 0 for row in found[query].tolist()]
        reciprocals.append(next((1 / (rank + 1) for rank in range(10) if hits[rank]), 0))
        for cut, shares in recalls.items():
            shares.append(sum(hits[:cut]) / np.count_nonzero(grades[query]))
    got = measures(found, judged)
    assert list(got) == ["ndcg_at_10", "mrr_at_10", "recall_at_1", "recall_at_10", "recall_at_100"]
    assert got["ndcg_at_10"] == pytest.approx(ndcg_score(grades[asked], scores[asked], k=10))
    assert got["mrr_at_10"] == pytest.approx(np.mean(reciprocals))
    for cut, shares in recalls.items():
        assert got[f"recall_at_{cut}"] == pytest.approx(np.mean(shares))
    assert 0 < got["recall_at_1"] < got["recall_at_10"] < got["recall_at_100"] < 1


def test_a_document_that_nobody_judged_and_a_query_that_nobody_judged_change_nothing():
    judged = Judged(np.array([[1, 4]]), np.array([1]))
    found = torch.tensor([[4, 9], [9, 4], [9, 4]])  # 9 of the last query is beyond all pairs
    assert list(measures(found, judged).values()) == pytest.approx([1 / math.log2(3), 1 / 2, 0, 1, 1])


def test_gains_are_linear_and_negative_ones_are_none():
    judged = Judged(np.array([[0, 7], [0, 2], [0, 3]]), np.array([3, 1, -5]))
    got = measures(torch.tensor([[2, 3, 7]]), judged)
    assert got["ndcg_at_10"] == pytest.approx((1 + 3 / 2) / (3 + 1 / math.log2(3)))
    assert (got["mrr_at_10"], got["recall_at_1"], got["recall_at_10"]) == (1, 0.5, 1)


def test_an_eleventh_place_counts_for_recall_at_100_alone_and_one_below_k_not_at_all():
    judged = Judged(np.array([[0, 50]]), np.array([1]))
    found = torch.tensor([[*range(10), 50]])
    assert list(measures(found, judged).values()) == [0, 0, 0, 0, 1]
    assert list(measures(found[:, :4], judged).values()) == [0, 0, 0, 0, 0]
    assert list(measures(found[:, :0], judged).values()) == [0, 0, 0, 0, 0]
    assert measures(torch.tensor([[*range(9), 50]]), judged)["mrr_at_10"] == pytest.approx(0.1)


def test_no_document_is_nobodys_relevant_one():
    """-1 of a query is not the last document of the query before it."""
    judged = Judged(np.array([[0, 3], [1, 3]]), np.array([1, 1]))
    assert measures(torch.tensor([[3, -1], [-1, -1]]), judged)["recall_at_10"] == 0.5


def test_judgements_that_cannot_be_are_refused():
    found = torch.zeros(2, 1, dtype=torch.int64)
    for pairs, gains, told in [
        ([[0, 1]], [0], "0 relevant pairs"),
        ([[2, 1]], [1], "1 relevant pairs for 2 queries"),
        ([[-1, 1]], [1], "1 relevant pairs for 2 queries"),
        ([[1, 1], [1, 0], [1, 1]], [1, 1, 2], "judged twice"),
    ]:
        with pytest.raises(DataError, match=told):
            measures(found, Judged(np.array(pairs), np.array(gains)))
