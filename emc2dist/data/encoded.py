"""The encoded images of a catalogue, by index: which file on this machine holds them, and at which bytes.

An *extent* is what is fetched as one, and then read as one local file:

    the set              an extent is                                 where it is read
    ingested, local      a Parquet file                               there
    ingested, on S3      neighbouring row groups, 4 MiB or more       in the cache (`emc2dist.data.checked`)
    any other Parquet    a row group, decoded by pyarrow              in the cache

4 MiB, because a request to S3 takes as long as the transfer of a few MiB. All processes of a machine share the cache,
so an extent is fetched once per machine. What the cache gives back is checked, image by image; an extent that is not as
it was written is fetched again.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from io import FileIO
from operator import add, sub
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from emc2dist import files
from emc2dist.data import checked
from emc2dist.data.cache import DiskCache
from emc2dist.data.catalogue import Catalogue, Group
from emc2dist.data.columns import image_values
from emc2dist.data.foreign import opened
from emc2dist.data.kept import identity
from emc2dist.errors import DataError, StorageError
from emc2dist.files.place import whole

_PREFIX = 4  # bytes of the length that stands before each value in Parquet's plain encoding
_EXTENT_BYTES = 4 * 2**20
_FETCHES = 8  # extents fetched at once by one process
_WAVE = 32  # extents held open at once
_ATTEMPTS = 3  # to read an extent, of which other processes may damage or remove what is kept
_PIECE_BYTES, _PIECE_ROWS = 2**24, 256  # of a row group that is decoded, at once
_MOST_BYTES = 2**34  # of a row group's images

_Pieces = Callable[[], Iterator[list[memoryview | None]]]
"""The images of an extent, piece by piece, from the beginning."""


@dataclass(frozen=True)
class Traffic:
    """Extents that were asked for."""

    hits: int = 0
    """Were on this machine."""
    misses: int = 0
    """Were fetched or decoded."""
    fetched_bytes: int = 0
    """Bytes of the latter."""
    retries: int = 0
    """Times that the process tried a request to S3 again meanwhile, whatever for."""

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(*map(add, astuple(self), astuple(other)))

    def __sub__(self, other: "Traffic") -> "Traffic":
        return Traffic(*map(sub, astuple(self), astuple(other)))


class Extent(NamedTuple):
    """Some row groups of one file, and the bytes of the file in which their images lie, where that is known."""

    groups: list[Group]
    begin: int
    end: int

    @property
    def first_index(self) -> int:
        """The set's index that it begins with."""
        return self.groups[0].first_index

    @property
    def rows(self) -> int:
        """Images of it."""
        return sum(group.rows for group in self.groups)


