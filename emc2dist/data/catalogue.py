"""What a set of images in Parquet consists of: files, row groups, and where each image's bytes lie.

    ingested   `emc2dist ingest` left `manifest.json` (last of all, so a half-written set has none) and, for each split,
               `SPLIT.index.npz`: the length of every image and every label. Row groups hold their images uncompressed,
               plainly encoded and in one page, so an image is a range of bytes of its file, known without reading it.
    any other  the footers of the *.parquet files are read once and what they say is kept in `cache_dir`. Their row
               groups are decoded by pyarrow, a whole group at a time.

A run trains on the split `train` and asks about `test` (else `validation`, else `val`). Without a manifest, names of
files tell the splits: `train*.parquet`, `test*.parquet`, `validation*.parquet`; others train where none is called
train*.

Opening is one listing and, for an ingested set, two small files. The listing pins each file's size and tag: what is
read later comes from those very files, or is refused.
"""

import bisect
import hashlib
import io
import json
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from emc2dist.data import kept
from emc2dist.data.foreign import opened
from emc2dist.errors import DataError
from emc2dist.files import Entry, Place

MANIFEST = "manifest.json"
UNFINISHED = ".ingest"
"""Folder of notes that `emc2dist ingest` keeps until the set is whole."""
_TEST = ("test", "validation", "val")  # the first that is there


class ManifestFile(BaseModel):
    """One Parquet file of an ingested set."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    rows: int
    size: int
    """Bytes."""
    sha256: str
    """Of the content, hexadecimal."""
    etag: str | None
    """S3's name for the content, where the set was written to S3."""
    groups: list[tuple[int, int]]
    """Of each row group: rows, and the byte of the file at which its first image's length stands."""


class ManifestSplit(BaseModel):
    """One split of an ingested set."""

    model_config = ConfigDict(extra="forbid", strict=True)

    labelled: bool
    files: list[ManifestFile]

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(file.rows for file in self.files)


class Manifest(BaseModel):
    """What `emc2dist ingest` says of a set, in `manifest.json`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal[1] = 1
    version: str
    """emc2dist's, which wrote it."""
    classes: list[str]
    """Names of the classes; empty where the set names none."""
    splits: dict[str, ManifestSplit]
    unreadable: list[str]
    """Sources that were left out, each with the reason."""
    duplicates: int
    """Images whose bytes another image of the set has too, beyond the first."""
    remarks: list[str]
    """What was guessed, passed over, converted or dropped, with numbers."""


def index_name(split: str) -> str:
    """File beside the manifest that holds `lengths` (uint32, bytes of each image) and `labels` (int64; -1: none)."""
    return f"{split}.index.npz"


def index_bytes(lengths: NDArray[np.uint32], labels: NDArray[np.int64]) -> bytes:
    """The content of an index file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, lengths=lengths, labels=labels)
    return buffer.getvalue()


@dataclass(frozen=True)
class Group:
    """A row group: its file, its number in the file, the file's row and the set's index that it begins with."""

    file: int
    number: int
    first_row: int
    first_index: int
    rows: int
    start: int | None
    """Byte of the file at which the first image's length stands; None where the group has to be decoded."""


@dataclass
class Catalogue:
    """The files of one split, pinned as they were when it was opened."""

    places: list[Place]
    entries: list[Entry]
    counts: list[list[int]]
    """Rows of each row group of each file."""
    starts: list[list[int]] | None
    """Of each row group of each file, where its images lie; None where groups have to be decoded."""
    lengths: NDArray[np.uint32] | None
    """Bytes of each image, where `starts` are known."""
    classes: list[str]
    labelled: bool
    kept_labels: NDArray[np.int64] | None = None
    keep_labels_at: Path | None = None
    groups: list[Group] = field(init=False)

    def __post_init__(self) -> None:
        self.groups = list(_groups(self.counts, self.starts))

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(map(sum, self.counts))

    def labels(self) -> NDArray[np.int64]:
        """Every row's label, [rows]. Reads the label column of all files the first time, unless it was kept.

        Raises:
            DataError: there is no such column, or a label is null; names file and row.
        """
        if not self.labelled:
            raise DataError(f"{self.places[0]}: no `label` column; add one of type int64, or do without labels")
        if self.kept_labels is None:
            columns = [_read_labels(place, entry) for place, entry in zip(self.places, self.entries, strict=True)]
            self.kept_labels = np.concatenate(columns)
            if self.keep_labels_at is not None:
                kept.keep(self.keep_labels_at, self.kept_labels.astype("<i8").tobytes())
        return self.kept_labels

    def file(self, group: Group) -> tuple[Place, Entry]:
        """The file that a row group lies in, as it was when the set was opened."""
        return self.places[group.file], self.entries[group.file]

    def where(self, index: int) -> str:
        """File and row of an index, for messages."""
        group = self.groups[bisect.bisect_right(self.groups, index, key=lambda group: group.first_index) - 1]
        return f"{self.places[group.file]}, row {group.first_row + index - group.first_index}"


