"""`emc2dist ingest`: every kind of source, what becomes of bad ones, and runs that are stopped and go on."""

import csv
import fcntl
import hashlib
import io
import json
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from emc2dist import files
from emc2dist.cli import main
from emc2dist.config import S3
from emc2dist.data.catalogue import UNFINISHED, open_catalogue, read_manifest
from emc2dist.data.decode import decode
from emc2dist.data.ingest import ingest
from emc2dist.data.ingest.selection import read_classes
from emc2dist.data.parquet import ParquetImages
from emc2dist.errors import DataError, SpecError, StorageError
from emc2dist.files.s3 import S3Place

NO_ANT = "1 of 2 classes have no image, as 'ant'"
COMMAND = [sys.executable, "-m", "emc2dist", "ingest"]
RANDOM = np.random.default_rng(0)


def encoded(image: Image.Image, form: str = "png", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def noise(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def picture(side: int = 8) -> bytes:
    return encoded(Image.fromarray(noise(side, side, 3)))


def plant(root: Path, images: dict[str, bytes]) -> Path:
    for name, content in images.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.fixture
def pets(tmp_path) -> Path:
    return plant(tmp_path / "pets", {f"{kind}/{n}.png": picture() for kind in ("dog", "cat") for n in range(4)})


@pytest.fixture
def run(tmp_path):
    """Ingest in this process, and return the summary and the folder."""

    def run(source, dest="set", **options):
        dest = str(dest) if "/" in str(dest) else str(tmp_path / dest)
        options = {"workers": 0, "cache_dir": str(tmp_path / "cache"), **options}
        return ingest(str(source), dest, **options), Path(dest)

    return run


def table(dest: Path, split: str = "train") -> pd.DataFrame:
    """A split as pandas reads it, with the image's fields as columns, by path."""
    frame = pd.concat([pd.read_parquet(file) for file in sorted(dest.glob(f"{split}-*.parquet"))], ignore_index=True)
    image = pd.DataFrame(frame.pop("image").tolist())
    return pd.concat([image, frame], axis=1).sort_values("path", ignore_index=True)


def contents(dest: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(dest.iterdir())}


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


# What comes out.


def test_an_image_folder_comes_out_as_it_is(run, pets):
    summary, dest = run(pets, rows_per_file=3)
    made = table(dest)
    names = sorted(str(file.relative_to(pets)) for file in pets.rglob("*.png"))
    assert made.path.tolist() == names
    assert made.bytes.tolist() == [(pets / name).read_bytes() for name in names]
    assert made.label.tolist() == [0] * 4 + [1] * 4
    assert read_manifest(files.at(dest)).classes == ["cat", "dog"]
    assert (summary["rows"], summary["files"], summary["classes"]) == ({"train": 8}, 3, 2)
    assert summary["bytes"] == sum(file.stat().st_size for file in dest.glob("*.parquet"))
    assert sorted(contents(dest)) == [
        "ingest.json",
        "manifest.json",
        "train-00000-of-00003.parquet",
        "train-00001-of-00003.parquet",
        "train-00002-of-00003.parquet",
        "train.index.npz",
    ]


def test_the_schema_is_that_of_hugging_face(run, pets):
    _, dest = run(pets)
    schema = pq.read_schema(dest / "train-00000-of-00001.parquet")
    assert schema.field("image").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    assert schema.field("label").type == pa.int64()
    label = {"names": ["cat", "dog"], "_type": "ClassLabel"}
    features = {"image": {"_type": "Image"}, "label": label}
    assert json.loads(schema.metadata[b"huggingface"]) == {"info": {"features": features}}


def test_images_lie_where_the_manifest_says(run, tmp_path):
    source = plant(tmp_path / "many", {f"a/{n}.png": picture(n % 7 + 1) for n in range(230)})
    _, dest = run(source, rows_per_file=150)
    (split,) = read_manifest(files.at(dest)).splits.values()
    assert [[rows for rows, _ in file.groups] for file in split.files] == [[100, 50], [80]]
    read = []
    for file in split.files:
        content = (dest / file.name).read_bytes()
        for rows, at in file.groups:
            for _ in range(rows):
                length = int.from_bytes(content[at : at + 4], "little")
                read.append(content[at + 4 : at + 4 + length])
                at += 4 + length
    images = ParquetImages.open(dest, cache_dir=tmp_path / "cache")
    assert read == images.encoded(np.arange(230))
    assert sorted(read) == sorted(file.read_bytes() for file in source.rglob("*.png"))


def test_large_images_make_small_row_groups(run, tmp_path, monkeypatch):
    monkeypatch.setattr("emc2dist.data.ingest.writer.GROUP_BYTES", 2_000)
    _, dest = run(plant(tmp_path / "a", {f"{n}.png": picture(16) for n in range(9)}))  # 800 bytes each
    assert [rows for rows, _ in read_manifest(files.at(dest)).splits["train"].files[0].groups] == [3, 3, 3]


def test_the_order_follows_from_the_seed_alone(run, pets, tmp_path):
    def paths(dest: str, **options) -> list[str]:
        _, folder = run(pets, dest, rows_per_file=5, **options)
        made = [row for file in sorted(folder.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
        return [row["image"]["path"] for row in made]

    kept = paths("kept", keep_order=True)
    assert kept == sorted(kept)
    assert paths("one") != kept
    assert paths("one more") == paths("one")
    assert contents(tmp_path / "one more") == contents(tmp_path / "one")
    assert paths("other", seed=1) not in (kept, paths("one"))


def test_a_bad_image_in_a_worker_process_is_one_message(run, pets, capfd):
    plant(pets, {"cat/broken.png": b"junk"})
    with pytest.raises(DataError, match=r"cat/broken\.png: the image cannot be decoded \(no image"):
        run(pets, rows_per_file=2, workers=2)
    assert "Traceback" not in capfd.readouterr().err


def test_splits_of_a_folder_and_names_for_them(run, tmp_path):
    names = ["train/cat/1.png", "train/dog/2.png", "val/cat/3.png", "val/dog/4.png", "test/5.png"]
    source = plant(tmp_path / "set of sets", {name: picture() for name in names})
    summary, dest = run(source)
    assert summary["rows"] == {"test": 1, "train": 2, "validation": 2}
    assert table(dest, "validation").label.tolist() == [0, 1]
    assert "label" not in table(dest, "test")
    assert read_manifest(files.at(dest)).splits["test"].labelled is False
    assert run(source, "b", splits=["val=test"])[0]["rows"] == {"test": 2}
    assert run(source, "c", splits=["train", "val=train"])[0]["rows"] == {"train": 4}
    with pytest.raises(DataError, match=r"has no split 'vla'; it has test, train, val"):
        run(source, "d", splits=["vla"])
    with pytest.raises(DataError, match=r"split test has no labels, the others of"):
        run(source, "d", splits=["train", "test=train"])
    with pytest.raises(SpecError, match=r"--split train=a/b: 'a/b' is no name"):
        run(source, "d", splits=["train=a/b"])
    assert not (tmp_path / "d").exists()


def test_folders_that_tell_one_split_are_one_where_only_numbers_differ(run, tmp_path):
    carvana = plant(
        tmp_path / "cars", {f"{name}.png": picture() for name in ("train/0", "train/1", "train_masks/0", "test/2")}
    )
    with pytest.raises(
        DataError,
        match=r"cars: train and train_masks could each be the split train; .* as in --split test --split train, or put "
        r"them together with --split train=train --split train_masks=train",
    ):
        run(carvana)
    _, dest = run(carvana, "meant", splits=["train", "test"])
    assert table(dest).path.tolist() == ["train/0.png", "train/1.png"]
    both = run(carvana, "both", splits=["train=train", "train_masks=train"])[0]
    assert both["rows"] == {"train": 3}
    parts = plant(tmp_path / "parts", {f"{name}/0.png": picture() for name in ("train.X1", "train.X2", "val.X")})
    summary, _ = run(parts, "parts set")
    assert summary["rows"] == {"train": 2, "validation": 1}
    assert "train.X1, train.X2 are written as train" in summary["remarks"]


def test_remarks_are_of_the_splits_that_are_written_by_their_names_there(run, tmp_path):
    names = ("train/a/0", "train/b/1", "test-multiple/images/2", "test-multiple/images/3", "val/images/4")
    source = plant(tmp_path / "fruits", {f"{name}.png": picture() for name in names})
    guessed, inside = "test-multiple/ is taken for test", "all images lie in images/, which is taken for no class"
    told = run(source)[0]["remarks"]
    assert {guessed, f"test: {inside}", f"validation: {inside}"} < set(told)
    told = run(source, "one", splits=["train"])[0]["remarks"]
    assert "2 splits that were not asked for were left out: test-multiple (2 images), val (1 images)" in told
    assert not [remark for remark in told if "taken for" in remark]
    plant(source, {"val/images/val.csv": b"name,what\n4.png,z\n"})
    assert not [remark for remark in run(source, "again", splits=["train"])[0]["remarks"] if "val.csv" in remark]
    told = run(source, "named", splits=["train", "test-multiple=more", "val"])[0]["remarks"]
    assert f"more: {inside}" in told
    assert any("val.csv" in remark for remark in told)
    assert guessed not in told
    assert not [remark for remark in told if "not asked for" in remark]


def test_splits_of_which_one_alone_has_labels_are_not_advised_to_be_put_together(run, tmp_path):
    names = ("train/a/0", "train/b/1", "test/a/2", "test_zoo/3")
    source = plant(tmp_path / "zoo", {f"{name}.png": picture() for name in names})
    with pytest.raises(DataError, match=r"as in --split test --split train$"):
        run(source)
    with pytest.raises(DataError, match=r"or put them together with --split test=test --split test_zoo=test$"):
        run(source, labels=False)


def test_flat_does_not_train_on_a_test_set_unsaid(run, tmp_path):
    names = ("train/a/0", "train/1", "test/2")
    source = plant(tmp_path / "set of three", {f"{name}.png": picture() for name in names})
    with pytest.raises(
        DataError,
        match=r"folders tell splits: test/ \(1 images\), train/ \(2 images\); give --no-labels instead, which",
    ):
        run(source, kind="flat")
    assert run(source, labels=False)[0]["rows"] == {"test": 1, "train": 2}  # as the message says
    plant(source, {"more/3.png": picture()})
    summary = run(source, "flat", kind="flat")[0]
    assert summary["rows"] == {"train": 4}
    said = "--kind flat takes all images for training, and folders tell splits: test/ (1 images), train/ (2 images)"
    assert said in summary["remarks"]


def test_texts_that_name_images_and_tell_of_them_are_named_as_tables(run, tmp_path):
    rows = "".join(f"00000{n}.jpg  1 -1\n" for n in range(3))
    photo = encoded(Image.fromarray(noise(8, 8, 3)), "jpeg")
    source = plant(tmp_path / "celeba", {f"img_align/00000{n}.jpg": photo for n in range(3)})
    texts = {"list_attr.txt": f"3\nBald Male\n{rows}", "README.txt": "Faces of people\nsee 000001.jpg\nand more of it"}
    texts |= {"img_align/000001.txt": "000001.jpg 3"}  # as one is beside each image
    plant(source, {name: text.encode() for name, text in texts.items()})
    told = run(source)[0]["remarks"]
    assert [remark.partition(" not read")[0] for remark in told if "table" in remark] == [
        "1 tables (list_attr.txt) were"
    ]
    assert "1 texts called as images (img_align/000001.txt) were not read: what tells of one image alone is not" in told
    assert "1 files that are no images were passed over (.txt 1)" in told


def test_labels_without_names_are_counted(run, pets, tmp_path, capsys):
    members = {
        f"{n}.{kind}": content for n in range(3) for kind, content in (("png", picture()), ("cls", b"%d" % (n % 2)))
    }
    shard(tmp_path / "numbers" / "train.tar", members)
    for _ in ("made", "finished already"):
        summary = run(tmp_path / "numbers")[0]
        assert (summary["classes"], summary["unnamed_classes"]) == (0, 2)
    assert main(["ingest", str(tmp_path / "numbers"), str(tmp_path / "set"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unnamed_classes"] == 2
    json.dumps(summary)  # no number is numpy's
    assert run(pets, "pets set")[0]["unnamed_classes"] == 0


def test_a_folder_of_images_is_no_place_for_a_set(run, pets, tmp_path):
    dogs = plant(tmp_path / "dogs", {"deep/1.png": picture()})
    with pytest.raises(
        DataError, match=r"dogs: holds images, as deep/1\.png, and is no set; give a new folder as DEST"
    ):
        run(pets, dogs)
    assert [one.name for one in dogs.iterdir()] == ["deep"]


def test_images_without_classes(run, tmp_path):
    names = ["1.png", "2.JPG", "ünï cödé ☃ and spaces.png"]
    source = plant(tmp_path / "böxes of things", {name: picture() for name in names})
    made = table(run(source)[1])
    assert made.path.tolist() == names
    assert list(made) == ["bytes", "path"]
    plant(source, {"deep/er/4.png": picture()})
    with pytest.raises(DataError, match=r"some images lie in folders of their classes \(deep/er/\), 3 in none"):
        run(source, "b")
    assert table(run(source, "c", kind="flat")[1]).path.tolist() == ["1.png", "2.JPG", "deep/er/4.png", names[2]]


def test_what_is_hidden_or_no_image_is_passed_over_and_links_are_followed_once(run, pets, capsys):
    plant(pets, {".git/1.png": b"", "cat/.2.png": b"", "cat/Thumbs.db": b"", "notes.txt": b""})
    (pets / "dog" / "up").symlink_to(pets)
    os.mkfifo(pets / "cat" / "pipe.png")
    (pets / "emu").symlink_to(plant(pets.parent / "elsewhere", {"1.png": picture()}))
    plant(pets, {f"cat/.ipynb_checkpoints/{n}.png": picture() for n in range(3)})
    plant(pets, {f"__MACOSX/cat/._{n}.png": b"" for n in range(8)} | {"cat/._1.png": b"", "dog/._1.png": b""})
    assert run(pets)[0]["rows"] == {"train": 9}
    said = capsys.readouterr().err.splitlines()
    assert "15 hidden files were passed over (__MACOSX/ 8, .ipynb_checkpoints/ 3, ._* 2)" in said
    assert "3 files that are no images were passed over (.db 1, .png 1, .txt 1)" in said


def test_stl10(run, tmp_path):
    source = tmp_path / "stl10_binary"
    source.mkdir()
    images = {"train": noise(3, 96, 96, 3), "test": noise(2, 96, 96, 3), "unlabeled": noise(4, 96, 96, 3)}
    for name, array in images.items():
        (source / f"{name}_X.bin").write_bytes(array.transpose(0, 3, 2, 1).tobytes())  # column by column
    (source / "train_y.bin").write_bytes(bytes([2, 1, 2]))
    (source / "test_y.bin").write_bytes(bytes([1, 1]))
    (source / "class_names.txt").write_text("airplane\nbird\n")
    summary, dest = run(source)
    assert summary["rows"] == {"test": 2, "train": 3, "unlabeled": 4}
    for name, array in images.items():
        made = table(dest, name)
        assert [pixels(content).tolist() for content in made.bytes] == array.tolist()
    assert table(dest).label.tolist() == [1, 0, 1]
    assert "label" not in table(dest, "unlabeled")
    assert read_manifest(files.at(dest)).classes == ["airplane", "bird"]
    both = run(source, "b", splits=["unlabeled=train", "test"])[0]
    assert both["rows"] == {"train": 4, "test": 2}
    (source / "train_y.bin").write_bytes(bytes([3, 1, 2]))
    with pytest.raises(DataError, match=r"train_y\.bin, image 0: has label 2, but there are 2 classes"):
        run(source, "c")
    (source / "train_y.bin").write_bytes(bytes([1, 2]))
    with pytest.raises(DataError, match=r"train_y\.bin: 2 labels for 3 images"):
        run(source, "c")
    (source / "test_X.bin").write_bytes(b"1234")
    with pytest.raises(DataError, match=r"test_X\.bin: 4 bytes are no whole number of 96x96 images"):
        run(source, "c")


def cifar(root: Path, arrays: dict[str, np.ndarray], protocol: int = 2) -> Path:
    root.mkdir()
    for name, array in arrays.items():
        names = [f"{name}_{n}.png".encode() for n in range(len(array))]
        batch = {b"data": array, b"labels": [n % 3 for n in range(len(array))], b"filenames": names}
        (root / name).write_bytes(pickle.dumps(batch, protocol))
    (root / "batches.meta").write_bytes(pickle.dumps({"label_names": ["airplane", "automobile", "bird"]}, protocol))
    return root


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_cifar10(run, tmp_path, protocol):
    names = ["data_batch_1", "data_batch_2", "test_batch"]
    arrays = {name: noise(5, 3072) for name in names}
    summary, dest = run(cifar(tmp_path / "cifar", arrays, protocol))
    assert summary["rows"] == {"train": 10, "test": 5}
    for split, batches in (("train", names[:2]), ("test", names[2:])):
        made = table(dest, split)
        expected = np.concatenate([arrays[name] for name in batches]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        assert np.array_equal(np.stack([pixels(content) for content in made.bytes]), expected)
        assert made.label.tolist() == [0, 1, 2, 0, 1] * len(batches)
        assert made.path.tolist() == [f"{split}/{name}_{n}.png" for name in batches for n in range(5)]
    assert read_manifest(files.at(dest)).classes == ["airplane", "automobile", "bird"]


def python2(value) -> bytes:
    """A pickle as Python 2 wrote CIFAR's: byte strings are its `str`, arrays come from numpy.core."""
    if isinstance(value, bytes):
        return b"T" + len(value).to_bytes(4, "little") + value
    if isinstance(value, int):
        return b"J" + value.to_bytes(4, "little", signed=True)
    if isinstance(value, list):
        return b"](" + b"".join(map(python2, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(python2(key) + python2(item) for key, item in value.items()) + b"u"
    dtype = (
        b"cnumpy\ndtype\n"
        + python2(b"u1")
        + b"K\x00K\x01\x87R(K\x03"
        + python2(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    shape = b"".join(map(python2, value.shape)) + b"\x86"
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + python2(b"b") + b"\x87R"
    return made + b"(K\x01" + shape + dtype + b"\x89" + python2(value.tobytes()) + b"tb"


def test_cifar100_as_python_2_wrote_it(run, tmp_path):
    source, arrays = tmp_path / "cifar-100-python", {"train": noise(4, 3072), "test": noise(2, 3072)}
    source.mkdir()
    for name, array in arrays.items():
        fine = [n % 2 for n in range(len(array))]
        batch = {b"data": array, b"fine_labels": fine, b"coarse_labels": [9] * len(array)}
        (source / name).write_bytes(b"\x80\x02" + python2(batch) + b".")
    meta = {b"fine_label_names": [b"apple", b"bear"], b"coarse_label_names": [b"food"]}
    (source / "meta").write_bytes(b"\x80\x02" + python2(meta) + b".")
    _, dest = run(source)
    made = table(dest)
    expected = arrays["train"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    assert np.array_equal(np.stack([pixels(content) for content in made.bytes]), expected)
    assert made.label.tolist() == [0, 1, 0, 1]
    assert read_manifest(files.at(dest)).classes == ["apple", "bear"]


class Evil:
    def __reduce__(self):
        return exec, ("import sys; sys.stderr.write('evil code ran')",)


@pytest.mark.parametrize("name", ["batches.meta.txt", "fine_label_names.txt", "batches.meta.mat"])
def test_cifar_for_other_languages_is_named_as_such(run, tmp_path, name):
    folder = plant(tmp_path / "cifar" / "cifar-binary", {name: b"x", "data_batch_1.bin": b"x", "test.mat": b"x"})
    said = r"cifar-binary(:| is) CIFAR's version for C or MATLAB; its python version is read: fetch that"
    for source, kind in ((folder, None), (folder, "cifar"), (folder.parent, None)):
        with pytest.raises(DataError, match=said):
            run(source, kind=kind)


def test_a_pickle_that_runs_code_is_refused(run, tmp_path, capfd):
    source = cifar(tmp_path / "cifar", {"data_batch_1": noise(5, 3072)})
    (source / "data_batch_1").write_bytes(pickle.dumps({b"data": Evil()}))
    with pytest.raises(DataError, match=r"data_batch_1: refused: this pickle calls builtins\.exec"):
        run(source)
    assert "evil" not in "".join(capfd.readouterr())
    (source / "data_batch_1").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"data_batch_1: not a pickle"):
        run(source)
    (source / "data_batch_1").write_bytes(pickle.dumps({b"data": noise(5, 3072), b"labels": [0]}))
    with pytest.raises(DataError, match=r"data_batch_1: 5 images need as many whole numbers as `labels`"):
        run(source)


NO_LABELS = "labels would be .cls members, or `label` in .json: the names of folders and shards are none"


def shard(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as opened:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    return path.parent


def test_tar_shards(run, tmp_path, capsys):
    long = "ä" * 120  # more than a plain header holds
    images = {"a/0.jpg": encoded(Image.fromarray(noise(8, 8, 3)), "jpeg"), f"b/{long}.png": picture()}
    labels = {"a/0.cls": b"1\n", f"b/{long}.json": b'{"label": 0, "who": "me"}', "d.cls": b"1", "c.txt": b"a caption"}
    shard(tmp_path / "shards" / "train-0.tar", {**images, **labels})
    shard(tmp_path / "shards" / "train-1.tar", {"e.PNG": images["a/0.jpg"], "e.cls": b"0"})
    source = shard(tmp_path / "shards" / "val-0.tar", {"f.jpg": images["a/0.jpg"]})
    summary, dest = run(source)
    assert summary["rows"] == {"train": 3, "validation": 1}
    made = table(dest)
    assert made.path.tolist() == ["a/0.jpg", f"b/{long}.png", "e.PNG"]
    assert made.bytes.tolist() == [images["a/0.jpg"], images[f"b/{long}.png"], images["a/0.jpg"]]
    assert made.label.tolist() == [1, 0, 0]
    assert "label" not in table(dest, "validation")
    said = capsys.readouterr().err
    assert "1 labels of no image were passed over (d.*)" in said
    assert "1 files that are no images were passed over (.txt 1)" in said
    assert "validation: 1 of 1 images have no label" in summary["remarks"]
    assert summary["duplicates"] == 2
    (source / "classes.txt").write_text("cat\n")
    with pytest.raises(DataError, match=r"train-0\.tar, a/0\.jpg: has label 1, but there are 1 classes"):
        run(source, "named")
    (source / "classes.txt").write_text("cat\ndog\n")
    _, dest = run(source, "named", splits=["train"], classes=str(plant(tmp_path, {"list": b"dog"}) / "list"))
    assert table(dest).label.tolist() == [0]
    assert run(source / "train-1.tar", "one shard")[0]["rows"] == {"train": 1}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.jpg": b"1", "a.png": b"2"}, r"x\.tar, a\.png: a second image of its sample, beside a\.jpg"),
        ({"a.jpg": b"1", "a.cls": b"\xff"}, r"x\.tar, a\.cls: not text: b'\\xff'"),
        ({"a.jpg": b"1", "a.json": b'{"label": [1]}'}, r"x\.tar, a\.json: label \[1\] is neither a whole number nor a"),
        (
            {"a.jpg": b"1", "a.cls": b"1", "b.jpg": b"1", "b.cls": b"cat"},
            r"a\.jpg: its label is 1, and others are names",
        ),
        ({"a.jpg": b"1", "a.json": b"[]"}, r"x\.tar, a\.json: not a JSON object"),
        ({"a.jpg": b"1", "a.cls": b"0", "b.jpg": b"1"}, r"x\.tar, b\.jpg: has no label, though others have"),
        ({"a.cls": b"0"}, r"no images in 1 shards"),
        ({"a.jpg": b"junk"}, r"x\.tar, a\.jpg: the image cannot be decoded \(no image of any kind"),
    ],
)
def test_odd_shards_are_named_with_the_member(run, tmp_path, members, message):
    with pytest.raises(DataError, match=message):
        run(shard(tmp_path / "shards" / "x.tar", members))


@pytest.mark.parametrize("cut", [100, 512 + 100, 512 + 1024, 3 * 512, 4 * 512, 4 * 512 + 100])
def test_a_truncated_tar_is_refused(run, tmp_path, cut):
    source = shard(tmp_path / "shards" / "x.tar", {"a.png": bytes(1000), "b.png": bytes(1000)})
    content = (source / "x.tar").read_bytes()
    (source / "x.tar").write_bytes(content[:cut])
    with pytest.raises(DataError, match=r"x\.tar: (not a whole tar|truncated or damaged)"):
        run(source)


def test_a_damaged_tar_is_refused(run, tmp_path):
    source = shard(tmp_path / "shards" / "x.tar", {"a.png": bytes(1000), "b.png": bytes(1000)})
    content = bytearray((source / "x.tar").read_bytes())
    content[3 * 512 : 4 * 512] = noise(512).tobytes()  # the second header
    (source / "x.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.tar: (not a whole tar|truncated or damaged)"):
        run(source)


# Another Parquet set.


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_parquet(file: Path, images: list[bytes | None], labels: list[int]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [value if value is None else {"bytes": value, "path": f"{n}.png"} for n, value in enumerate(images)]
    names = pa.schema([("image", IMAGE), ("label", pa.int64())], metadata={"classes": "zebra,ant"})
    pq.write_table(pa.table([pa.array(rows, IMAGE), pa.array(labels)], schema=names), file, row_group_size=3)
    return file.parent


def test_another_parquet_set(run, tmp_path):
    images = [picture() for _ in range(8)]
    write_parquet(tmp_path / "old" / "train-0.parquet", images[:5], [0, 1, 0, 1, 0])
    source = write_parquet(tmp_path / "old" / "test.parquet", images[5:], [1, 1, -1])
    summary, dest = run(source)
    assert summary["rows"] == {"train": 5, "test": 3}
    assert (table(dest).bytes.tolist(), table(dest).label.tolist()) == (images[:5], [0, 1, 0, 1, 0])
    assert table(dest).path.tolist() == [f"{n}.png" for n in range(5)]
    assert (table(dest, "test").bytes.tolist(), table(dest, "test").label.tolist()) == (images[5:], [1, 1, -1])
    assert read_manifest(files.at(dest)).classes == ["zebra", "ant"]  # labels keep their meaning
    _, again = run(dest, "copy of the copy")
    for split in ("train", "test"):
        assert table(again, split).equals(table(dest, split))
    assert run(source / "test.parquet", "a file")[0]["rows"] == {"train": 3}


def test_a_bad_row_of_a_parquet_set_is_named(run, tmp_path):
    source = write_parquet(tmp_path / "old" / "a.parquet", [picture(), None, b"junk", picture()], [0] * 4)
    with pytest.raises(DataError, match=r"old/a\.parquet, row [12]: .*--skip-unreadable"):
        run(source)
    summary, dest = run(source, "b", skip_unreadable=True)
    assert (summary["rows"], summary["unreadable"]) == ({"train": 2}, 2)
    assert table(dest).path.tolist() == ["0.png", "3.png"]
    first, second = sorted(read_manifest(files.at(dest)).unreadable)
    assert first.startswith("a.parquet, row 1: the image is null (only its bytes are read")
    what = "no image of any kind that Pillow reads; write it as PNG or JPEG"
    assert second == f"a.parquet, row 2: the image cannot be decoded ({what})"


def test_a_parquet_set_without_the_bytes_of_any_image_is_named_as_such(run, tmp_path):
    source = write_parquet(tmp_path / "old" / "a.parquet", [None] * 3, [0] * 3)
    with pytest.raises(DataError, match=r"a\.parquet: all 3 images are null, for .*into `bytes`$"):
        run(source)
    write_parquet(tmp_path / "old" / "b.parquet", [None, picture()], [0, 0])
    with pytest.raises(DataError, match=r"row \d: the image is null \(only its bytes are read.*--skip-unreadable"):
        run(source)
    assert run(source, skip_unreadable=True)[0]["rows"] == {"train": 1}


def test_parquet_that_cannot_be_used(run, tmp_path):
    source = write_parquet(tmp_path / "a" / "a.parquet", [], [])
    with pytest.raises(DataError, match="no rows"):
        run(source)
    plant(tmp_path / "b", {"b.parquet": b"junk"})
    with pytest.raises(DataError, match=r"b\.parquet: not a valid Parquet file"):
        run(tmp_path / "b")
    whole = write_parquet(tmp_path / "whole" / "b.parquet", [picture()], [0]) / "b.parquet"
    plant(tmp_path / "b", {"b.parquet": whole.read_bytes()[:-100]})
    with pytest.raises(DataError, match=r"b\.parquet: truncated: it begins as Parquet and does not end so; fetch it "):
        run(tmp_path / "b")
    pq.write_table(pa.table({"picture": [1]}), tmp_path / "b" / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet: no column `image`"):
        run(tmp_path / "b")
    source = write_parquet(tmp_path / "c" / "c.parquet", [picture()], [2])
    with pytest.raises(DataError, match=r"c\.parquet, row 0: has label 2, but there are 2 classes"):
        run(source)
    write_parquet(tmp_path / "d" / "a.parquet", [picture()], [0])
    pq.write_table(
        pa.table({"image": pa.array([{"bytes": picture(), "path": ""}], IMAGE)}), tmp_path / "d" / "b.parquet"
    )
    assert run(tmp_path / "d")[0]["remarks"] == [NO_ANT, "train: 1 of 2 images have no label"]


# Images of all kinds.


def oriented() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.fromarray(noise(4, 8, 3)), "jpeg", exif=exif)


def all_kinds() -> dict[str, bytes]:
    colour = Image.fromarray(noise(8, 6, 3))
    return {
        "grey.png": encoded(colour.convert("L")),
        "bits.png": encoded(colour.convert("1")),
        "alpha.png": encoded(colour.convert("RGBA")),
        "palette.png": encoded(colour.quantize(4), transparency=b"\x10\x20"),
        "cmyk.jpg": encoded(colour.convert("CMYK"), "jpeg"),
        "deep.png": encoded(Image.fromarray(noise(8, 6).astype(np.uint16) * 257)),
        "deep.tiff": encoded(Image.fromarray(noise(8, 6).astype(np.uint16) * 257), "tiff"),
        "turned.jpg": oriented(),
        "moving.gif": encoded(colour, "gif", save_all=True, append_images=[Image.fromarray(noise(8, 6, 3))]),
        "small.webp": encoded(colour, "webp"),
        "plain.bmp": encoded(colour, "bmp"),
    }


def test_images_of_all_kinds_keep_their_bytes_and_can_be_decoded(run, tmp_path):
    images = all_kinds()
    made = table(run(plant(tmp_path / "kinds", images))[1])
    assert dict(zip(made.path, made.bytes, strict=True)) == images
    shapes = {name: tuple(decode(content).shape) for name, content in images.items()}
    assert shapes.pop("turned.jpg") == (3, 8, 4)
    assert set(shapes.values()) == {(3, 8, 6)}


def test_what_is_done_to_the_values_is_said_once_a_set(run, tmp_path, capsys):
    alpha, dark = Image.new("RGBA", (4, 4), (0, 0, 0, 9)), Image.fromarray(np.full((4, 4), 0.5, np.float32))
    images = {f"{n}.png": encoded(alpha, "png") for n in range(3)}
    images |= {"a.tiff": encoded(dark, "tiff"), "b.tiff": encoded(dark, "tiff"), "c.png": picture(4)}
    summary, dest = run(plant(tmp_path / "odd", images))
    said = ["no image has a label", "2 images: floats, taken for 0..1", "3 images: transparent, laid on white"]
    assert summary["remarks"] == read_manifest(files.at(dest)).remarks == said
    told = capsys.readouterr().err
    assert all(line in told for line in said)


def bomb() -> bytes:
    return encoded(Image.new("1", (20_000, 5_000)))


BAD = {
    "empty.png": (lambda: b"", "the file is empty"),
    "junk.jpg": (lambda: b"no image at all", "the image cannot be decoded .no image of any kind that Pillow reads"),
    "cut.png": (lambda: picture(64)[:-500], "the image cannot be decoded"),
    "cut.jpg": (lambda: encoded(Image.fromarray(noise(64, 64, 3)), "jpeg")[:-500], "the image cannot be decoded"),
    "bomb.png": (bomb, "the image cannot be decoded .*20000 x 5000 pixels are more than"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_stops_the_run_or_is_left_out_as_told(run, pets, name):
    make, reason = BAD[name]
    plant(pets, {f"cat/{name}": make()})
    with pytest.raises(DataError, match=rf"pets/cat/{name}: {reason}.*; replace it, or leave .*--skip"):
        run(pets, rows_per_file=3)
    with pytest.raises(DataError, match="unfinished ingest"):
        open_catalogue(files.at(pets.parent / "set"), "train", pets.parent / "cache")
    summary, dest = run(pets, rows_per_file=3, skip_unreadable=True)  # goes on
    assert (summary["rows"], summary["unreadable"]) == ({"train": 8}, 1)
    assert [line.partition(": ")[0] for line in read_manifest(files.at(dest)).unreadable] == [f"cat/{name}"]
    assert len(ParquetImages.open(dest, cache_dir=pets.parent / "cache")) == 8


def test_a_link_that_leads_nowhere_is_an_unreadable_image(run, pets, capsys):
    (pets / "cat" / "gone.png").symlink_to("nowhere.png")
    (pets / "dog" / "gone.png").symlink_to("nowhere.png")
    plant(pets, {"cat/0.png": b"junk"})
    said = r"cat/gone\.png: a link that leads nowhere \(nowhere\.png\), as 2 of 10 images are; .*--skip-unreadable"
    with pytest.raises(DataError, match=said):  # before the image that is read first
        run(pets, keep_order=True)
    assert not (pets.parent / "set").exists()
    assert run(pets, skip_unreadable=True)[0]["unreadable"] == 3
    assert "left out: cat/gone.png: a link that leads nowhere (nowhere.png)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["x.tar", "a/x.tar", "x.parquet", "a/x.parquet", "labels.csv"])
def test_a_file_that_counts_is_not_passed_over_where_its_link_leads_nowhere(run, tmp_path, name):
    beside = {".tar": lambda: shard(tmp_path / "files" / "train.tar", {"0.png": picture()})}
    beside |= {".parquet": lambda: write_parquet(tmp_path / "files" / "train.parquet", [picture()], [0])}
    beside |= {".csv": lambda: plant(tmp_path / "files", {"0.png": picture()})}
    source = beside[Path(name).suffix]()
    (source / name).parent.mkdir(exist_ok=True)
    (source / name).symlink_to("gone")
    with pytest.raises(StorageError, match=rf"{name}: a link that leads nowhere \(gone\); bring back what it leads to"):
        run(source)


def test_a_file_too_large_for_an_image_is_not_read(run, pets):
    with (pets / "cat" / "disk.png").open("wb") as file:
        file.truncate(2**30 + 1)
    with pytest.raises(DataError, match=r"cat/disk\.png: cannot be read \(more than 1073741824 bytes"):
        run(pets)


def test_what_was_left_out_stops_a_run_that_leaves_nothing_out(run, pets, monkeypatch):
    plant(pets, {"cat/junk.png": b"junk"})
    monkeypatch.setattr("emc2dist.data.ingest._finish", lambda *_: sys.exit("killed"))
    with pytest.raises(SystemExit):
        run(pets, skip_unreadable=True)
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"cat/junk\.png"):
        run(pets)


def test_a_split_of_nothing_but_unreadable_images_is_refused(run, tmp_path):
    source = plant(tmp_path / "bad", {"1.png": b"", "2.png": b""})
    with pytest.raises(DataError, match=r"no image of split train can be read; [12]\.png: the file is empty"):
        run(source, skip_unreadable=True)
    assert [file.name for file in (tmp_path / "set").iterdir()] == [UNFINISHED]  # no file that looks like a set
    plant(source, {"1.png": picture()})
    assert run(source, skip_unreadable=True)[0]["rows"] == {"train": 1}


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def test_pointers_of_files_that_were_not_fetched_are_named(run, pets, tmp_path):
    fetch = r"a pointer of Git LFS and not the file: fetch that with `git lfs pull`"
    plant(pets, {"cat/0.png": LFS})
    with pytest.raises(DataError, match=rf"cat/0\.png: {fetch}"):
        run(pets)
    plant(pets, {"cat/0.png": b"/annex/objects/SHA256E-s9--4d7a.png\n"})
    with pytest.raises(DataError, match=r"cat/0\.png: a pointer of git-annex .*`git annex get`"):
        run(pets)
    for name in ("a/train.parquet", "b/train.tar", "c/batches.meta", "d/train_X.bin"):
        file = plant(tmp_path / "lfs", {name: LFS}) / name
        with pytest.raises(DataError, match=rf"{name}: {fetch}"):
            run(file.parent, "other")
    source = shard(tmp_path / "f" / "x.tar", {"0.png": picture(), "0.cls": b"0"})
    with pytest.raises(DataError, match=rf"classes\.txt: {fetch}"):
        run(plant(source, {"classes.txt": LFS}), "other")
    images = {f"{n}.png": picture() for n in range(2)}
    with pytest.raises(DataError, match=rf"labels\.csv: {fetch}"):
        run(plant(tmp_path / "e", images | {"labels.csv": LFS}), "other")


@pytest.mark.parametrize("name", ["manifest.json", "train.index.npz", "train-00000-of-00001.parquet"])
def test_pointers_among_the_files_of_a_set_are_named(run, pets, name):
    """As a clone of a set from a hub leaves them; nothing is to be ingested again."""
    _, dest = run(pets)
    plant(dest, {name: LFS})
    with pytest.raises(
        DataError, match=rf"{name}: a pointer of Git LFS and not the file: fetch that with `git lfs pull`$"
    ):
        ParquetImages.open(str(dest))


def test_copies_in_other_splits_or_classes_are_said(run, tmp_path):
    same, torn = picture(), picture()
    images = {"train/a/0.png": same, "train/b/0.png": picture(), "train/a/1.png": torn, "train/b/1.png": torn}
    images |= {"test/a/0.png": picture(), "test/a/1.png": b"", "test/b/0.png": picture(), "test/b/leak.png": same}
    images |= {"validation/a/0.png": torn, "validation/b/0.png": picture()}
    summary, _ = run(plant(tmp_path / "a", images), rows_per_file=2, skip_unreadable=True)
    assert {line for line in summary["remarks"] if "train too" in line or "copies" in line} == {
        "1 of 3 images of test are in train too (as test/b/leak.png); 1 of them under another class",
        "1 of 2 images of validation are in train too (as validation/a/0.png)",
        f"train: 2 of 4 images have copies under another class (as {first_of(tmp_path / 'set', 'train', torn)})",
    }
    bare = run(tmp_path / "a", "bare", labels=False, skip_unreadable=True)[0]["remarks"]
    assert "1 of 3 images of test are in train too (as test/b/leak.png)" in bare
    assert not any("another class" in line for line in bare)


def first_of(dest: Path, split: str, content: bytes) -> str:
    """The path of an image's first copy in the order of the set."""
    rows = [one for file in sorted(dest.glob(f"{split}-*")) for one in pq.read_table(file)["image"].to_pylist()]
    return next(row["path"] for row in rows if row["bytes"] == content)


def test_duplicates_are_counted_over_all_splits(run, tmp_path):
    same, other = picture(), picture()
    images = {"train/1.png": same, "train/2.png": other, "train/3.png": same, "test/4.png": same}
    assert run(plant(tmp_path / "a", images))[0]["duplicates"] == 2


def test_an_ingested_set_knows_which_images_are_the_same(run, tmp_path):
    same, other, third = picture(), picture(), picture()
    contents = [same, other, same, third, other, same]
    _, dest = run(plant(tmp_path / "a", {f"{n}.png": content for n, content in enumerate(contents)}))
    images = ParquetImages.open(dest, cache_dir=tmp_path / "cache")
    here, groups = images.encoded(np.arange(6)), images.duplicates()
    assert [here[n] == third for n in range(6)] == (groups == -1).tolist()
    for one in range(6):
        for another in range(6):
            assert (here[one] == here[another]) == (groups[one] == groups[another])
    assert ParquetImages.open(dest, cache_dir=tmp_path / "cache", limit=4).duplicates().tolist() == groups[:4].tolist()
    (dest / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"0\.parquet|of-00001\.parquet: .* `emc2dist ingest` wrote; ingest this one"):
        ParquetImages.open(dest, cache_dir=tmp_path / "cache").duplicates()


# Classes.


@pytest.mark.parametrize("again", [False, True])
def test_what_a_class_list_leaves_out_is_said(run, tmp_path, again):
    names = [*(f"train/{kind}/{n}.png" for kind in "abc" for n in range(4)), "test/b/0.png", "test/c/0.png"]
    source = plant(tmp_path / "pets", {name: picture() for name in names})
    source = run(source, "first")[1] if again else source
    chosen = plant(tmp_path, {"list": b"a\nb\n"}) / "list"
    said = run(source, classes=str(chosen))[0]["remarks"]
    assert {line for line in said if "left out" in line or "taken" in line} == {
        "2 of 3 classes are taken, by --classes",
        "test: 1 of 2 images are of other classes and were left out",
        "train: 4 of 12 images are of other classes and were left out",
    }
    assert "test: no image of 1 of 2 training classes, as 'a'" in said


def test_images_without_a_label_that_a_class_list_leaves_out_are_said(run, tmp_path):
    source = write_parquet(tmp_path / "old" / "train.parquet", [picture() for _ in range(5)], [0, 1, -1, 1, -1])
    chosen = plant(tmp_path, {"list": b"ant"}) / "list"
    assert run(source, classes=str(chosen))[0]["remarks"] == [
        "1 of 2 classes are taken, by --classes",
        "train: 1 of 5 images are of other classes and were left out",
        "train: 2 of 5 images have no label and were left out",
    ]


def test_folders_and_classes_without_an_image_are_named(run, pets):
    plant(pets, {f"horse/deep/{n}.HEIC": b"" for n in range(8)} | {"horse/x.nef": b"", "empty/notes.md": b""})
    plant(pets, {"emu/0.png": b"junk"})
    (pets / "void" / "deeper").mkdir(parents=True)
    assert run(pets, skip_unreadable=True)[0]["remarks"] == [
        "9 images that Pillow cannot read were passed over (.heic 8, .nef 1); write them as JPEG",
        "1 files that are no images were passed over (.md 1)",
        "1 folders hold no image that can be read, and so are no classes: horse/",
        "2 folders without an image: empty/, void/",
        "3 classes, by the names of folders: cat, dog, emu",
        "train: no image of 1 of 3 classes could be read, as 'emu'",
    ]


def test_listed_classes_that_no_image_has_are_said(run, tmp_path):
    source = write_parquet(tmp_path / "old" / "train.parquet", [picture()] * 2, [1, 1])
    assert "1 of 2 classes have no image, as 'zebra'" in run(source)[0]["remarks"]


def test_imagenet100_is_the_pinned_list():
    names = read_classes("imagenet100")
    assert len(set(names)) == 100
    assert all(name.startswith("n") and len(name) == 9 and name[1:].isdigit() for name in names)
    assert (names[0], names[-1]) == ("n02869837", "n02090622")


def test_a_class_list_keeps_classes_in_the_order_of_their_names(run, tmp_path):
    wanted = read_classes("imagenet100")
    others = ["n00000001", "n99999999"]
    source = plant(tmp_path / "imagenet", {f"{name}/{name}_1.png": picture(1) for name in wanted + others})
    summary, dest = run(source, classes="imagenet100")
    assert (summary["rows"], summary["classes"]) == ({"train": 100}, 100)
    assert read_manifest(files.at(dest)).classes == sorted(wanted)
    assert [path.split("/")[0] for path in table(dest).path] == sorted(wanted)
    assert table(dest).label.tolist() == list(range(100))


def test_a_class_list_that_does_not_fit_is_refused(run, pets, tmp_path):
    lists = plant(tmp_path, {"typo": b"dgo\n", "twice": b"cat\ncat\n", "none": b"\n"})
    with pytest.raises(DataError, match=r"pets: has no class 'dgo'; the nearest is 'dog'"):
        run(pets, classes=str(lists / "typo"))
    with pytest.raises(DataError, match=r"pets: has no class 'n02869837'"):
        run(pets, classes="imagenet100")
    with pytest.raises(DataError, match=r"twice: names cat twice"):
        run(pets, classes=str(lists / "twice"))
    with pytest.raises(DataError, match=r"none: names no class"):
        run(pets, classes=str(lists / "none"))
    with pytest.raises(DataError, match=r"--classes: imagenet: No such file .*give imagenet100"):
        run(pets, classes="imagenet")
    with pytest.raises(DataError, match="names no classes"):
        run(plant(tmp_path / "flat", {"1.png": picture()}), classes="imagenet100")


# Sources and destinations that cannot be used.


def test_sources_that_cannot_be_used(run, tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such file or folder"):
        run(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no images"):
        run(tmp_path / "empty")
    for pattern in ("shard-{000000..000001}.tar", "*"):
        for kind in (None, "tar", "parquet"):
            with pytest.raises(DataError, match=r"no such file or folder; patterns are not expanded; give the folder"):
                run(tmp_path / pattern, kind=kind)
    said = (
        r"notes\.txt: no source of images; if .* --kind texts; else give the folder that the images lie in, or a \.tar "
    )
    with pytest.raises(DataError, match=said):
        run(plant(tmp_path, {"notes.txt": b""}) / "notes.txt")
    for kind in ("imagefolder", "flat", "stl10", "cifar", "tar"):
        with pytest.raises(DataError, match=r"s3://bucket/set: only Parquet sets are read from S3"):
            ingest("s3://bucket/set", str(tmp_path / "set"), kind=kind)
        with pytest.raises(DataError, match=r"empty: no |batches\.meta: missing"):
            run(tmp_path / "empty", kind=kind)
    with pytest.raises(DataError, match=r"is a folder, and this is a file"):
        run(tmp_path / "notes.txt", kind="flat")
    assert not (tmp_path / "set").exists()


def test_shares_are_no_splits(run, pets):
    with pytest.raises(
        SpecError, match=r"train=0\.8: '0\.8' is no name .* No images are drawn for a split: .* tenth voter"
    ):
        run(pets, splits=["train=0.8"])


def test_missing_shards_are_said(run, tmp_path):
    for n in (0, 1, 3):
        source = shard(tmp_path / "shards" / f"0000{n}.tar", {f"{n}.png": picture()})
    assert "3 of 4 files from 00000.tar to 00003.tar are there: is the set whole?" in run(source)[0]["remarks"]


def test_arguments_out_of_range(run, pets):
    for option, value in (("seed", -1), ("rows_per_file", 0), ("workers", -1), ("kind", "zip")):
        with pytest.raises(SpecError, match=rf"--{option.replace('_', '-')} {value}: "):
            run(pets, **{option: value})


def test_destinations_that_cannot_be_used(run, pets, tmp_path):
    with pytest.raises(DataError, match="is the source"):
        run(pets, pets)
    with pytest.raises((DataError, StorageError), match="afile"):
        run(pets, plant(tmp_path, {"afile": b""}) / "afile")
    with pytest.raises(DataError, match=r"holds x\.parquet, which no unfinished ingest wrote"):
        run(pets, plant(tmp_path / "other", {"x.parquet": b""}))


def test_a_finished_set_is_left_alone(run, pets, tmp_path, capsys):
    first, dest = run(pets)
    before = contents(dest)
    again, _ = run(pets)
    assert "finished already" in capsys.readouterr().err
    assert {**again, "seconds": 0, "images_per_second": 0} == {**first, "seconds": 0, "images_per_second": 0}
    assert again["images_per_second"] == 0
    with pytest.raises(DataError, match=r"a finished set of another job: seed 0 there, 1 here; give another DEST"):
        run(pets, seed=1)
    plant(pets, {"emu/1.png": picture()})
    with pytest.raises(
        DataError,
        match=r"another job: source \(.*sizes or times\), classes, which images are in train, the labels",
    ):
        run(pets)
    assert contents(dest) == before


def test_corrected_labels_are_called_so(run, tmp_path):
    images = {f"{split}/{n}.png": picture() for split in ("train", "test") for n in range(2)}
    text = b"image,label\ntrain/0.png,a\ntrain/1.png,b\ntest/0.png,a\ntest/1.png,b\n"
    source = plant(tmp_path / "set of two", images | {"labels.csv": text})
    run(source)
    plant(source, {"labels.csv": text.replace(b"test/1.png,b", b"test/1.png,a")})
    with pytest.raises(DataError, match=r"a finished set of another job: the labels of test; give another DEST"):
        run(source)


def test_another_job_is_not_mixed_with_an_unfinished_one(run, pets):
    plant(pets, {"dog/junk.png": b"junk"})
    with pytest.raises(DataError, match="junk"):
        run(pets, rows_per_file=3, keep_order=True)
    with pytest.raises(DataError, match=r"another job is unfinished here: rows_per_file 3 there, 4 here"):
        run(pets, rows_per_file=4, keep_order=True)
    plant(pets, {"emu/1.png": picture()})
    with pytest.raises(
        DataError,
        match=r"here: source \(its files have .*sizes or times\), classes, which images are in train, the labels",
    ):
        run(pets, rows_per_file=3, keep_order=True)


def test_an_unfinished_one_of_which_nothing_is_there_gives_way(run, pets):
    plant(pets, {"cat/junk.png": b""})
    with pytest.raises(DataError, match=r"cat/junk\.png: the file is empty"):
        run(pets)
    (pets / "cat" / "junk.png").unlink()
    assert run(pets)[0]["rows"] == {"train": 8}


# Runs that are stopped and go on.


@pytest.fixture
def slow(tmp_path) -> Path:
    """Images that take a few seconds."""
    content = [picture(700) for _ in range(4)]
    return plant(tmp_path / "slow", {f"a/{n:03}.png": content[n % 4] + bytes([n]) for n in range(40)})


def started(source: Path, dest, *options: str) -> subprocess.Popen:
    command = [*COMMAND, str(source), str(dest), "--rows-per-file", "4", *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def await_notes(place: files.Place, process: subprocess.Popen) -> set[str]:
    """Names of the files that are noted, as soon as there are some."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        found = {e.name.removesuffix(".npz") for e in (place / UNFINISHED).entries() if e.name.endswith(".npz")}
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"no file was finished: {process.communicate()}")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_run_that_is_killed_goes_on_and_ends_with_the_same_bytes(run, slow, tmp_path, capsys, workers):
    run(slow, "unbroken", rows_per_file=4)
    dest = tmp_path / "broken"
    process = started(slow, dest, "--workers", workers)
    await_notes(files.at(dest), process)
    children = workers_of(process)
    process.kill()
    process.communicate(timeout=60)
    assert psutil.wait_procs(children, timeout=30)[1] == []  # workers end with the one that leads
    assert [path.name for path in (dest / UNFINISHED).iterdir() if path.is_dir() and workers == "2"] == []
    kept = {f.name.removesuffix(".npz"): 0 for f in (dest / UNFINISHED).glob("*.npz")}
    kept = {name: (dest / name).stat().st_mtime_ns for name in kept}
    assert 0 < len(kept) < 10
    with pytest.raises(DataError, match="unfinished ingest"):
        open_catalogue(files.at(dest), "train", tmp_path / "cache")
    run(slow, dest, rows_per_file=4)
    assert f"goes on after {len(kept)} finished files" in capsys.readouterr().err
    assert {name: (dest / name).stat().st_mtime_ns for name in kept} == kept
    assert contents(dest) == contents(tmp_path / "unbroken")


def test_a_finished_file_that_was_changed_is_written_again(run, pets, monkeypatch):
    monkeypatch.setattr("emc2dist.data.ingest._finish", lambda *_: sys.exit("killed"))
    with pytest.raises(SystemExit):
        run(pets, rows_per_file=3)
    monkeypatch.undo()
    file = pets.parent / "set" / "train-00001-of-00003.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    run(pets, rows_per_file=3)
    assert file.read_bytes() == whole


def workers_of(process: subprocess.Popen) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def test_a_worker_that_is_killed_ends_the_run_which_goes_on(run, slow, tmp_path):
    process = started(slow, tmp_path / "set", "--workers", "2")
    await_notes(files.at(tmp_path / "set"), process)
    workers_of(process)[0].kill()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "emc2dist: a worker process was killed, perhaps for want of memory" in err
    assert run(slow, rows_per_file=4)[0]["rows"] == {"train": 40}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_stops_cleanly(run, slow, tmp_path, workers):
    dest = tmp_path / "set"
    process = started(slow, dest, "--workers", workers)
    await_notes(files.at(dest), process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "the same command resumes" in err
    assert "Traceback" not in err
    assert [path.name for path in (dest / UNFINISHED).iterdir() if path.is_dir()] == []
    assert not (dest / "manifest.json").exists()
    assert run(slow, rows_per_file=4)[0]["rows"] == {"train": 40}
    assert not (dest / UNFINISHED).exists()


def test_ctrl_c_while_workers_start(slow, tmp_path):
    process = started(slow, tmp_path / "set", "--workers", "2")
    deadline = time.monotonic() + 60
    while len(workers_of(process)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err


def test_two_processes_do_not_write_one_set(run, pets):
    plant(pets, {"cat/junk.png": b"junk"})
    with pytest.raises(DataError, match="junk"):
        run(pets)
    with (pets.parent / "set" / UNFINISHED / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process is writing this set"):
            run(pets)


def test_a_full_disk_is_one_message_and_leaves_no_draft(run, tmp_path):
    source = plant(tmp_path / "large", {f"a/{n}.png": picture(200) for n in range(4)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(StorageError, match=r"train-00000-of-00001\.parquet: cannot be written .*; make room"):
            run(source)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(path.name for path in (tmp_path / "set").rglob("*")) == [UNFINISHED, "job.json", "lock"]
    assert run(source)[0]["rows"] == {"train": 4}


def test_a_log_gets_lines_with_rate_and_time_left(run, pets, capsys, monkeypatch):
    monkeypatch.setattr("emc2dist.terminal._LINE_SECONDS", 0.0)
    run(pets)
    lines = [line for line in capsys.readouterr().err.splitlines() if "images/s" in line]
    assert len(lines) == 8
    assert lines[3].startswith("4 of 8 images, ")
    assert lines[3].endswith(" to go")


def test_its_processes_do_not_load_torch():
    code = "import sys, emc2dist.data.ingest; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "False\n", done.stderr


def test_the_command(run, pets, tmp_path):
    chosen = str(plant(tmp_path, {"list": b"cat\n"}) / "list")
    command = [*COMMAND, str(pets), str(tmp_path / "set"), "--classes", chosen, "--rows-per-file", "2", "--json"]

    def answer(*options: str) -> tuple[int, str, str]:
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout, done.stderr

    status, out, err = answer("--workers", "2", "s3.attempts=2")
    assert (status, json.loads(out)["rows"]) == (0, {"train": 4}), err
    run(pets, "alone", classes=chosen, rows_per_file=2)
    assert contents(tmp_path / "set") == contents(tmp_path / "alone")
    status, out, err = answer("--seed", "7")
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].endswith("another job: seed 0 there, 7 here; give another DEST, or remove it")
    refusal = "emc2dist: 'lr=3': only keys of s3 can be set here, as in s3.endpoint=URL\n"
    assert answer("lr=3") == (2, "", refusal)


# On S3.


def test_a_set_on_s3(run, pets, s3, tmp_path, capfd):
    _, local = run(pets, rows_per_file=3)
    summary, _ = run(pets, f"{s3.uri}/sets/pets", rows_per_file=3)
    assert (summary["rows"], summary["dest"]) == ({"train": 8}, f"{s3.uri}/sets/pets")
    place = files.at(f"{s3.uri}/sets/pets")
    listing = {entry.name: entry for entry in place.entries()}
    assert place.folders() == []
    assert sorted(listing) == sorted(contents(local))
    for file in read_manifest(place).splits["train"].files:
        assert (file.size, file.etag) == (listing[file.name].size, listing[file.name].tag)
        assert (place / file.name).read() == (local / file.name).read_bytes()
    images = ParquetImages.open(f"{s3.uri}/sets/pets", cache_dir=tmp_path / "cache")
    assert images.encoded(np.arange(8)) == ParquetImages.open(local, cache_dir=tmp_path / "cache").encoded(np.arange(8))
    secret = s3.server.secret_key
    assert not any(secret.encode() in (place / name).read() for name in listing)
    assert secret not in "".join(capfd.readouterr())
    _, copy = run(f"{s3.uri}/sets/pets", "back", rows_per_file=3)
    assert table(copy).equals(table(local))


def test_a_single_file_of_s3_is_read_by_who_may_not_list(run, pets, s3, tmp_path, monkeypatch):
    run(pets, f"{s3.uri}/pets")
    entries = files.at(f"{s3.uri}/pets").entries()
    name = next(entry.name for entry in entries if entry.name.endswith(".parquet"))

    def denied(self):
        raise StorageError("listing is denied")

    monkeypatch.setattr(S3Place, "_listing", denied)
    assert len(ParquetImages.open(f"{s3.uri}/pets/{name}", cache_dir=tmp_path / "cache")) == 8
    _, copy = run(f"{s3.uri}/pets/{name}", "copy")
    assert len(ParquetImages.open(str(copy))) == 8
    with pytest.raises(StorageError, match="listing is denied"):
        ParquetImages.open(f"{s3.uri}/pets", cache_dir=tmp_path / "cache")


def test_a_folder_of_s3_without_parquet_is_refused_with_what_helps(run, tmp_path, s3):
    for name in ("pets/0.png", "pets/dog/1.png", "pets/b.JPG", "pets/a.png"):
        (files.at(f"{s3.uri}/{name.rpartition('/')[0]}") / name.rpartition("/")[2]).write(picture())
    found = r"holds no \*\.parquet files, but dog/, \.png 2, \.jpg 1"
    only = r"only Parquet sets are read from S3: copy others to a disk first \(aws s3 cp\)"
    for name, what in (("pets", found), ("gone", "no such file or folder")):
        with pytest.raises(DataError, match=rf"/{name}: {what}; give .*, for {only}$"):
            run(f"{s3.uri}/{name}")
        with pytest.raises(DataError, match=rf"/{name}: {what}; set data\.path .*`emc2dist ingest` \(but {only}\)$"):
            ParquetImages.open(f"{s3.uri}/{name}", cache_dir=str(tmp_path / "cache"))


def test_a_tar_on_s3_is_told_to_be_copied(run, s3):
    (files.at(s3.uri) / "train-000000.tar").write(b"tar")
    with pytest.raises(
        DataError, match=r"000000\.tar: is no Parquet file; give .* from S3: copy others to a disk first \(aws s3 cp\)$"
    ):
        run(f"{s3.uri}/train-000000.tar")


def test_a_folder_of_s3_that_holds_other_things(run, pets, s3):
    (files.at(s3.uri) / "notes.txt").write(b"mine")
    (files.at(s3.uri) / "file").write(b"mine")
    with pytest.raises(DataError, match=r"/file: is a file; give a folder"):
        run(pets, f"{s3.uri}/file")
    assert run(pets, s3.uri)[0]["rows"] == {"train": 8}
    assert (files.at(s3.uri) / "notes.txt").read() == b"mine"
    (files.at(s3.uri) / "others" / "x.parquet").write(b"mine")
    with pytest.raises(DataError, match=r"holds x\.parquet, which no unfinished ingest wrote"):
        run(pets, f"{s3.uri}/others")


def test_s3_that_does_not_answer(run, pets, s3):
    s3.server.kill_object_server()
    with pytest.raises(StorageError, match=rf"{s3.uri}/set.*no usable answer"):
        run(pets, f"{s3.uri}/set", s3=S3(attempts=1))
    s3.server.start_object_server()
    assert run(pets, f"{s3.uri}/set")[0]["rows"] == {"train": 8}
    with pytest.raises(StorageError, match="no such bucket"):
        run(pets, "s3://no-such-bucket-here/set")


def test_a_run_to_s3_that_is_killed_goes_on(run, slow, s3, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # a process that is killed leaves a draft there
    dest = f"{s3.uri}/set"
    process = started(slow, dest, "--workers", "1")
    kept = await_notes(files.at(dest), process)
    process.kill()
    process.communicate(timeout=60)
    before = {entry.name: entry.tag for entry in files.at(dest).entries()}
    run(slow, dest, rows_per_file=4)
    shown = capsys.readouterr().err
    assert "goes on after" in shown
    assert s3.server.secret_key not in shown
    after = {entry.name: entry.tag for entry in files.at(dest).entries()}
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    for file in read_manifest(files.at(dest)).splits["train"].files:
        assert hashlib.sha256((files.at(dest) / file.name).read()).hexdigest() == file.sha256


# What is guessed, passed over or dropped.


def tiny_imagenet(root: Path, annotations: str) -> Path:
    images = {f"train/{kind}/images/{kind}_{n}.JPEG": picture() for kind in ("n01", "n02") for n in range(2)}
    images |= {f"{split}/images/{split}_{n}.JPEG": picture() for split in ("val", "test") for n in range(2)}
    return plant(root, images | {"val/val_annotations.txt": annotations.encode(), "wnids.txt": b"n01\nn02\n"})


def test_tiny_imagenet_as_it_is_unpacked(run, tmp_path):
    source = tiny_imagenet(tmp_path / "tiny", "val_0.JPEG\tn02\t0\t0\t9\t9\nval_1.JPEG\tn01\t0\t0\t9\t9\n")
    summary, dest = run(source)
    assert summary["rows"] == {"test": 2, "train": 4, "validation": 2}
    assert (table(dest).label.tolist(), table(dest, "validation").label.tolist()) == ([0, 0, 1, 1], [1, 0])
    assert "label" not in table(dest, "test")
    assert summary["remarks"] == [
        "1 files that are no images were passed over (.txt 1)",
        "2 classes, by the names of folders: n01, n02",
        "test: all images lie in images/, which is taken for no class",
        "validation: all images lie in images/, which is taken for no class",
        f"validation: 2 labels are those of {source}/val/val_annotations.txt, column 2",
        "test: 2 of 2 images have no label",
    ]
    assert read_manifest(files.at(dest)).remarks == summary["remarks"]
    source = tiny_imagenet(tmp_path / "half", "val_0.JPEG\tn02\t0\t0\t9\t9\n")
    with pytest.raises(
        DataError, match=r"val_annotations\.txt: tells the classes of 1 of 2 images of val, and not that"
    ):
        run(source, "cut")


def test_labels_of_imagenet_as_kaggle_has_it(run, tmp_path):
    images = {f"{place}.JPEG": picture() for place in ("train/n01/a", "train/n02/b", "val/ILSVRC2012_val_1", "val/x_2")}
    solution = b"ImageId,PredictionString\nx_2,n01 1 2 3 4\nILSVRC2012_val_1,n02 1 2 3 4 n02 5 6 7 8\n"
    _, dest = run(plant(tmp_path / "imagenet", images | {"LOC_val_solution.csv": solution}))
    made = table(dest, "validation")
    assert dict(zip(made.path, made.label, strict=True)) == {"val/ILSVRC2012_val_1.JPEG": 1, "val/x_2.JPEG": 0}


def test_every_folder_may_be_told_to_be_a_class(run, tmp_path):
    source = plant(tmp_path / "vehicles", {f"{kind}/1.png": picture() for kind in ("bus", "train", "car")})
    with pytest.raises(DataError, match=r"vehicles: train/ looks like a split, bus/ like none; .*--kind classes"):
        run(source)
    _, dest = run(source, kind="classes")
    assert read_manifest(files.at(dest)).classes == ["bus", "car", "train"]
    plant(source, {"bare.png": picture()})
    with pytest.raises(DataError, match=r"bare\.png lies in no folder of a class"):
        run(source, "other", kind="classes")


def test_images_beside_the_splits_that_are_named_are_left_out(run, tmp_path):
    names = ("train/good/0", "train/good/1", "test/good/2", "test/broken/3")
    source = plant(tmp_path / "bottle", {f"{name}.png": picture() for name in names})
    plant(source, {f"{name}.png": picture() for name in ("ground_truth/broken/3_mask", "ground_truth/broken/4", "5")})
    plant(source, {"labels.csv": b"name,label\n0,good\n4,good\n5,good\n"})
    with pytest.raises(DataError, match=r"bottle: ground_truth/ is .*; name .*: --split test --split train; or"):
        run(source)
    summary, dest = run(source, splits=["train", "test=validation"])
    assert summary["rows"] == {"train": 2, "validation": 2}
    assert read_manifest(files.at(dest)).classes == ["broken", "good"]
    assert (table_of(dest, "train"), table_of(dest, "validation")) == ([1, 1], [0, 1])
    said = "3 images in no folder of a split were left out, such as 5.png"
    assert [remark for remark in summary["remarks"] if "left out" in remark or "no image" in remark] == [said]


def test_a_class_that_no_training_image_has_is_said(run, tmp_path):
    source = plant(
        tmp_path / "pets",
        {f"{place}.png": picture() for place in ("train/cat/1", "train/dog/1", "val/cat/1", "val/emu/1", "val/emu/2")},
    )
    summary, _ = run(source)
    assert summary["remarks"][1:] == [
        "validation: no image of 1 of 2 training classes, as 'dog'",
        "validation: 2 of 3 images are of 1 classes that no training image has, as 'emu'",
    ]


def test_names_composed_in_two_ways_are_one_class(run, tmp_path):
    source = plant(tmp_path / "pets", {"train/\u00e9/1.png": picture(), "train/b/1.png": picture()})
    plant(source, {"val/e\u0301/1.png": picture(), "val/b/1.png": picture()})
    summary, dest = run(source)
    assert read_manifest(files.at(dest)).classes == ["b", "\u00e9"]
    assert len(summary["remarks"]) == 1  # on the classes


def test_dots_in_the_names_of_a_tar(run, tmp_path):
    scans = {f"scan v1.{n}.png": picture() for n in range(3)} | {f"scan v2.{n}.png": picture() for n in range(2)}
    labels = {"scan v1.1.cls": b"dog", "scan v1.0.cls": b"cat", "scan v1.2.cls": b"cat"}
    labels |= {"scan v2.0.cls": b"dog", "scan v2.1.cls": b"dog"}
    _, dest = run(shard(tmp_path / "shards" / "train.tar", scans | labels))
    made = table(dest)
    assert dict(zip(made.path, made.label, strict=True)) == dict(zip(scans, [0, 1, 0, 1, 1], strict=True))
    assert read_manifest(files.at(dest)).classes == ["cat", "dog"]


def test_further_images_of_the_samples_of_a_tar_are_passed_over(run, tmp_path):
    plain = {f"{n}.jpg": encoded(Image.fromarray(noise(8, 8, 3)), "jpeg") for n in range(2)}
    masks = {f"{n}.seg.png": picture() for n in range(2)}
    summary, dest = run(shard(tmp_path / "a" / "x.tar", plain | masks))
    assert table(dest).path.tolist() == ["0.jpg", "1.jpg"]
    assert summary["remarks"] == [
        "2 further images of samples were passed over (.seg.png)",
        NO_LABELS,
        "no image has a label",
    ]
    pairs = {f"{n}.{side}.png": picture() for n in range(2) for side in ("left", "right")}
    with pytest.raises(DataError, match=r"x\.tar, 0\.right\.png: a second image of its sample, beside 0\.left\.png"):
        run(shard(tmp_path / "b" / "x.tar", pairs), "pairs")


def test_folders_in_a_shard_that_tell_other_splits_are_refused(run, tmp_path):
    members = {f"data/{split}/{kind}/{n}.png": picture() for split in ("train", "test") for kind in "ab" for n in "01"}
    source = shard(tmp_path / "shards" / "data.tar", members)
    message = (
        r"data\.tar: its folders tell other splits than train, as which it is read: data/train/ \(4 images\), "
        r"data/test/ \(4 images\); unpack it and give the folder"
    )
    for options in ({}, {"splits": ["train", "test"]}):
        with pytest.raises(DataError, match=message):
            run(source, **options)
    (source / "data.tar").unlink()
    for split in ("train", "val"):
        folder = "validation_images" if split == "val" else split
        shard(source / f"{split}-0.tar", {f"{folder}/test tube/{n}.png": picture() for n in range(2)})
    assert run(source)[0]["rows"] == {"train": 2, "validation": 2}
    assert run(source / "val-0.tar", "alone")[0]["rows"] == {"train": 2}  # which is said
    (source / "val-0.tar").rename(source / "test-0.tar")
    with pytest.raises(DataError, match=r"test-0\.tar: .* than test, .*: validation_images/ \(2 images\)"):
        run(source, "b")


def test_a_label_is_that_of_the_one_image_of_its_sample(run, tmp_path):
    images = {f"{n}.input.png": picture() for n in range(3)}
    labels = {"0.output.cls": b"cat", "1.output.cls": b"dog", "2.output.cls": b"cat"}
    summary, dest = run(shard(tmp_path / "shards" / "x.tar", images | labels))
    assert table_of(dest, "train") == [0, 1, 0]
    assert not any("passed over" in remark for remark in summary["remarks"])
    shard(tmp_path / "shards" / "x.tar", images | labels | {"2.fine.cls": b"tabby"})
    with pytest.raises(DataError, match=r"x\.tar, 2\.input\.png: 2\.output\.\* and 2\.fine\.\* tell labels of its"):
        run(tmp_path / "shards", "b")
    dots = {"scan v1.0.png": picture(), "scan v1.0.cls": b"cat", "scan v2.3.png": picture(), "scan v2.7.cls": b"dog"}
    with pytest.raises(DataError, match=r"scan v2\.3\.png: has no label"):  # that of another image, which is gone
        run(shard(tmp_path / "dots" / "x.tar", dots), "d")
    shard(tmp_path / "shards" / "x.tar", images | labels | {"2.fine.cls": b"tabby", "2.cls": b"emu"})
    summary, dest = run(tmp_path / "shards", "c")
    assert table_of(dest, "train") == [0, 1, 2]
    assert "2 labels of no image were passed over (2.fine.*)" in summary["remarks"]


def test_splits_in_members_of_a_shard_are_named(run, tmp_path):
    members = {f"{n}.png": picture() for n in range(3)}
    members |= {f"{n}.json": json.dumps({"label": n, "split": "test" if n else ""}).encode() for n in range(3)}
    summary, _ = run(shard(tmp_path / "shards" / "x.tar", members))
    assert summary["rows"] == {"train": 3}
    assert "`split` of 2 .json members was not read: only names of shards tell splits" in summary["remarks"]


@pytest.mark.parametrize("name", ["train.tar", "a/x.zip", "0.parquet"])
def test_a_shard_of_what_is_packed_is_told_to_be_unpacked(run, tmp_path, name):
    source = shard(tmp_path / "shards" / "x.tar", {name: b"x", ".hidden": b"", "README": b""})
    with pytest.raises(
        DataError,
        match=rf"no images in 1 shards \(1 hidden files .*\) \(2 files that are no images were passed over \(.*"
        rf"{Path(name).suffix} 1.*; unpack \S+/x\.tar into a folder of its own, and give that: it holds {name}",
    ):
        run(source)


def test_shards_tell_their_splits_wherever_the_word_stands(run, tmp_path):
    for name in ("imagenet-train-0.tar", "imagenet-val-0000.tar", "readme-1.tar"):
        source = shard(tmp_path / "shards" / name, {f"{name}.png": picture()})
    summary, _ = run(source)
    assert summary["rows"] == {"train": 1, "validation": 1}
    assert summary["remarks"][0].startswith("1 files belong to no split and were left out (readme-1.tar)")


def test_shards_of_a_split_that_are_called_otherwise_are_said(run, tmp_path):
    for name in ("train-0.tar", "train-1.tar", "train_masks-0.tar", "test-9.tar"):
        source = shard(tmp_path / "shards" / name, {f"{name}.png": picture()})
    remark = "train: files of 2 series are taken together (train-0.tar, train_masks-0.tar)"
    assert run(source)[0]["remarks"][0] == remark
    for name in ("train-00000-of-00002-a09b74b3ef9c3b56", "train-00001-of-00002-ffc0b74b3ef9c3b5", "train_extra"):
        write_parquet(tmp_path / "old" / f"{name}.parquet", [picture()], [0])
    summary, _ = run(tmp_path / "old", "old set")
    assert summary["remarks"] == [
        "train: files of 2 series are taken together (train-00000-of-00002-a09b74b3ef9c3b56.parquet, "
        "train_extra.parquet)",
        NO_ANT,
    ]


def test_only_what_is_asked_for_is_read_of_a_parquet_set(run, tmp_path):
    write_parquet(tmp_path / "old" / "train.parquet", [picture()] * 2, [0, 1])
    source = write_parquet(tmp_path / "old" / "test.parquet", [picture()], [7])
    with pytest.raises(DataError, match=r"test\.parquet, row 0: has label 7, but there are 2 classes"):
        run(source)
    assert run(source, "train", splits=["train"])[0]["rows"] == {"train": 2}
    bare, dest = run(source, "bare", labels=False)
    assert "label" not in table(dest, "test")
    assert bare["remarks"] == []
    plant(source, {"test.parquet": b"junk"})
    assert run(source, "again", splits=["train"])[0]["rows"] == {"train": 2}


def test_withheld_labels_are_no_class(run, tmp_path):
    write_parquet(tmp_path / "old" / "train.parquet", [picture() for _ in range(2)], [0, 1])
    write_parquet(tmp_path / "old" / "validation.parquet", [picture() for _ in range(3)], [0, -1, 1])
    source = write_parquet(tmp_path / "old" / "test.parquet", [picture()] * 4, [-1] * 4)
    write_parquet(tmp_path / "old" / "unlabeled.parquet", [], [])
    summary, dest = run(source)
    assert summary["remarks"] == [
        "split unlabeled has no rows and was left out",
        "test: 4 of 4 images have no label",
        "validation: 1 of 3 images have no label",
    ]
    assert "label" not in table(dest, "test")
    assert table(dest, "validation").label.tolist() == [0, -1, 1]
    with pytest.raises(DataError, match=r"split unlabeled has no images"):
        run(source, "b", splits=["unlabeled"])


def test_splits_that_name_their_classes_otherwise_are_matched_by_name(run, tmp_path):
    for split, names in (("train", ["cat", "dog", "dog"]), ("test", ["dog", "ape"])):
        rows = pa.array([{"bytes": picture(), "path": None} for _ in names], IMAGE)
        (tmp_path / "old").mkdir(exist_ok=True)
        pq.write_table(pa.table({"image": rows, "label": names}), tmp_path / "old" / f"{split}.parquet")
    summary, dest = run(tmp_path / "old", keep_order=True)
    assert read_manifest(files.at(dest)).classes == ["ape", "cat", "dog"]
    assert (table(dest).label.tolist(), table(dest, "test").label.tolist()) == ([1, 2, 2], [2, 0])
    assert summary["remarks"] == [
        "train: 2 classes, by column `label`: cat, dog",
        "test: 2 classes, by column `label`: ape, dog",
        "splits list other classes: matched by name, 3 in all",
        "test: no image of 1 of 2 training classes, as 'cat'",
        "test: 1 of 2 images are of 1 classes that no training image has, as 'ape'",
    ]


def test_classes_that_are_called_as_others_or_as_none_are_said(run, tmp_path):
    names = ["cat"] * 3 + ["Cat"] * 2 + ["dog"] * 2 + ["dog "] + ["nan"] * 2 + ["owl", None]
    rows = pa.array([{"bytes": picture(), "path": None} for _ in names], IMAGE)
    (tmp_path / "old").mkdir()
    pq.write_table(pa.table({"image": rows, "label": names}), tmp_path / "old" / "train.parquet")
    summary, dest = run(tmp_path / "old")
    alike = "2 of 6 classes are called as another one but for capitals or blanks ('Cat' and 'cat', 'dog' and 'dog ')"
    assert summary["remarks"] == read_manifest(files.at(dest)).remarks == [
        "train: 6 classes, by column `label`: Cat, cat, dog, dog , nan, ...",
        f"{alike}: 8 of 12 images are of these; if they are one, call them the same",
        "2 of 12 images are of a class that is called 'nan', as programs write a missing label; if they have none, "
        "leave it empty",
        "train: 1 of 12 images have no label",
    ]  # fmt: skip


def test_classes_of_two_splits_that_differ_in_capitals_are_said(run, tmp_path):
    names = ("train/Owl/0.png", "train/ape/1.png", "val/owl/2.png", "val/ape/3.png")
    summary, _ = run(plant(tmp_path / "birds", {name: picture() for name in names}))
    assert "('Owl' and 'owl'): 2 of 4 images are of these" in " ".join(summary["remarks"])


def test_classes_that_members_of_tars_name_are_said(run, tmp_path):
    members = {"0.png": picture(), "0.cls": b"cat", "1.png": picture(), "1.json": b'{"label": "N/A"}'}
    remarks = run(shard(tmp_path / "shards" / "x.tar", members))[0]["remarks"]
    assert "train: 2 classes, by .cls and .json members: N/A, cat" in remarks
    assert any(told.startswith("1 of 2 images are of a class that is called 'N/A'") for told in remarks)


def test_a_class_list_in_another_encoding_is_read_or_refused(run, pets, tmp_path):
    for encoding in ("utf-8-sig", "utf-16"):
        plant(tmp_path, {encoding: "dog\r\n".encode(encoding)})
        assert run(pets, encoding + " set", classes=str(tmp_path / encoding))[0]["classes"] == 1
    plant(tmp_path, {"latin": "dog\nm\u00f6we\n".encode("latin-1")})
    with pytest.raises(DataError, match=r"latin: line 2: byte 0xf6 is not UTF-8; save the file as UTF-8"):
        run(pets, classes=str(tmp_path / "latin"))


@pytest.mark.parametrize("name", ["set.tar.gz", "set.zip"])
def test_what_is_packed_is_refused_with_what_to_do(run, tmp_path, name):
    with pytest.raises(DataError, match=rf"{name}: no source of images; unpack {name} first"):
        run(plant(tmp_path, {name: b"x"}) / name)
    with pytest.raises(DataError, match=rf"packed: no images \(2 files .*\); unpack a/{name} first"):
        run(plant(tmp_path / "packed", {f"a/{name}": b"x", "README": b"x"}))


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("train-00000.tar.gz", r"of that make a \.tar \(`gunzip train-00000\.tar\.gz`\), which is read as it is"),
        ("train-0.TGZ", r"of that make a \.tar \(`gunzip train-0\.TGZ`\)"),
        ("a b.tar.xz", r"of that make a \.tar \(`unxz 'a b\.tar\.xz'`\)"),
        ("t10k-images-idx3-ubyte.gz", r"and then: arrays of MNIST's kind"),
        ("pixels.csv.zip", "and then: a table is none of images"),
    ],
)
def test_what_is_packed_is_told_by_what_it_holds(run, tmp_path, name, advice):
    with pytest.raises(DataError, match=rf"no images .*; unpack {re.escape(name)} first.*{advice}"):
        run(plant(tmp_path / "packed", {name: b"x"}))


def test_tars_that_were_unpacked_are_what_to_give(run, tmp_path):
    source = plant(tmp_path / "unpacked", {"0.png": picture(), "0.cls": b"1", "1.png": picture(), "1.cls": b"0"})
    assert any(told.startswith("2 .cls files tell labels in tars alone: give") for told in run(source)[0]["remarks"])
    assert not any("give the tars" in told for told in run(source, "bare", labels=False)[0]["remarks"])


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("state.arrow", r"write it as Parquet: each such file with datasets\.Dataset\.from_file"),
        ("raw/train-images-idx3-ubyte", r"arrays of MNIST's kind \(torchvision"),
        ("t10k-images.idx3-ubyte", r"arrays of MNIST's kind \(torchvision"),
        ("train-00000-of-01024", "records of another loader: write each image as a file into train/CLASS/"),
        ("a/x.tfrecord-00000-of-00010", "records of another loader"),
        (
            "mnist_train.csv",
            r"a table is none of images: .*if it holds their pixels .* make an array of each row, and w",
        ),
        ("scans/BRATS_000.nii.gz", r"volumes \(nibabel\.load .* of each slice make an array from 0 to 255"),
        ("clips/a.MP4", r"videos \(ffmpeg"),
        ("cc12m.tsv", r"a table is none of images: .*if it holds their addresses, fetch them, as img2dataset does"),
        ("train.pq", r"Parquet is known by its name: call it \*\.parquet"),
        ("a/b/train-0.parquet", r"give \S+/source/a/b, which holds train-0\.parquet"),
        (
            "test/label=cat/0.parquet",
            r"\S+/source/test/label=cat is a partition of Hive, whose name is a value of a col",
        ),
        ("a/b/0.tar", r"give \S+/source/a/b, which holds 0\.tar"),
        ("cifar-10-batches-py/batches.meta", r"give \S+/source/cifar-10-batches-py, which holds batches\.meta"),
        ("stl10_binary/train_X.bin", r"give \S+/source/stl10_binary, which holds train_X\.bin"),
    ],
)
def test_what_lies_where_no_images_are_is_told_how_to_give(run, tmp_path, name, advice):
    archives = {"cifar-10-python.tar.gz": b"x", "stl10_binary.tar.gz": b"x"} if name.endswith(("meta", "bin")) else {}
    source = plant(tmp_path / "source", {name: b"x", **archives})
    with pytest.raises(DataError, match=rf"source: no images .*; {advice}"):
        run(source)


@pytest.mark.parametrize(
    ("parts", "joined"),
    [
        ("images.tar.part00 images.tar.part01", "images.tar: .*`cat images.tar.part* > images.tar`"),
        ("images.zip.001 images.zip.002", "images.zip: .*`cat images.zip.* > images.zip`"),
        ("train.tar.gz.aa train.tar.gz.ab", "train.tar.gz: .*`cat train.tar.gz.* > train.tar.gz`"),
        ("x.tar.gz-part-aa x.tar.gz-part-ab", "x.tar.gz: .*`cat x.tar.gz-part-* > x.tar.gz`"),
        ("train.7z.001", "train.7z: .*`cat train.7z.* > train.7z`"),
        ("it is.zip.part1", "it is.zip: .*`cat 'it is.zip.part'* > 'it is.zip'`"),
        ("images.part1 images.part2", "images: .*`cat images.part* > images`"),
        ("images.z01 images.z02 images.zip", "images.zip: .*`zip -s 0 images.zip --out whole.zip`"),
    ],
)
def test_parts_of_an_archive_are_told_how_to_join(run, tmp_path, parts, joined):
    names = [parts] if parts.startswith("it is") else parts.split()
    source = plant(tmp_path / "source", dict.fromkeys(names, b"x"))
    told = f"a part of {re.escape(joined).replace(re.escape(': .*'), ': join all.*')}, and unpack that"
    with pytest.raises(DataError, match=rf"source: no images .*; {told}"):
        run(source)
    with pytest.raises(DataError, match=rf"{names[0]}: no source of images; {told}"):
        run(source / names[0])


@pytest.mark.parametrize(
    ("begin", "told"),
    [
        (b"PK\x03\x04", "imagesaa begins as zip: unpack it, joined with its other parts if it is one"),
        (b"\x1f\x8b", "imagesaa begins as gzip: unpack it"),
        (b"x".ljust(257) + b"ustar", "imagesaa begins as tar: unpack it"),
        (b"PAR1", r"imagesaa begins as Parquet, which is known by its name: call it \*\.parquet"),
        (b"<html>", r"give (a folder that holds some|the folder that the images lie in)"),
    ],
)
def test_what_a_name_does_not_tell_is_told_by_its_first_bytes(run, tmp_path, begin, told):
    source = plant(tmp_path / "source", {"imagesaa": begin, "imagesab": b"more"})
    with pytest.raises(DataError, match=rf"source: no images .*; {told}"):
        run(source)
    with pytest.raises(DataError, match=rf"imagesaa: no source of images; {told}"):
        run(source / "imagesaa")


def test_archives_and_texts_are_no_parts_of_others(run, tmp_path):
    for name in ("all.tar.gz", "all.tar.xz", "all.part1.rar"):
        with pytest.raises(DataError, match=rf"no source of images; unpack {name} first"):
            run(plant(tmp_path, {name: b"x"}) / name)
    with pytest.raises(DataError, match=r"no source of images; give the folder that the images lie in"):
        run(plant(tmp_path, {"all.tar.md5": b"x"}) / "all.tar.md5")


def test_what_is_unpacked_already_is_not_told_to_be(run, tmp_path):
    names = ("t10k-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte", "all.tar.gz", "all/README")
    mnist = plant(tmp_path / "MNIST", {f"raw/{name}": b"x" for name in names})
    with pytest.raises(DataError, match=r"no images .*idx3-ubyte 1.*; arrays of MNIST's kind"):
        run(mnist)
    plant(mnist, {"raw/more.zip": b"x", "raw/labels.csv": b"x"})
    (mnist / "raw" / "t10k-images-idx3-ubyte").unlink()
    for packed in ("raw/more.zip", "raw/t10k-images-idx3-ubyte.gz"):
        with pytest.raises(DataError, match=rf"; unpack {packed} first"):
            run(mnist)
        (mnist / packed).unlink()


def test_shards_that_are_unpacked_beside_are_what_to_give(run, tmp_path):
    source = plant(tmp_path / "source", {"a/b/0.tar": b"x", "a/b/0/README": b"x"})
    with pytest.raises(DataError, match=r"; give \S+/source/a/b, which holds 0\.tar"):
        run(source)


def test_images_whose_names_do_not_tell_it_are_said(run, pets, tmp_path):
    photo = encoded(Image.fromarray(noise(8, 8, 3)), "jpeg")
    source = plant(tmp_path / "bare", {"cat/img_0": photo, "dog/x.large": picture(), "dog/LICENSE": b"MIT"})
    said = (
        "2 images whose names do not tell that they are some were passed over (cat/img_0, dog/x.large); call them *.jpg"
    )
    with pytest.raises(
        DataError, match=rf"bare: no images \({re.escape(said)}, .*\) \(1 files that are no .*; give the im"
    ):
        run(source)
    plant(source, {"emu/0.png": picture()})
    remarks = run(source)[0]["remarks"]
    assert remarks[0].startswith(said)
    assert "2 folders hold no image that can be read, and so are no classes: cat/, dog/" in remarks


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_the_folder_to_give_is_the_one_that_keeps_splits_apart(run, tmp_path, kind):
    def make(root: Path, *names: str) -> Path:
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            if kind == "tar":
                shard(root / f"{name}.tar", {"0.png": picture()})
            else:
                write_parquet(root / f"{name}.parquet", [picture()], [0])
        return root

    two = make(tmp_path / "two", "default/test/0", "default/train/0")
    advice = rf"; give \S+/two/default, which holds test/0\.{kind}, train/0\.{kind}$"
    with pytest.raises(DataError, match=advice):
        run(two)
    assert run(two / "default")[0]["rows"] == {"train": 1, "test": 1}  # as the message says
    with pytest.raises(DataError, match=rf"give \S+/one/default, which holds test/0\.{kind}$"):
        run(make(tmp_path / "one", "default/test/0"))
    with pytest.raises(DataError, match=rf"give \S+/parts/data, which holds a/0\.{kind}, b/0\.{kind}$"):
        run(make(tmp_path / "parts", "data/a/0", "data/b/0", "data/b/1"))
    with pytest.raises(DataError, match=rf"; give one of \S+/sets/a, \S+/sets/b, each of which holds \*\.{kind}$"):
        run(make(tmp_path / "sets", "a/test/0", "a/train/0", "b/train/0"))
    with pytest.raises(DataError, match=rf"leave out --kind or give --kind {kind}, for it holds test/0\.{kind}, tra"):
        run(two / "default", kind="imagefolder")


def test_finished_sets_below_a_folder_are_told_and_what_makes_one_of_them(run, pets, tmp_path):
    both = tmp_path / "both"
    run(pets, both / "d1")
    run(
        plant(tmp_path / "more pets", {f"{kind}/{n}.png": picture() for kind in ("dog", "cat") for n in "01"}),
        both / "d2",
    )
    advice = r"it holds finished sets \(d1/, d2/\): give one of them; .* without manifest\.json, into one folder"
    for kind, what in ((None, r"no images \(.*\)"), ("parquet", r"holds no \*\.parquet files")):
        with pytest.raises(DataError, match=rf"both: {what}; {advice}"):
            run(both, kind=kind)
    with pytest.raises(DataError, match=rf"both: holds no \*\.parquet files; {advice}"):
        ParquetImages.open(str(both), "train", cache_dir=str(tmp_path / "cache"))
    for name in ("d1", "d2"):
        (both / name / "manifest.json").unlink()
    assert run(both)[0]["rows"] == {"train": 12}  # as the message says


def test_what_lies_where_a_kind_was_given_is_told_too(run, tmp_path):
    source = shard(tmp_path / "shards" / "x.tar", {"0.png": picture()})
    with pytest.raises(DataError, match=r"no images .*; leave out --kind or give --kind tar, for it holds x\.tar"):
        run(source, kind="imagefolder")


@pytest.mark.parametrize("name", [b"a:b #2 'q' \"d\"", b"\xff\xfe", b"new\nline"], ids=repr)
def test_any_name_that_the_file_system_allows_is_one(run, pets, tmp_path, name):
    source = Path(os.fsdecode(bytes(tmp_path) + b"/" + name + b" source"))
    pets.rename(source)
    (source / os.fsdecode(name)).mkdir()
    (source / os.fsdecode(name) / os.fsdecode(name + b".png")).write_bytes(picture())
    dest = Path(os.fsdecode(bytes(tmp_path) + b"/" + name + b" dest"))
    assert ingest(str(source), str(dest), workers=0)["rows"] == {"train": 9}
    again = ingest(str(dest), str(tmp_path / "copy"), workers=0)
    assert (again["rows"], again["classes"]) == ({"train": 9}, 3)
    images = ParquetImages.open(dest, cache_dir=tmp_path / "cache")
    assert len(images.get(np.arange(9))) == 9


def test_a_destination_that_leads_to_the_source_is_refused(pets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(pets)
    for dest in ("pets", "link", "pets/../pets", f"file://{pets}", "pets/out"):
        with pytest.raises(DataError, match="is the source, or lies in it; give a DEST beside it"):
            ingest(str(pets), dest)


def test_damaged_notes_are_written_again_and_damaged_jobs_named(run, pets, tmp_path, monkeypatch, capsys):
    plant(pets, {"dog/bad.png": b"junk"})
    for _ in range(2):
        with pytest.raises(DataError, match=r"bad\.png"):
            run(pets, rows_per_file=2, keep_order=True)
        notes = tmp_path / "set" / ".ingest"
        first = min(notes.glob("*.npz"))
        first.write_bytes(first.read_bytes()[:-40])
    assert f"{first}: damaged; train-00000-of-00005.parquet is written again" in capsys.readouterr().err
    (notes / "job.json").write_bytes(b"{")
    with pytest.raises(DataError, match=r"job\.json: damaged .*give another DEST"):
        run(pets, rows_per_file=2, keep_order=True)


@pytest.mark.parametrize(
    ("table", "labels"),
    [
        ("v0.png,tiger cat\nv1.png,tiger\n", [1, 0]),
        ("0,val/v0.png,tiger cat\n1,val/v1.png,tiger\n", [1, 0]),
        ("filename,was,label\nv0.png,tiger,tiger cat\nv1.png,tiger cat,tiger\n", [1, 0]),
        ("v1;tiger\nv0;tiger\n", [0, 0]),
    ],
)
def test_tables_of_labels_as_people_write_them(run, tmp_path, table, labels):
    images = {
        f"{name}.png": picture() for name in ("train/tiger/0", "train/tiger cat/1", "val/images/v0", "val/images/v1")
    }
    source = plant(tmp_path / "cats", {**images, "val.csv": table.encode()})
    _, dest = run(source, keep_order=True)
    assert table_of(dest, "validation") == labels


def test_a_table_that_is_unclear_matters_only_where_no_other_tells(run, tmp_path):
    """As GTSRB comes from Kaggle: boxes in a table beside the images, classes in one above."""
    images = {f"train/{kind}/{n}.png": picture() for kind in "01" for n in range(2)}
    images |= {f"test/x{n}.png": picture() for n in range(2)}
    boxes = {"test/GT-final_test.csv": b"Filename;Height\nx0.png;1\nx1.png;0\n"}
    source = plant(tmp_path / "gtsrb", images | boxes)
    with pytest.raises(DataError, match=r"GT-final_test\.csv: its heading calls no column `label`, and `Height` could"):
        run(source)
    plant(source, {"Test.csv": b"ClassId,Path\n0,test/x0.png\n1,test/x1.png\n"})
    assert table_of(run(source)[1], "test") == [0, 1]


def test_a_label_that_is_no_class_is_told_what_the_classes_are_called(run, tmp_path):
    images = {f"train/0000{kind}/{n}.png": picture() for kind in range(4) for n in range(2)}
    table = {"test.csv": b"Filename,ClassId\nx.png,0\n"}
    source = plant(tmp_path / "gtsrb", images | table | {"test/x.png": picture()})
    with pytest.raises(DataError, match=r"'0', .*\(they are called '00000', '00001', '00002', \.\.\.\); correct it"):
        run(source)


def test_in_labels_of_two_columns_the_other_one_is_the_labels(run, tmp_path):
    """As Kaggle has the breeds of dogs."""
    source = plant(tmp_path / "dogs", {f"train/{n}.png": picture() for n in range(3)})
    plant(source, {"labels.csv": b"id,breed\n0,beagle\n1,pug\n2,beagle\n"})
    summary, dest = run(source)
    assert table_of(dest, "train") == [0, 1, 0]
    assert f"train: 3 labels are those of {source / 'labels.csv'}, column `breed`" in summary["remarks"]
    plant(source, {"labels.csv": b"id,breed,age\n0,beagle,1\n1,pug,2\n2,beagle,1\n"})
    summary, dest = run(source, "three")
    assert "label" not in table(dest, "train")
    (source / "labels.csv").rename(source / "metadata.csv")
    plant(source, {"metadata.csv": b"id,caption\n0,a dog\n1,one\n2,two\n"})
    assert "label" not in table(run(source, "captions")[1], "train")


def table_of(dest, split):
    return table(dest, split).label.tolist()


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"test.csv": "t0.png,a,b\n"}, r"test\.csv: columns 2, 3 could all be the classes; .* calls one `label`"),
        ({"test.csv": "t0.png,a\nt0.png,b\n"}, r"tells two classes of 1 of 1 images, as of test/t0\.png, a and b"),
        ({"test.csv": "t0.png,a\n", "test.txt": "t0.png b\n"}, r"test\.txt: tells other classes than .*test\.csv"),
    ],
)
def test_labels_that_could_be_others_are_refused(run, tmp_path, tables, message):
    images = {f"{name}.png": picture() for name in ("train/a/0", "train/b/1", "test/t0")}
    source = plant(tmp_path / "set of a and b", images | {name: text.encode() for name, text in tables.items()})
    with pytest.raises(DataError, match=message):
        run(source)


def test_blanks_before_quotes_belong_to_no_class(run, tmp_path):
    images = {f"{n}.png": picture() for n in range(3)}
    text = b'filename, label\n0.png, "crane, bird"\n1.png, "crane, machine"\n2.png, "dog"\n'
    source = plant(tmp_path / "cranes", images | {"labels.csv": text})
    _, dest = run(source)
    assert read_manifest(files.at(dest)).classes == ["crane, bird", "crane, machine", "dog"]


def test_a_row_of_more_values_than_the_heading_names_is_refused(run, tmp_path):
    text = b"filename,label\n0.png,crane, bird\n1.png,dog\n"
    source = plant(tmp_path / "two", {"0.png": picture(), "1.png": picture(), "labels.csv": text})
    with pytest.raises(DataError, match=r"labels\.csv: the row of 0\.png has 3 values, its heading 2; put values that"):
        run(source)


def test_what_somebody_submits_is_no_table_to_write_anew(run, tmp_path):
    images = {f"train/{kind}/{n}.png": picture() for kind in "ab" for n in range(2)}
    source = plant(tmp_path / "kaggle", images | {"test/0.png": picture(), "sample_submission.csv": b"id,label\n0,1\n"})
    assert not any("tables" in remark for remark in run(source)[0]["remarks"])


def test_a_file_of_labels_that_helps_nothing_is_named(run, tmp_path):
    images = {f"{name}.png": picture() for name in ("train/a/0", "train/b/1", "test/t0")}
    source = plant(tmp_path / "ab", images | {"test.csv": b"t0.png,unknown\n"})
    assert run(source)[0]["remarks"] == [
        "test: no labels are told by test.csv: its 'unknown' is no class of the training images",
        "2 classes, by the names of folders: a, b",
        "test: 1 of 1 images have no label",
    ]


def test_a_column_is_labels_only_where_the_heading_calls_it_so(run, tmp_path):
    """Kaggle's test.csv tells no labels, whatever its columns hold."""
    images = {f"train/{kind}/{n}.png": picture() for kind in "01" for n in range(2)}
    kaggle = plant(tmp_path / "isic", images | {f"test/x{n}.png": picture() for n in range(2)})
    table_file = kaggle / "test.csv"
    for column in ("sex", "prediction", "anything"):
        table_file.write_text(f"image_id,patient,{column}\nx0,p0,0\nx1,p1,1\n")
        with pytest.raises(
            DataError,
            match=rf"isic/test\.csv: its heading calls no column `label`, and `{column}` could be the classes",
        ):
            run(kaggle)
    assert run(kaggle, "bare", labels=False)[0]["rows"] == {"train": 4, "test": 2}
    table_file.write_text("image_id,patient\nx0,p0\nx1,p1\n")
    summary, dest = run(kaggle, "none")
    assert "label" not in table(dest, "test")
    assert (
        "test: no labels are told by test.csv: its heading calls no column `label` (image_id, patient); call "
        "that so which is, if one is" in summary["remarks"]
    )
    table_file.write_text("image_id,sex,Class Name\nx0,0,1\nx1,1,0\n")
    summary, dest = run(kaggle, "told")
    assert table_of(dest, "test") == [1, 0]
    assert f"test: 2 labels are those of {table_file}, column `Class Name`" in summary["remarks"]
    assert not any("passed over" in remark for remark in summary["remarks"])  # the table was read


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0,cat\n1,dog\n", "its line '1, dog' names no image of test, such as test/00000.png"),
        ("image,label\nimg_0.jpg,cat\n", "its line 'img_0.jpg, cat' names no image of test, such as test/00000.png"),
        ("train/00000.png,cat\n", "its line 'train/00000.png, cat' names no image of test, such as test/00000.png"),
        (
            "00000,3\n00001,4\n",
            "its '3' is no class of the training images; write the names of their folders in place of numbers",
        ),
        ("", "it is empty"),
        ("image,label\n00000,\n00001,-1\n", "all labels of its column 2 are withheld (-1 or empty)"),
    ],
)
def test_what_did_not_fit_of_a_file_of_labels_is_said(run, tmp_path, text, reason):
    images = {f"{name}.png": picture() for name in ("train/cat/9", "train/dog/8", "test/00000", "test/00001")}
    source = plant(tmp_path / "pets", images | {"test.csv": text.encode()})
    summary, _ = run(source)
    (said,) = [remark for remark in summary["remarks"] if "test.csv" in remark]
    assert said == f"test: no labels are told by test.csv: {reason}"


@pytest.mark.parametrize("extension", ["JPG", "jpeg", "png"])
def test_names_of_a_table_that_differ_in_capitals_or_extension_are_matched_and_said(run, tmp_path, extension):
    text = b"image,label\nimg_0.jpg,cat\nIMG_1.jpg,dog\nimg_9.jpg,dog\n"
    images = {f"images/IMG_{n}.{extension}": picture() for n in range(2)}
    source = plant(tmp_path / "pets", images | {"labels.csv": text})
    summary, dest = run(source, keep_order=True)
    assert table_of(dest, "train") == [0, 1]
    assert (
        f"train: 2 labels are those of {source}/labels.csv, column `label`; its names differ from the images' in "
        f"capitals or extension, as img_0.jpg from images/IMG_0.{extension}" in summary["remarks"]
    )
    assert "1 of 3 rows of labels.csv name no image, such as 'img_9.jpg'" in summary["remarks"]


def test_names_of_a_table_that_several_images_have_but_for_capitals_or_extension_are_refused(run, tmp_path):
    source = plant(tmp_path / "pets", {"IMG_0.JPG": picture(), "img_0.png": picture()})
    for names in (("img_0.jpg",), ("img_0.JPEG", "IMG_0.gif")):
        (source / "labels.csv").write_text("image,label\n" + "".join(f"{name},cat\n" for name in names))
        with pytest.raises(DataError, match=rf"labels\.csv: {names[0]} is the name of no image, .* that of several;"):
            run(source)
    plant(source, {"IMG_1.JPG": picture()})
    (source / "labels.csv").write_text("image,label\nIMG_1.jpg,cat\n")
    with pytest.raises(DataError, match=r"tells the classes of 1 of 3 images of train, and not that of IMG_0\.JPG"):
        run(source)


def test_labels_that_a_table_withholds_are_none(run, tmp_path):
    rows = b"file_name,label\n0.png,dog\n1.png,-1\n2.png,cat\n3.png,\n"
    source = plant(tmp_path / "pets", {f"{n}.png": picture() for n in range(4)} | {"metadata.csv": rows})
    summary, dest = run(source, keep_order=True)
    assert (table_of(dest, "train"), read_manifest(files.at(dest)).classes) == ([1, -1, 0, -1], ["cat", "dog"])
    assert "train: 2 of 4 images have no label" in summary["remarks"]


def test_a_column_of_numbers_names_no_images_where_another_has_their_extensions(run, tmp_path):
    rows = b",file_name,label\n0,2.png,1.0\n1,0.png,0.0\n2,1.png,\n"  # as pandas writes it, with an index
    source = plant(tmp_path / "pets", {f"{n}.png": picture() for n in range(3)} | {"labels.csv": rows})
    summary, dest = run(source, keep_order=True)
    assert (table_of(dest, "train"), read_manifest(files.at(dest)).classes) == ([0, -1, 1], ["0", "1"])
    assert any(told.endswith("; 2 are written as 1.0 is, and taken for 1") for told in summary["remarks"])


def test_how_many_images_a_table_gives_two_classes_is_said(run, tmp_path):
    rows = b"image,label\n0.png,cat\n0.png,dog\n0.png,owl\n1.png,cat\n2.png,dog\n2.png,cat\n"
    source = plant(tmp_path / "pets", {f"{n}.png": picture() for n in range(3)} | {"labels.csv": rows})
    told = "no labels are told by labels.csv: it tells two classes of 2 of 3 images, as of 0.png, cat and dog"
    assert f"train: {told}" in run(source)[0]["remarks"]


def test_labels_of_a_split_that_nobody_asks_for_stop_nothing(run, tmp_path):
    images = {f"{name}.png": picture() for name in ("train/cat/0", "train/dog/1", "val/2", "val/3", "test/cat/4")}
    tables = {"val.csv": b"2.png,cat,dog\n3.png,dog,cat\n", "test.csv": b"file,label\n4.png,cat\n4.png,dog\n"}
    source = plant(tmp_path / "source", images | tables)
    with pytest.raises(DataError, match=r"val\.csv: columns 2, 3 could all be the classes"):
        run(source, splits=["train", "val"])
    summary, dest = run(source, splits=["train"])
    assert (summary["rows"], table(dest).label.tolist()) == ({"train": 2}, [0, 1])


def test_paths_of_windows_are_paths(run, tmp_path):
    images = {f"{name}.png": picture() for name in ("train/cat/9", "train/dog/8", "test/0", "test/1")}
    source = plant(tmp_path / "pets", images | {"test.csv": b"C:\\set\\test\\0.png,dog\ntest\\1.png,cat\n"})
    assert table_of(run(source)[1], "test") == [1, 0]


LABELS = {
    "labels.csv": "id,label\n0,dog\n1,cat\n2,dog\n",
    "train/metadata.csv": "file_name,label\n0.png,dog\n1.png,cat\n2.png,dog\n",
    "train/metadata.jsonl": "".join(
        f'{{"file_name": "{n}.png", "label": "{label}"}}\n' for n, label in enumerate(["dog", "cat", "dog"])
    ),
    "train.csv": "image,breed id,target\n0.png,7,dog\n1.png,8,cat\n2.png,7,dog\n",
}


@pytest.mark.parametrize("name", LABELS)
def test_a_table_may_hold_all_labels(run, tmp_path, name):
    source = plant(tmp_path / "pets", {f"train/{n}.png": picture() for n in range(3)} | {name: LABELS[name].encode()})
    plant(source, {f"test/{n}.png": picture() for n in range(2)})  # whose names are those of training images
    plant(source, {name: b"id,label\n0,cat\n1,cat\n" for name in ("sample_submission.csv", "test_predictions.csv")})
    if name == "labels.csv":
        (source / name).write_text("id,label\ntrain/0,dog\ntrain/1,cat\ntrain/2.png,dog\n")
    summary, dest = run(source, keep_order=True)
    assert (table_of(dest, "train"), read_manifest(files.at(dest)).classes) == ([1, 0, 1], ["cat", "dog"])
    assert "label" not in table(dest, "test")
    assert "2 classes, by these labels: cat, dog" in summary["remarks"]
    column = "`target`" if name == "train.csv" else "`label`"
    assert f"train: 3 labels are those of {source / name}, column {column}" in summary["remarks"]


@pytest.mark.parametrize(
    "tables",
    [
        {"train.csv": "file,label\n0.png,{0}\n1.png,{1}\n", "val.csv": "file,label\n2.png,{2}\n3.png,{0}\n"},
        {"labels.csv": "file,label\n0.png,{0}\n1.png,{1}\n2.png,{2}\n3.png,{0}\n"},
        {"metadata.jsonl": "".join(f'{{{{"file_name": "{n}.png", "label": "{{{n % 3}}}"}}}}\n' for n in range(4))},
        {"labels.csv": "id,breed\n0,{0}\n1,{1}\n2,{2}\n3,{0}\n"},
    ],
)
@pytest.mark.parametrize("names", [("cat", "dog", "owl"), ("7", "8", "9"), ("item7", "8", "9")])
def test_tables_may_tell_classes_that_no_training_image_has(run, tmp_path, tables, names):
    images = {f"{split}/{n}.png": picture() for n, split in enumerate(("train", "train", "val", "val"))}
    source = plant(tmp_path / "pets", images | {file: text.format(*names).encode() for file, text in tables.items()})
    summary, dest = run(source, keep_order=True)
    classes = sorted(names)
    assert read_manifest(files.at(dest)).classes == classes
    assert [classes[label] for label in table_of(dest, "train")] == [names[0], names[1]]
    assert [classes[label] for label in table_of(dest, "validation")] == [names[2], names[0]]
    assert (
        f"validation: 1 of 2 images are of 1 classes that no training image has, as {names[2]!r}" in summary["remarks"]
    )


def test_tables_may_tell_other_classes_than_those_of_training_alone(run, tmp_path):
    """As in metric learning; by lists that are moved where the message about folders says."""
    lists = {
        f"Ebay_{split}.txt": "id class_id path\n"
        + "".join(f"{n} {kind} {'ab'[n % 2]}/{split}{n}.png\n" for n, kind in enumerate(kinds))
        for split, kinds in {"train": "1122", "test": "33"}.items()
    }
    texts = {name: text.encode() for name, text in lists.items()}
    images = {line.split()[2]: picture() for text in lists.values() for line in text.splitlines()[1:]}
    with pytest.raises(DataError, match=r"if the column is, move the 4 images that it names into train/$"):
        run(plant(tmp_path / "sop", images | texts))
    moved = {f"{name[2:-5]}/{name[2:]}": held for name, held in images.items()}
    summary, dest = run(plant(tmp_path / "moved", moved | texts), keep_order=True)
    assert (table_of(dest, "train"), table_of(dest, "test")) == ([0, 0, 1, 1], [2, 2])
    assert "test: 2 of 2 images are of 1 classes that no training image has, as '3'" in summary["remarks"]


def test_a_table_of_labels_may_be_parquet(run, tmp_path):
    """As ImageFolder of `datasets` takes it."""
    source = plant(tmp_path / "hf", {f"{split}/{n}.png": picture() for split in ("train", "test") for n in range(3)})
    for split in ("train", "test"):
        columns = {"file_name": [f"{n}.png" for n in range(3)], "label": ["dog", "cat", None], "boxes": [[1], [], None]}
        pq.write_table(pa.table(columns), source / split / "metadata.parquet")
    summary, dest = run(source, keep_order=True)
    assert (table_of(dest, "train"), table_of(dest, "test")) == ([1, 0, -1], [1, 0, -1])
    assert read_manifest(files.at(dest)).classes == ["cat", "dog"]
    assert f"test: 3 labels are those of {source / 'test/metadata.parquet'}, column `label`" in summary["remarks"]
    assert not any("passed over" in remark for remark in summary["remarks"])


def test_parquet_beside_images_that_tells_no_labels_is_said(run, tmp_path):
    source = plant(tmp_path / "hf", {f"train/{n}.png": picture() for n in range(2)})
    pq.write_table(pa.table({"image": [b"a", b"b"], "label": ["x", "y"]}), source / "train" / "metadata.parquet")
    assert any(
        "no labels are told by train/metadata.parquet: it holds bytes" in remark for remark in run(source)[0]["remarks"]
    )
    (source / "train" / "metadata.parquet").rename(source / "train" / "more.parquet")
    with pytest.raises(DataError, match="could be read as parquet or as imagefolder"):
        run(source, "other")


def test_names_that_two_splits_have_are_none_in_a_table_of_both(run, tmp_path):
    images = {f"{split}/{n}.png": picture() for split in ("train", "test") for n in range(2)}
    source = plant(tmp_path / "pets", images | {"labels.csv": b"id,label\n0,dog\n1,cat\n"})
    summary, dest = run(source)
    assert "label" not in table(dest)
    assert "label" not in table(dest, "test")
    assert (
        "train: no labels are told by labels.csv: its line '0, dog' names no image of train, such as train/0.png"
        in summary["remarks"]
    )


def test_a_table_that_contradicts_the_folders_is_refused(run, tmp_path):
    images = {f"train/site_{n % 2}/{n}.png": picture() for n in range(4)}
    source = plant(tmp_path / "pets", images | {"train/metadata.csv": b"file_name,label\n0.png,a\n1.png,a\n2.png,b\n"})
    with pytest.raises(
        DataError,
        match=r"train/metadata\.csv: column `label` tells other classes than the images' folders "
        r"\('a' in site_0/, 'b' in site_0/\); if the folders are right, move the file elsewhere",
    ):
        run(source)
    (source / "train" / "metadata.csv").write_text("file_name,label\n0.png,7\n1.png,8\n2.png,7\n3.png,8\n")
    summary, dest = run(source)  # the same, by other names
    assert read_manifest(files.at(dest)).classes == ["site_0", "site_1"]
    assert summary["remarks"] == ["2 classes, by the names of folders: site_0, site_1"]


@pytest.mark.parametrize("folder", ["", "cat/"], ids=["labels by the table", "labels by folders"])
@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "labels.tsv"])
def test_a_table_that_tells_other_splits_than_the_folders_is_refused(run, tmp_path, name, folder):
    frame = pd.DataFrame(
        {
            "file_name": [f"{n}.png" for n in range(8)],
            "label": ["cat", "dog"] * 4,
            "Split": ["train"] * 6 + ["test"] * 2,
        }
    )
    if folder:
        frame = frame.drop(columns="label")
    source = plant(tmp_path / "pets", {f"{folder}{n}.png": picture() for n in range(8)} | {"dog/8.png": picture()})
    if not folder:
        (source / "dog" / "8.png").unlink()

    def write() -> None:
        if name.endswith("jsonl"):
            frame.to_json(source / name, orient="records", lines=True)
        else:
            frame.to_csv(source / name, index=False, sep="\t" if name.endswith("tsv") else ",")

    write()
    with pytest.raises(
        DataError,
        match=rf"{name}: column `Split` tells other splits of 2 of 8 images than their folders, which tell train "
        r"\('test' of 6\.png\); move each into a folder called as its split, or rename the column",
    ):
        run(source)
    frame = frame.rename(columns={"Split": "split as published"})
    write()
    assert run(source)[0]["rows"] == {"train": 8 + bool(folder)}


def test_a_table_that_tells_the_splits_of_the_folders_is_read(run, tmp_path):
    images = {f"{name}.png": picture() for name in ("train/0", "train/1", "valid/2", "valid/3")}
    rows = b"file,label,split\n0,cat,TRAIN\n1,dog,train\n2,dog,val\n3,cat,validation\n"
    _, dest = run(plant(tmp_path / "pets", images | {"labels.csv": rows}))
    assert (table_of(dest, "train"), table_of(dest, "validation")) == ([0, 1], [1, 0])


def test_rows_of_a_table_that_name_no_image_are_counted(run, tmp_path):
    images = {f"{name}.png": picture() for name in ("train/0", "train/1", "test/2", "test/3")}
    rows = "file,label\ntrain/0.png,cat\n1,dog\n2,dog\n3.png,cat\n" + "".join(f"g{n}.png,bird\n" for n in range(50))
    source = plant(tmp_path / "pets", images | {"labels.csv": rows.encode()})
    summary, dest = run(source)
    assert (table_of(dest, "train"), table_of(dest, "test")) == ([0, 1], [1, 0])
    assert "50 of 54 rows of labels.csv name no image, such as 'g0.png'" in summary["remarks"]
    (source / "labels.csv").write_text(rows.partition("g0")[0])
    assert not any("name no image" in remark for remark in run(source, "b")[0]["remarks"])


def test_tables_are_named_where_folders_tell_the_classes_too(run, pets):
    plant(pets, {"HAM_metadata.csv": b"image_id,dx\n0,nv\n", "train_test_split.txt": b"0 1\n"})
    assert run(pets)[0]["remarks"][:2] == [
        "1 tables (HAM_metadata.csv) were not read: there are labels without them",
        "1 lists of splits (train_test_split.txt) were not read: folders alone tell splits, and where they tell none "
        "all images train",
    ]


DEVKIT = "ILSVRC2012_validation_ground_truth.txt"
BEFORE = "write each image before its class (IMAGE,CLASS), for the order of lines tells none"


@pytest.mark.parametrize("place", ["val/", "", "devkit/data/"])
def test_labels_that_name_no_image_are_told_to(run, tmp_path, place):
    """ImageNet's devkit: a number on each line, of the images in order of their names, by an order of its own."""
    images = {f"train/{kind}/{n}.JPEG": picture() for kind in ("n01", "n02") for n in range(4)}
    images |= {f"val/ILSVRC2012_val_0000000{n}.JPEG": picture() for n in range(1, 7)}
    source = plant(tmp_path / "imagenet", images | {place + DEVKIT: b"1\n2\n1\n2\n2\n1\n"})
    remarks = run(source)[0]["remarks"]
    if place == "devkit/data/":
        what = f"1 texts of as many lines as a split has images ({place}{DEVKIT}) were not read, for they name no image"
        assert f"{what}: if these are labels, {BEFORE}" in remarks
    else:
        what = f"val: no labels are told by {place}{DEVKIT}: its 6 lines name no image of val"
        assert f"{what}: {BEFORE}, and classes by the names of their folders" in remarks
    assert not any("lists of splits" in remark for remark in remarks)
    lines = [f"{name.rpartition('/')[2]},n0{n % 2 + 1}" for n, name in enumerate(sorted(images)[8:])]
    (source / place / DEVKIT).unlink()
    (source / "val" / "val.csv").write_text("\n".join(lines))  # as the message says
    assert table_of(run(source, "again")[1], "validation") == [0, 1] * 3


def test_classes_alone_are_told_to_name_their_images(run, tmp_path):
    images = {f"{name}.png": picture() for name in ("train/a/0", "train/b/1", "test/t0", "test/t1")}
    source = plant(tmp_path / "ab", images | {"test.txt": b"a\nb\n"})
    assert (
        f"test: no labels are told by test.txt: its 2 lines name no image of test: {BEFORE}"
        in run(source)[0]["remarks"]
    )


def test_texts_without_images_beside_labels_are_no_lists_of_splits(run, pets):
    plant(pets, {f"devkit/{DEVKIT}": b"1\n" * 8, "train_test_split.txt": b"0\n1\n"})
    assert run(pets)[0]["remarks"][-3:-1] == [
        f"1 texts of as many lines as a split has images (devkit/{DEVKIT}) were not read, for they name no image: "
        "there are labels without them",
        "1 lists of splits (train_test_split.txt) were not read: folders alone tell splits, and where they tell none "
        "all images train",
    ]


def test_one_hot_columns_are_labels(run, tmp_path):
    images = {f"{n}.png": picture() for n in "xyz"}
    rows = b"image,MEL,NV,AK\nz,0.0,0.0,1.0\nx,1.0,0.0,0.0\ny,0.0,1.0,0.0\nother,0,0,0\n"
    source = plant(tmp_path / "isic", images | {"labels.csv": rows})
    summary, dest = run(source)
    assert read_manifest(files.at(dest)).classes == ["AK", "MEL", "NV"]
    assert table(dest).label.tolist() == [1, 2, 0]
    assert any("column `MEL, NV, AK: the one that holds 1`" in line for line in summary["remarks"])
    several = plant(tmp_path / "several", images | {"labels.csv": rows.replace(b"z,0.0,0.0", b"z,1.0,0.0")})
    assert run(several, "several set")[0]["remarks"] == [
        "train: no labels are told by labels.csv: its columns MEL, NV, AK hold 0 and 1, and not one 1 in each row; "
        "write the class of each image into a column `label`",
        "no image has a label",
    ]
    flags = {"labels.csv": b"image,is_train,is_test\nx,1,0\ny,1,0\nz,0,1\n"}
    assert "no image has a label" in run(plant(tmp_path / "flags", images | flags), "flags set")[0]["remarks"]


def test_arrays_are_told_what_to_become(run, tmp_path):
    source = plant(tmp_path / "arrays", {"x.npz": b"", "y.h5": b""})
    for path in (source, source / "x.npz"):
        with pytest.raises(DataError, match=r"arrays of numpy .*Image\.fromarray.* train/CLASS/"):
            run(path)
    with pytest.raises(DataError, match=r"y\.h5: no source of images; arrays in HDF5 "):
        run(source / "y.h5")


def test_tables_and_lists_that_were_not_read_are_named(run, tmp_path):
    images = {f"{name}.png": picture() for name in ("0", "1")}
    nih = plant(
        tmp_path / "nih",
        images | {"Data_Entry_2017.csv": b"image,finding\n0.png,a\n", "README.txt": b"", "all.xlsx": b"PK"},
    )
    assert run(nih)[0]["remarks"][:2] == [
        "1 files that are no images were passed over (.txt 1)",
        "2 tables (Data_Entry_2017.csv, all.xlsx) were not read: labels are those of a labels.csv or metadata.csv, or "
        "of a table called as its split, beside the images or above, in the column that a heading calls `label`: write "
        "one, if these hold labels",
    ]
    caption = plant(tmp_path / "captions", images | {"metadata.jsonl": b'{"file_name": "0.png", "text": "a dog"}\n'})
    assert (
        "train: no labels are told by metadata.jsonl: its heading calls no column `label` (file_name, text); "
        "call that so which is, if one is" in run(caption, "captions set")[0]["remarks"]
    )
    lists = {"meta/train.txt": b"cat/0\n", "meta/test.txt": b"dog/1\n", "train_test_split.txt": b"1 0\n2 1\n"}
    food = plant(tmp_path / "food", {f"images/{name}.png": picture() for name in ("cat/0", "dog/1")} | lists)
    assert (
        "1 lists of splits (train_test_split.txt) were not read: folders alone tell splits, and where they tell none "
        "all images train" in run(food, "food set")[0]["remarks"]
    )


def test_images_that_a_list_names_for_another_split_are_counted(run, tmp_path):
    names = {f"images/{kind}/{n}.png": picture() for kind in ("cat", "dog") for n in range(3)}
    lists = {"train": ["cat/0", "cat/1", "dog/0"], "test": ["cat/2", "dog/1", "dog/2"]}
    texts = {f"meta/{split}.txt": "\n".join(found).encode() for split, found in lists.items()}
    texts |= {f"meta/{split}.json": json.dumps({"all": found}).encode() for split, found in lists.items()}
    food = plant(tmp_path / "food", names | texts | {"meta/classes.txt": b"cat\ndog\n"})
    remarks = run(food)[0]["remarks"]
    assert (
        "3 images named by meta/test.json, meta/test.txt are in train, for folders alone tell splits: if they are of "
        "test, move them into test/CLASS/, and the others into train/CLASS/"
    ) in remarks
    assert not [remark for remark in remarks if "meta/train" in remark]  # which says what the folders do
    moved = {f"{split}/{name}.png": picture() for split, found in lists.items() for name in found}
    assert run(plant(tmp_path / "as it says", moved | texts), "b")[0]["rows"] == {"test": 3, "train": 3}
    assert not [told for told in run(tmp_path / "as it says", "b")[0]["remarks"] if "meta/t" in told]
    flat = {f"{split}/{n}.png": picture() for split in ("train", "val") for n in ("0", "1", "x y")}
    flat["train/7.png"] = picture()  # which no 7 names where others are named with their extensions
    flat |= {"val.csv": b'"id","n"\n"train/1.png",7\n', "train.txt": b"train/0.png 1\nval/x y.png\n"}
    remarks = run(plant(tmp_path / "flat", flat), "c")[0]["remarks"]
    others = ", for folders alone tell splits: if they are of "
    assert f"1 images named by val.csv are in train{others}validation, move them into validation/" in remarks
    assert f"1 images named by train.txt are in val{others}train, move them into train/" in remarks


@pytest.mark.parametrize("options", [{"kind": "flat"}, {"labels": False}, {"kind": "classes"}], ids=str)
def test_images_that_a_list_names_for_another_split_are_counted_where_no_labels_are_read(run, tmp_path, options):
    names = [f"images_00{n}/images/{n}.png" for n in (1, 2)]
    texts = {"test_list.txt": b"2.png\n", "train_val_list.txt": b"1.png\n", "labels.csv": b"image,label\n1.png,a\n"}
    nih = plant(tmp_path / "nih", {name: picture() for name in names} | texts)
    remarks = run(nih, **options)[0]["remarks"]
    into = "CLASS/" if options == {"kind": "classes"} else ""
    assert (
        "1 images named by test_list.txt are in train, for folders alone tell splits: if they are of test, move them "
        f"into test/{into}, and the others into train/{into}"
    ) in remarks
    assert any(told.startswith("1 lists of splits (train_val_list.txt) were not read") for told in remarks)
    assert not [told for told in remarks if "table" in told or "labels.csv" in told]
    assert "1 files that are no images were passed over (.csv 1)" in remarks


def test_classes_of_stylegan_are_those_of_its_table_and_not_of_its_folders(run, tmp_path, monkeypatch):
    images = {f"0000{n // 2}/img{n}.png": picture() for n in range(4)}
    labels = json.dumps({"labels": [[name, n % 2] for n, name in enumerate(images)]}).encode()
    source = plant(tmp_path / "gan", images | {"dataset.json": labels})
    with pytest.raises(
        DataError, match=r"gan/dataset\.json: column `label` tells other classes than .* into one folder"
    ):
        run(source)
    (source / "dataset.json").write_text('{"labels": null}')
    with pytest.raises(
        DataError, match=r"dataset\.json: its `labels` are null, and .* take no labels with --no-labels"
    ):
        run(source)
    summary, _ = run(source, labels=False)
    assert (summary["rows"], summary["classes"]) == ({"train": 4}, 0)
    moved = plant(tmp_path / "moved", {name.partition("/")[2]: content for name, content in images.items()})
    outcomes = (
        (labels, "train: 4 labels are those of"),
        (b'{"labels": null}', "train: no labels are told by dataset.json: its `labels` are null"),
        (b'{"images": [1]}', "train: no labels are told by dataset.json: it holds no pairs of image and class under "),
        (b"[", "train: no labels are told by dataset.json: it holds no pairs of image and class under "),
    )
    for n, (text, remark) in enumerate(outcomes):
        (moved / "dataset.json").write_bytes(text)
        summary, dest = run(moved, f"set {n}")
        assert any(told.startswith(remark) for told in summary["remarks"])
        if text == labels:
            assert table(dest).label.tolist() == [0, 1, 0, 1]
    monkeypatch.setattr("emc2dist.data.ingest.tables.LONGEST", len(labels) - 1)
    (moved / "dataset.json").write_bytes(labels)
    said = f"train: no labels are told by dataset.json: it is JSON of more than {len(labels) - 1} characters"
    assert said in run(moved, "long")[0]["remarks"]


def test_texts_that_are_called_as_images_are_no_lists_of_splits(run, tmp_path):
    images = {f"images/{split}/{split}_{n}.png": picture() for split in ("train", "val") for n in range(2)}
    boxes = {f"labels/{split}/{split}_{n}.txt": b"0 .5 .5 1 1" for split in ("train", "val") for n in range(2)}
    told = (
        "4 texts called as images ({0}/train/train_0.txt, {0}/train/train_1.txt, {0}/val/val_0.txt, ...) were not read"
    )
    for where in ("labels", "images"):
        source = plant(
            tmp_path / where, images | {name.replace("labels", where): content for name, content in boxes.items()}
        )
        remarks = [remark for remark in run(source, f"{where} set")[0]["remarks"] if ".txt" in remark]
        assert remarks == [f"{told.format(where)}: what tells of one image alone is not"]


def test_a_list_that_names_images_without_extension_is_named(run, tmp_path):
    images = {f"images/beagle_{n}.png": picture() for n in range(3)}
    for name in ("annotations/trainval.txt", "annotations/list.txt", "ImageSets/Main/cat_trainval.txt"):
        rows = "".join(f"beagle_{n} 1 2 1\n" for n in range(3))
        source = plant(tmp_path / name, images | {name: rows.encode()})
        told = [remark for remark in run(source, f"{Path(name).stem} set")[0]["remarks"] if name in remark]
        assert len(told) == 1, name
        assert told[0].startswith(f"1 tables ({name}) were not read: labels are those of a labels.csv")


def test_a_first_line_for_spreadsheets_tells_the_separator_and_is_no_heading(run, tmp_path):
    for more, column in (("", ""), (";3", ";age")):
        rows = "".join(f"{n}.png;{'ab'[n % 2]}{more}\n" for n in range(4))
        told = f"sep=;\nfilename;label{column}\n{rows}".encode()
        source = plant(tmp_path / f"set{more}", {f"{n}.png": picture() for n in range(4)} | {"labels.csv": told})
        summary, folder = run(source, f"ingested{more}")
        assert summary["remarks"][-1] == f"train: 4 labels are those of {source / 'labels.csv'}, column `label`"
        assert table(folder).label.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("first", ["", "sep=,\n"])
def test_a_table_that_is_none_is_named(run, tmp_path, first):
    told = f"{first}image,label\n0.png,{'a' * 2**18}\n".encode()  # longer than csv takes for a value
    source = plant(tmp_path / "set", {"0.png": picture(), "labels.csv": told})
    csv.field_size_limit(2**24)  # as reading a table of texts leaves it
    with pytest.raises(DataError, match=r"labels\.csv: no table of values \(field larger"):
        run(source, "ingested")


def test_classes_whose_names_list_others_are_said_with_numbers(run, tmp_path):
    said = "{} of 5 images are of classes whose names list others, as {!r}, and count as of these alone, not of those"
    for label, expected in (("b|a", 2), ("a, b", 2), ("a b", 2), ("a|c", 0)):
        rows = "".join(f'{n}.png,"{one}"\n' for n, one in enumerate(["a", "b", label, label, "a"]))
        files = {f"{n}.png": picture() for n in range(5)} | {"labels.csv": f"image,label\n{rows}".encode()}
        summary, _ = run(plant(tmp_path / label, files), f"{label} set")
        told = [remark for remark in summary["remarks"] if "list others" in remark]
        assert [remark.startswith(said.format(expected, label)) for remark in told] == [True] * bool(expected)


def test_what_is_taken_for_classes_is_said(run, tmp_path):
    images = {f"pets/photos/{n}.jpg": encoded(Image.fromarray(noise(8, 8, 3)), "jpeg") for n in range(2)}
    source = plant(tmp_path / "pairs", images | {f"pets/sketches/{n}.png": picture() for n in range(2)})
    assert run(source)[0]["remarks"] == [
        "everything lies in pets/, which is taken for no class",
        "2 classes, by the names of folders: photos, sketches",
        "photos/ and sketches/ hold 2 files of the same names with other extensions: if one holds masks, or another "
        "rendering, give the folder with the images alone",
    ]
    places = {f"{place}/1.png": picture() for place in ("a/abbey", "a/airport", "b/barn", "b/beach")}
    assert run(plant(tmp_path / "sun", places), "sun set")[0]["remarks"] == [
        "2 classes, by the names of folders: a, b",
        "train: 2 classes by the outer folders, in which images lie in 4 folders (a/abbey/); if the inner "
        "ones are the classes, move each up one level",
    ]


def test_masks_are_no_class_and_train_only_where_that_is_said(run, tmp_path):
    kvasir = plant(
        tmp_path / "kvasir", {f"{name}/{n}.jpg": picture() for name in ("images", "masks") for n in range(2)}
    )
    with pytest.raises(DataError, match=r"kvasir: images/ is called as .*, but masks/ lies beside it; give the folder"):
        run(kvasir)
    _, dest = run(kvasir / "images", "alone")
    assert table(dest).path.tolist() == ["0.jpg", "1.jpg"]
    run(kvasir, "told", kind="classes")
    assert read_manifest(files.at(tmp_path / "told")).classes == ["images", "masks"]
    names = [
        f"{kind}/{kind} ({n}){end}.png" for kind in ("benign", "normal") for n in range(2) for end in ("", "_mask")
    ]
    busi = plant(tmp_path / "busi", {name: picture() for name in names})
    with pytest.raises(
        DataError, match=r"busi: benign/benign \(0\)_mask\.png looks like the mask of benign/benign \(0"
    ):
        run(busi, "b")
    assert run(busi, "c", kind="flat")[0]["rows"] == {"train": 8}
    remark = "0_mask.png looks like the mask of 0.png, and so do more: all are taken for images"
    pairs = shard(tmp_path / "shards" / "x.tar", {"0.png": picture(), "0_mask.png": picture()})
    assert remark in run(pairs, "d")[0]["remarks"]
    remark = "images/ and masks/ lie side by side: all in them are taken for images, masks too"
    sides = shard(tmp_path / "sides" / "x.tar", {"images/0.png": picture(), "masks/0.png": picture()})
    assert remark in run(sides, "e")[0]["remarks"]


def test_tars_that_look_like_classes_are_said(run, tmp_path):
    def said(name: str, shards: dict[str, str]) -> list[str]:
        for file, image in shards.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            shard(tmp_path / name / file, {image: picture()})
        remarks = run(tmp_path / name, f"{name} set")[0]["remarks"]
        return [remark for remark in remarks if "look like a class" in remark]

    advice = ": if they are, unpack each into a folder of its name"
    imagenet = {f"train/n0{n}.tar": f"n0{n}_{n}.JPEG" for n in range(3)}
    assert said("imagenet", imagenet) == [f"3 shards look like a class each, as train/n00.tar{advice}"]
    assert said("pets", {"cat.tar": "0.png", "dog.tar": "1.png"}) == [
        f"2 shards look like a class each, as cat.tar{advice}"
    ]
    assert not said("laion", {f"0000{n}.tar": f"0000{n}000.png" for n in range(2)})
    assert not said("parts", {f"shard-{n}.tar": f"shard-{n}.png" for n in range(2)})
    assert not said("numbered", {f"imagenet-{n}.tar": f"{n}.png" for n in range(2)})
    assert not said("splits", {"train.tar": "train.png", "val.tar": "val.png"})


@pytest.mark.parametrize("kind", ["tar", "parquet", "cifar"])
def test_images_beside_what_is_read_are_counted(run, tmp_path, kind):
    folder = tmp_path / "set of it"
    if kind == "cifar":
        cifar(folder, {"data_batch_1": noise(5, 3072)})
    else:
        folder.mkdir()
        shard(folder / "0.tar", {"0.png": picture()})
        write_parquet(folder / "0.parquet", [picture()], [0])
    plant(folder, {"val/a/0.JPEG": picture(), "1.png": picture(), ".2.png": picture()})
    remarks = run(folder, kind=kind)[0]["remarks"]
    assert f"2 images beside what is read as {kind} were passed over, as 1.png" in remarks
    assert not [remark for remark in remarks if "left out" in remark and ".png" in remark]


def test_links_are_followed_and_those_that_lead_nowhere_named(run, tmp_path):
    source = plant(tmp_path / "pets", {f"train/{kind}/1.png": picture() for kind in ("cat", "dog")})
    (source / "test").symlink_to(source / "train")
    assert run(source)[0]["rows"] == {"train": 2, "test": 2}
    (source / "train" / "emu").symlink_to(tmp_path / "gone")
    with pytest.raises(StorageError, match=r"emu: a link that leads nowhere \(.*/gone\); bring back what it leads to"):
        run(source, "b")


@pytest.mark.parametrize(("name", "kind"), [("backup.tar", "tar"), ("thumbs.parquet", "parquet")])
def test_a_folder_of_two_kinds_is_refused(run, pets, name, kind):
    plant(pets, {name: b"x"})
    with pytest.raises(
        DataError, match=rf"read as {kind} or as imagefolder, with images as (cat|dog)/\d\.png; .*--kind {kind}"
    ):
        run(pets)
    assert run(pets, kind="imagefolder")[0]["rows"] == {"train": 8}


def test_links_in_a_tar_are_what_they_lead_to(run, tmp_path):
    content = picture()
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "x.tar", "w") as opened:
        links = [("b/1.png", tarfile.LNKTYPE, "a/0.png"), ("b/2.png", tarfile.SYMTYPE, "../a/0.png")]
        links += [("b/3.png", tarfile.SYMTYPE, "gone.png")]
        for name, kind, target in [("a/0.png", tarfile.REGTYPE, ""), *links]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, target, 0 if target else len(content)
            opened.addfile(info, None if target else io.BytesIO(content))
    summary, dest = run(tmp_path / "shards")
    assert table(dest).path.tolist() == ["a/0.png", "b/1.png", "b/2.png"]
    assert set(table(dest).bytes) == {content}
    assert summary["remarks"] == [
        "1 files that are no images were passed over (link 1)",
        NO_LABELS,
        "no image has a label",
    ]


def test_what_is_hidden_in_tars_and_beside_parquet_is_counted(run, tmp_path):
    members = {name: picture() for name in ("./a/0.png", "a/.ipynb_checkpoints/0-checkpoint.png", "__MACOSX/a/._0.png")}
    source = shard(tmp_path / "shards" / "x.tar", members | {"a/._0.png": b"", ".DS_Store": b""})
    plant(source, {"._x.tar": b""})
    summary, dest = run(source)
    assert table(dest).path.tolist() == ["./a/0.png"]
    assert summary["remarks"][0] == "5 hidden files were passed over (._* 2, .ipynb_checkpoints/ 1, __MACOSX/ 1)"
    old = write_parquet(tmp_path / "old" / "train-0.parquet", [picture(), picture()], [0, 1])
    write_parquet(old / "_temporary" / "train-1.parquet", [picture()] * 2, [0, 1])
    write_parquet(old / ".cache" / "train-1.parquet", [picture()] * 2, [0, 1])
    run(old, "copy")[1].rename(old / "copy")
    summary, _ = run(old, "old set")
    assert summary["rows"] == {"train": 2}
    assert summary["remarks"] == [
        "2 hidden files were passed over (.cache/train-1.parquet)",
        "copy/: sets of their own, which were left out",
    ]


def test_tars_one_after_the_other_in_one_file_are_refused(run, tmp_path):
    for name in "ab":
        shard(tmp_path / "shards" / f"{name}.tar", {f"{name}.png": picture()})
    one, two = (tmp_path / "shards" / f"{name}.tar" for name in "ab")
    one.write_bytes(one.read_bytes() + two.read_bytes())
    two.unlink()
    with pytest.raises(DataError, match=r"a\.tar: more follows after its end at byte \d+"):
        run(tmp_path / "shards")


def test_labels_that_contradict_each_other_are_refused(run, tmp_path):
    members = {"0.png": picture(), "0.cls": b"0", "0.json": b'{"label": 7}'}
    told = r"x\.tar: 0\.cls tells label 0 and 0\.json tells label 7, .* leave the members of one kind out .*--no-labels"
    with pytest.raises(DataError, match=told):
        run(shard(tmp_path / "shards" / "x.tar", members))
    assert run(tmp_path / "shards", "bare", labels=False)[0]["rows"] == {"train": 1}
    same = shard(tmp_path / "same" / "x.tar", members | {"0.json": b'{"label": 0, "caption": ""}'})
    assert table(run(same, "same set")[1]).label.tolist() == [0]
    with pytest.raises(DataError, match=r"y\.tar, 0\.png: has label -100, but classes count from 0, and -1 is none"):
        run(shard(tmp_path / "other" / "y.tar", {"0.png": picture(), "0.cls": b"-100"}), "b")


def test_a_label_that_stands_twice_in_a_tar_is_said_to_be_that(run, tmp_path):
    file = tmp_path / "shards" / "x.tar"
    source = shard(file, {"0.png": picture(), "0.cls": b"0"})
    with tarfile.open(file, "a") as opened:
        info = tarfile.TarInfo("0.cls")
        info.size = 1
        opened.addfile(info, io.BytesIO(b"1"))
    with pytest.raises(
        DataError, match=r"0\.cls tells label 0 and 0\.cls tells label 1, for it stands twice .*keep one"
    ):
        run(source)


def test_a_source_of_other_content_is_another_job(run, tmp_path):
    source = shard(tmp_path / "shards" / "train.tar", {"0.png": picture()})
    run(source)
    shard(tmp_path / "shards" / "train.tar", {"0.png": picture()})
    os.utime(source / "train.tar", ns=(1, 1))
    with pytest.raises(DataError, match="holds a finished set of another job: source"):
        run(source)


def test_names_and_numbers_of_classes_are_not_mixed(run, tmp_path):
    for split, labels in (("train", [0, 1]), ("test", ["0", "1"])):
        rows = pa.array([{"bytes": picture(), "path": None}] * 2, IMAGE)
        (tmp_path / "old").mkdir(exist_ok=True)
        pq.write_table(pa.table({"image": rows, "label": labels}), tmp_path / "old" / f"{split}.parquet")
    with pytest.raises(DataError, match="split test names its classes, split train only numbers them"):
        run(tmp_path / "old")
    assert run(tmp_path / "old", "b", splits=["train"])[0]["rows"] == {"train": 2}


def test_parquet_in_folders_belongs_to_the_set(run, tmp_path):
    write_parquet(tmp_path / "old" / "train.parquet" / "part-0.parquet", [picture() for _ in range(3)], [0, 1, 0])
    write_parquet(tmp_path / "old" / "validation" / "0.parquet", [picture(), picture()], [1, 0])
    summary, _ = run(tmp_path / "old")
    assert summary["rows"] == {"train": 3, "validation": 2}
    assert summary["remarks"] == ["files in folders belong to the set: train.parquet/, validation/"]
    write_parquet(tmp_path / "old" / "validation" / "0.parquet", [picture()] * 2, [0, 1])
    with pytest.raises(DataError, match="holds a finished set of another job: source"):
        run(tmp_path / "old")
    write_parquet(tmp_path / "hive" / "label=cat" / "0.parquet", [picture()], [0])
    with pytest.raises(DataError, match=r"label=cat: a partition of Hive"):
        run(tmp_path / "hive", "b")
    with pytest.raises(DataError, match=r"label=cat: a partition of Hive"):
        run(tmp_path / "hive" / "label=cat", "b")


def test_a_column_of_splits_is_named(run, tmp_path):
    old = write_parquet(tmp_path / "old" / "data.parquet", [picture()] * 3, [0, 1, 0])
    table = pq.read_table(old / "data.parquet")
    pq.write_table(table.append_column("Split", pa.array(["train", "train", "test"])), old / "data.parquet")
    assert "column `Split` was not read: only names of files tell splits" in run(old)[0]["remarks"]


def test_a_set_without_training_images_says_so(run, tmp_path):
    source = write_parquet(tmp_path / "old" / "test.parquet", [picture()], [0])
    said = "no split `train`, which a run needs: name one with --split test=train"
    assert run(source)[0]["remarks"] == [said, NO_ANT]
    write_parquet(source / "unlabeled.parquet", [picture()], [-1])
    assert said.replace("test", "unlabeled") in run(source, "b")[0]["remarks"]  # for evaluation asks about the other


def test_batches_of_cifar_that_are_missing_are_said_and_copies_are_none(run, tmp_path):
    arrays = {name: noise(5, 3072) for name in ("data_batch_1", "data_batch_2", "data_batch_1.bak")}
    summary, _ = run(cifar(tmp_path / "cifar", arrays, 4))
    assert summary["rows"] == {"train": 10}
    assert summary["remarks"] == [
        "4 of CIFAR's batches are missing (data_batch_3, data_batch_4, data_batch_5, test_batch)"
    ]


def test_a_finished_set_that_left_images_out_is_not_what_a_strict_run_asks_for(run, pets):
    plant(pets, {"dog/bad.png": b"junk"})
    assert run(pets, skip_unreadable=True)[0]["unreadable"] == 1
    with pytest.raises(
        DataError, match=r"finished already, but without 1 images \(dog/bad\.png: .*give --skip-unreadable"
    ):
        run(pets)
    assert run(pets, skip_unreadable=True)[0]["rows"] == {"train": 8}


def test_an_image_that_was_repaired_does_not_undo_what_is_finished(run, pets, tmp_path, capsys):
    plant(pets, {"dog/0.png": b"junk"})
    with pytest.raises(DataError, match=r"dog/0\.png"):
        run(pets, rows_per_file=2, keep_order=True)
    first = sorted((tmp_path / "set").glob("*.parquet"))
    before = [file.stat().st_ino for file in first]
    plant(pets, {"dog/0.png": picture(), "cat/0.png": picture()})  # and one that was good is another now
    _, dest = run(pets, rows_per_file=2, keep_order=True)
    said = capsys.readouterr().err
    assert "goes on after 1 finished files" in said
    assert "1 files are written again, for their images have changed" in said
    assert [file.stat().st_ino == inode for file, inode in zip(first, before, strict=True)] == [False, True]
    made = table(dest)
    assert dict(zip(made.path, made.bytes, strict=True)) == {
        str(path.relative_to(pets)): path.read_bytes() for path in pets.rglob("*.png")
    }


@pytest.mark.parametrize(
    ("table", "outcome"),
    [
        ("file,label,eye\nt0.png,a,b\nt1.png,b,a\n", [0, 1]),  # the column that is headed so, and no other
        ("file,label,eye\nt0.png,both,b\nt1.png,b,a\n", [2, 1]),  # though others would name known classes alone
        ("file,label,class\nt0.png,0,a\nt1.png,1,c\n", [0, 2]),  # the one that names more of these
        ("file,label\nt0.png,c 1 2 3 4 c 5 6 7 8\nt1.png,b 1 2 3 4\n", [2, 1]),
        ("file,label\nt0.png,0\nt1.png,1\n", r"column `label` tells '0', and none of its 2 labels is a class"),
        ("label,id\nb,t0\na,t1\n", [1, 0]),
        ("t0.png,a pie\nt1.png,b\n", r"its 'a pie' is no class of the training images"),
        ("t0.png,a 1 2 3 4 a 5 6 7 8\nt1.png,b 1 2 3 4\n", [0, 1]),
        ("t0.png,t1.png,a\nt1.png,t0.png,b\n", r"columns 1 and 2 could both name the images"),
    ],
)
def test_the_column_of_labels_is_no_other_one(run, tmp_path, table, outcome):
    images = {f"{name}.png": picture() for name in ("train/a/0", "train/b/1", "test/t0", "test/t1")}
    source = plant(tmp_path / "ab", images | {"test.csv": table.encode()})
    if isinstance(outcome, list):
        _, dest = run(source, keep_order=True)
        assert table_of(dest, "test") == outcome
    elif outcome.startswith("its "):
        assert any(outcome in remark for remark in run(source)[0]["remarks"])
    else:
        with pytest.raises(DataError, match=outcome):
            run(source)


def test_further_images_are_known_by_all_shards(run, tmp_path):
    for n in range(2):  # one sample each
        members = {f"{n}.jpg": encoded(Image.fromarray(noise(8, 8, 3)), "jpeg"), f"{n}.seg.png": picture()}
        source = shard(tmp_path / "shards" / f"train-{n}.tar", members)
    assert table(run(source)[1]).path.tolist() == ["0.jpg", "1.jpg"]


def test_labels_that_are_not_read_are_in_no_way_of_images(run, tmp_path):
    """Nor is anything said of them that holds only where they are read."""
    bare = {"0.png": picture(), "0.cls": b"0", "1.png": picture(), "2.png": picture(), "2.cls": b"\xff"}
    remarks = run(shard(tmp_path / "shards" / "x.tar", bare), labels=False)[0]["remarks"]
    assert remarks == ["2 files that are no images were passed over (.cls 2)"]
    (tmp_path / "old").mkdir()
    images = pa.array([{"bytes": picture(), "path": ""}], IMAGE)
    for name, labels in (("lists", [[0]]), ("numbers", [0])):
        pq.write_table(pa.table({"image": images, "labels": labels}), tmp_path / "old" / f"{name}.parquet")
        source = tmp_path / "old" / f"{name}.parquet"
        assert run(source, name, labels=False)[0]["remarks"] == []
        found = ParquetImages.open(source, cache_dir=tmp_path / "cache")
        assert found.remarks == (["the labels are those of column `labels`"] if name == "numbers" else [])


def test_an_image_that_stands_twice_in_a_tar_is_counted(run, tmp_path):
    (tmp_path / "shards").mkdir()
    pictures = [picture(), picture()]
    with tarfile.open(tmp_path / "shards" / "x.tar", "w") as opened:
        for content in pictures:
            info = tarfile.TarInfo("0.png")
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    summary, dest = run(tmp_path / "shards")
    assert table(dest).bytes.tolist() == pictures[1:]
    assert summary["remarks"][0] == "1 images stand twice under one name, and the later ones count"


def test_shards_in_folders_and_of_other_kinds_are_taken_or_named(run, tmp_path):
    shard(tmp_path / "shards" / "train-0.tar", {"0.png": picture()})
    (tmp_path / "shards" / "val").mkdir()
    shard(tmp_path / "shards" / "val" / "0.tar", {"1.png": picture()})
    shard(tmp_path / "shards" / "train-1.TAR", {"2.png": picture()})
    plant(tmp_path / "shards", {"train-2.tar.gz": b"", "train-3.tar.part": b"", "._train-0.tar": b"junk"})
    plant(tmp_path / "shards", {"labels.csv": b"", "classes.txt": b""})
    summary, _ = run(tmp_path / "shards")
    assert summary["rows"] == {"train": 2, "validation": 1}
    assert summary["remarks"][:2] == [
        "1 hidden files were passed over (._* 1)",
        "3 files are no *.tar and were left out (.csv, .tar.gz, .tar.part)",
    ]


def test_a_finished_set_that_lost_a_file_is_not_finished(run, pets):
    _, dest = run(pets, rows_per_file=4)
    for name in ("train-00001-of-00002.parquet", "train.index.npz"):
        kept = (dest / name).read_bytes()
        (dest / name).unlink()
        with pytest.raises((DataError, StorageError), match=name):
            run(pets, rows_per_file=4)
        (dest / name).write_bytes(kept)
    assert run(pets, rows_per_file=4)[0]["rows"] == {"train": 8}


def test_two_classes_of_one_name_are_refused(run, tmp_path):
    source = shard(tmp_path / "shards" / "x.tar", {"0.png": picture(), "0.cls": b"0"})
    plant(source, {"classes.txt": b"crane\ndog\ncrane\n"})
    with pytest.raises(DataError, match=r"its classes 0 and 2 are both called 'crane'; rename one"):
        run(source)


def test_names_that_are_no_unicode_stay_apart(run, tmp_path):
    for name in (b"caf\xe9", b"caf\xe8", b"z"):
        folder = Path(os.fsdecode(bytes(tmp_path / "pets") + b"/" + name))
        folder.mkdir(parents=True)
        (folder / "1.png").write_bytes(picture())
    summary, dest = run(tmp_path / "pets")
    assert read_manifest(files.at(dest)).classes == ["caf\\xe8", "caf\\xe9", "z"]
    assert summary["remarks"][0] == (
        "2 images have names that are not UTF-8, or hold characters that are not seen, and were written escaped, as "
        "caf\\xe8/1.png; name them anew, as with `convmv -f GBK -t UTF-8 -r --notest FOLDER`, to have them as they "
        "were meant"
    )


def test_names_in_a_tar_that_are_no_unicode_are_said(run, tmp_path):
    source = shard(tmp_path / "shards" / "x.tar", {os.fsdecode(b"caf\xe9.png"): picture(), "zo\u00eb.png": picture()})
    summary, dest = run(source)
    assert table(dest).path.tolist() == ["caf\\xe9.png", "zo\u00eb.png"]
    assert any(
        line.startswith("1 images have names that are not UTF-8") and r"as caf\xe9.png;" in line
        for line in summary["remarks"]
    )


def test_tars_beside_parquet_are_refused_and_sets_within_are_none_of_it(run, tmp_path):
    source = shard(tmp_path / "shards" / "train.tar", {"0.png": picture()})
    run(source, tmp_path / "made")
    (tmp_path / "made").rename(source / "out")
    assert run(source)[0]["rows"] == {"train": 1}
    write_parquet(source / "val.parquet", [picture()], [0])
    with pytest.raises(DataError, match="could be read as parquet or as tar; say which is the set"):
        run(source, "b")


def test_files_that_are_nearly_parquet_and_shards_that_are_missing_are_said(run, tmp_path):
    for name in ("train-00000-of-00003.parquet", "train-00002-of-00003.PARQUET"):
        source = write_parquet(tmp_path / "old" / name, [picture()], [0])
    plant(source, {"train-00001-of-00003.parquet.gz": b"", "README.md": b""})
    summary, _ = run(source)
    assert summary["rows"] == {"train": 2}
    assert summary["remarks"] == [
        "1 files are no *.parquet and were left out (train-00001-of-00003.parquet.gz)",
        "2 of 3 files train-*-of-00003 are there: is the set whole?",
        NO_ANT,
    ]


def test_a_single_file_that_tells_a_split_trains_and_it_is_said(run, tmp_path):
    source = write_parquet(tmp_path / "old" / "test.parquet", [picture()], [0]) / "test.parquet"
    said = "test.parquet: all of it trains, though its name tells test: names in what is given tell splits"
    assert run(source)[0]["remarks"] == [said, NO_ANT]
    tar = shard(tmp_path / "shards" / "x-val-0.tar", {"0.png": picture()}) / "x-val-0.tar"
    said = "x-val-0.tar: all of it trains, though its name tells validation: names in what is given tell splits"
    assert run(tar, "b")[0]["remarks"][0] == said


@pytest.mark.parametrize("kind", ["imagefolder", "flat", "tar", "parquet"])
def test_a_folder_called_as_another_split_trains_and_it_is_said(run, tmp_path, kind):
    def make(folder: Path, name: str) -> Path:
        folder.mkdir(parents=True)
        if kind == "parquet":
            write_parquet(folder / f"{name}.parquet", [picture()], [0])
        elif kind == "tar":
            shard(folder / f"{name}.tar", {"0.png": picture()})
        else:
            plant(folder, {f"{name}/0.png": picture()})
        return folder

    said = "val2017: all of it trains, though its name tells validation: names in what is given tell splits"
    assert said in run(make(tmp_path / "val2017", "0"), kind=kind)[0]["remarks"]
    assert said not in run(make(tmp_path / "of train" / "val2017", "train"), "b", kind=kind)[0]["remarks"]
    assert not [told for told in run(make(tmp_path / "things", "0"), "c", kind=kind)[0]["remarks"] if "all of" in told]