class EncodedImages:
    """The bytes of every image. Calls may come from several threads; a pickled copy shares the cache."""

    def __init__(self, catalogue: Catalogue, cache: DiskCache) -> None:
        self._catalogue, self._cache = catalogue, cache
        self._keys = [_key(identity(p), *entry) for p, entry in zip(catalogue.places, catalogue.entries, strict=True)]
        self._positions = None if catalogue.lengths is None else _positions(catalogue)
        self._extents = list(self._cut())
        self._firsts = np.array([extent.first_index for extent in self._extents])
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_pool", "_footers")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(_FETCHES, thread_name_prefix="fetch")  # starts no thread before its first task
        self._footers: dict[int, pq.FileMetaData] = {}
        self.traffic = Traffic()

    def read(self, indices: NDArray[np.int64]) -> list[bytes | None]:
        """The encoded images in the order asked; None where one is null. Extents that are not here are fetched.

        Raises:
            DataError: a file is damaged. StorageError: it cannot be reached, or is another one by now.
        """
        numbers = np.searchsorted(self._firsts, indices, side="right") - 1
        order = np.argsort(numbers, kind="stable")
        wanted, firsts = np.unique(numbers[order], return_index=True)
        positions = np.split(order, firsts[1:])
        images: list[bytes | None] = [None] * len(indices)
        for start in range(0, len(wanted), _WAVE):
            extents = [self._extents[number] for number in wanted[start : start + _WAVE]]
            for extent, file, here in zip(extents, self._open(extents), positions[start : start + _WAVE], strict=True):
                found = (
                    self._in_place(extent, file, indices[here])
                    if self._lie_here
                    else self._kept(extent, file, indices[here])
                )
                for position, image in zip(here, found, strict=True):
                    images[position] = image
        return images

    @property
    def _lie_here(self) -> bool:
        """Whether images are read from the files of the set themselves."""
        return self._positions is not None and not self._catalogue.places[0].remote

    def _in_place(self, extent: Extent, file: FileIO, indices: NDArray[np.int64]) -> list[bytes | None]:
        assert self._positions is not None
        assert self._catalogue.lengths is not None
        place, _ = self._catalogue.file(extent.groups[0])
        with files.explained(place):
            places = zip(self._positions[indices].tolist(), self._catalogue.lengths[indices].tolist(), strict=True)
            return [whole(place, os.pread(file.fileno(), size, start), size) or None for start, size in places]

    def _kept(self, extent: Extent, file: FileIO, indices: NDArray[np.int64]) -> list[bytes | None]:
        name, rows = self._name(extent), (indices - extent.first_index).tolist()
        begin = checked.seed(name)
        for _ in range(_ATTEMPTS):
            try:
                return [checked.read(file, begin, row) for row in rows]
            except checked.Damaged:
                file = self._fetch(extent, damaged=file)
        raise StorageError(
            f"{self._cache.folder / name}: not what was written there, {_ATTEMPTS} times over; set data.cache_dir to "
            "another disk"
        )

    def _open(self, extents: Sequence[Extent]) -> Iterator[FileIO]:
        """The files that hold some extents; those that are not on this machine are fetched, several at once."""
        here = [self._here(extent) for extent in extents]
        missing = [extent for extent, file in zip(extents, here, strict=True) if file is None]
        fetched = self._pool.map(self._fetch, missing) if len(missing) > 1 else map(self._fetch, missing)
        self._count(Traffic(hits=len(extents) - len(missing)))
        for file in here:
            yield next(fetched) if file is None else file

    def _here(self, extent: Extent) -> FileIO | None:
        if self._lie_here:
            place, entry = self._catalogue.file(extent.groups[0])
            return place.local(entry)
        return self._cache.open(self._name(extent))

    def _fetch(self, extent: Extent, damaged: FileIO | None = None) -> FileIO:
        """The file of an extent, made now, unless another process has made it meanwhile and it is not the damaged."""
        name = self._name(extent)
        with self._cache.filling(name):
            if damaged is not None:
                self._cache.drop(name, damaged)
            here = self._cache.open(name)
            if here is not None and (damaged is None or not os.path.sameopenfile(here.fileno(), damaged.fileno())):
                return here
            images = self._decoded(extent) if self._positions is None else self._range(extent)
            file = self._cache.put(name, lambda draft: checked.write(draft, checked.seed(name), extent.rows, images()))
        self._count(Traffic(misses=1, fetched_bytes=os.fstat(file.fileno()).st_size))
        return file

    def _range(self, extent: Extent) -> _Pieces:
        assert self._positions is not None
        assert self._catalogue.lengths is not None
        place, entry = self._catalogue.file(extent.groups[0])
        content = memoryview(place.read_range(extent.begin, extent.end - extent.begin, entry.tag))
        rows = slice(extent.first_index, extent.first_index + extent.rows)
        starts = (self._positions[rows] - extent.begin).tolist()
        sizes = self._catalogue.lengths[rows].tolist()
        images: list[memoryview | None] = [
            content[start : start + size] for start, size in zip(starts, sizes, strict=True)
        ]
        return lambda: iter([images])

    def _decoded(self, extent: Extent) -> _Pieces:
        group = extent.groups[0]
        place, entry = self._catalogue.file(group)

        def pieces() -> Iterator[list[memoryview | None]]:
            with opened(place, entry, self._footers.get(group.file), group=group.number) as file:
                self._footers[group.file] = file.metadata
                size = file.metadata.row_group(group.number).total_byte_size
                rows = max(1, min(_PIECE_ROWS, group.rows * _PIECE_BYTES // max(1, size)))
                for batch in file.iter_batches(
                    rows, row_groups=[group.number], columns=[self._catalogue.image], use_threads=False
                ):
                    values = image_values(batch.column(0), self._catalogue.image)
                    yield [memoryview(value.as_buffer()) if value.is_valid else None for value in values]

        return lambda: _bounded(pieces(), f"{place}, row group {group.number}", group.rows)

    def _cut(self) -> Iterator[Extent]:
        """The row groups, those that are to be fetched as one together."""
        run: list[Group] = []
        for group, ahead in zip(self._catalogue.groups, [*self._catalogue.groups[1:], None], strict=True):
            run.append(group)
            extent = self._extent(run)
            if ahead is None or ahead.file != group.file or not self._goes_on(extent):
                yield extent
                run = []

    def _goes_on(self, extent: Extent) -> bool:
        if self._positions is None:
            return False
        return not self._catalogue.places[0].remote or extent.end - extent.begin < _EXTENT_BYTES

    def _extent(self, run: list[Group]) -> Extent:
        last = run[-1].first_index + run[-1].rows - 1
        if self._positions is None or self._catalogue.lengths is None or last < run[-1].first_index:
            return Extent(run, 0, 0)
        begin = 0 if not self._catalogue.places[0].remote else int(self._positions[run[0].first_index]) - _PREFIX
        return Extent(run, begin, int(self._positions[last]) + int(self._catalogue.lengths[last]))

    def _name(self, extent: Extent) -> str:
        return f"{self._keys[extent.groups[0].file]}/{extent.groups[0].number}"

    def _count(self, traffic: Traffic) -> None:
        with self._lock:
            self.traffic += traffic


def _bounded(pieces: Iterator[list[memoryview | None]], where: str, rows: int) -> Iterator[list[memoryview | None]]:
    """Pieces, as long as they hold no more than a row group may. Raises DataError."""
    size = 0
    for piece in pieces:
        size += sum(len(image) for image in piece if image is not None)
        rows -= len(piece)
        if size > _MOST_BYTES:
            raise DataError(f"{where}: its images are more than {_MOST_BYTES} bytes; write the file with smaller ones")
        if rows < 0:
            break
        yield piece
    if rows:
        raise DataError(f"{where}: holds other rows than its footer says; write the file again or leave it out")


def _key(*parts: object) -> str:
    """Names a file and its content: another content, another name."""
    return hashlib.sha256(repr((checked.LAYOUT, *parts)).encode(errors="surrogateescape")).hexdigest()[:24]


def _positions(catalogue: Catalogue) -> NDArray[np.int64]:
    """Byte of its file at which each image of an ingested set begins, [rows]."""
    assert catalogue.lengths is not None
    sizes = catalogue.lengths.astype(np.int64) + _PREFIX
    ends = np.cumsum(sizes)
    rows = np.array([group.rows for group in catalogue.groups])
    firsts = np.array([group.first_index for group in catalogue.groups])
    starts = np.array([group.start for group in catalogue.groups])
    shift = starts - (ends[firsts] - sizes[firsts])  # from the end-to-end count to the file's bytes
    return ends - catalogue.lengths + np.repeat(shift, rows)
