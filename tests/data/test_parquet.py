"""Images from real Parquet files: order, cache, projection, conversions, and every error's message."""

import io
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from emc2dist.data.parquet import ParquetImages, decode
from emc2dist.errors import DataError

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
def files(tmp_path: Path) -> list[Path]:
    """Rows 0..7 and 8..17 in groups of 3; row r has colour r and label r % 2."""
    folder = tmp_path / "bilder für alle ☃"
    parts = [range(8), range(8, 18)]
    return [
        write(folder / f"train {n}.parquet", [pixel(r) for r in part], [r % 2 for r in part])
        for n, part in enumerate(parts)
    ]


def colours(images: list[torch.Tensor]) -> list[int]:
    return [int(image[0, 0, 0]) for image in images]


def test_any_order_with_duplicates_over_files_and_groups(files):
    images = ParquetImages(files)
    assert len(images) == 18
    asked = np.array([17, 0, 8, 7, 17, 3, 2, 0])
    assert colours(images.get(asked)) == asked.tolist()
    assert images.labels(asked).tolist() == (asked % 2).tolist()
    assert images.get(asked)[0].tolist() == [[[17, 17]], [[238, 238]], [[7, 7]]]
    assert colours(images.get(np.arange(18))) == list(range(18))
    assert images.get(np.array([], dtype=np.int64)) == []


def test_classes_limit_and_bounds(files):
    images = ParquetImages(files, limit=10)
    assert images.classes == ["cat", "dog"]
    assert len(images) == 10
    assert len(ParquetImages(files, limit=99)) == 18
    for ask in (images.get, images.labels):
        for wrong in ([3, 10], [-1]):
            with pytest.raises(IndexError, match=r"outside 0\.\.9"):
                ask(np.array(wrong))


def test_cache_keeps_to_its_bound_and_drops_the_least_recently_used(files, monkeypatch):
    read = []
    real = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda self, n, **k: read.append(n) or real(self, n, **k))
    images = ParquetImages(files)
    images.get(np.array([0, 3]))
    sizes = sum(column.nbytes for column in images._cache.values())
    images._cache_bytes = sizes + 8  # room for two groups
    images.get(np.array([0]))
    assert read == [0, 1]
    images.get(np.array([8]))  # drops rows 3..5, the least recently used
    assert sum(column.nbytes for column in images._cache.values()) <= images._cache_bytes
    images.get(np.array([0, 1, 2]))
    assert read == [0, 1, 0]
    images.get(np.array([4]))
    assert read == [0, 1, 0, 1]


def test_a_cache_smaller_than_one_group_holds_the_one_in_use(files):
    images = ParquetImages(files)
    images._cache_bytes = 1
    asked = np.random.default_rng(0).permutation(18)
    assert colours(images.get(asked)) == asked.tolist()
    assert len(images._cache) == 1


def test_threads_and_pickled_copies_see_the_same(files):
    images = ParquetImages(files)
    images._cache_bytes = 1
    copy = pickle.loads(pickle.dumps(images))
    asked = [np.random.default_rng(seed).permutation(18) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(images.get, asked))
    assert [colours(m) for m in made] == [a.tolist() for a in asked]
    assert colours(copy.get(asked[0])) == asked[0].tolist()


def test_opening_reads_footers_and_each_column_is_read_alone(files, monkeypatch):
    asked = []
    real = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, n, **k: asked.append(k["columns"]) or real(self, n, **k)
    )
    images = pickle.loads(pickle.dumps(ParquetImages(files)))
    assert asked == []
    images.get(np.array([0]))
    assert asked == [["image.bytes"]]
    images.labels(np.array([0]))
    assert asked[1:] == [["label"]] * 7


def test_labels_are_readable_though_images_are_not(tmp_path):
    images = ParquetImages([write(tmp_path / "a.parquet", [b"junk", None], [1, 0])])
    assert images.labels(np.array([1, 0])).tolist() == [0, 1]


@pytest.mark.parametrize(("value", "what"), [(None, "null"), (b"junk", "decoded"), (pixel(1)[:-30], "decoded")])
def test_a_bad_image_is_named_by_file_and_row(tmp_path, value, what):
    good = write(tmp_path / "good.parquet", [pixel(0)] * 5)
    bad = write(tmp_path / "bad.parquet", [pixel(0)] * 4 + [value, pixel(0)])
    images = ParquetImages([good, bad])
    assert len(images.get(np.array([0, 8, 10]))) == 3
    with pytest.raises(DataError, match=rf"bad\.parquet, row 4: the image .*{what}"):
        images.get(np.array([0, 9]))


def test_a_null_label_is_named_by_file_and_row(tmp_path):
    images = ParquetImages([write(tmp_path / "a.parquet", [pixel(0)] * 6, [0, 1, 0, 1, None, 1])])
    with pytest.raises(DataError, match=r"a\.parquet, row 4: the label is null"):
        images.labels(np.array([0]))


