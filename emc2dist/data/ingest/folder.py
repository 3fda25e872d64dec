"""Folders of image files.

    imagefolder   ROOT/CLASS/**/image, or ROOT/SPLIT/CLASS/**/image with splits of the usual names. Classes are numbered
                  in the order of their sorted names, as torchvision's ImageFolder numbers them. A split whose images
                  lie in no folders has no labels.
    flat          images at any depth, one split `train`, no labels

Images are known by their extension. Hidden files and folders are passed over; linked folders are followed, each folder
once. An image is written as the very bytes of its file.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from emc2dist.data.ingest.source import Samples, Source, Split, listing_digest
from emc2dist.errors import DataError, StorageError

EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".jp2",
     ".tga", ".ppm", ".pgm", ".pbm", ".pnm")
)  # fmt: skip
"""Of files that are taken for images, in lower case."""
SPLITS = ("train", "val", "valid", "validation", "test", "unlabeled", "unlabelled")
"""Folders of these names, where the root has no others with images, are splits and not classes."""
MAX_BYTES = 2**30
"""A file larger than this is no image, and is not read into memory to find out."""


class Folder(Source):
    """Image files below a folder.

    Raises:
        DataError: no images there, or their places say two things at once; names one of them.
    """

    def __init__(self, root: Path, *, flat: bool) -> None:
        self.root = str(root)
        listing = Listing(root)
        self._names = [name for name, _ in listing.images]
        if not self._names:
            raise DataError(f"{root}: no images; give a folder that holds some ({', '.join(sorted(EXTENSIONS))})")
        self.digest = listing_digest(listing.images)
        self.remarks = [f"{listing.others} files that are no images were passed over"] if listing.others else []
        places = _places(self.root, self._names) if not flat else [_Place("train", None) for _ in self._names]
        self.classes = sorted({place.kind for place in places if place.kind is not None})
        self.splits = _splits(places, self.classes)

    def samples(self, positions: NDArray[np.int64]) -> Samples:
        """The images at some positions, in that order."""
        return _Files(self.root, [self._names[position] for position in positions])


@dataclass(frozen=True)
class _Files(Samples):
    root: str
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def path(self, k: int) -> str:
        return printable(self.names[k])

    def read(self, k: int) -> bytes:
        file = Path(self.root, self.names[k])
        try:
            return _read_bounded(file)
        except OSError as error:
            if not file.parent.is_dir():  # the disk is gone, and not one image
                raise StorageError(f"{file.parent}: gone while it was read; bring it back, then run again") from error
            raise DataError(f"cannot be read ({error.strerror or error})") from error


class Listing:
    """The files below a folder: `images` as (name from the folder on, bytes), sorted, and the number of `others`."""

    def __init__(self, root: Path) -> None:
        self._seen: set[tuple[int, int]] = set()
        self.others = 0
        self.images = sorted(self._images(str(root), ""))

    def _images(self, folder: str, prefix: str) -> Iterator[tuple[str, int]]:
        identity, entries = _scan(folder)
        if identity in self._seen:
            return
        self._seen.add(identity)
        for entry in entries:
            if entry.is_dir():
                yield from self._images(entry.path, f"{prefix}{entry.name}/")
            elif (size := _image_size(entry)) is not None:
                yield prefix + entry.name, size
            else:
                self.others += 1


def _read_bounded(file: Path) -> bytes:
    """The content of a file that could be an image. Raises OSError."""
    with file.open("rb") as opened:
        if os.fstat(opened.fileno()).st_size > MAX_BYTES:
            raise OSError(f"more than {MAX_BYTES} bytes, which no image has")
        return opened.read()


def printable(name: str) -> str:
    """A file's name as proper Unicode: bytes that are none are replaced."""
    return os.fsencode(name).decode("utf-8", "replace")


def _scan(folder: str) -> tuple[tuple[int, int], list[os.DirEntry[str]]]:
    """What tells a folder from all others however it is reached, and what is in it and not hidden, by name."""
    try:
        status = os.stat(folder)
        with os.scandir(folder) as scan:
            entries = [entry for entry in scan if not entry.name.startswith(".")]
    except OSError as error:
        raise StorageError(f"{folder}: cannot be listed ({error.strerror}); check that it may be read") from error
    return (status.st_dev, status.st_ino), sorted(entries, key=lambda entry: entry.name)


def _image_size(entry: os.DirEntry[str]) -> int | None:
    """Bytes of what is named as an image; -1 for a link that leads nowhere, which is an image that cannot be read."""
    if Path(entry.name).suffix.lower() not in EXTENSIONS:
        return None
    if entry.is_file():
        return entry.stat().st_size
    return -1 if entry.is_symlink() and not Path(entry.path).exists() else None


class _Place(NamedTuple):
    """Where an image belongs."""

    split: str
    kind: str | None
    """Name of its class."""


def _places(root: str, names: list[str]) -> list[_Place]:
    """Split and class of each image, by the folders it lies in."""
    folders = [printable(name).split("/")[:-1] for name in names]
    tops = {found[0] for found in folders if found}
    if tops and tops <= set(SPLITS):
        _check_alike(root, names, [bool(found) for found in folders])
        places = [_Place(found[0], found[1] if len(found) > 1 else None) for found in folders]
    else:
        places = [_Place("train", found[0] if found else None) for found in folders]
    for split in {place.split for place in places}:
        members = [n for n, place in enumerate(places) if place.split == split]
        _check_alike(root, [names[n] for n in members], [places[n].kind is not None for n in members])
    return places


def _check_alike(root: str, names: list[str], in_folders: list[bool]) -> None:
    if len(set(in_folders)) == 2:
        inside, outside = (printable(names[in_folders.index(which)]) for which in (True, False))
        raise DataError(
            f"{root}: {inside} lies in a folder of its class or split, {outside} in none; move one of them, or "
            "take all images without labels with --kind flat"
        )


def _splits(places: list[_Place], classes: list[str]) -> dict[str, Split]:
    number = {name: label for label, name in enumerate(classes)}
    splits = {}
    for split, members in groupby(range(len(places)), key=lambda position: places[position].split):
        positions = np.array(list(members), np.int64)
        kinds = [places[position].kind for position in positions]
        labels = None if None in kinds else np.array([number[kind] for kind in kinds if kind is not None], np.int64)
        splits[split] = Split(positions, labels)
    return splits
