"""The images of an extent as one file of the cache: where each lies and its checksum, then the images end to end.

    of each image, 24 bytes    where it begins (int64), bytes (int64), its CRC-32, CRC-32 of these 20 bytes

The last checksum goes on from the file's name and the image's row. So neither what was damaged, nor what belongs to
another name or to another version, nor a file cut short or full of zeros, passes for an image. Each is checked when it
is read, at memory's speed.
"""

import os
import struct
import zlib
from collections.abc import Iterable
from io import FileIO

from emc2dist.data.kept import write_all

LAYOUT = 1
"""Of the file: another version's is another number."""
_PLACE = struct.Struct("<qqI")
_CHECK = struct.Struct("<I")
_ENTRY = _PLACE.size + _CHECK.size


class Damaged(Exception):
    """A file does not hold the image that was written there."""


def seed(name: str) -> int:
    """What the checksums of a file of this name begin with."""
    return zlib.crc32(f"emc2dist {LAYOUT} {name}".encode())


def write(file: FileIO, begin: int, rows: int, pieces: Iterable[list[memoryview | None]]) -> None:
    """Write the images, so many in all, of which each piece holds some neighbours; None where there is none.

    `begin` is the file's `seed`.
    """
    position, table = rows * _ENTRY, bytearray()
    file.seek(position)
    for piece in pieces:
        for image in piece:
            content = b"" if image is None else image
            place = _PLACE.pack(position, len(content), zlib.crc32(content))
            table += place + _CHECK.pack(_check(place, begin, len(table) // _ENTRY))
            position += len(content)
        write_all(file, b"".join(image for image in piece if image is not None))
    assert len(table) == rows * _ENTRY, f"{len(table) // _ENTRY} images where {rows} were announced"
    file.seek(0)
    write_all(file, table)


def read(file: FileIO, begin: int, row: int) -> bytes | None:
    """The image of a row; None where there is none, or an empty one. Raises Damaged."""
    try:
        entry = os.pread(file.fileno(), _ENTRY, row * _ENTRY)
        place = entry[: _PLACE.size]
        if entry[_PLACE.size :] != _CHECK.pack(_check(place, begin, row)):
            raise Damaged
        start, size, checksum = _PLACE.unpack(place)
        image = os.pread(file.fileno(), size, start)
    except OSError as error:  # as of a disk that fails
        raise Damaged from error
    if len(image) != size or zlib.crc32(image) != checksum:
        raise Damaged
    return image or None


def _check(place: bytes, begin: int, row: int) -> int:
    return zlib.crc32(place, (begin + row) & 0xFFFFFFFF)