def test_a_set_without_labels_says_so(tmp_path):
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": pa.array([{"bytes": pixel(5), "path": ""}], IMAGE)}), file)
    images = ParquetImages([file])
    assert (images.labelled, images.classes) == (False, [])
    assert colours(images.get(np.array([0]))) == [5]
    with pytest.raises(DataError, match=r"a\.parquet: no `label` column"):
        images.labels(np.array([0]))


@pytest.mark.parametrize("content", [b"", b"no Parquet at all", b"PAR1" * 9])
def test_a_file_that_is_not_parquet_is_named(tmp_path, files, content):
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.parquet: not a valid Parquet file"):
        ParquetImages([*files, bad])


def test_a_file_that_is_missing_or_damaged_inside_is_named(tmp_path, files):
    with pytest.raises(DataError, match=r"gone\.parquet: cannot be read"):
        ParquetImages([tmp_path / "gone.parquet"])
    damaged = bytearray(files[0].read_bytes())
    damaged[4:400] = b"\xff" * 396
    files[0].write_bytes(damaged)
    with pytest.raises(DataError, match=r"train 0\.parquet"):
        ParquetImages(files).get(np.array([0]))


@pytest.mark.parametrize(
    "table",
    [{"picture": [1]}, {"image": [b"bytes without a struct"]}, {"image": [{"path": "elsewhere.png"}]}],
)
def test_a_file_without_image_bytes_is_named_with_its_columns(tmp_path, table):
    pq.write_table(pa.table(table), tmp_path / "odd.parquet")
    with pytest.raises(DataError, match=rf"odd\.parquet: no column `image` .*but {next(iter(table))}"):
        ParquetImages([tmp_path / "odd.parquet"])


def test_labels_that_are_not_whole_numbers_are_refused(tmp_path):
    schema = pa.schema([("image", IMAGE), ("label", pa.string())])
    with pytest.raises(DataError, match=r"a\.parquet: column `label` has type string"):
        ParquetImages([write(tmp_path / "a.parquet", [pixel(0)], ["cat"], schema=schema)])


@pytest.mark.parametrize(
    ("schema", "what"),
    [
        (pa.schema([("image", IMAGE), ("label", pa.int32())], metadata={"classes": "cat,dog"}), "label"),
        (SCHEMA.with_metadata({"classes": "dog,cat"}), "classes"),
    ],
)
def test_files_that_differ_are_refused_by_name(tmp_path, files, schema, what):
    other = write(tmp_path / "other.parquet", [pixel(0)], schema=schema)
    with pytest.raises(DataError, match=rf"other\.parquet: {what} is .*train 0\.parquet"):
        ParquetImages([*files, other])


def test_no_rows_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(DataError, match=r"empty\.parquet: no rows"):
        ParquetImages([write(tmp_path / "empty.parquet", [])])


def test_an_empty_file_among_others_does_no_harm(tmp_path, files):
    images = ParquetImages([write(tmp_path / "empty.parquet", []), *files])
    assert colours(images.get(np.arange(18))) == list(range(18))


def decoded(data: bytes) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return decode(data)


def flat(image: torch.Tensor) -> list[int]:
    assert image.dtype == torch.uint8
    assert image.is_contiguous()
    return image[:, 0, 0].tolist()


def test_every_kind_of_image_becomes_rgb():
    red = Image.new("RGB", (3, 2), (200, 30, 40))
    assert decoded(encoded(red)).shape == (3, 2, 3)
    assert flat(decoded(encoded(Image.new("L", (2, 2), 77)))) == [77, 77, 77]
    assert flat(decoded(encoded(Image.new("1", (2, 2), 1)))) == [255, 255, 255]
    assert flat(decoded(encoded(red.convert("RGBA")))) == [200, 30, 40]
    assert flat(decoded(encoded(Image.new("LA", (2, 2), (9, 128))))) == [9, 9, 9]
    assert flat(decoded(encoded(red.quantize(4)))) == [200, 30, 40]
    assert flat(decoded(encoded(red.quantize(4), transparency=b"\x10\x20"))) == [200, 30, 40]


def test_cmyk_becomes_rgb():
    image = Image.new("RGB", (16, 16), (200, 30, 40)).convert("CMYK")
    assert flat(decoded(encoded(image, "jpeg", quality=100))) == pytest.approx([200, 30, 40], abs=6)


@pytest.mark.parametrize("value", [0, 257, 128 * 257, 65535])
def test_greys_of_16_bits_are_scaled_not_clipped(value):
    image = Image.fromarray(np.full((2, 2), value, dtype=np.uint16))
    for form in ("png", "tiff"):
        assert flat(decoded(encoded(image, form))) == [value // 257] * 3


def test_exif_rotation_is_applied():
    image = Image.new("RGB", (4, 2))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    made = decoded(encoded(image, exif=exif))
    assert made.shape == (3, 4, 2)
    assert made[:, 0, 1].tolist() == [255, 255, 255]


CIFAR = Path(__file__).parents[2].parent / "shared" / "data" / "cifar10"


@pytest.mark.skipif(not CIFAR.is_dir(), reason="CIFAR-10 is not beside the project")
def test_cifar():
    files = sorted(CIFAR.glob("train*.parquet"))
    images = ParquetImages(files)
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
