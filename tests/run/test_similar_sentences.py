"""`evaluate --similarity`: pairs of sentences in people's order, through a run's encoder."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from run.trained_pairs import ingest, rows, trained
from scipy.stats import spearmanr

from emc2dist.cli import main
from emc2dist.config import S3
from emc2dist.errors import DataError
from emc2dist.run import similarity
from emc2dist.run.folder import RunFolder
from emc2dist.run.loaded import LoadedCheckpoint
from emc2dist.run.similarity import evaluate_similarity
from emc2dist.run.texts import Encoding

STS = Path(__file__).parents[3] / "shared/data/sts/pairs.parquet"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return trained(folder, ingest(folder / "set", rows() + rows("test")))


def table(count=12):
    return [
        {
            "sentence1": f"the red apple {number}",
            "sentence2": f"which river is {'red' if number % 2 else 'old'} {number * 7 % 5}",
            "score": number % 6,
            "task": "even" if number % 4 < 2 else "odd",
            "split": "train" if number == 11 else "test",
        }
        for number in range(count)
    ]


def written(folder, lines):
    file = folder / "sts.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return file


def test_each_task_is_ordered_by_the_cosines_of_features(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(similarity, "_AT_ONCE", 4)
    file = written(tmp_path, table())
    assert main(["evaluate", str(run), "--similarity", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    encoding = Encoding.of(LoadedCheckpoint.newest(RunFolder.open(run, S3())))
    mine = [line for line in table() if line["split"] == "test"]
    one, other = (encoding.features([line[f"sentence{n}"] for line in mine], "query") for n in (1, 2))
    scores, gold = (one * other).sum(1), np.array([line["score"] for line in mine])
    of_tasks = []
    for task in ("even", "odd"):
        of = np.array([line["task"] == task for line in mine])
        of_tasks.append(spearmanr(scores[of], gold[of]).statistic)
        assert found["feature"][f"spearman_{task}"] == pytest.approx(of_tasks[-1])
    assert found["feature"]["spearman_mean"] == pytest.approx(np.mean(of_tasks))
    assert found["pairs"] == 11
    assert found["words"].keys() == found["feature"].keys()


def test_words_are_compared_by_their_counts():
    assert similarity._word_cosine("a red, red apple", "Red apple!") == pytest.approx(3 / 12**0.5)
    assert similarity._word_cosine("a", "?") == 0


def test_without_tasks_and_splits_all_rows_are_one_task(run, tmp_path):
    lines = [{key: line[key] for key in ("sentence1", "sentence2", "score")} for line in table()]
    found = evaluate_similarity(run, written(tmp_path, lines))
    assert found["pairs"] == 12
    assert list(found["feature"]) == ["spearman_all", "spearman_mean"]


WRONG = [
    ({"sentence2": None}, "line 1: a sentence is no text"),
    ({"sentence1": " "}, "line 1: a sentence is no text"),
    ({"score": "high"}, "line 1: score 'high' is no number"),
    ({"score": "nan"}, "line 1: score 'nan' is no number"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_a_row_that_is_of_no_use_is_named(change, message, run, tmp_path):
    with pytest.raises(DataError, match=message):
        evaluate_similarity(run, written(tmp_path, [table()[0] | change]))


def test_what_is_not_there_is_told_with_what_to_do(run, tmp_path, monkeypatch):
    file = written(tmp_path, table())
    with pytest.raises(DataError, match="no pair of split gone; name another split"):
        evaluate_similarity(run, file, split="gone")
    with pytest.raises(DataError, match="has no column 'score'"):
        evaluate_similarity(run, written(tmp_path, [{"sentence1": "a", "sentence2": "b"}]))
    with pytest.raises(DataError, match="is no table"):
        evaluate_similarity(run, tmp_path / "sts.txt")
    monkeypatch.setattr(similarity, "MOST_PAIRS", 10)
    with pytest.raises(DataError, match="more than 10 pairs"):
        evaluate_similarity(run, written(tmp_path, table()))


def test_a_split_is_of_similarity_alone(run, capsys):
    assert main(["evaluate", str(run), "--split", "test"]) == 2
    assert "--split test: is of --similarity; say eval.asked=test" in capsys.readouterr().err


def test_sentences_that_people_scored_are_measured(run):
    if not STS.exists():
        pytest.skip(f"no {STS}")
    found = evaluate_similarity(run, STS)
    tasks = {row["task"] for row in pq.read_table(STS).to_pylist() if row["split"] == "test"}
    assert found["feature"].keys() == {f"spearman_{task}" for task in tasks} | {"spearman_mean"}
    assert 0.5 < found["words"]["spearman_sick2014"] < 0.7
