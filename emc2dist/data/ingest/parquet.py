"""Another Parquet set, on disk or on S3: any that `data.path` of a spec could name, ingested or not.

In the order of the new set, neighbours lie in different row groups of the old one. Row groups that do not lie ingested
on this machine's disk go through the cache in `cache_dir`, so that each is fetched and decoded once.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from emc2dist import files
from emc2dist.config import S3
from emc2dist.data.catalogue import Catalogue, open_catalogue, splits_of
from emc2dist.data.foreign import opened
from emc2dist.data.ingest.source import Samples, Source, Split, check_labels, listing_digest
from emc2dist.data.kept import cache_folder
from emc2dist.data.parquet import ParquetImages
from emc2dist.errors import DataError, StorageError
from emc2dist.files import Entry, Place

_AHEAD = 32  # images read at once
_FILES = 16  # files whose paths are read at once


@dataclass(frozen=True)
class _Set:
    """How to open a set, in any process."""

    path: str
    s3: S3 | None
    cache_dir: str
    listed: dict[str, str] = field(default_factory=dict)
    """Of each split, the digest of its files as they were listed at first."""

    def catalogue(self, split: str) -> Catalogue:
        catalogue = open_catalogue(files.at(self.path, self.s3), split, cache_folder(self.cache_dir))
        assert catalogue is not None, "splits_of names what is there"
        return catalogue

    def images(self, split: str) -> ParquetImages:
        """The images of a split. Raises StorageError where it is not what was listed: no image is to blame for that."""
        try:
            images = ParquetImages.open(self.path, split, s3=self.s3, cache_dir=self.cache_dir)
        except DataError as error:
            raise StorageError(f"{self.path}: no longer what it was when it was listed: {error}") from error
        if images is None or _digest(images.catalogue) != self.listed[split]:
            raise StorageError(f"{self.path}: changed since it was listed; run the same command again")
        return images


class ParquetSource(Source):
    """A Parquet set.

    Raises:
        DataError: see `emc2dist.data.catalogue.open_catalogue`; or a label is null, or no class's number.
        StorageError: it cannot be reached.
    """

    def __init__(self, path: str, s3: S3 | None, cache_dir: str) -> None:
        self._set = _Set(path, s3, cache_dir)
        place = files.at(path, s3)
        self.root = str(place) if place.entry() is None else str(place).rpartition("/")[0] or "."
        found = {name: self._set.catalogue(name) for name in splits_of(place)}
        self._set.listed.update((name, _digest(catalogue)) for name, catalogue in found.items())
        self.classes = next(iter(found.values())).classes
        self.digest = listing_digest(
            (entry.name + (entry.tag if place.remote else ""), entry.size)
            for catalogue in found.values()
            for entry in catalogue.entries
        )
        self.remarks = []
        self.splits, first = {}, 0
        for name, catalogue in found.items():
            self.splits[name] = Split(np.arange(first, first + catalogue.rows), _labels(catalogue, self.classes))
            first += catalogue.rows
        self._paths = pa.chunked_array([_paths(catalogue) for catalogue in found.values()], pa.binary())

    def samples(self, positions: NDArray[np.int64]) -> Samples:
        """The images at some positions, in that order."""
        names = list(self.splits)
        firsts = np.array([split.positions[0] for split in self.splits.values()])
        numbers = np.searchsorted(firsts, positions, side="right") - 1
        splits = [names[number] for number in numbers]
        return _Rows(self._set, self.root, splits, positions - firsts[numbers], _names(self._paths.take(positions)))


@dataclass
class _Rows(Samples):
    set: _Set
    root: str
    splits: list[str]
    rows: NDArray[np.int64]
    paths: list[str | None]
    _images: dict[str, ParquetImages] = field(default_factory=dict)
    _ahead: dict[int, bytes | DataError] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def path(self, k: int) -> str | None:
        return self.paths[k]

    def where(self, k: int) -> str:
        where = self._split(k).catalogue.where(int(self.rows[k]))
        return where.removeprefix(f"{self.root}/")

    def read(self, k: int) -> bytes:
        if k not in self._ahead:
            same = [n for n in range(k, min(k + _AHEAD, len(self))) if self.splits[n] == self.splits[k]]
            try:
                self._ahead = dict[int, bytes | DataError](zip(same, self._encoded(same), strict=True))
            except DataError:  # of some of them
                self._ahead = {n: self._one(n) for n in same}
        found = self._ahead.pop(k)
        if isinstance(found, DataError):
            raise found
        return found

    def _one(self, k: int) -> bytes | DataError:
        try:
            return self._encoded([k])[0]
        except DataError as error:
            return error

    def _encoded(self, wanted: list[int]) -> list[bytes]:
        return self._split(wanted[0]).encoded(self.rows[wanted])

    def _split(self, k: int) -> ParquetImages:
        split = self.splits[k]
        if split not in self._images:
            self._images[split] = self.set.images(split)
        return self._images[split]


def _digest(catalogue: Catalogue) -> str:
    """Of what the rows of a split are numbered by."""
    return listing_digest((entry.name + entry.tag, entry.size) for entry in catalogue.entries)


def _labels(catalogue: Catalogue, classes: list[str]) -> NDArray[np.int64] | None:
    if not catalogue.labelled:
        return None
    labels = catalogue.labels()
    check_labels(labels, classes, catalogue.where)
    return labels


def _paths(catalogue: Catalogue) -> pa.Array:
    """The names that the images of a split are known by, null where the set gives none."""
    with ThreadPoolExecutor(_FILES) as pool:
        columns = list(pool.map(_paths_of_file, catalogue.places, catalogue.entries))
    return pa.concat_arrays(columns)


def _paths_of_file(place: Place, entry: Entry) -> pa.Array:
    with opened(place, entry) as file:
        image = file.schema_arrow.field("image").type
        if image.get_field_index("path") < 0:
            return pa.nulls(file.metadata.num_rows, pa.binary())
        column = file.read(columns=["image.path"], use_threads=False).column(0).combine_chunks()
    return pc.struct_field(column, "path").cast(pa.binary())


def _names(paths: pa.ChunkedArray) -> list[str | None]:
    """Paths as text, whatever encoding they are in."""
    return [None if path is None else path.decode(errors="backslashreplace") for path in paths.to_pylist()]
