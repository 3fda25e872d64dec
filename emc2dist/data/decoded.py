"""Decoded images, kept on this machine's disk where there is room, and made no larger than random crops need.

An image is decoded when it is first asked for; from then on it is read, which takes a copy of its bytes out of the
operating system's memory. All processes of a machine share one file of a set (`DecodedFile`).
"""

import fcntl
import hashlib
import math
import os
import re
import stat
import struct
import threading
import time
import zlib
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from emc2dist.config import Views
from emc2dist.data import kept
from emc2dist.data.encoded import Traffic
from emc2dist.data.images import Pixels
from emc2dist.terminal import say_once

_LAYOUT = 1  # of the file: another version's is another number
_PLACE = struct.Struct("<qiiI")  # where the pixels begin, height, width, their CRC-32
_CHECK = struct.Struct("<I")  # CRC-32 of these, after the file's name and the row
_ENTRY = _PLACE.size + _CHECK.size
_ABSENT = bytes(_ENTRY)
_NAME = re.compile(r"[0-9a-f]{24}")
_UNUSED_S = 24 * 3600


def shorter_side(views: Views) -> int:
    """Pixels of an image's shorter side from which on no random crop has fewer pixels than the view made of it.

    The smallest crop is a share `crop[0]` of the image's area, and its sides are as unlike as `aspect` allows. Of a
    square image of s pixels its shorter side is s sqrt(crop[0] aspect), and that is to be `size`; other images have
    larger crops.
    """
    low, high = views.aspect
    return math.ceil(views.size / math.sqrt(views.crop[0] * min(1.0, low, 1 / high)))


