"""BM25 against its formula in loops, and against what is known of public sets."""

import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from emc2dist.evaluate import bm25
from emc2dist.evaluate.bm25 import Bm25, words
from emc2dist.evaluate.retrieval import Judged, measures

DATA = Path(__file__).parents[3] / "shared/data"


def test_words_are_lower_case_runs_and_names_of_code_are_split():
    assert words("readHTTPHeader2Map(some_file) -- Überall 3.5") == [
        *("read", "httpheader2", "map", "some", "file", "überall", "3", "5")
    ]
    assert words("") == words("_!") == words("\u2764\ufe0f !") == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Привет, МИР_2!", ["привет", "мир", "2"]),
        ("caf\u0065\u0301 na\u00efve \ufb01", ["caf\u00e9", "na\u00efve", "fi"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("한국어 서울", ["한국어", "서울"]),
        ("北京市：APEC2014 水", ["北京", "京市", "apec2014", "水"]),
        ("東京タワーへ", ["東京", "京タ", "タワ", "ワー", "ーへ"]),
        ("ที่นี่", ["ที", "ี่", "่น", "นี", "ี่"]),
    ],
)
def test_words_are_of_any_script_and_where_no_blanks_part_them_two_characters_each(text, found):
    assert words(text) == found


def test_queries_in_a_script_without_blanks_find_what_answers_them():
    documents = ["北京市：天气的情况", "上海市：地铁几点关门", "Москва: погода", "Киев: метро"]
    assert Bm25(documents).search(["地铁几点", "天气怎么样", "погода в Москве"], 1).tolist() == [[1], [0], [2]]


def score(query, document, documents, k1, b):
    """The formula, of lists of words."""
    total, mean = 0.0, sum(map(len, documents)) / len(documents)
    for word in set(query) & set(document):
        holders, count = sum(word in one for one in documents), document.count(word)
        rarity = math.log(1 + (len(documents) - holders + 0.5) / (holders + 0.5))
        total += rarity * count * (k1 + 1) / (count + k1 * (1 - b + b * len(document) / mean))
    return total


@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (0.0, 0.75), (2.0, 0.0), (0.9, 1.0)])
@pytest.mark.parametrize("most", [bm25.MOST_SCORES, 70, 1])
def test_the_order_is_that_of_the_formula(k1, b, most, monkeypatch):
    monkeypatch.setattr(bm25, "MOST_SCORES", most)
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(list("aaabbcdefgh"), draw.integers(0, 9))) for _ in range(31)]
    texts[20] = texts[4]
    queries = ["a a b", "h", "c d e zzz", "zzz", "", "b c a"]
    documents = [text.split() for text in texts]
    expected = []
    for query in queries:
        scores = [score(query.split(), document, documents, k1, b) for document in documents]
        order = sorted(range(31), key=lambda row: (-round(scores[row], 9), row))
        expected.append([row if scores[row] > 0 else -1 for row in order])
    found = Bm25(texts, k1, b).search(queries, 50)
    assert found.tolist() == expected
    assert expected[3] == [-1] * 31
    assert Bm25(texts, k1, b).search(queries, 4).tolist() == [row[:4] for row in expected]
    assert Bm25(texts, k1, b).search([], 4).shape == (0, 4)


def test_an_index_without_a_word_finds_nothing():
    assert Bm25(["", "--"]).search(["a", "--"], 5).tolist() == [[-1, -1], [-1, -1]]


def table(name, part):
    path = DATA / name / f"{part}.parquet"
    if not path.exists():
        pytest.skip(f"no {path}")
    return pq.read_table(path)


@pytest.mark.parametrize(("name", "ndcg", "mrr"), [("scifact", 0.661, 0.625), ("cosqa", 0.370, 0.319)])
def test_public_sets_give_the_figures_that_are_known(name, ndcg, mrr):
    """Those of their README, whose words are not quite these."""
    corpus, queries, qrels = (table(name, part) for part in ("corpus", "queries", "qrels"))
    texts = [f"{row['title']} {row['text']}" for row in corpus.to_pylist()]
    asked = [row for row in queries.to_pylist() if row["split"] == "test"]
    query = {row["id"]: number for number, row in enumerate(asked)}
    document = {one: number for number, one in enumerate(corpus["id"].to_pylist())}
    told = [row for row in qrels.to_pylist() if row["split"] == "test"]
    pairs = np.array([(query[row["query_id"]], document[row["doc_id"]]) for row in told])
    found = Bm25(texts).search([row["text"] for row in asked], 100)
    got = measures(found, Judged(pairs, np.array([row["score"] for row in told])))
    assert got["ndcg_at_10"] == pytest.approx(ndcg, abs=0.01)
    assert got["mrr_at_10"] == pytest.approx(mrr, abs=0.01)
