"""What an objective has measures of, or learns, as `emc2dist evaluate` and `emc2dist ask` find it in a checkpoint."""

import json

import numpy as np
import pytest
from train.harness import Run, small_spec

from emc2dist.cli import main
from emc2dist.core.contrast import contrast_for
from emc2dist.run.ask import ask
from emc2dist.run.folder import RunFolder, checkpoint_name
from emc2dist.run.loaded import LoadedCheckpoint

ROWS = [[float(place == label % 5) + 0.1 * label for place in range(16)] for label in range(10)]
IN_BATCH = "negatives={name: in_batch}"


@pytest.fixture
def trained(tmp_path):
    """A function that trains a spec for an epoch; returns its run folder."""

    def train(*overrides):
        spec = small_spec("epochs=1", f"run_dir={tmp_path}", "eval.every=0", *overrides)
        folder = RunFolder.prepare(spec)
        run = Run(spec, folder.place.path).go()
        last = max(run.checkpoints)
        run.checkpoints[last].rename(folder.place.path / checkpoint_name(last))
        return folder.place.path

    return train


def evaluated(capsys, *words):
    assert main(["evaluate", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_labels_that_are_held_out_are_told_by_their_vectors(trained, capsys):
    objective = {"name": "input_label", "held_out": [3, 8], "vectors": ROWS}
    run = trained(f"objective={json.dumps(objective)}", IN_BATCH)
    found = evaluated(capsys, run)
    assert 0 <= found["feature"]["zero_shot_among_all"] <= found["feature"]["zero_shot_accuracy"] <= 1
    assert found["representation"]["zero_shot_accuracy"] is None


def test_either_head_is_measured(trained, capsys):
    run = trained("objective={name: sepclr, width: 8, background: [0]}", IN_BATCH)
    found = evaluated(capsys, run)
    assert found["common"].keys() == found["salient"].keys() == found["feature"].keys()
    assert main(["evaluate", str(run)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["representation", "feature", "common", "salient"] in lines
    assert found["common"]["knn_accuracy"] != found["salient"]["knn_accuracy"]


def test_answers_tell_how_many_triplets_are_right_and_a_run_is_asked_about(trained, capsys, tmp_path):
    queries = tmp_path / "queries"
    for split in ("train", "test"):
        ask("digits", str(queries), None, count=16, split=split)
    data = [
        f"data.path={queries}",
        "data.limit=null",
        "data.per_class=3",
        "batch_size=12",
        f"data.cache_dir={tmp_path}/c",
    ]
    run = trained("objective.name=sirl", IN_BATCH, *data)
    found = evaluated(capsys, run, "eval.asked=test")
    assert 0 < found["feature"]["triplet_accuracy"] <= 1
    assert 0 < found["representation"]["triplet_accuracy"] <= 1
    assert ask(str(run), str(tmp_path / "more"), lambda pictures: 0, count=2) == (2, 0, 2, [])


def test_what_is_learnt_beside_the_encoder_is_loaded(trained, capsys):
    run = trained("objective={name: hydra, classes: 10, embedding: 8}", IN_BATCH)
    found = LoadedCheckpoint.newest(RunFolder.open(run))
    fresh = contrast_for(found.spec).objective.learns(16)
    assert {*found.encoder.learnt.state_dict()} == {*fresh.state_dict()}
    assert np.isfinite(evaluated(capsys, run)["feature"]["uniformity"])
