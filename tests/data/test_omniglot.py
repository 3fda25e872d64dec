"""Omniglot as it comes with the package, and the script that made it."""

import io
from importlib import resources

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from emc2dist.config import Data, Eval
from emc2dist.data.images import open_images, open_labelled
from emc2dist.data.omniglot import SMALL, OmniglotImages, pack

CHECKSUMS = {
    "train": "ae351a3370e0b4edc6e3d0acde660f9a15b61a8b17a9faddc66317a0d0675063",
    "test": "cac2afa8f9443be705a1ef742fcf10f1ea79534a1152d36fe7af4fcddfbf45c7",
}


@pytest.fixture(scope="module")
def splits():
    return {split: open_images(Data(path="omniglot"), split) for split in ("train", "test")}


def test_every_character_is_there_by_15_drawers_and_by_5_others(splits):
    train, test = (splits[split].labels(np.arange(len(splits[split]))) for split in ("train", "test"))
    assert (len(train), len(test)) == (24_345, 8_114)
    assert np.array_equal(np.bincount(train), np.full(1_623, 15))
    per_class = np.bincount(test, minlength=1_623)
    assert (per_class == 5).sum() == 1_622
    assert per_class.min() == 4  # one drawing, a single dot, is in train already
    classes = splits["train"].classes
    assert classes == splits["test"].classes
    assert len(set(classes)) == 1_623
    assert len({name.partition("/")[0] for name in classes}) == 50
    assert splits["test"].labels(np.array([0])) == classes.index("Glagolitic/45")


def test_the_drawings_are_those_that_were_packed(splits):
    assert {split: images.fingerprint for split, images in splits.items()} == CHECKSUMS
    content = resources.files("emc2dist.data.omniglot")
    assert len((content / "drawings.npz").read_bytes()) < 4e6
    assert "Copyright (c) 2015 Brenden Lake" in (content / "LICENSE").read_text()


def test_the_small_one_is_five_alphabets_of_the_whole(splits):
    for split, whole in splits.items():
        small = open_images(Data(path="omniglot-small"), split)
        everything = np.arange(len(whole))
        names = np.array(whole.classes)[whole.labels(everything)]
        chosen = np.flatnonzero(np.isin([name.partition("/")[0] for name in names], SMALL))
        inside = np.arange(len(small))
        assert len(small) == len(chosen) == {"train": 136 * 15, "test": 136 * 5}[split]
        assert np.array(small.classes)[small.labels(inside)].tolist() == names[chosen].tolist()
        assert torch.equal(torch.stack(small.get(inside)), torch.stack(whole.get(chosen)))
    assert len(open_images(Data(path="omniglot-small", limit=7), "train")) == 7


def test_unseen_characters_are_all_others(splits):
    small, voters, asked = (open_images(Data(path="omniglot-small"), s) for s in ("train", "unseen", "unseen_test"))
    whole = splits["train"]
    assert set(voters.classes) == set(whole.classes) - set(small.classes)
    assert voters.classes == asked.classes
    assert (len(voters), len(asked)) == (24_345 - len(small), 8_114 - 680)
    everything = np.arange(len(whole))
    names = np.array(whole.classes)[whole.labels(everything)]
    (others,) = np.nonzero(~np.isin(names, small.classes))
    assert np.array(voters.classes)[voters.labels(np.arange(len(voters)))].tolist() == names[others].tolist()
    assert torch.equal(voters.get(np.array([9]))[0], whole.get(others[[9]])[0])
    chosen = open_labelled(Data(path="omniglot-small"), Eval(voters="unseen", asked="unseen_test"), small)
    assert (len(chosen.voters), len(chosen.asked)) == (22_305, 7_434)


def test_ink_is_bright_on_black(splits):
    for images in splits.values():
        pixels = torch.stack(images.get(np.arange(500)))
        assert (pixels.dtype, pixels.shape) == (torch.uint8, (500, 3, 28, 28))
        assert torch.equal(pixels, pixels[:, :1].expand(-1, 3, 28, 28))
        assert set(pixels.unique().tolist()) == set(range(0, 256, 17))
        assert 10 < pixels.float().mean() < 40


def test_the_two_splits_share_no_drawing(splits):
    rows = [np.unique(images._pixels.reshape(len(images), -1), axis=0) for images in splits.values()]
    both = np.unique(np.concatenate(rows), axis=0)
    assert len(both) == sum(map(len, rows))


def test_limit_and_evaluation(splits):
    data = Data(path="omniglot", limit=100)
    few = open_images(data, "train")
    assert torch.equal(torch.stack(few.get(np.arange(100))), torch.stack(splits["train"].get(np.arange(100))))
    assert len({name.partition("/")[0] for name in np.array(few.classes)[few.labels(np.arange(100))]}) > 20
    labelled = open_labelled(data, Eval(), few)
    assert labelled.voters is few
    assert len(labelled.asked) == 8_114
    assert open_images(data, "validation") is None
    with pytest.raises(IndexError, match=r"outside 0\.\.99"):
        few.get(np.array([100]))


def test_the_script_keeps_the_share_of_each_pixel_that_is_ink(tmp_path):
    """Against averages over a grid so fine that both sides divide it: 105 and 28 pixels, 2,940 points."""
    drawings = np.random.default_rng(0).random((4, 105, 105)) < 0.3
    drawings[0] = np.arange(105) < 40  # 10.67 of 28 columns are ink
    metadata = {b"classes": b"A/character01,A/character02,B/character01"}
    for split, chosen in (("train", drawings[:3]), ("test", drawings[3:])):
        encoded = []
        for ink in chosen:
            Image.fromarray(~ink).save(buffer := io.BytesIO(), "PNG")
            encoded.append({"bytes": buffer.getvalue(), "path": ""})
        labels = pa.array(range(len(chosen)), pa.int64())
        table = pa.table({"image": encoded, "label": labels}).replace_schema_metadata(metadata)
        pq.write_table(table, tmp_path / f"{split}.parquet")
    pack.pack(tmp_path, tmp_path / "drawings.npz")
    with np.load(tmp_path / "drawings.npz") as arrays:
        fine = drawings.repeat(28, axis=1).repeat(28, axis=2)
        shares = fine.reshape(4, 28, 105, 28, 105).mean(axis=(2, 4))
        packed = np.concatenate([arrays["train_pixels"], arrays["test_pixels"]])
        assert np.abs(packed - 15 * shares).max() < 0.5 + 1e-9
        assert packed[0, 0].tolist() == [15] * 10 + [10] + [0] * 17
        assert (arrays["train_labels"].tolist(), arrays["test_labels"].tolist()) == ([0, 1, 2], [0])
        assert arrays["classes"].tolist() == ["A/01", "A/02", "B/01"]


def test_a_split_that_is_not_there_is_none():
    assert open_images(Data(path="omniglot"), "unlabeled") is None
    assert OmniglotImages.splits == ("train", "test")
