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
from emc2dist.errors import DataError
from emc2dist.files import Entry, Place

_AHEAD = 32  # images read at once
_FILES = 16  # files whose paths are read at once


@dataclass(frozen=True)
class _Set:
    """How to open a set, in any process."""

    path: str
    s3: S3 | None
    cache_dir: str

    def catalogue(self, split: str) -> Catalogue:
        catalogue = open_catalogue(files.at(self.path, self.s3), split, cache_folder(self.cache_dir))
        assert catalogue is not None, "splits_of names what is there"
        return catalogue

    def images(self, split: str) -> ParquetImages:
        images = ParquetImages.open(self.path, split, s3=self.s3, cache_dir=self.cache_dir)
        assert images is not None, "there are no positions in a split that is not there"
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
        self._paths = pa.chunked_array([_paths(catalogue) for catalogue in found.values()], pa.string())

    def samples(self, positions: NDArray[np.int64]) -> Samples:
        """The images at some positions, in that order."""
        names = list(self.splits)
        firsts = np.array([split.positions[0] for split in self.splits.values()])
        numbers = np.searchsorted(firsts, positions, side="right") - 1
        splits = [names[number] for number in numbers]
        return _Rows(self._set, self.root, splits, positions - firsts[numbers], self._paths.take(positions).to_pylist())


@dataclass
class _Rows(Samples):
    set: _Set
    root: str
    splits: list[str]
    rows: NDArray[np.int64]
    paths: list[str | None]
    _images: dict[str, ParquetImages] = field(default_factory=dict)
    _ahead: dict[int, bytes] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def path(self, k: int) -> str | None:
        return self.paths[k]

    def where(self, k: int) -> str:
        where = self.set.catalogue(self.splits[k]).where(int(self.rows[k]))
        return where.removeprefix(f"{self.root}/")

    def read(self, k: int) -> bytes:
        if k not in self._ahead:
            same = [n for n in range(k, min(k + _AHEAD, len(self))) if self.splits[n] == self.splits[k]]
            try:
                self._ahead = dict(zip(same, self._encoded(same), strict=True))
            except DataError:  # of one of them
                self._ahead = {k: self._encoded([k])[0]}
        return self._ahead.pop(k)

    def _encoded(self, wanted: list[int]) -> list[bytes]:
        split = self.splits[wanted[0]]
        if split not in self._images:
            self._images[split] = self.set.images(split)
        return self._images[split].encoded(self.rows[wanted])


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
            return pa.nulls(file.metadata.num_rows, pa.string())
        column = file.read(columns=["image.path"], use_threads=False).column(0).combine_chunks()
    return pc.struct_field(column, "path").cast(pa.string())
