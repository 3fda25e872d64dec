"""docs/own-images.md as somebody new follows it: its own commands, on a folder of images, to vectors and neighbours."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from command import in_process
from pages import ROOT, blocks, commands
from PIL import Image
from safetensors.numpy import load_file


@pytest.fixture
def photos(tmp_path):
    """60 pictures of two kinds, discs and bars, in folders of their names; in each of them 20 train and 10 test."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:40, :40]
    for kind in ("bar", "disc"):
        for number in range(30):
            folder = tmp_path / "photos" / ("train" if number < 20 else "test") / kind
            folder.mkdir(parents=True, exist_ok=True)
            at, colour = random.integers(12, 28, 2), random.integers(100, 256, 3)
            inside = np.hypot(x - at[0], y - at[1]) < 8 if kind == "disc" else abs(x - at[0]) < 4
            pixels = np.where(inside[..., None], colour, random.integers(0, 60, (40, 40, 3)))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "photos"


def test_from_a_folder_of_images_to_neighbours_and_a_backbone_as_the_page_says(photos, ray_cluster, monkeypatch):
    """Few epochs and small batches are all that is added to what the page says."""
    folder = photos.parent
    monkeypatch.chdir(folder)
    page = ROOT / "docs" / "own-images.md"
    told, (block,) = {}, [block for block in blocks(page) if block.language == "sh"]
    for _, name, *rest in commands(block.text):
        extra = ["epochs=2", "batch_size=16", f"data.cache_dir={folder / 'cache'}"] if name == "train" else []
        json_too = [] if name == "new" else ["--json"]
        done = in_process(name, *rest, *extra, *json_too)
        assert done.returncode == 0, (name, done.stderr)
        told[name] = json.loads(done.stdout.splitlines()[-1]) if json_too else done.stderr
    assert list(told) == ["ingest", "new", "train", "report", "embed", "neighbours", "export"]
    assert told["ingest"]["rows"] == {"test": 20, "train": 40}
    assert (folder / "photos.yaml").read_text().startswith("# Drafted by `emc2dist new`.")
    assert told["train"]["steps"] == 2 * (40 // 16)
    assert (folder / "first-report" / "report.html").stat().st_size > 10_000

    known = {}
    (code,) = [block.text for block in blocks(ROOT / "docs" / "vectors.md") if block.language == "python"]
    exec(code, known)  # what that page says of the file elsewhere
    table = pq.read_table("vectors.parquet")
    assert known["vectors"].shape == (60, 512)
    assert sorted(set(table["class"].to_pylist())) == ["bar", "disc"]

    found = told["neighbours"]["neighbours"]
    own = known["vectors"] / np.linalg.norm(known["vectors"], axis=1, keepdims=True)
    rows = [*zip(table["split"].to_pylist(), table["index"].to_pylist(), strict=True)]
    at = rows.index(("train", 0))
    cosines = own @ own[at]
    cosines[at] = -2
    assert (found[0]["split"], found[0]["index"]) == rows[int(cosines.argmax())]
    assert Image.open("near.png").size[0] > 100
    assert load_file("backbone.safetensors")["conv1.weight"].shape[0] == 64