def open_catalogue(place: Place, split: str, cache_dir: Path) -> Catalogue | None:
    """The catalogue of a split at `place`, a folder or one Parquet file. None where the split is not there,
    except that `train` has to be.

    Raises:
        DataError: nothing there, nothing to train on, an unfinished or a damaged set; or files that are not Parquet,
            hold no images, do not fit together or are there twice.
        StorageError: the place cannot be read.
    """
    entries = place.entries()
    if not entries:
        return _of_one_file(place, split, cache_dir)
    listing = {entry.name: entry for entry in entries}
    if MANIFEST in listing:
        return _of_manifest(place, split, listing)
    if UNFINISHED in place.folders():
        raise DataError(f"{place}: an unfinished ingest; run the same `emc2dist ingest` again, it goes on where it was")
    names = _split_files(place, list(listing), split)
    return (
        _of_footers([place / name for name in names], [listing[name] for name in names], cache_dir) if names else None
    )


def splits_of(place: Place) -> list[str]:
    """Names of the splits at `place`, at least one. Raises DataError where a manifest is damaged."""
    names = [entry.name for entry in place.entries()]
    if MANIFEST in names:
        return list(read_manifest(place).splits)
    found = {_split_of(name) for name in names if name.endswith(".parquet")}
    return ["train", *(name for name in _TEST if name in found)]


def read_manifest(folder: Place) -> Manifest:
    """The manifest of an ingested set. Raises DataError where it is damaged."""
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read())
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise DataError(f"{folder / MANIFEST}: {key}: {problem['msg']}; ingest the set again") from error


def _of_one_file(place: Place, split: str, cache_dir: Path) -> Catalogue | None:
    entry = place.entry()
    if entry is not None:
        return _of_footers([place], [entry], cache_dir) if split == "train" else None
    if place.folders() or (not place.remote and Path(str(place)).is_dir()):
        if UNFINISHED in place.folders():
            raise DataError(f"{place}: an unfinished ingest; run the same `emc2dist ingest` again")
        raise DataError(f"{place}: holds no *.parquet files; set data.path to a folder that does")
    raise DataError(f"{place}: no such file or folder; set data.path to a Parquet file, a folder of them, or digits")


def _split_files(place: Place, names: list[str], split: str) -> list[str]:
    """The split's files, of which there is at least one for `train`."""
    files = sorted(name for name in names if name.endswith(".parquet"))
    if not files:
        raise DataError(f"{place}: holds no *.parquet files; set data.path to a folder that does")
    of: dict[str | None, list[str]] = defaultdict(list)
    for file in files:
        of[_split_of(file)].append(file)
    of["train"] = of["train"] or of[None]
    if not of["train"]:
        raise DataError(f"{place}: holds only test files ({files[0]}); name the training files train*.parquet")
    return next((of[name] for name in _read_as(split) if of[name]), [])


def _split_of(file: str) -> str | None:
    """The split that a file's name tells."""
    return next((split for split in ("train", *_TEST) if file.startswith(split)), None)


def _read_as(split: str) -> tuple[str, ...]:
    """Names under which a split may be found, the best first."""
    return _TEST if split == "test" else (split,)


def _of_manifest(folder: Place, split: str, listing: dict[str, Entry]) -> Catalogue | None:
    manifest = read_manifest(folder)
    name = next((name for name in _read_as(split) if name in manifest.splits), None)
    if name is None:
        if split != "train":
            return None
        known = ", ".join(manifest.splits)
        raise DataError(f"{folder}: has no split `train`, but {known}; ingest it again with --split NAME=train")
    files = manifest.splits[name].files
    for file in files:
        _check_pinned(folder, file, listing.get(file.name))
    lengths, labels = _read_index(folder / index_name(name))
    if len(lengths) != manifest.splits[name].rows or len(labels) != len(lengths):
        raise DataError(f"{folder / index_name(name)}: does not belong to {MANIFEST}; ingest the set again")
    return Catalogue(
        places=[folder / file.name for file in files],
        entries=[listing[file.name] for file in files],
        counts=[[rows for rows, _ in file.groups] for file in files],
        starts=[[start for _, start in file.groups] for file in files],
        lengths=lengths,
        classes=manifest.classes,
        labelled=manifest.splits[name].labelled,
        kept_labels=labels,
    )


def _read_index(place: Place) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    content = place.read()
    try:
        with np.load(io.BytesIO(content)) as index:
            return index["lengths"], index["labels"]
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{place}: damaged ({error}); ingest the set again") from error


def _check_pinned(folder: Place, file: ManifestFile, entry: Entry | None) -> None:
    if entry is None:
        raise DataError(f"{folder / file.name}: missing, though {MANIFEST} lists it; ingest the set again")
    if entry.size != file.size:
        raise DataError(
            f"{folder / file.name}: {entry.size} bytes, but {file.size} when it was ingested: truncated or replaced; "
            "ingest the set again"
        )
    if folder.remote and file.etag is not None and entry.tag != file.etag:
        raise DataError(
            f"{folder / file.name}: changed since it was ingested (its ETag is {entry.tag}, not {file.etag}); "
            "ingest the set again. Copy a set with `emc2dist ingest OLD NEW`: other tools may give it other ETags"
        )


