"""What leaves a run for other libraries gives there what it gives here: ONNX, a folder for a hub with its card."""

import json
import re

import numpy as np
import pytest
import torch
import yaml
from command import refused, told
from safetensors.torch import load_file
from train.harness import small_spec, trained_folder

from emc2dist.run.exports import onnx
from emc2dist.run.loaded import LoadedCheckpoint


def trained(folder, *overrides):
    """A run folder with a checkpoint and a summary."""
    run = trained_folder(small_spec("epochs=1", f"run_dir={folder}", "eval.every=0", *overrides))
    run.finish({"run_dir": str(run.place), "knn_accuracy": 0.625, "knn_pixels": 0.5, "ndcg_at_10": None})
    return run.place.path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("exports"))


def images(count, size):
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def test_onnx_gives_what_the_encoder_gives_for_any_number_of_images(run, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    found = told(capsys, "export", run, tmp_path / "encoder.onnx", "--format", "onnx")
    newest = LoadedCheckpoint.at(run)
    assert (found["representation"], found["feature"]) == (newest.encoder.width, newest.encoder.features)
    assert found["off"] < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "encoder.onnx"), providers=["CPUExecutionProvider"])
    for count in (1, 7):
        pixels = images(count, newest.spec.views.size)
        representation, feature = session.run(["representation", "feature"], {"images": pixels.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(representation, newest.encoder.representation(pixels), rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(feature, newest.encoder(pixels), atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.onnx"]


def test_an_onnx_file_that_gives_other_numbers_is_not_written(run, tmp_path, capsys, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnx, "_TOLERANCE", 0.0)
    assert "gives numbers that are" in refused(capsys, "export", run, tmp_path / "e.onnx", "--format", "onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_missing_is_named(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(onnx, "installed", lambda name: name != "onnxruntime")
    line = refused(capsys, "export", run, tmp_path / "e.onnx", "--format", "onnx")
    assert line == "emc2dist: --format onnx: needs onnxruntime; pip install 'emc2dist[onnx]'"


def test_a_folder_for_a_hub_has_weights_config_and_a_card(run, tmp_path, capsys):
    out = tmp_path / "model"
    found = told(capsys, "export", run, out, "--format", "huggingface")
    assert found["files"] == ["config.json", "model.safetensors", "README.md"]
    newest = LoadedCheckpoint.at(run)
    weights = load_file(out / "model.safetensors")
    assert weights.keys() == newest.encoder.backbone.state_dict().keys()
    config = json.loads((out / "config.json").read_text())
    assert (config["backbone"], config["width"]) == ("conv4", 256)
    text = (out / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "torchvision",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["contrastive-learning", "emc2dist"],
    }
    assert "| kNN accuracy, of the representation | 0.625 |" in body
    assert "nDCG" not in body
    assert f"| data | `digits`, {newest.manifest.samples} samples |" in body
    assert str(run.parent) not in text  # no path of this machine
    assert any("names no licence" in remark for remark in found["remarks"])
    assert "is not empty; name a new folder" in refused(capsys, "export", run, out, "--format", "huggingface")


def test_the_cards_own_lines_load_the_model(tmp_path, capsys, monkeypatch):
    """Of torchvision and of timm; what they make of images is what the encoder makes."""
    torchvision = ["encoder.backbone=resnet18", "encoder.stem=imagenet", "encoder.norm=batch"]
    kinds = {"torchvision": torchvision}
    if onnx.installed("timm"):
        kinds["timm"] = ["encoder.backbone=timm:resnet10t", "encoder.norm=batch", "views.size=32"]
    for library, overrides in kinds.items():
        run, out = trained(tmp_path / library, *overrides), tmp_path / f"{library}-model"
        told(capsys, "export", run, out, "--format", "huggingface")
        code = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.S)[1].replace("FOLDER", str(out))
        known = {}
        exec(code, known)
        model, newest = known["model"].eval(), LoadedCheckpoint.at(run)
        if library == "torchvision":
            model.fc = torch.nn.Identity()
        pixels = images(3, newest.spec.views.size)
        with torch.no_grad():
            made = model((pixels / 255 - _of(newest, "mean")) / _of(newest, "std"))
            torch.testing.assert_close(made, newest.encoder.representation(pixels), rtol=1e-3, atol=1e-4)


def _of(newest, name):
    return getattr(newest.encoder, name).view(1, 3, 1, 1) / 255


def test_formats_of_other_runs_are_refused(run, tmp_path, capsys):
    assert "is over images; --format sentence-transformers is of texts" in refused(
        capsys, "export", run, tmp_path / "x", "--format", "sentence-transformers"
    )
    assert "would be no .pt, for onnx is what is written; call it *.onnx" in refused(
        capsys, "export", run, tmp_path / "x.pt", "--format", "onnx"
    )
