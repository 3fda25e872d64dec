"""Another Parquet set, on disk or on S3: any that `data.path` of a spec could name, ingested or not.

In the order of the new set, neighbours lie in different row groups of the old one. Row groups that do not lie ingested
on this machine's disk go through the cache in `cache_dir`, so that each is fetched and decoded once.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from typing_extensions import override

from emc2dist import files
from emc2dist.config import S3
from emc2dist.data.catalogue import (
    MANIFEST,
    ON_S3,
    UNFINISHED,
    Catalogue,
    begins_as_parquet,
    holds_none,
    is_hidden,
    is_parquet,
    list_set,
    nothing_at,
    open_catalogue,
    splits_of,
)
from emc2dist.data.foreign import opened
from emc2dist.data.ingest.said import AUTO, chosen_among, texts_of
from emc2dist.data.ingest.source import Samples, Source, Split, listing_digest, some
from emc2dist.data.kept import cache_folder
from emc2dist.data.parquet import ParquetImages
from emc2dist.data.texts.manifest import (
    CAPTIONS,
    DOCUMENTS,
    QUERIES,
    RELEVANCE,
    read_captions_manifest,
    read_pinned,
)
from emc2dist.errors import DataError, StorageError
from emc2dist.files import Entry, Place

_AHEAD = 32  # images read at once
_FILES = 16  # files whose paths are read at once
_MOST_ROWS = 2**40  # of a split: the position of a row tells its split


@dataclass(frozen=True)
class _Set:
    """How to open a set, in any process."""

    path: str
    s3: S3 | None
    cache_dir: str
    labels: bool
    listed: dict[str, str] = field(default_factory=dict)
    """Of each split that was opened, the digest of its files as they were listed at first."""

    def catalogue(self, split: str) -> Catalogue | None:
        return open_catalogue(files.at(self.path, self.s3), split, cache_folder(self.cache_dir))

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
    """A Parquet set. Only those splits are opened, and their labels read, that are asked for.

    Raises:
        DataError: see `emc2dist.data.catalogue.open_catalogue`. StorageError: it cannot be reached.
    """

    def __init__(self, path: str, s3: S3 | None, cache_dir: str, *, labels: bool) -> None:
        self._set = _Set(path, s3, cache_dir, labels)
        place = files.at(path, s3)
        entry = place.entry()
        listed = list_set(place) if entry is None else {}
        if entry is not None and not begins_as_parquet(place, entry):
            raise DataError(f"{place}: is no Parquet file; {_advice(place)}")
        if entry is None and MANIFEST not in listed and UNFINISHED not in place.folders():
            _check_some(place, listed)
        self.root = str(place) if entry is None else str(place).rpartition("/")[0] or "."
        self.remarks = []
        self.splits: _Splits = _Splits(self._set, splits_of(place), self.remarks)
        names = [name for name in listed if name == MANIFEST or (is_parquet(name) and not is_hidden(name))]
        self.has_captions = entry is None and (place / CAPTIONS / MANIFEST).entry() is not None
        self.digest = listing_digest([entry] if entry else (listed[name]._replace(name=name) for name in names))

    def count(self, split: str) -> int | None:
        """None: a split that nobody asks for may be far, or damaged."""
        return None

    def samples(self, positions: NDArray[np.int64]) -> Samples:
        """The images at some positions, in that order."""
        names = list(self.splits)
        numbers, rows = np.divmod(positions, _MOST_ROWS)
        paths = np.empty(len(positions), object)
        for number in np.unique(numbers):
            here = numbers == number
            paths[here] = _names(self.splits.paths(names[number]).take(pa.array(rows[here])))
        return _Rows(self._set, self.root, [names[number] for number in numbers], rows, paths.tolist())

    @override
    def captions(
        self, positions: NDArray[np.int64], name: str, refuse: Callable[[str, str], None]
    ) -> tuple[list[list[Any]], list[str]]:
        (number,) = np.unique(positions // _MOST_ROWS)
        split, rows = list(self.splits)[number], positions % _MOST_ROWS
        catalogue = self._set.catalogue(split)
        assert catalogue is not None, "there are no positions in a split without rows"
        column = name
        if name == AUTO and self.has_captions:
            kept = _of_set(files.at(self._set.path, self._set.s3), split)
            return [kept.get(row, []) for row in rows.tolist()], ["captions are those of the set"]
        if name == AUTO:
            with opened(catalogue.places[0], catalogue.entries[0]) as file:
                column = chosen_among(str(catalogue.places[0]), file.schema_arrow.names, name)
        with ThreadPoolExecutor(_FILES) as pool:
            parts = pool.map(_texts_of, catalogue.places, catalogue.entries, repeat(column))
            told = list(chain.from_iterable(parts))
        alone = f"1 further columns were not read: `{column}`"  # which would be wrong now
        self.remarks[:] = [remark for remark in self.remarks if remark != alone]
        return [told[row] for row in rows], [f"captions by column `{column}`"]


def _check_some(place: Place, listed: dict[str, Entry]) -> None:
    """Raise DataError where no file is Parquet."""
    if any(is_parquet(name) for name in listed):
        return
    if listed or place.folders():
        raise holds_none(place, listed, _advice(place))
    raise nothing_at(place, _advice(place))


def _advice(place: Place) -> str:
    on_s3 = f", for {ON_S3}" if place.remote else ""
    return f"give the file or folder that holds some{on_s3}"


class _Splits(Mapping[str, Split]):
    """The splits of a set, opened when they are asked for; what was guessed then is added to `remarks`."""

    def __init__(self, source: _Set, names: list[str], remarks: list[str]) -> None:
        self._set, self._names, self._remarks = source, names, remarks
        self._opened: dict[str, Split] = {}
        self._paths: dict[str, pa.Array] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> Split:
        if name not in self._opened:
            self._opened[name] = self._open(name)
        return self._opened[name]

    def _open(self, name: str) -> Split:
        catalogue = self._set.catalogue(name)
        if catalogue is None:
            return Split(np.empty(0, np.int64), None)
        self._set.listed[name] = _digest(catalogue)
        labels, classes = _labels(catalogue) if self._set.labels else (None, [])
        told = catalogue.remarks + (catalogue.on_labels if self._set.labels else [])
        self._remarks += [remark for remark in told if remark not in self._remarks]
        positions = self._names.index(name) * _MOST_ROWS + np.arange(catalogue.rows)
        named = [footer.label for footer in catalogue.footers if footer.kind == "text"] if classes else []
        on_split = [f"{len(classes)} classes, by column `{label}`: {some(classes)}" for label in named[:1]]
        return Split(positions, labels, classes, on_split)

    def paths(self, name: str) -> pa.Array:
        """The names that the images of a split are known by, null where the set gives none."""
        if name not in self._paths:
            catalogue = self._set.catalogue(name)
            assert catalogue is not None, "there are no positions in a split without rows"
            with ThreadPoolExecutor(_FILES) as pool:
                column = repeat(catalogue.image)
                self._paths[name] = pa.concat_arrays(pool.map(_paths_of, catalogue.places, catalogue.entries, column))
        return self._paths[name]


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

    def digest(self) -> str:
        rows = self.rows.astype("<i8").tobytes().hex()
        return listing_digest(Entry(split, len(self), f"{self.set.listed[split]} {rows}") for split in set(self.splits))

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
    return listing_digest(catalogue.entries)


def _labels(catalogue: Catalogue) -> tuple[NDArray[np.int64] | None, list[str]]:
    """Labels and names of classes. Raises DataError where they cannot be read."""
    if not catalogue.labelled:
        return None, []
    try:
        return catalogue.labels()
    except DataError as error:
        raise DataError(f"{error}. Or leave all labels out with --no-labels") from error


def _paths_of(place: Place, entry: Entry, image: str) -> pa.Array:
    """The `path` beside the bytes of each image of a file; null where there is none."""
    column, _, _ = image.rpartition(".")
    with opened(place, entry) as file:
        kind = file.schema_arrow.field(column).type.get_field_index("path") if column else -1
        if kind < 0:
            return pa.nulls(file.metadata.num_rows, pa.binary())
        found = file.read(columns=[f"{column}.path"], use_threads=False).column(0).combine_chunks()
    return pc.struct_field(found, "path").cast(pa.binary())


def _of_set(place: Place, split: str) -> dict[int, list[Any]]:
    """The captions of a set's images of a split, by their rows there."""
    folder, manifest = place / CAPTIONS, read_captions_manifest(place)
    images, captions, pairs = (
        pq.read_table(pa.BufferReader(read_pinned(folder, manifest, name))).to_pydict()
        for name in (QUERIES, DOCUMENTS, RELEVANCE)
    )
    found: dict[int, list[Any]] = {}
    for image, caption in zip(pairs["query"], pairs["document"], strict=True):
        if images["split"][image] == split:
            found.setdefault(images["row"][image], []).append(captions["text"][caption])
    return found


def _texts_of(place: Place, entry: Entry, name: str) -> list[list[Any]]:
    """The texts of each row of a file; null is none. Raises DataError where it has no such column."""
    with opened(place, entry) as file:
        names = file.schema_arrow.names
        if name not in names:
            raise DataError(f"{place}: --captions {name}: no such column, but {some(names)}; name one of them")
        column = file.read(columns=[name], use_threads=False).column(0)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    kind = column.type.value_type if is_list else column.type
    if not any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)):
        raise DataError(f"{place}: --captions {name}: holds {column.type}, and captions are text or lists of it")
    of_bytes: Any = pa.large_list(pa.large_binary()) if is_list else pa.large_binary()
    values: list[Any] = column.cast(of_bytes).to_pylist()
    return [[one if one is None else one.decode(errors="surrogateescape") for one in texts_of(v)] for v in values]


def _names(paths: pa.Array) -> list[str | None]:
    """Paths as text, whatever encoding they are in."""
    return [None if path is None else path.decode(errors="backslashreplace") for path in paths.to_pylist()]
