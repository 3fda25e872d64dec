"""Decoded images that are kept are those that are decoded, whatever becomes of the file; how far images are shrunk."""

import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from emc2dist.config import Views
from emc2dist.data.decoded import _ENTRY, DecodedFile, DecodedImages, shorter_side, shrunk
from emc2dist.data.encoded import Traffic
from emc2dist.towers.parameters import draw

NAME = "0123456789abcdef01234567"
COUNT = 20
ALL = np.arange(COUNT)


class Photos:
    """Images of many sizes, and how many were decoded."""

    def __init__(self) -> None:
        draws = np.random.default_rng(0)
        shapes = draws.integers(1, 40, (COUNT, 2))
        self.images = [torch.from_numpy(draws.integers(0, 256, (3, *shape), np.uint8)) for shape in shapes]
        self.decoded: list[int] = []
        self.traffic = Traffic(hits=3)

    def get(self, indices):
        self.decoded += indices.tolist()
        return [self.images[index] for index in indices]


@pytest.fixture
def photos() -> Photos:
    return Photos()


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr("emc2dist.terminal._said", set())
    return tmp_path / "cache" / "decoded" / NAME


def kept_in(path, limit: int = 2**20) -> DecodedFile:
    return DecodedFile(path.parent, path.name, COUNT, limit)


def assert_gives(images: DecodedImages, photos: Photos, indices: np.ndarray) -> None:
    for image, index in zip(images.get(indices), indices, strict=True):
        assert torch.equal(image, photos.images[index])


def test_an_image_is_decoded_once_for_all_processes(photos, path):
    images = DecodedImages(photos, kept_in(path))
    assert_gives(images, photos, np.array([3, 7, 3, 0]))
    assert photos.decoded == [3, 7, 0]
    other = pickle.loads(pickle.dumps(images))._file
    for again in (images, DecodedImages(photos, other), DecodedImages(photos, kept_in(path))):
        assert_gives(again, photos, np.array([7, 5, 3]))
    assert photos.decoded == [3, 7, 0, 5]
    assert images.traffic == Traffic(hits=3)


def test_threads_and_processes_write_beside_each_other(photos, path):
    files = [kept_in(path) for _ in range(3)]  # each as of a process of its own
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda n: files[n % 3].put(n, photos.images[n]), range(COUNT)))
    assert_gives(DecodedImages(photos, kept_in(path)), photos, ALL)
    assert photos.decoded == []


@pytest.mark.parametrize("damage", ["pixels", "places", "cut", "cut in the table", "zeros", "of another name"])
def test_what_is_damaged_is_decoded_again_and_that_is_said(photos, path, damage, capfd):
    DecodedImages(photos, kept_in(path)).get(ALL)
    content = bytearray(path.read_bytes())
    table = COUNT * _ENTRY
    if damage == "pixels":
        content[table + 5] ^= 1
    elif damage == "places":
        content[2 * _ENTRY] ^= 1
    elif damage == "cut":
        del content[-10:]
    elif damage == "cut in the table":
        del content[table - 10 :]
    elif damage == "zeros":
        content[table:] = bytes(len(content) - table)
    path.write_bytes(content)
    if damage == "of another name":
        path = path.rename(path.with_name(NAME[::-1]))
    photos.decoded.clear()
    for _ in range(2):
        assert_gives(DecodedImages(photos, kept_in(path)), photos, ALL)
    assert len(photos.decoded) == (1 if damage in ("pixels", "places", "cut") else COUNT)
    assert capfd.readouterr().err.count("damaged file of the cache") == 1


def test_an_image_without_room_is_decoded_each_time(photos, path, capfd):
    size = COUNT * _ENTRY + sum(image.nbytes for image in photos.images[:10])
    for _ in range(2):
        assert_gives(DecodedImages(photos, kept_in(path, size + 2)), photos, ALL)
    assert path.stat().st_size == size
    assert sorted(photos.decoded) == sorted([*range(COUNT), *range(10, COUNT)])
    assert capfd.readouterr().err.count("no room for all decoded images, so the others") == 1


def test_files_that_nobody_uses_make_room(photos, path):
    path.parent.mkdir(parents=True)
    unused, used, others = path.with_name("f" * 24), path.with_name("e" * 24), path.with_name("notes")
    for file in (unused, used, others):
        file.write_bytes(bytes(2**20))
    for file in (unused, others):
        os.utime(file, (0, time.time() - 2 * 24 * 3600))
    DecodedImages(photos, kept_in(path, 2**20 + 2**18)).get(ALL)
    assert (unused.exists(), used.exists(), others.exists()) == (False, True, True)
    assert path.stat().st_size > COUNT * _ENTRY


@pytest.mark.parametrize("hindrance", ["folder", "disk", "pipe"])
def test_where_nothing_can_be_kept_things_go_on_and_that_is_said(photos, path, hindrance, monkeypatch, capfd):
    if hindrance == "folder":
        path.parent.parent.mkdir()
        path.parent.write_text("a file")
    elif hindrance == "pipe":
        path.parent.mkdir(parents=True)
        os.mkfifo(path)
    else:

        def full(*arguments):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "pwrite", full)
    images = DecodedImages(photos, kept_in(path))
    for _ in range(2):
        assert_gives(images, photos, ALL)
    assert len(photos.decoded) == 2 * COUNT
    assert capfd.readouterr().err.count("decoded images cannot be kept") == 1


@pytest.mark.parametrize("shape", [(100, 100), (60, 240), (240, 61), (400, 90)])
def test_an_image_is_shrunk_to_its_shorter_side(shape):
    wave = (127 + 100 * torch.sin(torch.arange(shape[1]) / 15)).to(torch.uint8).expand(3, *shape)
    small = shrunk(wave, 50)
    assert min(small.shape[1:]) == 50
    assert small.shape[1] / small.shape[2] == pytest.approx(shape[0] / shape[1], rel=0.01)
    places = (torch.arange(small.shape[2]) + 0.5) * shape[1] / small.shape[2] - 0.5
    expected = 127 + 100 * torch.sin(places / 15)
    assert (small[0, 5, 3:-3] - expected[3:-3]).abs().max() < 3
    assert shrunk(wave, min(shape)) is wave


CROPS = [((0.2, 1.0), (0.75, 4 / 3)), ((0.08, 0.5), (0.5, 3.0)), ((0.5, 1.0), (1.5, 2.0))]


@pytest.mark.parametrize(("crop", "aspect"), CROPS)
def test_no_crop_of_a_shrunk_image_has_fewer_pixels_than_its_view(crop, aspect):
    views = Views(size=40, crop=crop, aspect=aspect)
    side, streams = shorter_side(views), np.arange(4000)
    for shape in ((1, 1), (1, 3), (2, 1)):
        drawn = draw(views, streams, np.full(4000, side * shape[0]), np.full(4000, side * shape[1]))
        least = min(drawn["height"].min(), drawn["width"].min())
        assert least >= 39.5
        if shape == (1, 1):  # and no more than that is asked for
            assert least <= 44


def test_shrinking_is_part_of_the_images_and_of_their_file(photos, path):
    images = DecodedImages(photos, kept_in(path), 8)
    for _ in range(2):
        for image, index in zip(images.get(ALL), ALL, strict=True):
            assert torch.equal(image, shrunk(photos.images[index], 8))
    assert len(photos.decoded) == COUNT
    names = {
        DecodedFile.of(fingerprint, COUNT, shorter, str(path.parent), 1)._path
        for fingerprint in ("one", "other")
        for shorter in (None, 8, 9)
    }
    assert len(names) == 6
