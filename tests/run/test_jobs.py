"""The jobs as they are run, shrunk, on tiny sets in the real formats: ingested, trained, evaluated."""

import contextlib
import io
import json
import runpy
import sys

import numpy as np
import pytest
from command import ROOT, in_process
from PIL import Image

from emc2dist.config import load
from emc2dist.data.ingest.selection import read_classes

SHRUNK = [
    "epochs=1", "batch_size=16", "workers=1", "shards=1", "views.size=32", "data.loaders=0", "threads=1", "log_every=1",
    "eval.neighbours=3", "encoder.backbone=conv4", "encoder.stem=cifar",
]  # fmt: skip


@pytest.fixture
def run(ray_cluster, tmp_path, monkeypatch):
    """A function that runs a job's script as Python does, on the session's cluster; returns what it prints, as JSON."""

    def run(job, *overrides):
        arguments = [f"data.path={tmp_path / 'set'}", f"run_dir={tmp_path / 'runs'}", *SHRUNK, *overrides, "--json"]
        monkeypatch.setattr(sys, "argv", [job, *arguments])
        with contextlib.redirect_stdout(io.StringIO()) as stdout, pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "jobs" / job), run_name="__main__")
        assert ended.value.code == 0
        return json.loads(stdout.getvalue().splitlines()[-1])

    return run


def write_stl10(folder):
    """STL-10's binary files: columns first, labels from 1."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split, count in (("train", 30), ("test", 20), ("unlabeled", 40)):
        images = rng.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)
        labels = rng.integers(1, 11, count, dtype=np.uint8)
        images[..., 0, :, :] //= labels[:, None, None]
        images.tofile(folder / f"{split}_X.bin")
        if split != "unlabeled":
            labels.tofile(folder / f"{split}_y.bin")


def test_stl10_trains_on_the_unlabelled_and_asks_the_labelled(run, tmp_path):
    write_stl10(tmp_path / "binary")
    splits = ["--split", "unlabeled=train", "--split", "train=labelled", "--split", "test"]
    assert in_process("ingest", tmp_path / "binary", tmp_path / "set", *splits, "--workers", "1").returncode == 0
    result = run("stl10.py")
    assert result["steps"] == 2
    assert 0 <= result["knn_accuracy"] <= 1
    evaluated = in_process("evaluate", result["run_dir"], "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    scores = json.loads(evaluated.stdout.splitlines()[-1])
    assert (scores["bank"], scores["queries"]) == (30, 20)
    refused = in_process("train", ROOT / "jobs" / "stl10.yaml", f"data.path={tmp_path / 'set'}", "eval.voters=gone")
    assert refused.returncode == 2
    assert "has no split gone; set eval.voters" in refused.stderr


def test_imagenet100_takes_the_pinned_classes_of_an_image_folder(run, tmp_path):
    rng = np.random.default_rng(0)
    for split, classes in (
        ("train", [*read_classes("imagenet100"), "n01440764"]),
        ("val", read_classes("imagenet100")),
    ):
        for name in classes:
            (tmp_path / "imagenet" / split / name).mkdir(parents=True)
            image = Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8))
            image.save(tmp_path / "imagenet" / split / name / f"{name}_1.JPEG")
    source = tmp_path / "imagenet"
    done = in_process("ingest", source, tmp_path / "set", "--classes", "imagenet100", "--workers", "1", "--json")
    assert done.returncode == 0, done.stderr
    written = json.loads(done.stdout.splitlines()[-1])
    assert (written["rows"], written["classes"]) == ({"train": 100, "validation": 100}, 100)
    result = run("imagenet100.py", "data.limit=32", "watch.report=false")
    assert result["steps"] == 2


@pytest.mark.parametrize("name", ["imagenet100", "stl10", "cifar10"])
def test_a_job_says_what_is_wrong_and_exits_with_2(name, tmp_path, monkeypatch, capsys):
    job = ROOT / "jobs" / f"{name}.py"
    assert len(job.read_text().splitlines()) < 25
    monkeypatch.setattr(sys, "argv", [str(job), f"data.path={tmp_path / 'gone'}", f"run_dir={tmp_path}"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(job), run_name="__main__")
    assert ended.value.code == 2
    assert "no such file or folder" in capsys.readouterr().err


def test_the_recipes_are_those_of_the_paper():
    stl10, imagenet100 = (load(ROOT / "jobs" / f"{name}.yaml") for name in ("stl10", "imagenet100"))
    assert (stl10.batch_size, stl10.epochs, stl10.temperature, stl10.lr) == (32, 100, 0.07, 1e-4)
    assert (stl10.optimiser.name, stl10.optimiser.weight_decay, stl10.optimiser.warmup_epochs) == ("adam", 1e-4, 10)
    assert (stl10.encoder.norm, stl10.encoder.hidden, stl10.encoder.features) == ("none", 0, 512)
    assert stl10.views.jitter == (0.8, 0.8, 0.8, 0.2)
    assert (imagenet100.batch_size, imagenet100.epochs, imagenet100.temperature) == (256, 800, 0.07)
    assert (imagenet100.optimiser.name, imagenet100.lr, imagenet100.optimiser.weight_decay) == ("lars", 1.2, 1e-6)
    assert (imagenet100.encoder.backbone, imagenet100.encoder.hidden, imagenet100.encoder.features) == (
        "resnet50", 2048, 128,
    )  # fmt: skip
    assert imagenet100.views.crop == (0.08, 1.0)
    assert {stl10.negatives.burn_in_fraction, imagenet100.negatives.burn_in_fraction} == {0.5}


@pytest.mark.parametrize("path", sorted((ROOT / "jobs" / "objectives").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_jobs_of_objectives_are_valid_and_train_on_what_the_package_has(path):
    spec = load(path)
    assert spec.name == path.stem
    assert spec.data.path in ("omniglot", "omniglot-small", "digits", "runs/queries", "runs/pictures/by-digit")
    if path.stem == "sepclr":
        assert "python jobs/objectives/sepclr.py runs/pictures" in path.read_text()
    if spec.data.path == "runs/queries":
        assert "emc2dist ask digits runs/queries" in path.read_text()
    assert f"emc2dist train jobs/objectives/{path.name}" in path.read_text()
