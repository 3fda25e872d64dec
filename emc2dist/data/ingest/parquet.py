"""Another Parquet set, on disk or on S3: any that `data.path` of a spec could name, ingested or not.

In the order of the new set, neighbours lie in different row groups of the old one. Row groups that do not lie ingested
on this machine's disk go through the cache in `cache_dir`, so that each is fetched and decoded once.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from emc2dist import files
from emc2dist.config import S3
from emc2dist.data.catalogue import Catalogue, naming, open_catalogue, read_manifest
from emc2dist.data.ingest.source import Samples, Source, Split, check_labels, listing_digest
from emc2dist.data.parquet import ParquetImages
from emc2dist.errors import DataError
from emc2dist.files import Entry, Place

_Name = Literal["train", "test"]
_TESTS = ("test", "validation", "val")  # the first that is there is read as test
_AHEAD = 32  # images read at once
_FILES = 16  # files whose paths are read at once


@dataclass(frozen=True)
class _Set:
    """How to open a set, in any process."""

    path: str
    s3: S3 | None
    cache_dir: str

    def catalogue(self, split: _Name) -> Catalogue | None:
        return open_catalogue(files.at(self.path, self.s3), split, Path(self.cache_dir).expanduser())

    def images(self, split: _Name) -> ParquetImages:
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
        names: tuple[_Name, ...] = ("train", "test")
        found = {name: catalogue for name in names if (catalogue := self._set.catalogue(name)) is not None}
        self.classes = found["train"].classes
        self.digest = listing_digest(
            (entry.name + (entry.tag if place.remote else ""), entry.size)
            for catalogue in found.values()
            for entry in catalogue.entries
        )
        self.remarks = _remarks(place, found["train"])
        self.splits, first = {}, 0
        for name, catalogue in found.items():
            self.splits[name] = Split(np.arange(first, first + catalogue.rows), _labels(catalogue, self.classes))
            first += catalogue.rows
        self._paths = pa.chunked_array([_paths(catalogue) for catalogue in found.values()], pa.string())

    def samples(self, positions: NDArray[np.int64]) -> Samples:
        """The images at some positions, in that order."""
        train = len(self.splits["train"].positions)
        splits: list[_Name] = ["train" if position < train else "test" for position in positions]
        rows = np.where(positions < train, positions, positions - train)
        return _Rows(self._set, self.root, splits, rows, self._paths.take(positions).to_pylist())


@dataclass
class _Rows(Samples):
    set: _Set
    root: str
    splits: list[_Name]
    rows: NDArray[np.int64]
    paths: list[str | None]
    _images: dict[_Name, ParquetImages] = field(default_factory=dict)
    _ahead: dict[int, bytes] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def path(self, k: int) -> str | None:
        return self.paths[k]

    def where(self, k: int) -> str:
        catalogue = self.set.catalogue(self.splits[k])
        assert catalogue is not None
        return catalogue.where(int(self.rows[k])).removeprefix(f"{self.root}/")

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


def _remarks(place: Place, catalogue: Catalogue) -> list[str]:
    """What a set has beside the splits that are trained and tested on."""
    if catalogue.starts is not None:
        held = set(read_manifest(place).splits)
    else:
        files = [entry.name for entry in place.entries() if entry.name.endswith(".parquet")]
        held = {name for name in _TESTS if any(file.startswith(name) for file in files)}
    read = {"train", next((name for name in _TESTS if name in held), "")}
    left = ", ".join(sorted(held - read))
    return [f"left out: {left}; of a Parquet set, train and test are read"] if left else []


def _paths(catalogue: Catalogue) -> pa.Array:
    """The names that the images of a split are known by, null where the set gives none."""
    with ThreadPoolExecutor(_FILES) as pool:
        columns = list(pool.map(_paths_of_file, catalogue.places, catalogue.entries))
    return pa.concat_arrays(columns)


def _paths_of_file(place: Place, entry: Entry) -> pa.Array:
    with naming(place), pq.ParquetFile(place.open(entry)) as opened:
        image = opened.schema_arrow.field("image").type
        if image.get_field_index("path") < 0:
            return pa.nulls(opened.metadata.num_rows, pa.string())
        column = opened.read(columns=["image.path"], use_threads=False).column(0).combine_chunks()
    return pc.struct_field(column, "path").cast(pa.string())
