"""Images from real Parquet files of others: order, projection, and every error's message."""

import io
import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from emc2dist import files
from emc2dist.config import S3
from emc2dist.data.parquet import ParquetImages
from emc2dist.errors import DataError, StorageUnreachable

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema([("image", IMAGE), ("label", pa.int64())], metadata={"classes": "cat,dog"})


def encoded(image: Image.Image, form: str = "png", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def pixel(value: int) -> bytes:
    """A 2x1 image whose colour says which row it is."""
    return encoded(Image.new("RGB", (2, 1), (value, 255 - value, 7)))


def write(file: Path, images: list, labels: list | None = None, *, group: int = 3, schema: pa.Schema = SCHEMA) -> Path:
    rows = [value if value is None else {"bytes": value, "path": None} for value in images]
    columns = [pa.array(rows, IMAGE), pa.array(labels or [0] * len(rows), schema.field("label").type)]
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, schema=schema), file, row_group_size=group)
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Rows 0..7 and 8..17 in groups of 3; row r has colour r and label r % 2."""
    folder = tmp_path / "bilder für alle ☃"
    for n, part in enumerate([range(8), range(8, 18)]):
        write(folder / f"train {n}.parquet", [pixel(r) for r in part], [r % 2 for r in part])
    return folder


@pytest.fixture
def opened(tmp_path: Path):
    return lambda path, **options: ParquetImages.open(path, cache_dir=tmp_path / "cache", **options)


def colours(images: list[torch.Tensor]) -> list[int]:
    return [int(image[0, 0, 0]) for image in images]


def test_any_order_with_duplicates_over_files_and_groups(folder, opened):
    images = opened(folder)
    assert len(images) == 18
    asked = np.array([17, 0, 8, 7, 17, 3, 2, 0])
    assert colours(images.get(asked)) == asked.tolist()
    assert images.encoded(asked) == [pixel(r) for r in asked]
    assert images.labels(asked).tolist() == (asked % 2).tolist()
    assert images.get(asked)[0].tolist() == [[[17, 17]], [[238, 238]], [[7, 7]]]
    assert colours(images.get(np.arange(18))) == list(range(18))
    assert images.get(np.array([], dtype=np.int64)) == []


def test_classes_limit_blocks_and_bounds(folder, opened):
    images = opened(folder, limit=10)
    assert images.classes == ["cat", "dog"]
    assert len(images) == 10
    assert images.blocks.tolist() == [3, 3, 2, 2]
    assert len(opened(folder, limit=99)) == 18
    assert opened(folder).blocks.tolist() == [3, 3, 2, 3, 3, 3, 1]
    for ask in (images.get, images.labels, images.encoded):
        for wrong in ([3, 10], [-1]):
            with pytest.raises(IndexError, match=r"outside 0\.\.9"):
                ask(np.array(wrong))


def test_threads_and_pickled_copies_see_the_same(folder, opened):
    images = opened(folder)
    copy = pickle.loads(pickle.dumps(images))
    asked = [np.random.default_rng(seed).permutation(18) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(images.get, asked))
    assert [colours(m) for m in made] == [a.tolist() for a in asked]
    assert colours(copy.get(asked[0])) == asked[0].tolist()


def test_each_column_is_read_alone_and_only_when_asked_for(folder, opened, monkeypatch):
    asked = []
    for name in ("read", "iter_batches"):
        real = getattr(pq.ParquetFile, name)
        monkeypatch.setattr(
            pq.ParquetFile, name, lambda self, *n, real=real, **k: asked.append(k["columns"]) or real(self, *n, **k)
        )
    images = pickle.loads(pickle.dumps(opened(folder)))
    assert asked == []
    images.get(np.array([0]))
    assert asked == [["image.bytes"]]
    images.labels(np.array([0]))
    assert asked[1:] == [["label"]] * 2
    images.labels(np.array([1]))
    opened(folder).labels(np.array([1]))  # kept for the next opening
    assert len(asked) == 3


def test_labels_are_readable_though_images_are_not(tmp_path, opened):
    images = opened(write(tmp_path / "a.parquet", [b"junk", None], [1, 0]))
    assert images.labels(np.array([1, 0])).tolist() == [0, 1]


@pytest.mark.parametrize(("value", "what"), [(None, "null"), (b"junk", "decoded"), (pixel(1)[:-30], "decoded")])
def test_a_bad_image_is_named_by_file_and_row(tmp_path, opened, value, what):
    write(tmp_path / "set" / "train-a.parquet", [pixel(0)] * 5)
    write(tmp_path / "set" / "train-b.parquet", [pixel(0)] * 4 + [value, pixel(0)])
    images = opened(tmp_path / "set")
    assert len(images.get(np.array([0, 8, 10]))) == 3
    with pytest.raises(DataError, match=rf"train-b\.parquet, row 4: the image .*{what}"):
        images.get(np.array([0, 9]))


def test_a_set_without_labels_says_so(tmp_path, opened):
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": pa.array([{"bytes": pixel(5), "path": ""}], IMAGE)}), file)
    images = opened(file)
    assert images.classes == []
    assert "no `label` column" in images.unlabelled()
    assert colours(images.get(np.array([0]))) == [5]
    with pytest.raises(DataError, match=r"a\.parquet: no `label` column"):
        images.labels(np.array([0]))


@pytest.mark.parametrize("content", [b"", b"no Parquet at all", b"PAR1" * 9])
def test_a_file_that_is_not_parquet_is_named(folder, opened, content):
    (folder / "train bad.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"train bad\.parquet: not a valid Parquet file"):
        opened(folder)


def test_a_file_that_is_damaged_inside_is_named(folder, opened):
    file = folder / "train 0.parquet"
    damaged = bytearray(file.read_bytes())
    damaged[4:400] = b"\xff" * 396
    file.write_bytes(damaged)
    with pytest.raises(DataError, match=r"train 0\.parquet"):
        opened(folder).get(np.array([0]))


def test_a_file_given_twice_is_refused(folder, opened):
    shutil.copy(folder / "train 0.parquet", folder / "train copy.parquet")
    with pytest.raises(DataError, match=r"train copy\.parquet: the same file as .*train 0\.parquet"):
        opened(folder)


def test_files_of_one_size_need_not_be_the_same(tmp_path, opened):
    for value in (1, 2):
        write(tmp_path / "set" / f"{value}.parquet", [pixel(value)])
    assert len({file.stat().st_size for file in (tmp_path / "set").iterdir()}) == 1
    assert colours(opened(tmp_path / "set").get(np.array([0, 1]))) == [1, 2]


def test_no_rows_is_an_error_that_names_the_file(tmp_path, opened):
    with pytest.raises(DataError, match=r"empty\.parquet: no rows"):
        opened(write(tmp_path / "empty.parquet", []))


def test_files_without_rows_and_hidden_ones_count_as_nothing(folder, opened):
    for name in ("train -.parquet", "train 0 empty.parquet", "train z.parquet"):  # of one size, and the same inside
        write(folder / name, [])
    (folder / "._train 0.parquet").write_bytes(b"what macOS keeps of a file")
    images = opened(folder)
    assert colours(images.get(np.arange(18))) == list(range(18))
    assert images.remarks == [
        "1 hidden files were passed over (._train 0.parquet)",
        "train: files of 3 series are taken together (train -.parquet, train 0 empty.parquet, train z.parquet)",
        "3 of 5 files have no rows, as train -.parquet",
    ]


def test_a_split_without_rows_is_none(folder, opened):
    write(folder / "test.parquet", [])
    assert opened(folder, split="test") is None


def test_files_that_belong_to_no_split_are_named(folder, opened):
    for name in ("part-7.parquet", "part-8.parquet"):
        write(folder / name, [pixel(0)])
    images = opened(folder)
    assert len(images) == 18
    assert images.remarks[0].startswith("2 files belong to no split and were left out (part-7.parquet, part-8.parquet)")


def test_class_names_may_hold_commas(tmp_path, opened):
    names = ["tench, Tinca tinca", "goldfish"]
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    schema = SCHEMA.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    assert opened(write(tmp_path / "a.parquet", [pixel(0)], schema=schema)).classes == names


CIFAR = Path(__file__).parents[2].parent / "shared" / "data" / "cifar10"


@pytest.mark.skipif(not CIFAR.is_dir(), reason="CIFAR-10 is not beside the project")
def test_cifar(opened):
    files = sorted(CIFAR.glob("train*.parquet"))
    images = opened(CIFAR)
    assert len(opened(CIFAR, split="test")) == 10_000
    assert len(images) == 50_000
    assert images.classes[3] == "cat"
    asked = np.array([49_999, 10_000, 1_234, 9_999])
    made = images.get(asked)
    for index, image, label in zip(asked, made, images.labels(asked), strict=True):
        row = pq.read_table(files[index // 10_000]).slice(index % 10_000, 1).to_pylist()[0]
        expected = np.array(Image.open(io.BytesIO(row["image"]["bytes"])))
        assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)
        assert label == row["label"]
    assert np.bincount(images.labels(np.arange(50_000))).tolist() == [5_000] * 10


def test_retries_of_the_process_are_counted_from_the_opening_on(opened, folder, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "any")
    images = opened(folder)
    with pytest.raises(StorageUnreachable):
        files.at("s3://bucket/key", S3(endpoint="http://127.0.0.1:9", attempts=3, timeout_s=2)).read()
    assert images.traffic.retries == 2
    assert pickle.loads(pickle.dumps(images)).traffic.retries == 0