def _of_footers(places: list[Place], entries: list[Entry], cache_dir: Path) -> Catalogue:
    identities = [[kept.identity(p), *e] for p, e in zip(places, entries, strict=True)]
    key = hashlib.sha256(json.dumps(identities).encode()).hexdigest()
    of_footers, of_labels = (cache_dir / "catalogues" / f"{key}.{what}" for what in ("footers", "labels"))
    noted = kept.recall(of_footers)
    facts = _facts(places, entries) if noted is None else json.loads(noted)
    if noted is None:
        kept.keep(of_footers, json.dumps(facts).encode())
    labels = kept.recall(of_labels)
    catalogue = Catalogue(
        places,
        entries,
        starts=None,
        lengths=None,
        kept_labels=None if labels is None else np.frombuffer(labels, "<i8").astype(np.int64),
        keep_labels_at=of_labels,
        **facts,
    )
    if catalogue.rows == 0:
        raise DataError(f"{', '.join(map(str, places))}: no rows; give Parquet files that hold images")
    return catalogue


def _groups(counts: Sequence[Sequence[int]], starts: Sequence[Sequence[int]] | None) -> Iterator[Group]:
    first_index = 0
    for file, rows_of_groups in enumerate(counts):
        first_row = 0
        for number, rows in enumerate(rows_of_groups):
            start = None if starts is None else starts[file][number]
            yield Group(file, number, first_row, first_index, rows, start)
            first_row += rows
            first_index += rows


# What follows reads files that others wrote.


@dataclass(frozen=True)
class _Footer:
    """What the footer of one file says."""

    place: Place
    counts: list[int]
    image: pa.DataType
    label: pa.DataType | None
    classes: tuple[str, ...]


def _facts(places: list[Place], entries: list[Entry]) -> dict[str, Any]:
    _check_distinct(places, entries)
    footers = [_read_footer(place, entry) for place, entry in zip(places, entries, strict=True)]
    _check_alike(footers)
    return {
        "counts": [footer.counts for footer in footers],
        "classes": list(footers[0].classes),
        "labelled": footers[0].label is not None,
    }


def _read_footer(place: Place, entry: Entry) -> _Footer:
    with opened(place, entry) as file:
        metadata, schema = file.metadata, file.schema_arrow
    image = schema.field("image").type if "image" in schema.names else pa.null()
    if not (
        pa.types.is_struct(image) and image.get_field_index("bytes") >= 0 and _is_binary(image.field("bytes").type)
    ):
        raise DataError(
            f"{place}: no column `image` of type struct<bytes: binary>, but {', '.join(schema.names) or 'no columns'}; "
            "write the images as Hugging Face datasets does"
        )
    label = schema.field("label").type if "label" in schema.names else None
    if label is not None and not pa.types.is_integer(label):
        raise DataError(f"{place}: column `label` has type {label}; write it as int64")
    counts = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    return _Footer(place, counts, image, label, _classes(schema.metadata or {}))


def _classes(metadata: dict[bytes, bytes]) -> tuple[str, ...]:
    """Class names, as Hugging Face writes them, or under `classes` with commas between."""
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    names = features.get("label", {}).get("names")
    if names is not None:
        return tuple(names)
    plain = metadata.get(b"classes", b"").decode()
    return tuple(plain.split(",")) if plain else ()


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _check_distinct(places: list[Place], entries: list[Entry]) -> None:
    """Files of one size whose last bytes, footer and all, are the same are one file given twice."""
    seen: dict[tuple[int, bytes], Place] = {}
    sizes = [entry.size for entry in entries]
    for place, entry in zip(places, entries, strict=True):
        if sizes.count(entry.size) == 1:
            continue
        tail = min(entry.size, 2**16)
        ending = place.read_range(entry.size - tail, tail, entry.tag)
        twin = seen.setdefault((entry.size, ending), place)
        if twin is not place:
            raise DataError(f"{place}: the same file as {twin}; every image would count twice: remove one of them")


def _check_alike(footers: list[_Footer]) -> None:
    for footer in footers[1:]:
        for what in ("image", "label", "classes"):
            here, first = getattr(footer, what), getattr(footers[0], what)
            if here != first:
                raise DataError(
                    f"{footer.place}: {what} is {here}, but {first} in {footers[0].place}; "
                    "files of one set need the same columns and classes"
                )


def _read_labels(place: Place, entry: Entry) -> NDArray[np.int64]:
    with opened(place, entry) as file:
        column = file.read(columns=["label"], use_threads=False).column(0)
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()
        raise DataError(f"{place}, row {row}: the label is null; give every row a label or remove it")
    return column.to_numpy().astype(np.int64)
