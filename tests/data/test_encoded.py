"""Ingested sets: any image is a range of bytes, of the Parquet file on disk or of what was fetched from a real S3."""

import errno
import os
import pickle

import numpy as np
import pytest
import torch
from data.test_parquet import colours, pixel, write

from emc2dist import files
from emc2dist.config import S3
from emc2dist.data import encoded
from emc2dist.data.encoded import Traffic
from emc2dist.data.ingest import ingest
from emc2dist.data.parquet import ParquetImages
from emc2dist.errors import DataError, StorageError, StorageUnreachable

ROWS = 256  # row r has colour r, in files of 150 and 106 rows: groups of 100, 50, 100, 6


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source ☃"
    write(folder / "train.parquet", [pixel(r) for r in range(ROWS)], [r % 2 for r in range(ROWS)])
    write(folder / "test.parquet", [pixel(200 + r) for r in range(20)], [0] * 20)
    return folder


@pytest.fixture(params=["disk", "s3"])
def ingested(request, source, tmp_path):
    uri = str(tmp_path / "set ☃") if request.param == "disk" else f"{request.getfixturevalue('s3').uri}/set ☃"
    ingest(str(source), uri, rows_per_file=150, workers=1, cache_dir=str(tmp_path / "ingest"))
    return uri


def opened(uri, tmp_path, **options):
    return ParquetImages.open(uri, cache_dir=tmp_path / "cache", **options)


def test_any_index_gives_its_image_and_its_label(ingested, tmp_path):
    images = opened(ingested, tmp_path)
    shown = colours(images.get(np.arange(ROWS)))
    assert sorted(shown) == list(range(ROWS))
    assert shown != sorted(shown)  # shuffled once, at ingest
    rng = np.random.default_rng(0)
    for _ in range(5):
        asked = rng.integers(0, ROWS, 40)
        assert colours(images.get(asked)) == [shown[index] for index in asked]
        assert images.labels(asked).tolist() == [shown[index] % 2 for index in asked]
    assert images.classes == ["cat", "dog"]
    assert images.blocks.tolist() == [100, 50, 100, 6]
    copy = pickle.loads(pickle.dumps(images))
    assert colours(copy.get(np.array([7, 255]))) == [shown[7], shown[255]]
    assert len(opened(ingested, tmp_path, split="test")) == 20
    assert sorted(colours(opened(ingested, tmp_path, limit=120).get(np.arange(120)))) == sorted(shown[:120])


def test_what_lies_on_disk_is_read_where_it_is(source, tmp_path):
    ingest(str(source), str(tmp_path / "set"), rows_per_file=150, workers=1, cache_dir=str(tmp_path / "ingest"))
    images = opened(tmp_path / "set", tmp_path)
    images.get(np.arange(ROWS))
    images.labels(np.arange(ROWS))
    assert images.traffic == Traffic(hits=2)  # a file is an extent
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("extent_bytes", "extents"), [(4 * 2**20, 2), (1, 4)])
def test_what_lies_on_s3_is_fetched_once_in_extents_of_some_size(
    source, s3, tmp_path, monkeypatch, extent_bytes, extents
):
    monkeypatch.setattr(encoded, "_EXTENT_BYTES", extent_bytes)
    uri = f"{s3.uri}/set"
    ingest(str(source), uri, rows_per_file=150, workers=1, cache_dir=str(tmp_path / "ingest"))
    images = opened(uri, tmp_path)
    shown = colours(images.get(np.arange(ROWS)))
    assert sorted(shown) == list(range(ROWS))
    fetched = images.traffic
    assert (fetched.hits, fetched.misses) == (0, extents)
    assert ROWS * len(pixel(1)) < fetched.fetched_bytes < 2 * ROWS * len(pixel(1))
    s3.server.kill_object_server()  # from here on there is only what this machine holds
    assert colours(images.get(np.arange(ROWS))) == shown
    assert images.traffic - fetched == Traffic(hits=extents)
    assert images.labels(np.array([0])).tolist() == [shown[0] % 2]


def test_a_damaged_extent_is_fetched_from_s3_again(source, s3, tmp_path):
    uri = f"{s3.uri}/set"
    ingest(str(source), uri, rows_per_file=150, workers=1, cache_dir=str(tmp_path / "ingest"))
    images = opened(uri, tmp_path)
    shown = images.encoded(np.arange(ROWS))
    for file in (tmp_path / "cache" / "images").glob("[!l]*/*"):
        content = bytearray(file.read_bytes())
        content[-9] ^= 1
        file.write_bytes(content)
    before = images.traffic
    assert images.encoded(np.arange(ROWS)) == shown
    assert (images.traffic - before).misses == 2
    assert images.encoded(np.arange(ROWS)) == shown
    assert (images.traffic - before).misses == 2


def test_labels_of_a_set_on_s3_are_one_small_file_and_images_are_not_touched(source, s3, tmp_path):
    uri = f"{s3.uri}/set"
    ingest(str(source), uri, workers=1, cache_dir=str(tmp_path / "ingest"))
    images = opened(uri, tmp_path)
    images.labels(np.arange(ROWS))
    assert images.traffic == Traffic()


