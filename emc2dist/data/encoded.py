"""The encoded images of a catalogue, by index: which file on this machine holds them, and at which bytes.

An *extent* is what is fetched as one, and then read as one local file:

    the set              an extent is                                 where it is read
    ingested, local      a Parquet file                               there
    ingested, on S3      neighbouring row groups, 4 MiB or more       in the cache: that range of the object
    any other Parquet    a row group, decoded by pyarrow              in the cache: table of offsets, then the images

4 MiB, because a request to S3 takes as long as the transfer of a few MiB. All processes of a machine share the cache,
so an extent is fetched once per machine.
"""

import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from io import FileIO
from operator import add, sub
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from emc2dist.data.cache import DiskCache
from emc2dist.data.catalogue import Catalogue, Group
from emc2dist.data.columns import image_values, naming

_PREFIX = 4  # bytes of the length that stands before each value in Parquet's plain encoding
_EXTENT_BYTES = 4 * 2**20
_FETCHES = 8  # extents fetched at once by one process
_WAVE = 32  # extents held open at once


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


class EncodedImages:
    """The bytes of every image. Calls may come from several threads; a pickled copy shares the cache."""

    def __init__(self, catalogue: Catalogue, cache: DiskCache) -> None:
        self._catalogue, self._cache = catalogue, cache
        self._keys = [_key(str(p), *entry) for p, entry in zip(catalogue.places, catalogue.entries, strict=True)]
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
                for position in here:
                    images[position] = self._image(extent, file, int(indices[position]))
        return images

    def read_anew(self, index: int) -> bytes | None:
        """An encoded image, past what the cache holds of it, which may be damaged."""
        extent = self._extents[int(np.searchsorted(self._firsts, index, side="right")) - 1]
        self._cache.drop(self._name(extent))
        return self.read(np.array([index]))[0]

    def _image(self, extent: Extent, file: FileIO, index: int) -> bytes | None:
        if self._positions is not None:
            assert self._catalogue.lengths is not None
            start, size = int(self._positions[index]) - extent.begin, int(self._catalogue.lengths[index])
        else:
            entry = os.pread(file.fileno(), 16, 8 * (index - extent.first_index))
            start, stop = np.frombuffer(entry, np.int64).tolist()
            size = stop - start
        return os.pread(file.fileno(), size, start) or None

    def _open(self, extents: Sequence[Extent]) -> Iterator[FileIO]:
        """The files that hold some extents; those that are not on this machine are fetched, several at once."""
        here = [self._here(extent) for extent in extents]
        missing = [extent for extent, file in zip(extents, here, strict=True) if file is None]
        fetched = self._pool.map(self._fetch, missing) if len(missing) > 1 else map(self._fetch, missing)
        self._count(Traffic(hits=len(extents) - len(missing)))
        for file in here:
            yield next(fetched) if file is None else file

    def _here(self, extent: Extent) -> FileIO | None:
        if self._positions is not None:
            place, entry = self._catalogue.file(extent.groups[0])
            file = place.local(entry)
            if file is not None:
                return file
        return self._cache.open(self._name(extent))

    def _fetch(self, extent: Extent) -> FileIO:
        with self._cache.filling(self._name(extent)):
            here = self._here(extent)  # another process may have fetched it meanwhile
            if here is not None:
                return here
            content = self._decoded(extent.groups[0]) if self._positions is None else self._range(extent)
            file = self._cache.put(self._name(extent), content)
        self._count(Traffic(misses=1, fetched_bytes=len(content)))
        return file

    def _range(self, extent: Extent) -> bytes:
        place, entry = self._catalogue.file(extent.groups[0])
        return place.read_range(extent.begin, extent.end - extent.begin, entry.tag)

    def _decoded(self, group: Group) -> bytes:
        """Where in these bytes each image begins and ends (int64 [rows + 1]), then the images end to end."""
        place, entry = self._catalogue.file(group)
        with naming(place), pq.ParquetFile(place.open(entry), metadata=self._footers.get(group.file)) as opened:
            self._footers[group.file] = opened.metadata
            column = opened.read_row_group(group.number, columns=[self._catalogue.image], use_threads=False).column(0)
            values = image_values(column, self._catalogue.image).combine_chunks()
        lengths = pc.fill_null(pc.binary_length(values), 0).to_numpy(zero_copy_only=False)
        offsets = 8 * (group.rows + 1) + np.concatenate([[0], np.cumsum(lengths)])
        return offsets.astype(np.int64).tobytes() + b"".join(value.as_buffer() for value in values if value.is_valid)

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


def _key(*identity: object) -> str:
    """Names a file and its content: another content, another name."""
    return hashlib.sha256(repr(identity).encode()).hexdigest()[:24]


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
