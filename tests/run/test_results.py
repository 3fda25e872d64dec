"""What comes out of a run, and where it cannot go; of a checkpoint that training in this process has made."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from data.test_parquet import pixel
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file
from torch.nn.functional import normalize
from train.harness import Run, small_spec

from emc2dist import files
from emc2dist.cli import main
from emc2dist.config import changed
from emc2dist.core.diagnostics import uniformity
from emc2dist.data.images import open_images
from emc2dist.run.driver import check
from emc2dist.run.folder import RunFolder, checkpoint_name
from emc2dist.run.loaded import LoadedCheckpoint
from emc2dist.run.results import evaluate
from emc2dist.towers.views import PlainView
from emc2dist.train.evaluation import plain_views


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
    assert found["blocks.1.0.weight"].shape == (64, 32, 3, 3)
    assert main(["export", str(run), str(tmp_path / "c"), "--json"]) == 0
    told = capsys.readouterr()
    (remark,) = json.loads(told.out)["remarks"]
    assert remark in told.err.splitlines()
    assert "build emc2dist.towers.images.Conv4('none') for it" in remark


def test_the_readme_makes_elsewhere_what_is_made_here(tmp_path, capsys, monkeypatch):
    """Its code, run on an exported ResNet and an image: representations as `evaluate` has them."""
    network = ("encoder.backbone=resnet18", "encoder.stem=imagenet", "encoder.norm=batch")
    spec = small_spec("epochs=1", *network, f"run_dir={tmp_path / 'runs'}", "eval.every=0")
    folder = RunFolder.prepare(spec)
    Run(spec, folder.place.path).go().checkpoints[6].rename(folder.place.path / checkpoint_name(6))
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(folder.place.path), "backbone.safetensors", "--json"]) == 0
    told = capsys.readouterr()
    result = json.loads(told.out)
    assert "images for it: RGB from 0 to 1, less `mean`, by `std`" in told.err
    assert (result["width"], result["size"], result["remarks"]) == (512, spec.views.size, [])

    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("image.png")
    code = (Path(__file__).parents[2] / "README.md").read_text().partition("## The encoder elsewhere")[2]
    known: dict[str, Any] = {}
    exec(code.partition("```python\n")[2].partition("```")[0], known)
    with safe_open("backbone.safetensors", "pt") as file:
        assert {key: file.metadata()[key] for key in ("backbone", "stem", "norm")} == {
            key: result[key] for key in ("backbone", "stem", "norm")
        }

    encoder = LoadedCheckpoint.newest(folder).encoder.eval()
    view = PlainView(spec.views.size)(torch.from_numpy(pixels).permute(2, 0, 1))
    with torch.no_grad():
        torch.testing.assert_close(known["representation"], encoder.representation(view[None]), rtol=1e-4, atol=1e-4)


def test_where_it_cannot_be_written_is_told_before_anything_is_read(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("emc2dist.run.loaded.LoadedCheckpoint.newest", lambda folder: pytest.fail("read too early"))
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
        tmp_path / "b.pth": "would be no .pth, for safetensors is what is written; call it *.safetensors",
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


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """A run on a set that has gone elsewhere since, where it is now, and what evaluation said before."""
    root = tmp_path_factory.mktemp("moving")
    images = {"image": [pixel(n) for n in range(48)], "label": [n // 24 for n in range(48)]}
    (root / "set").mkdir()
    pq.write_table(pa.table(images), root / "set" / "train.parquet")
    options = (f"run_dir={root}/runs", f"data.path={root}/set", f"data.cache_dir={root}/cache", "data.limit=null")
    spec = small_spec("epochs=1", "eval.every=0", *options)
    folder = RunFolder.prepare(spec)
    Run(spec, folder.place.path).go().checkpoints[6].rename(folder.place.path / checkpoint_name(6))
    before = evaluate(folder.place.path)
    (root / "set").rename(root / "new place")
    return folder.place.path, root / "new place", before


def test_evaluation_of_a_set_that_has_moved_names_the_key_that_helps(moved, capsys):
    run, place, before = moved
    assert main(["evaluate", str(run)]) == 2
    assert "no such file or folder; set data.path to " in capsys.readouterr().err
    assert main(["evaluate", str(run), f"data.path={place}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == before | {"data": str(place)}


def test_evaluation_computes_as_the_spec_says(moved, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    run, place, before = moved
    assert evaluate(run, [f"data.path={place}"])["representation"] == before["representation"]
    assert not torch.backends.cudnn.allow_tf32


def test_evaluation_takes_keys_of_evaluation_and_no_others(moved, capsys):
    run, place, _ = moved
    assert main(["evaluate", str(run), f"data.path={place}", "eval.asked=validation"]) == 2
    assert "has no split validation; set eval.asked" in capsys.readouterr().err
    assert main(["evaluate", str(run), "lr=1"]) == 2
    assert "'lr=1': only keys of data, eval, s3 can be set here" in capsys.readouterr().err
    assert main(["evaluate", str(run), "data.pth=x"]) == 2
    assert "data.pth: unknown key; the nearest valid key is data.path" in capsys.readouterr().err
    for words in ("eval.bank=5", "eval.every=9", "data.shuffle=block", "data.loaders=2"):
        assert main(["evaluate", str(run), f"data.path={place}", words]) == 2
        assert f"emc2dist: {words.partition('=')[0]}: is for training; " in capsys.readouterr().err


def test_what_it_measures_is_of_the_representation_and_of_the_feature(moved, capsys):
    run, place, before = moved
    newest = LoadedCheckpoint.newest(RunFolder.open(run))
    images = open_images(changed(newest.spec, {"data.path": str(place)}, source="test").data, "train")
    asked = np.arange(0, 48, 10)
    for what, encode in (("feature", newest.encoder), ("representation", newest.encoder.representation)):
        (views,) = plain_views(images, asked, 8)
        vectors = normalize(encode(views).detach(), dim=1)
        assert before[what]["uniformity"] == pytest.approx(uniformity(vectors).item(), rel=1e-4)
    assert before["feature"]["effective_rank"] != before["representation"]["effective_rank"]
    assert before["feature"]["alignment"] == pytest.approx(0, abs=1e-6)  # images of one colour, and no jitter
    assert main(["evaluate", str(run), f"data.path={place}"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["representation", "feature"] in lines
    for name, value in before["feature"].items():
        (line,) = [line for line in lines if line[0:1] == [name]]
        assert line[2] == ("-" if value is None else f"{value:.4g}")


def test_more_neighbours_than_voters_are_all_voters_and_that_is_said(moved, capsys):
    run, place, before = moved
    where = f"data.path={place}"
    assert main(["evaluate", str(run), where, "eval.neighbours=500", "--json"]) == 0
    many = capsys.readouterr()
    remark = f"eval.neighbours: 500 neighbours asked for, {before['bank']} voters: all of them vote on each image"
    assert remark in many.err.splitlines()
    assert remark in json.loads(many.out)["remarks"]
    assert main(["evaluate", str(run), where, f"eval.neighbours={before['bank']}", "--json"]) == 0
    all_of_them = json.loads(capsys.readouterr().out)
    assert all_of_them["neighbours"] == before["bank"]
    assert all_of_them | {"remarks": json.loads(many.out)["remarks"]} == json.loads(many.out)
    spec = RunFolder.open(run).spec()
    spec = changed(spec, {"data.path": str(place), "eval.neighbours": 500}, source="test")
    _, remarks, neighbours = check(spec)  # as training does
    # In training no more vote than eval.bank.
    assert remark.replace(str(before["bank"]), str(spec.eval.bank)) in remarks
    assert neighbours == spec.eval.bank == 40
