"""What a file or a folder can do, wherever it lies."""

import io
from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from pyarrow import fs as arrow

from emc2dist.errors import StorageError

CHANGED = (
    "changed since the set was opened, or since it was ingested; ingest it again, or start the run again "
    "if the change was meant"
)
"""What to say of a file that is not the one of its tag."""


class Entry(NamedTuple):
    """A file of a folder."""

    name: str
    size: int
    """Bytes."""
    tag: str
    """Changes when the content does."""


class Place(ABC):
    """A file or a folder. `str(place)` is what a person would write."""

    remote: bool
    """Whether it lies beyond the network."""

    @abstractmethod
    def __truediv__(self, name: str) -> "Place":
        """What lies at `name` (which may hold slashes) in this folder."""

    @abstractmethod
    def beside(self, name: str) -> "Place":
        """What lies at `name` in the folder that this lies in."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The last part of the path."""

    @abstractmethod
    def entry(self) -> Entry | None:
        """This file, or None where there is no file of this name."""

    @abstractmethod
    def age_s(self) -> float | None:
        """Seconds since this file was written, by the storage's own clock where it tells that; None: there is none."""

    @abstractmethod
    def entries(self) -> list[Entry]:
        """The files directly in this folder, by name; none where there is no folder."""

    @abstractmethod
    def folders(self) -> list[str]:
        """The names of the folders directly in this one, sorted."""

    @abstractmethod
    def read(self) -> bytes:
        """The whole file."""

    @abstractmethod
    def read_range(self, start: int, size: int, tag: str) -> bytes:
        """`size` bytes from `start`. Raises StorageError where the tag or the length is no longer the file's."""

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Write the file: whole or not at all. Its folder is made where it is missing."""

    @abstractmethod
    def append(self, data: bytes) -> None:
        """Add to the end of the file, which is made where it is missing. On S3, which cannot, it is written anew."""

    @abstractmethod
    def put(self, source: Path) -> Entry:
        """Move a finished local file here: whole or not at all."""

    @abstractmethod
    def remove(self) -> None:
        """Remove the file, or the folder with all that is in it; nothing where there is none."""

    @abstractmethod
    def arrow(self) -> tuple[arrow.FileSystem, str]:
        """pyarrow's filesystem and the path in it, for libraries that want those (Ray Train)."""

    def local(self, entry: Entry) -> io.FileIO | None:
        """The file that `entry` describes, opened, if it lies on this machine; None beyond the network.

        Raises:
            StorageError: it has changed.
        """
        return None

    def open(self, entry: Entry) -> BinaryIO:
        """The file that `entry` describes, for reading here and there: every read is a `read_range`."""
        return cast(BinaryIO, _Window(self, entry))

    def fetch(self, folder: Path, names: Collection[str]) -> Path:
        """Those files of this folder that are there, in a local folder: in `folder`, or where they already are."""
        for entry in self.entries():
            if entry.name in names:
                (folder / entry.name).write_bytes((self / entry.name).read())
        return folder


class _Window(io.RawIOBase):
    """A file read by ranges, and only while it is the one that its entry describes."""

    def __init__(self, place: Place, entry: Entry) -> None:
        self._place, self._entry, self._position = place, entry, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._entry.size}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), self._entry.size - self._position)
        if size <= 0:
            return 0
        buffer[:size] = self._place.read_range(self._position, size, self._entry.tag)
        self._position += size
        return size


def whole(place: Place, data: bytes, size: int) -> bytes:
    """The data, if they are as many bytes as were asked for. Raises StorageError."""
    if len(data) != size:
        raise StorageError(f"{place}: truncated: {len(data)} bytes where {size} were to be read; write it again")
    return data
