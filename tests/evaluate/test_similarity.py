"""Rank correlation by its definition, and of words alone on sentences that people judged."""

import math
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from emc2dist.evaluate.bm25 import words
from emc2dist.evaluate.similarity import cosines, spearman

STS = Path(__file__).parents[3] / "shared/data/sts/pairs.parquet"


def ranks(values):
    """Mean of the places that values as great may take."""
    return [sum(one < value for one in values) + (sum(one == value for one in values) - 1) / 2 for value in values]


def test_each_task_has_the_correlation_of_its_own_ranks():
    draw = np.random.default_rng(0)
    gold = draw.integers(0, 6, 60).astype(np.float32)  # with many ties
    tasks = draw.choice(["sts15", "sts12", "sick"], 60)
    scores = gold + draw.normal(size=60)
    scores[tasks == "sick"] = np.exp(-3 * gold[tasks == "sick"])  # order alone counts
    found = spearman(scores, gold, tasks.tolist())
    assert list(found) == ["sick", "sts12", "sts15"]
    for task, value in found.items():
        mine = tasks == task
        assert value == pytest.approx(np.corrcoef(ranks(scores[mine]), ranks(gold[mine]))[0, 1])
    assert found["sick"] == pytest.approx(-1)
    assert 0.3 < found["sts12"] < 1


def test_a_task_of_one_value_has_no_correlation_and_nothing_is_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = spearman(np.array([1.0, 2, 3, 3, 7]), np.array([4.0, 4, 1, 2, 9]), ["a", "a", "b", "b", "c"])
    assert all(math.isnan(value) for value in found.values())


def test_cosines_are_of_rows_with_their_own():
    one, other = torch.tensor([[3.0, 0], [1, 1], [0, 0]]), torch.tensor([[-2.0, 0], [0, 5], [1, 0]])
    assert cosines(one, other).tolist() == pytest.approx([-1, math.sqrt(0.5), 0])


def test_words_alone_go_some_way_on_sentences_that_people_judged():
    if not STS.exists():
        pytest.skip(f"no {STS}")
    rows = [row for row in pq.read_table(STS).to_pylist() if row["task"] in ("sts2015", "sick2014")][::4]
    numbers: dict[str, int] = {}
    counts = torch.zeros(2, len(rows), 8_000)
    for line, row in enumerate(rows):
        for side in (0, 1):
            for word in words(row[f"sentence{side + 1}"]):
                counts[side, line, numbers.setdefault(word, len(numbers))] += 1
    gold = np.array([row["score"] for row in rows])
    found = spearman(cosines(*counts), gold, [row["task"] for row in rows])
    assert list(found) == ["sick2014", "sts2015"]
    assert all(0.5 < value < 0.7 for value in found.values())
