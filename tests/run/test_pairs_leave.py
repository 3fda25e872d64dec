"""What people take away from a run over pairs: how good it is, its negatives, its model, its features."""

import json
import shutil

import numpy as np
import pytest
import torch
from run.trained_pairs import ingest, rows, trained

from emc2dist.cli import main
from emc2dist.data.texts.pairs import open_pairs
from emc2dist.evaluate.retrieval import Judged, measures
from emc2dist.run.folder import RunFolder
from emc2dist.run.loaded import LoadedCheckpoint
from emc2dist.run.texts import TextEncoding


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A set of 24 pairs to train on, and 24 to test with."""
    return ingest(tmp_path_factory.mktemp("sets") / "pairs", rows() + rows("test"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, data):
    """A run of a bag of words, whose one chain per text was visited once."""
    return trained(tmp_path_factory.mktemp("runs"), data)


def told(capsys, *words):
    """What a command answers in JSON."""
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *words):
    """What a command says as it refuses."""
    assert main([*map(str, words)]) in (1, 2)
    return capsys.readouterr().err.strip().splitlines()[-1]


def features_of(run, texts, side):
    """By the newest encoder, of each text by itself."""
    newest = LoadedCheckpoint.newest(RunFolder.open(run))
    encoding = TextEncoding.of(newest, newest.spec.data.path, newest.spec.s3)
    return np.concatenate([next(encoding.features([text], side)).numpy() for text in texts])


def test_all_queries_are_asked_among_all_documents(run, capsys, data):
    found = told(capsys, "evaluate", run)
    assert (found["asked"], found["queries"], found["documents"]) == ("test", 24, 48)
    pairs = open_pairs(LoadedCheckpoint.newest(RunFolder.open(run)).spec.data, "test", corpus=True)
    sides = ((pairs.queries, "query"), (pairs.documents, "document"))
    queries, documents = (features_of(run, texts.get(np.arange(len(texts))), side) for texts, side in sides)
    order = np.argsort(-(queries.astype(float) @ documents.T.astype(float)), axis=1, kind="stable")
    expected = measures(torch.from_numpy(order), Judged(pairs.relevance, pairs.scores))
    assert found["feature"] == pytest.approx(expected)
    assert found["bm25"]["recall_at_1"] == 1  # no two texts of a split share both words


def test_a_table_has_both_beside_each_other(run, capsys):
    assert main(["evaluate", str(run)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["feature", "bm25"] in lines
    assert {line[0] for line in lines[-5:]} == {"ndcg_at_10", "mrr_at_10", *(f"recall_at_{n}" for n in (1, 10, 100))}


def test_another_split_and_another_set_are_asked(run, capsys, tmp_path, data):
    assert told(capsys, "evaluate", run, "eval.asked=train", "data.limit=5")["queries"] == 5
    other = ingest(tmp_path / "other", rows("test")[:7])
    found = told(capsys, "evaluate", run, f"data.path={other}")
    assert (found["queries"], found["documents"]) == (7, 7)
    assert f"{other}: is read by the tokenizer of {data}, on which the run was trained" in found["remarks"]


def test_a_set_that_moved_still_tells_tokens_and_one_that_changed_does_not(tmp_path, capsys):
    data = ingest(tmp_path / "set", rows() + rows("test"))
    run = trained(tmp_path / "runs", data)
    before = told(capsys, "evaluate", run)["feature"]
    shutil.move(data, tmp_path / "moved")
    assert told(capsys, "evaluate", run, f"data.path={tmp_path}/moved")["feature"] == before
    ingest(tmp_path / "set", rows("test") + rows()[1:])
    said = refused(capsys, "evaluate", run)
    assert "now holds 46 training texts, not the 48" in said


def test_what_is_for_training_is_refused(run, capsys):
    for key in ("eval.bank", "data.prefetch"):
        assert f"{key}: is for training" in refused(capsys, "evaluate", run, f"{key}=2")


def test_no_split_to_ask_is_told_with_what_to_do(run, capsys, tmp_path):
    other = ingest(tmp_path / "other", rows()[:7])
    assert "eval.asked=train" in refused(capsys, "evaluate", run, f"data.path={other}")
    assert "no queries of it" in refused(capsys, "evaluate", run, "eval.asked=validation")
