"""Parquet files of others: read in bounded memory, refused where they cannot be right; every error names the file."""

import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.test_parquet import IMAGE, pixel, write

from emc2dist import files
from emc2dist.data import checked, encoded, foreign
from emc2dist.data.ingest import ingest
from emc2dist.data.parquet import ParquetImages
from emc2dist.errors import DataError, Emc2Error, StorageError


def footer(file: Path, change) -> None:
    """Put another footer in the place of a file's."""
    content = file.read_bytes()
    (size,) = struct.unpack("<I", content[-8:-4])
    made = change(content[-8 - size : -8])
    file.write_bytes(content[: -8 - size] + made + struct.pack("<I", len(made)) + b"PAR1")


def varint(number: int) -> bytes:
    """A number as Parquet's footers hold it."""
    number, made = 2 * number, b""
    while number > 127:
        made += bytes([number % 128 + 128])
        number //= 128
    return made + bytes([number])


@pytest.mark.parametrize("rows", [2**40, 2**60, 50_000])
def test_a_footer_of_more_rows_than_the_file_has_bytes_is_refused(rows, tmp_path):
    file = write(tmp_path / "a.parquet", [pixel(r % 256) for r in range(300)], group=300)
    assert file.stat().st_size < 50_000
    footer(file, lambda content: content.replace(varint(300), varint(rows)))
    with pytest.raises(DataError, match=rf"a\.parquet: its footer speaks of {rows} rows, .* in a file of \d+ bytes"):
        ParquetImages.open(file, cache_dir=tmp_path / "cache")


def test_whatever_a_footer_says_the_error_is_one_of_ours_and_names_the_file(tmp_path):
    whole = write(tmp_path / "whole.parquet", [pixel(r) for r in range(9)])
    rng = np.random.default_rng(0)
    refused: dict[str, str] = {}
    for n in range(150):
        file = tmp_path / f"{n}.parquet"
        file.write_bytes(whole.read_bytes())

        def change(content):
            made = bytearray(content)
            made[rng.integers(len(made))] = rng.integers(256)
            return bytes(made)

        footer(file, change)
        try:
            images = ParquetImages.open(file, cache_dir=tmp_path / "cache")
            images.labels(np.arange(len(images)))
            images.encoded(np.arange(len(images)))
        except Emc2Error as error:
            refused[file.name] = str(error)
    assert len(refused) > 30
    assert all(name in error for name, error in refused.items())


def test_a_row_group_is_decoded_piece_by_piece(tmp_path, monkeypatch):
    images = [bytes([r]) * (50 + 400 * (r % 2)) for r in range(200)]
    opened = ParquetImages.open(write(tmp_path / "a.parquet", images, group=200), cache_dir=tmp_path / "cache")
    monkeypatch.setattr(encoded, "_PIECE_BYTES", 1000)
    pieces, write_pieces = [], checked.write

    def spy(file, begin, rows, given):
        kept = list(given)
        pieces.extend(kept)
        write_pieces(file, begin, rows, iter(kept))

    monkeypatch.setattr(checked, "write", spy)
    assert opened.encoded(np.arange(200)) == images
    assert len(pieces) > 20
    assert max(sum(map(len, piece)) for piece in pieces) < 3000


def test_a_row_group_of_too_many_bytes_is_refused(tmp_path, monkeypatch):
    """One image, many times over, takes few bytes in a file and as many as one likes beyond."""
    file = write(tmp_path / "a.parquet", [b"x" * 10_000] * 500, group=500)
    assert file.stat().st_size < 50_000
    monkeypatch.setattr(encoded, "_MOST_BYTES", 4_000_000)
    images = ParquetImages.open(file, cache_dir=tmp_path / "cache")
    with pytest.raises(DataError, match=r"a\.parquet, row group 0: its images are more than 4000000 bytes"):
        images.encoded(np.array([0]))
    assert not [file for file in (tmp_path / "cache" / "images").glob("[!l]*/*")]