def test_an_object_that_changes_under_a_run_is_refused(source, s3, tmp_path):
    uri = f"{s3.uri}/set"
    ingest(str(source), uri, workers=1, cache_dir=str(tmp_path / "ingest"))
    images = opened(uri, tmp_path)
    place = files.at(uri) / "train-00000-of-00001.parquet"
    content = place.read()
    place.write(content[:-1] + b"X")
    with pytest.raises(StorageError, match=r"train-00000-of-00001\.parquet: changed since the set was opened"):
        images.get(np.array([0]))
    with pytest.raises(DataError, match=r"train-00000-of-00001\.parquet: changed since it was ingested \(its ETag"):
        opened(uri, tmp_path)
    place.write(content[:-100])
    with pytest.raises(DataError, match=r"train-00000-of-00001\.parquet: \d+ bytes, but \d+ when .* truncated"):
        opened(uri, tmp_path)
    place.remove()
    with pytest.raises(DataError, match=r"train-00000-of-00001\.parquet: missing, though manifest\.json lists it"):
        opened(uri, tmp_path)


def test_a_file_that_changes_on_disk_is_refused(source, tmp_path):
    ingest(str(source), str(tmp_path / "set"), workers=1, cache_dir=str(tmp_path / "ingest"))
    images = opened(tmp_path / "set", tmp_path)
    file = tmp_path / "set" / "train-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes())
    with pytest.raises(StorageError, match="changed since the set was opened"):
        images.get(np.array([0]))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match="truncated or replaced"):
        opened(tmp_path / "set", tmp_path)


def test_a_file_cut_short_under_a_run_is_no_picture(source, tmp_path, monkeypatch):
    ingest(str(source), str(tmp_path / "set"), workers=1, cache_dir=str(tmp_path / "ingest"))
    images = opened(tmp_path / "set", tmp_path)
    read = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, start: read(file, size, start)[:-1])
    with pytest.raises(StorageError, match=r"train-00000-of-00001\.parquet: truncated: \d+ bytes where \d+ were"):
        images.get(np.array([0]))
    monkeypatch.setattr(os, "pread", _fail)
    with pytest.raises(StorageError, match=r"train-00000-of-00001\.parquet: Input/output error; check"):
        images.get(np.array([0]))


def _fail(*arguments):
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_server_without_its_disks_is_reported_as_such(source, s3, tmp_path):
    uri = f"{s3.uri}/set"
    ingest(str(source), uri, workers=1, cache_dir=str(tmp_path / "ingest"))
    images = opened(uri, tmp_path, s3=S3(attempts=2))
    s3.server.kill_object_server()
    with pytest.raises(StorageUnreachable, match=r"train-00000.*no usable answer after 2 attempts"):
        images.get(np.array([0]))
    s3.server.start_object_server()
    assert len(images.get(np.array([0]))) == 1


def test_damaged_manifests_and_indices_are_named(source, tmp_path):
    ingest(str(source), str(tmp_path / "set"), workers=1, cache_dir=str(tmp_path / "ingest"))
    manifest, index = tmp_path / "set" / "manifest.json", tmp_path / "set" / "train.index.npz"
    whole = manifest.read_text()
    manifest.write_text(whole.replace('"rows": 256', '"rows": "256"'))
    with pytest.raises(DataError, match=r"manifest\.json: splits\.train\.files\.0\.rows: .*; ingest the set again"):
        opened(tmp_path / "set", tmp_path)
    manifest.write_text(whole[:100])
    with pytest.raises(DataError, match=r"manifest\.json: .*; ingest the set again"):
        opened(tmp_path / "set", tmp_path)
    manifest.write_text(whole)
    index.write_bytes((tmp_path / "set" / "test.index.npz").read_bytes())
    with pytest.raises(DataError, match=r"train\.index\.npz: does not belong to manifest\.json"):
        opened(tmp_path / "set", tmp_path)
    index.write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"train\.index\.npz: damaged"):
        opened(tmp_path / "set", tmp_path)


def test_decoding_on_threads_keeps_the_order(tmp_path):
    write(tmp_path / "a.parquet", [pixel(r) for r in range(100)])
    images = opened(tmp_path / "a.parquet", tmp_path)
    try:
        torch.set_num_threads(3)
        assert colours(images.get(np.arange(100))) == list(range(100))
    finally:
        torch.set_num_threads(1)


def test_a_set_is_copied_with_all_its_splits(source, tmp_path):
    write(source / "validation-0.parquet", [pixel(9)] * 3, [1] * 3)
    options = {"workers": 1, "cache_dir": str(tmp_path / "ingest")}
    splits = ["train", "test=extra", "validation=test"]
    ingest(str(source), str(tmp_path / "set"), splits=splits, **options)
    ingest(str(tmp_path / "set"), str(tmp_path / "copy"), keep_order=True, **options)
    for split, rows in {"train": ROWS, "extra": 20, "test": 3}.items():
        old, new = (opened(tmp_path / name, tmp_path, split=split) for name in ("set", "copy"))
        everything = np.arange(rows)
        assert new.encoded(everything) == old.encoded(everything)
        assert new.labels(everything).tolist() == old.labels(everything).tolist()
    assert opened(tmp_path / "copy", tmp_path, split="validation") is None
