"""`emc2dist certify` of a spec and of a run, and what it refuses."""

import json

import pytest
from train.harness import SMALL, Run, small_spec

from emc2dist.cli import main
from emc2dist.run.folder import RunFolder, checkpoint_name

QUICK = ["--samples", "32", "--views", "4", "--steps", "24"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with a checkpoint."""
    spec = small_spec("epochs=1", f"run_dir={tmp_path_factory.mktemp('runs')}", "eval.every=0", "device=cpu")
    folder = RunFolder.prepare(spec)
    trained = Run(spec, folder.place.path).go()
    trained.checkpoints[6].rename(folder.place.path / checkpoint_name(6))
    return folder.place.path


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL + "device: cpu\n")
    return tmp_path / "small.yaml"


def test_a_spec_is_certified_with_a_table_words_and_a_picture(spec, tmp_path, capsys):
    assert main(["certify", str(spec), "batch_size=4", *QUICK, "--out", str(tmp_path / "a.svg")]) == 0
    told = capsys.readouterr()
    table, words = told.out.split("\n\n")
    assert [line[:8] for line in table.splitlines()[:3]] == ["NEGATIVE", "your mh,", "in batch"]
    assert "At temperature 0.2, batches of 4: after 24 steps" in words
    assert "These are 32 of 48 images" in words
    assert "32 of 48 training images, each in 4 random views" in told.err
    assert (tmp_path / "a.svg").read_bytes().startswith(b"<?xml")


def test_a_run_is_certified_with_the_encoder_of_its_newest_checkpoint(run, spec, capsys):
    assert main(["certify", str(run), *QUICK, "--json"]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert trained["of"] == str(run / checkpoint_name(6))
    assert trained["trained_steps"] == 6
    assert "The encoder is that of step 6." in trained["words"]
    assert main(["certify", str(spec), *QUICK, "--json"]) == 0
    untrained = json.loads(capsys.readouterr().out)
    assert untrained["trained_steps"] is None
    assert [one["role"] for one in untrained["rows"]] == [one["role"] for one in trained["rows"]]
    assert untrained["rows"][0]["error"] != trained["rows"][0]["error"]
    facts = trained["rows"][0]["facts"]
    assert {"acceptance_rate", "carried_weight_ratio", "effective_sample_size", "reencoded_images"} <= facts.keys()
    assert trained["out"] is None


def test_keys_that_the_contrast_reads_can_be_changed_of_a_run_and_no_others(run, capsys):
    overrides = ["objective=simclr", "data.limit=20", "batch_size=4"]
    assert main(["certify", str(run), *overrides, *QUICK, "--json"]) == 0
    told = capsys.readouterr()
    result = json.loads(told.out)
    assert result["objective"]["name"] == "infonce"
    assert result["rows"][0]["negatives"]["name"] == "in_batch"
    assert [remark for remark in result["remarks"] if "gives 20 training images, not the 48" in remark]
    for word in ("encoder.features=8", "lr=1", "epochs=3", "data.shuffle=block"):
        assert main(["certify", str(run), word, *QUICK]) == 2
        assert f"emc2dist: {word.partition('=')[0]}: is for training" in capsys.readouterr().err
    assert main(["certify", str(run), "data.path=/none", *QUICK]) == 2
    assert "/none: no such file or folder" in capsys.readouterr().err


def test_what_is_refused_leaves_nothing(run, spec, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("emc2dist.run.certificate.freeze", lambda *_: pytest.fail("encoded too early"))
    for words, status, told in (
        ([str(spec), "--views", "3"], 2, "--views 3: a step takes views.count: 2"),
        ([str(spec), "--samples", "9"], 2, "--samples 9: too few for batches of 8"),
        ([str(spec), "batch_size=64"], 2, "48 training images are fewer than a batch of 64"),
        ([str(spec), "--out", str(tmp_path / "a.jpg")], 2, "call it *.png, *.pdf or *.svg"),
        ([str(spec), "lrr=1"], 2, "lrr: unknown key"),
        ([str(tmp_path / "none.yaml")], 2, "none.yaml"),
        ([str(tmp_path)], 1, "not a run folder"),
        ([str(tmp_path / "none")], 1, "not a run folder"),
    ):
        assert main(["certify", *words]) == status
        message = capsys.readouterr().err
        assert told in message
        assert message.count("\n") == 1
    for words in (["--steps", "23"], ["--views", "0"], ["--seconds", "0"]):
        with pytest.raises(SystemExit):
            main(["certify", str(spec), *words])
    empty = RunFolder.prepare(small_spec(f"run_dir={tmp_path}", "name=empty"))
    assert main(["certify", str(empty.place)]) == 1
    assert "checkpoint" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "small.yaml"]


def test_a_full_disk_keeps_nothing_of_the_picture(spec, small_disk, capsys):
    filler = small_disk / "filler"
    filler.write_bytes(bytes(2**20 - 2**13))
    assert main(["certify", str(spec), *QUICK, "--out", str(small_disk / "a.png")]) == 2
    assert f"{small_disk}/a.png: No space left on device" in capsys.readouterr().err
    assert list(small_disk.iterdir()) == [filler]
