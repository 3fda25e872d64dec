"""The cache on this machine's disk, under images: bound, order of dropping, sharing between processes, and damage."""

import multiprocessing
import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
from data.test_parquet import SCHEMA, colours, pixel, write

from emc2dist.data.cache import DiskCache
from emc2dist.data.encoded import Traffic
from emc2dist.data.parquet import ParquetImages
from emc2dist.errors import StorageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten groups of three rows; row r has colour r."""
    write(tmp_path / "set" / "train.parquet", [pixel(r) for r in range(30)], schema=SCHEMA)
    return tmp_path / "set"


def cached(cache: Path) -> list[str]:
    return sorted(file.name for file in (cache / "images").glob("*/*") if file.parent.name != "locks")


def held(cache: Path) -> int:
    return sum(file.stat().st_size for file in (cache / "images").glob("*/*") if file.parent.name != "locks")


def bounded(folder: Path, cache: Path, extents: float) -> ParquetImages:
    """The set with a cache that holds so many extents: row groups, as this set was not ingested."""
    images = ParquetImages.open(folder, cache_dir=cache)
    assert images is not None
    images._encoded._cache.limit_bytes = int(extents * 3 * (len(pixel(1)) + 24))
    return images


def test_an_extent_is_fetched_once_for_all_who_share_the_cache(folder, tmp_path):
    images = ParquetImages.open(folder, cache_dir=tmp_path / "cache")
    images.get(np.array([0, 1, 4]))
    assert images.traffic == Traffic(hits=0, misses=2, fetched_bytes=6 * (len(pixel(1)) + 24))
    images.get(np.array([2, 3]))
    assert images.traffic == Traffic(hits=2, misses=2, fetched_bytes=6 * (len(pixel(1)) + 24))
    copy = pickle.loads(pickle.dumps(images))
    assert colours(copy.get(np.array([5, 0]))) == [5, 0]
    assert copy.traffic == Traffic(hits=2)


def test_the_cache_keeps_to_its_bound_and_drops_what_was_unused_longest(folder, tmp_path):
    images = bounded(folder, tmp_path / "cache", 8)
    for first in range(0, 24, 3):
        images.get(np.array([first]))
    assert len(cached(tmp_path / "cache")) == 8
    images.get(np.array([0, 3]))  # used again
    images.get(np.array([24]))
    assert held(tmp_path / "cache") <= images._encoded._cache.limit_bytes
    assert cached(tmp_path / "cache") == ["0", "1", "4", "5", "6", "7", "8"]
    before = images.traffic
    images.get(np.array([0, 3]))
    assert images.traffic - before == Traffic(hits=2)


def test_a_cache_smaller_than_an_extent_keeps_none_and_reading_goes_on(folder, tmp_path):
    images = bounded(folder, tmp_path / "cache", 0.5)
    asked = np.random.default_rng(0).permutation(30)
    assert colours(images.get(asked)) == asked.tolist()
    assert cached(tmp_path / "cache") == []


def test_every_order_of_access_stays_right_while_extents_come_and_go(folder, tmp_path):
    images = bounded(folder, tmp_path / "cache", 3)
    rng = np.random.default_rng(1)
    for _ in range(30):
        asked = rng.integers(0, 30, 12)
        assert colours(images.get(asked)) == asked.tolist()
        assert held(tmp_path / "cache") <= images._encoded._cache.limit_bytes


def test_a_changed_file_is_another_set(folder, tmp_path):
    images = ParquetImages.open(folder, cache_dir=tmp_path / "cache")
    assert colours(images.get(np.array([0]))) == [0]
    write(folder / "train.parquet", [pixel(100 + r) for r in range(30)])
    assert colours(ParquetImages.open(folder, cache_dir=tmp_path / "cache").get(np.array([0]))) == [100]
    with pytest.raises(StorageError, match=r"train\.parquet: changed since"):
        images.get(np.array([29]))


def test_what_a_crash_left_in_the_cache_is_fetched_again(folder, tmp_path):
    images = ParquetImages.open(folder, cache_dir=tmp_path / "cache")
    images.get(np.arange(30))
    for file in (tmp_path / "cache" / "images").glob("*/*"):
        if file.parent.name != "locks":
            file.write_bytes(file.read_bytes()[:32] + bytes(file.stat().st_size - 32))
    assert colours(images.get(np.arange(30))) == list(range(30))
    again = images.traffic
    images.get(np.arange(30))
    assert images.traffic - again == Traffic(hits=10)


def test_threads_that_want_the_same_extent_fetch_it_once(folder, tmp_path):
    images = ParquetImages.open(folder, cache_dir=tmp_path / "cache")
    start = threading.Barrier(6)

    def read():
        start.wait(30)
        assert colours(images.get(np.arange(30))) == list(range(30))

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert images.traffic.misses == 10


def test_processes_share_the_folder(folder, tmp_path):
    images = bounded(folder, tmp_path / "cache", 4)
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(2) as pool:
        made = pool.starmap_async(_read, [(images, seed) for seed in range(4)]).get(120)
    for seed, found in enumerate(made):
        assert found == np.random.default_rng(seed).integers(0, 30, 100).tolist()


def _read(images, seed):
    return colours(images.get(np.random.default_rng(seed).integers(0, 30, 100)))


def test_a_folder_that_cannot_be_written_says_which_key_to_change(tmp_path):
    (tmp_path / "file").write_text("in the way")
    cache = DiskCache(tmp_path / "file" / "images", 100)
    with pytest.raises(StorageError, match=r"images: .*; set data\.cache_dir"), cache.filling("a/0"):
        pass


def test_what_is_dropped_stays_readable_for_who_has_it_open(tmp_path):
    cache = DiskCache(tmp_path / "images", 100)
    with cache.put("a/0", lambda file: file.write(b"content")) as file:
        cache.drop("a/0", file)
        assert cache.open("a/0") is None
        assert os.pread(file.fileno(), 7, 0) == b"content"