def shrunk(image: Tensor, shorter: int) -> Tensor:
    """An image, uint8 [3, H, W], whose shorter side is no longer than `shorter`; bilinear with antialiasing."""
    height, width = image.shape[1:]
    if min(height, width) <= shorter:
        return image
    size = [max(1, round(side * shorter / min(height, width))) for side in (width, height)]
    # By Pillow, whose arithmetic is the same on any machine.
    resized = Image.fromarray(_by_pixel(image)).resize((size[0], size[1]), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def _by_pixel(image: Tensor) -> NDArray[np.uint8]:
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


class DecodedImages:
    """Images of `images` by index, made no larger than `shorter` says, and kept in `file`. Picklable."""

    def __init__(self, images: Pixels, file: "DecodedFile | None" = None, shorter: int | None = None) -> None:
        self._images, self._file, self._shorter = images, file, shorter

    @property
    def traffic(self) -> Traffic:
        """What had to be decoded has asked for so far."""
        return self._images.traffic

    def get(self, indices: NDArray[np.int64]) -> list[Tensor]:
        """The images, uint8 [3, H, W] each, in the order asked. Raises as those of `images`."""
        found = {} if self._file is None else {index: self._file.get(index) for index in set(indices.tolist())}
        missing = [index for index in dict.fromkeys(indices.tolist()) if found.get(index) is None]
        if missing:
            for index, image in zip(missing, self._images.get(np.array(missing)), strict=True):
                found[index] = self._made(index, image)
        return [found[index] for index in indices.tolist()]  # type: ignore[misc]

    def _made(self, index: int, image: Tensor) -> Tensor:
        made = image if self._shorter is None else shrunk(image, self._shorter)
        if self._file is not None:
            self._file.put(index, made)
        return made


class DecodedFile:
    """Pixels of a set's images in one file, `folder/NAME`, of which all files together take `limit_bytes` at most.

        of each image, 24 bytes     where it begins (int64), height, width (int32), its CRC-32, CRC-32 of these 20 bytes
        then, as they come          the pixels of images, [H, W, 3]

    What is read is checked; what is damaged is said, once, and made anew. Where there is no room, an image is not kept,
    and those that are stay: an epoch asks for each image once, so none is worth more than another. Files that nobody
    has opened or filled for a day make room first. Images are read rather than mapped: where somebody cuts a mapped
    file short, the process dies that reads it.
    """

    def __init__(self, folder: Path, name: str, rows: int, limit_bytes: int) -> None:
        self._path, self._rows, self._limit = folder / name, rows, limit_bytes
        self._begin()

    @classmethod
    def of(cls, images_fingerprint: str, rows: int, shorter: int | None, cache_dir: str, mib: int) -> "DecodedFile":
        """The file of images with a fingerprint, made no larger than `shorter`, in `data.cache_dir`."""
        what = (_LAYOUT, images_fingerprint, rows, shorter, PIL.__version__, simplejpeg.__version__)
        name = hashlib.sha256(repr(what).encode()).hexdigest()[:24]
        return cls(kept.cache_folder(cache_dir) / "decoded", name, rows, mib * 2**20)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_file", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def _begin(self) -> None:
        """What is of this process alone."""
        self._lock = threading.Lock()
        self._file: FileIO | None = None
        self._opened = self._without_writing = False

    def get(self, index: int) -> Tensor | None:
        """An image, uint8 [3, H, W]; None where it is not kept."""
        file = self._open()
        if file is None or not 0 <= index < self._rows:
            return None
        try:
            return self._read(file, index)
        except (_Damaged, OSError):
            kept.made_anew(self._path)
            return None

    def put(self, index: int, image: Tensor) -> None:
        """Keep an image, if there is room."""
        file = self._open()
        if file is None or self._without_writing:
            return
        pixels = _by_pixel(image)
        try:
            start = self._room(file, pixels.nbytes)
            if start is not None:
                place = _PLACE.pack(start, *pixels.shape[:2], zlib.crc32(pixels.data))
                _write(file, pixels.data.cast("B"), start)
                _write(file, memoryview(place + self._check(place, index)), index * _ENTRY)  # last: it vouches
        except OSError as error:  # as of a full disk
            self._give_up(error)
            self._without_writing = True

    def _read(self, file: FileIO, index: int) -> Tensor | None:
        entry = os.pread(file.fileno(), _ENTRY, index * _ENTRY)
        if entry in (b"", _ABSENT):
            return None
        place = entry[: _PLACE.size]
        if entry[_PLACE.size :] != self._check(place, index):
            raise _Damaged
        start, height, width, checksum = _PLACE.unpack(place)
        pixels = np.empty((height, width, 3), np.uint8)
        read = os.preadv(file.fileno(), [pixels.data.cast("B")], start)
        if read != pixels.nbytes or zlib.crc32(pixels.data) != checksum:
            raise _Damaged
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def _check(self, place: bytes, index: int) -> bytes:
        return _CHECK.pack(zlib.crc32(place, zlib.crc32(f"{self._path.name} {index}".encode())))

    def _room(self, file: FileIO, size: int) -> int | None:
        """Where so many bytes may be written, which nobody else will write to; None where they would be too many."""
        with self._lock:  # threads of one process share the lock of the file
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                end = os.fstat(file.fileno()).st_size
                start = max(end, self._rows * _ENTRY)
                if not self._has_room(start + size - end):
                    return None
                os.ftruncate(file.fileno(), start + size)
                return start
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)

    def _has_room(self, size: int) -> bool:
        """Whether so many bytes may be kept; drops files that nobody has opened or filled for a day, if need be."""
        files = self._files()
        held = sum(status.st_size for _, status in files)
        for path, status in files:
            if held + size > self._limit and path != self._path and status.st_mtime < time.time() - _UNUSED_S:
                path.unlink(missing_ok=True)
                held -= status.st_size
        if held + size <= self._limit:
            return True
        text = f"{self._path.parent}: there is no room for all decoded images, so the others are decoded each time"
        say_once((self._path.parent, "no room"), f"{text}; raise data.decoded_mib")
        return False

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        """What was written by an object of this class."""
        found = []
        for path in self._path.parent.iterdir():
            with suppress(FileNotFoundError):  # another process was faster
                status = path.stat(follow_symlinks=False)
                if _NAME.fullmatch(path.name) and stat.S_ISREG(status.st_mode):
                    found.append((path, status))
        return found

    def _open(self) -> FileIO | None:
        """The file, for reading and writing; None where it cannot be opened."""
        with self._lock:
            if not self._opened:
                self._opened = True
                try:
                    kept.make_folder(self._path.parent, self._path.parent.parent)
                    self._file = kept.open_regular(self._path, "r+", os.O_CREAT)
                    os.utime(self._file.fileno())  # used just now
                except OSError as error:
                    self._give_up(error)
            return self._file

    def _give_up(self, error: OSError) -> None:
        kept.without(self._path.parent, "decoded images cannot be kept", error)


class _Damaged(Exception):
    """The file does not hold the image that was written there."""


def _write(file: FileIO, content: memoryview, start: int) -> None:
    """Write everything, where a disk takes it piece by piece."""
    while content:
        written = os.pwrite(file.fileno(), content, start)
        content, start = content[written:], start + written
