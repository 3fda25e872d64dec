"""Weights & Biases and MLflow, offline, read back from what they leave on disk; skipped where not installed."""

import sys
from pathlib import Path

import pytest
from train.harness import small_spec

from emc2dist.errors import SpecError
from emc2dist.run.folder import RunFolder
from emc2dist.run.listeners.trackers import recorders, refuse_missing

ROWS = [
    {"step": 0, "resumed": 0, "epoch": 0.0},
    {"step": 6, "epoch": 1.0, "acceptance_rate": 0.5, "images": 48},
]
RESUMED = [
    {"step": 3, "resumed": 1, "epoch": 0.5},
    {"step": 6, "epoch": 1.0, "acceptance_rate": 0.25, "images": 24},
]


def record(rows, run_dir, *overrides):
    """What a run does with its recorders; returns its folder."""
    spec = small_spec(f"run_dir={run_dir}", *overrides)
    folder = RunFolder.prepare(spec)
    with recorders(spec, folder) as found:
        for row in rows:
            for recorder in found:
                recorder.record(row)
    return folder


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_not_installed_is_named(name, monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(SpecError, match=rf"watch.{name}: mine needs the package {name}.*pip install 'emc2dist\[{name}"):
        refuse_missing(small_spec(f"watch.{name}=mine"))
    refuse_missing(small_spec())


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_folder_of_its_name_is_no_package(name, tmp_path, monkeypatch):
    (tmp_path / name).mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(SpecError, match=f"watch.{name}: mine needs the package {name}"):
        refuse_missing(small_spec(f"watch.{name}=mine"))


def test_mlflow_keeps_one_run_over_a_resumption(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    record(ROWS, tmp_path / "runs", "watch.mlflow=mine")
    record(RESUMED, tmp_path / "runs", "watch.mlflow=mine")
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert (run.info.run_name, run.info.status) == ("small", "FINISHED")
    assert run.data.params["optimiser.name"] == "adamw"
    history = client.get_metric_history(run.info.run_id, "chains/acceptance_rate")
    assert sorted((point.step, point.value) for point in history) == [(6, 0.25), (6, 0.5)]
    with pytest.raises(KeyError), recorders(small_spec("watch.mlflow=mine"), folder(tmp_path)):
        raise KeyError
    assert client.get_run(run.info.run_id).info.status == "FAILED"


def folder(tmp_path):
    return RunFolder.open(tmp_path / "runs" / "small")


def test_wandb_offline_keeps_one_id_over_a_resumption(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    record(ROWS, tmp_path / "runs", "watch.wandb=mine")
    run_id = record(RESUMED, tmp_path / "runs", "watch.wandb=mine").trackers()["wandb"]
    files = sorted(Path(folder(tmp_path).place.path).glob(f"wandb/offline-run-*/run-{run_id}.wandb"))
    assert len(files) == 2
    assert all(b"chains/acceptance_rate" in file.read_bytes() for file in files)
