"""What comes out of a run, and where it cannot go; of a checkpoint that training in this process has made."""

import json
import os
import shutil

import pytest
from safetensors.numpy import load_file
from train.harness import Run, small_spec

from emc2dist import files
from emc2dist.cli import main
from emc2dist.run.folder import RunFolder, checkpoint_name


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with a checkpoint."""
    spec = small_spec("epochs=1", f"run_dir={tmp_path_factory.mktemp('runs')}", "eval.every=0")
    folder = RunFolder.prepare(spec)
    trained = Run(spec, folder.place.path).go()
    trained.checkpoints[6].rename(folder.place.path / checkpoint_name(6))
    return folder.place.path


def export(run, out, capsys):
    status = main(["export", str(run), str(out)])
    return status, capsys.readouterr().err.strip()


def test_the_backbone_is_written_over_what_was_there(run, tmp_path, capsys):
    for out in (tmp_path / "b.safetensors", f"file://{tmp_path}/b.safetensors", tmp_path / "exp: 3 #1"):
        assert export(run, out, capsys)[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.safetensors", "exp: 3 #1"]
    found = load_file(tmp_path / "b.safetensors")
    assert found["layer1.0.conv1.weight"].shape == (64, 64, 3, 3)


def test_where_it_cannot_be_written_is_told_before_anything_is_read(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("emc2dist.run.results.LoadedCheckpoint.newest", lambda folder: pytest.fail("read too early"))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    for out, words in {
        tmp_path / "none" / "b.safetensors": f"there is no folder {tmp_path}/none",
        tmp_path: "is a folder",
        tmp_path / "pipe": "is no file",
        tmp_path / "file" / "b": "there is no folder",
        tmp_path / ("n" * 300): "File name too long",
        "gs://bucket/b": "gs:// cannot be used here",
        f"{tmp_path}/new/": "means a folder",
        "s3://bucket/new/": "means a folder",
        "/dev/null": "is no file",
    }.items():
        status, told = export(run, out, capsys)
        assert status == 2
        assert told.startswith(f"emc2dist: {out}: ")
        assert words in told
        assert "\n" not in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "pipe"]


def test_a_newer_checkpoint_that_is_damaged_is_said(run, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "run")
    newer = shutil.copytree(folder / checkpoint_name(6), folder / checkpoint_name(12))
    (newer / "trainer.safetensors").unlink()
    remark = f"passed over, as not whole: {newer}: trainer.safetensors is missing"
    for words in (["export", str(folder), str(tmp_path / "b")], ["evaluate", str(folder)]):
        assert main([*words, "--json"]) == 0
        told = capsys.readouterr()
        assert remark in told.err.splitlines()
        result = json.loads(told.out)
        assert result["checkpoint"] == str(folder / checkpoint_name(6))
        assert result["remarks"][0] == remark
    (folder / checkpoint_name(6)).rename(newer.with_name("gone"))
    assert main(["evaluate", str(folder)]) == 1


def test_a_full_disk_keeps_nothing_of_it(run, small_disk, capsys):
    status, told = export(run, small_disk / "b.safetensors", capsys)
    assert status == 2
    assert told.startswith(f"emc2dist: {small_disk}/b.safetensors: No space left on device")
    assert list(small_disk.iterdir()) == []


def test_it_goes_to_s3_as_well(run, s3, tmp_path, capsys):
    assert export(run, f"{s3.uri}/b.safetensors", capsys)[0] == 0
    assert export(run, tmp_path / "b", capsys)[0] == 0
    (tmp_path / "from-s3").write_bytes(files.at(f"{s3.uri}/b.safetensors").read())
    there, here = load_file(tmp_path / "from-s3"), load_file(tmp_path / "b")
    assert there.keys() == here.keys()
    assert all((there[name] == here[name]).all() for name in here)