@pytest.mark.parametrize(
    ("raised", "kind", "said"),
    [
        (pa.ArrowInvalid("bad"), DataError, "not a valid Parquet file"),
        (pa.ArrowNotImplementedError("codec"), DataError, "not a valid Parquet file"),
        (pa.ArrowKeyError("key"), DataError, "not a valid Parquet file"),
        (pa.ArrowCapacityError("full"), DataError, "not a valid Parquet file"),
        (OSError("Corrupt snappy compressed data."), DataError, "Corrupt snappy"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), DataError, "invalid start byte"),
        (OverflowError("too large"), DataError, "cannot be read"),
        (pa.ArrowMemoryError("malloc of size 9"), StorageError, "more memory than there is"),
        (MemoryError(), StorageError, "more memory than there is"),
    ],
)
def test_whatever_pyarrow_raises_names_file_and_row_group(raised, kind, said, tmp_path):
    place = files.at(write(tmp_path / "a.parquet", [pixel(0)]))
    entry = place.entry()
    for group, where in ((None, r"a\.parquet: "), (3, r"a\.parquet, row group 3: ")):
        with pytest.raises(Emc2Error, match=where + ".*" + said) as found, foreign.opened(place, entry, group=group):
            raise raised
        assert type(found.value) is kind


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A set of ten groups of three, of which the fourth (rows 9, 10, 11) cannot be read."""
    file = write(tmp_path / "source" / "train.parquet", [pixel(r) for r in range(30)])
    column = pq.read_metadata(file).row_group(3).column(0)
    content = bytearray(file.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    file.write_bytes(content)
    return file


def test_rows_of_a_damaged_row_group_of_the_source_stop_an_ingest_or_are_listed(damaged, tmp_path):
    options = {"workers": 0, "cache_dir": str(tmp_path / "cache"), "keep_order": True}
    with pytest.raises(DataError, match=r"train\.parquet, row 9: .*row group 3: .*--skip-unreadable"):
        ingest(str(damaged.parent), str(tmp_path / "set"), **options)
    done = ingest(str(damaged.parent), str(tmp_path / "set"), skip_unreadable=True, **options)
    assert (done["rows"], done["unreadable"]) == ({"train": 27}, 3)
    made = ParquetImages.open(tmp_path / "set", cache_dir=tmp_path / "cache")
    assert made.encoded(np.arange(27)) == [pixel(r) for r in range(30) if r not in (9, 10, 11)]


def test_a_damaged_cache_costs_no_image(tmp_path):
    source = write(tmp_path / "source" / "train.parquet", [pixel(r) for r in range(30)]).parent
    cache = tmp_path / "cache"
    ParquetImages.open(source, cache_dir=cache).get(np.arange(30))
    for file in cache.glob("images/[!l]*/*"):
        file.write_bytes(file.read_bytes()[:90])
    done = ingest(str(source), str(tmp_path / "set"), workers=0, skip_unreadable=True, cache_dir=str(cache))
    assert (done["rows"], done["unreadable"]) == ({"train": 30}, 0)


def test_a_source_that_changes_while_it_is_read_is_no_fault_of_its_images(tmp_path, monkeypatch):
    source = write(tmp_path / "source" / "train-1.parquet", [pixel(r) for r in range(30)]).parent
    options = {"workers": 0, "skip_unreadable": True, "cache_dir": str(tmp_path / "cache")}
    first = ParquetImages.open.__func__

    def late(what):
        def opened(cls, *arguments, **keywords):
            what()
            return first(cls, *arguments, **keywords)

        monkeypatch.setattr(ParquetImages, "open", classmethod(opened))

    late(lambda: write(source / "train-0.parquet", [pixel(9)] * 4))  # every row has another number now
    with pytest.raises(StorageError, match="source: changed since it was listed"):
        ingest(str(source), str(tmp_path / "set"), **options)
    late(lambda: (source / "train-0.parquet").write_bytes(b"nonsense"))
    with pytest.raises(StorageError, match=r"source: no longer what it was when it was listed: .*train-0"):
        ingest(str(source), str(tmp_path / "other"), **options)
    assert not list(tmp_path.glob("*/manifest.json"))


def test_paths_in_any_encoding_are_kept_as_text(tmp_path):
    path = pa.array([b"caf\xe9.png", b"b.png", None], pa.binary()).view(pa.string())
    bytes_ = pa.array([pixel(r) for r in range(3)], pa.binary())
    image = pa.StructArray.from_arrays([bytes_, path], fields=list(IMAGE))
    (tmp_path / "source").mkdir()
    pq.write_table(pa.table({"image": image}), tmp_path / "source" / "train.parquet")
    options = {"workers": 0, "keep_order": True, "cache_dir": str(tmp_path / "cache")}
    ingest(str(tmp_path / "source"), str(tmp_path / "set"), **options)
    made = pq.read_table(next((tmp_path / "set").glob("train-*.parquet")))
    assert [row["path"] for row in made["image"].to_pylist()] == ["caf\\xe9.png", "b.png", None]
