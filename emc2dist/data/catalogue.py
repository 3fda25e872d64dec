"""What a set of images in Parquet consists of: files, row groups, and where each image's bytes lie.

    ingested   `emc2dist ingest` left `manifest.json` (last of all, so a half-written set has none) and, for each split,
               `SPLIT.index.npz`: the length of every image and every label. Row groups hold their images uncompressed,
               plainly encoded and in one page, so an image is a range of bytes of its file, known without reading it.
    any other  the footers of the *.parquet files are read once and what they say is kept in `cache_dir`. Their row
               groups are decoded by pyarrow, a whole group at a time.

Without a manifest, the names of files tell the splits (`emc2dist.data.splits`), and their columns the images and labels
(`emc2dist.data.columns`). Files without rows count as nothing, hidden ones are passed over.

Opening is one listing and, for an ingested set, two small files. The listing pins each file's size and tag: what is
read later comes from those very files, or is refused.
"""

import bisect
import hashlib
import io
import json
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from emc2dist.config import BUILT_IN, paths
from emc2dist.data import columns, kept
from emc2dist.data.columns import Footer, Labels
from emc2dist.data.foreign import MAGIC
from emc2dist.data.splits import alone, by_split, left_out, missing, one_writing, split_of, together
from emc2dist.errors import DataError
from emc2dist.files import Entry, Place, refuse_lost
from emc2dist.files.pointers import pointer, pointer_at

MANIFEST = "manifest.json"
_USABLE = (
    f"set data.path to a *.parquet file, a folder of such, or one of {', '.join(BUILT_IN)}, or make a set of other "
    "images with `emc2dist ingest`"
)
ON_S3 = "only Parquet sets are read from S3: copy others to a disk first (aws s3 cp)"
"""What helps where other things lie there."""
_SHOWN = 5  # folders and kinds of files that a message names
_PATTERN = re.compile(r"[*?]|\[.+\]|\{.*(,|\.\.).*\}")  # as shells and loaders of tars expand them
PARTITION = (
    "a partition of Hive, whose name is a value of a column that the files lack; write that column into the files, or "
    "rename the folder if it is none"
)
"""What is wrong with a folder whose name holds a `=`."""
_LOGGED = {"_delta_log": "a Delta", ".hoodie": "a Hudi"}
UNFINISHED = ".ingest"
"""Folder of notes that `emc2dist ingest` keeps until the set is whole."""


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
    """File beside the manifest that holds `lengths` (uint32, bytes of each image), `labels` (int64; -1: none) and
    `duplicates` (int64, see `emc2dist.data.columns.groups_of`).
    """
    return f"{split}.index.npz"


def index_bytes(lengths: NDArray[np.uint32], labels: NDArray[np.int64], duplicates: NDArray[np.int64]) -> bytes:
    """The content of an index file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, lengths=lengths, labels=labels, duplicates=duplicates)
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
    image: str
    """The images' column, as in `image.bytes`."""
    remarks: list[str]
    """What was guessed or passed over, with numbers."""
    digests: list[str]
    """Of each file, SHA-256 of all of it where the set was ingested, else of its footer: all would have to be read."""
    labelled: bool
    """Whether any row may have a label."""
    kept_labels: Labels | None
    """Where they are known already."""
    duplicates: NDArray[np.int64] | None = None
    """The group of images with the same bytes that each is of, -1 where it is alone; where the set was ingested."""
    label_problem: str | None = None
    """Why labels that are there cannot be read."""
    on_labels: list[str] = field(default_factory=list)
    """What a person should know of the labels, if they are read."""
    footers: list[Footer] = field(default_factory=list)
    """Of each file, where `starts` are not known."""
    keep_labels_at: Path | None = None
    groups: list[Group] = field(init=False)

    def __post_init__(self) -> None:
        self.groups = list(_groups(self.counts, self.starts))

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(map(sum, self.counts))

    def labels(self) -> Labels:
        """Every row's label and the classes' names. Reads the label column of all files the first time, unless kept.

        Raises:
            DataError: there is no such column, or it holds something else than labels; names file and row.
        """
        if not self.labelled:
            raise DataError(f"{self.places[0]}: no `label` column; add one of type int64, or do without labels")
        if self.label_problem:
            raise DataError(self.label_problem)
        if self.kept_labels is None:
            self.kept_labels = columns.read_labels(self.places, self.entries, self.footers)
            columns.check_labels(*self.kept_labels, self.where)
            if self.keep_labels_at is not None:
                kept.keep(self.keep_labels_at, _labels_bytes(self.kept_labels))
        return self.kept_labels

    @property
    def classes(self) -> list[str]:
        """Names of the classes; empty where there are none. Reads and raises as `labels` does."""
        return self.labels().classes if self.labelled else []

    def unlabelled(self) -> str | None:
        """Why no image of the split has a label; None where some have. Reads as `labels` does."""
        try:
            numbers = self.labels().numbers
        except DataError as error:
            return str(error)
        return None if (numbers >= 0).any() else f"{self.places[0]}: all {self.rows} labels are withheld (-1 or null)"

    def file(self, group: Group) -> tuple[Place, Entry]:
        """The file that a row group lies in, as it was when the set was opened."""
        return self.places[group.file], self.entries[group.file]

    def group(self, index: int) -> Group:
        """The row group in which an index lies."""
        return self.groups[bisect.bisect_right(self.groups, index, key=lambda group: group.first_index) - 1]

    def where(self, index: int) -> str:
        """File and row of an index, for messages."""
        group = self.group(index)
        return f"{self.places[group.file]}, row {group.first_row + index - group.first_index}"


def open_catalogue(place: Place, split: str, cache_dir: Path) -> Catalogue | None:
    """The catalogue of a split at `place`, a folder or one Parquet file. None where the split is not there, or has no
    rows, except that `train` has to be.

    Raises:
        DataError: nothing there, nothing to train on, an unfinished or a damaged set; or files that are not Parquet,
            hold no images, do not fit together or are there twice.
        StorageError: the place cannot be read.
    """
    listing = list_set(place)
    if MANIFEST in listing:
        return _of_manifest(place, split, listing)
    files, remarks = _files_of(place, listing)
    split = known_as(split, files)
    if split not in files and split != "train":
        return None
    if split not in files:
        raise DataError(
            f"{place}: holds no training files, but {', '.join(files)} ({next(iter(files.values()))[0]}); name the "
            "training files train*.parquet"
        )
    places = [place / name for name in files[split]] if listing else [place]
    entries = [listing[name] for name in files[split]] if listing else [_there(place)]
    catalogue = _of_footers(places, entries, cache_dir, remarks)
    if catalogue.rows or split != "train":
        return catalogue if catalogue.rows else None
    raise DataError(f"{', '.join(map(str, places))}: no rows; give Parquet files that hold images")


def list_set(place: Place) -> dict[str, Entry]:
    """The files of a set; without a manifest those in its folders too, by FOLDER/NAME, as Hugging Face lays them out.

    Of a folder that is a set of its own, its manifest alone; of a Parquet file none, for which nothing is listed on S3,
    where that takes another permission than to read.

    Raises:
        DataError: the folders are values of a column, which would be lost; or the files are those of a table whose log
            tells which of them count.
        StorageError: a file is a link that leads nowhere.
    """
    _refuse_lost(place)
    if place.remote and is_parquet(place.name) and place.entry() is not None:
        return {}
    listing = {entry.name: entry for entry in place.entries()}
    if "=" in place.name and MANIFEST not in listing and any(is_parquet(name) for name in listing):
        raise DataError(f"{place}: {PARTITION}")
    folders = place.folders() if MANIFEST not in listing else []
    _refuse_logged(place, folders)
    for folder in folders:
        found = (place / folder).entries()
        if MANIFEST in {entry.name for entry in found}:  # a set of its own, known by that
            listing |= {f"{folder}/{entry.name}": entry for entry in found if entry.name == MANIFEST}
            continue
        _refuse_lost(place / folder)
        inside = [entry for entry in found if is_parquet(entry.name)]
        if inside:
            _refuse_logged(place / folder, (place / folder).folders())
        if inside and "=" in folder and not is_hidden(folder):
            raise DataError(f"{place / folder}: {PARTITION}")
        listing |= {f"{folder}/{entry.name}": entry for entry in inside}
    return listing


def _refuse_logged(place: Place, folders: list[str]) -> None:
    """Raise DataError where a folder is a table of Delta, Hudi or Iceberg: it keeps files of rows that are gone."""
    kind = next((_LOGGED[folder] for folder in folders if folder in _LOGGED), None)
    if kind is None and "metadata" in folders:
        snapshots = [entry.name for entry in (place / "metadata").entries() if entry.name.endswith(".metadata.json")]
        kind = "an Iceberg" if snapshots else None
    if kind is not None:
        raise DataError(
            f"{place}: {kind} table, whose log tells which of its Parquet files count: others hold rows that were "
            "removed or changed; read it by its own library, write that as Parquet into another folder, and give that"
        )


def _refuse_lost(folder: Place) -> None:
    """Raise StorageError where a Parquet file is a link that leads nowhere, which no listing has."""
    for file in () if folder.remote else Path(str(folder)).glob("*"):
        if is_parquet(file.name) and not is_hidden(file.name):
            refuse_lost(file)


def nothing_at(path: object, advice: str) -> DataError:
    """What to raise where nothing lies at a path; `advice` is what would help where it is none of several files."""
    if _PATTERN.search(str(path)):
        advice = "patterns are not expanded; give the folder that holds the files"
    return DataError(f"{path}: no such file or folder{paths.looked_for_in(str(path))}; {advice}")


def splits_of(place: Place) -> list[str]:
    """Names of the splits at `place`, at least one, `train` first. Raises as `open_catalogue` does."""
    listing = list_set(place)
    return list(read_manifest(place).splits) if MANIFEST in listing else list(_files_of(place, listing)[0])


def read_manifest(folder: Place) -> Manifest:
    """The manifest of an ingested set. Raises DataError where it is damaged."""
    content = (folder / MANIFEST).read()
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        if what := pointer(content):
            raise DataError(f"{folder / MANIFEST}: {what}") from error
        if b'"kind": "pairs"' in content:
            raise DataError(
                f"{folder}: is a set of pairs of texts, and data.kind is images; give data.kind=pairs"
            ) from error
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise DataError(f"{folder / MANIFEST}: {key}: {problem['msg']}; ingest the set again") from error


def known_as(split: str, known: Iterable[str]) -> str:
    """The name of a split in a set that has those `known`: `val` finds `validation`, and the other way round."""
    names = list(known)
    same = [name for name in names if split_of(split) and split_of(name) == split_of(split)]
    return split if split in names or not same else same[0]


def _files_of(place: Place, listing: dict[str, Entry]) -> tuple[dict[str, list[str]], list[str]]:
    """The Parquet files of each split of a set without a manifest, at least one; and remarks."""
    if not listing and (entry := place.entry()) is not None:
        if not begins_as_parquet(place, entry):
            raise DataError(f"{place}: is no Parquet file; {_usable(place)}")
        return {"train": [place.name]}, alone(place)
    if UNFINISHED in place.folders():
        raise DataError(f"{place}: an unfinished ingest; run the same `emc2dist ingest` again, it goes on where it was")
    every = [name for name in listing if is_parquet(name)]
    hidden = [name for name in every if is_hidden(name)]
    found = [name for name in every if not is_hidden(name)]
    files, others = by_split(found)
    if not files and not listing and not place.folders() and (place.remote or not Path(str(place)).is_dir()):
        raise nothing_at(place, _usable(place))
    if not files:
        raise holds_none(place, listing, _usable(place))
    one_writing(place, found)
    remarks = [f"{len(hidden)} hidden files were passed over ({hidden[0]})"] if hidden else []
    own = _sets_among(listing)
    remarks += [f"{', '.join(f'{one}/' for one in own)}: sets of their own, which were left out"] if own else []
    inside = sorted({name.partition("/")[0] for name in found if "/" in name})
    remarks += [f"files in folders belong to the set: {', '.join(f'{one}/' for one in inside)}"] if inside else []
    nearly = [name for name in listing if ".parquet" in name.lower() and name not in every and not name.startswith(".")]
    remarks += [f"{len(nearly)} files are no *.parquet and were left out ({nearly[0]})"] if nearly else []
    return files, remarks + alone(place, found) + together(files) + missing(found) + left_out(others)


def _usable(place: Place) -> str:
    return f"{_USABLE} (but {ON_S3})" if place.remote else _USABLE


def holds_none(place: Place, listing: Iterable[str], advice: str) -> DataError:
    """What to raise where a folder holds no Parquet files: it tells what is there; `advice` helps where no sets are."""
    if sets := on_sets(listing):
        return DataError(f"{place}: holds no *.parquet files; {sets}")
    kinds = Counter(PurePosixPath(name).suffix.lower() or "no extension" for name in listing)
    found = [f"{folder}/" for folder in place.folders()] + [f"{kind} {n}" for kind, n in kinds.most_common()]
    shown = ", ".join(found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
    what = f", but {shown}" if found else ""
    return DataError(f"{place}: holds no *.parquet files{what}; {advice}")


def on_sets(listing: Iterable[str]) -> str:
    """What to do where nothing but sets of their own lie in a folder; empty where there are none."""
    named = ", ".join(f"{one}/" for one in _sets_among(listing))
    advice = f"to make one set of them, put copies of these folders, without {MANIFEST}, into one folder and give that"
    return f"it holds finished sets ({named}): give one of them; {advice}" if named else ""


def _sets_among(listing: Iterable[str]) -> list[str]:
    """The folders in a folder that are sets of their own."""
    return [name.rpartition("/")[0] for name in listing if name.endswith(f"/{MANIFEST}")]


def is_hidden(name: str) -> bool:
    """Whether a file, or the folder that it lies in, is hidden or a tool's own, as Spark's `_temporary` is."""
    return any(part.startswith((".", "_")) for part in name.split("/"))


def begins_as_parquet(place: Place, entry: Entry) -> bool:
    """Whether a file is taken for Parquet, by its name or its first bytes."""
    return is_parquet(place.name) or place.read_range(0, min(len(MAGIC), entry.size), entry.tag) == MAGIC


def is_parquet(name: str) -> bool:
    """Whether a file is taken for Parquet."""
    return name.lower().endswith(".parquet")


def _there(place: Place) -> Entry:
    entry = place.entry()
    if entry is None:
        raise nothing_at(place, _usable(place))
    return entry


def _of_manifest(folder: Place, split: str, listing: dict[str, Entry]) -> Catalogue | None:
    manifest = read_manifest(folder)
    split = known_as(split, manifest.splits)
    if split not in manifest.splits:
        if split != "train":
            return None
        known = ", ".join(manifest.splits)
        raise DataError(f"{folder}: has no split `train`, but {known}; ingest it again with --split NAME=train")
    files = manifest.splits[split].files
    for file in files:
        _check_pinned(folder, file, listing.get(file.name))
    own = {file.name for part in manifest.splits.values() for file in part.files}
    strange = [name for name in listing if is_parquet(name) and name not in own]
    lengths, labels, duplicates = _read_index(folder / index_name(split))
    if len(lengths) != manifest.splits[split].rows or len(labels) != len(lengths):
        raise DataError(f"{folder / index_name(split)}: does not belong to {MANIFEST}; remove the set, ingest it again")
    return Catalogue(
        places=[folder / file.name for file in files],
        entries=[listing[file.name] for file in files],
        counts=[[rows for rows, _ in file.groups] for file in files],
        starts=[[start for _, start in file.groups] for file in files],
        lengths=lengths,
        image="image.bytes",
        remarks=[f"{len(strange)} Parquet files are none of the set's ({strange[0]})"] if strange else [],
        digests=[file.sha256 for file in files],
        labelled=manifest.splits[split].labelled,
        kept_labels=Labels(labels, manifest.classes),
        duplicates=duplicates,
    )


def _read_index(place: Place) -> tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.int64]]:
    content = place.read()
    try:
        with np.load(io.BytesIO(content)) as index:
            return index["lengths"], index["labels"], index["duplicates"]
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if what := pointer(content):
            raise DataError(f"{place}: {what}") from error
        raise DataError(f"{place}: damaged ({error}); remove the set, ingest it again") from error


def _check_pinned(folder: Place, file: ManifestFile, entry: Entry | None) -> None:
    if entry is None:
        raise DataError(f"{folder / file.name}: missing, though {MANIFEST} lists it; remove the set, ingest it again")
    if entry.size != file.size:
        if what := pointer_at(folder / file.name, entry):
            raise DataError(f"{folder / file.name}: {what}")
        raise DataError(
            f"{folder / file.name}: {entry.size} bytes, but {file.size} when it was ingested: truncated or replaced; "
            "remove the set, ingest it again"
        )
    if folder.remote and file.etag is not None and entry.tag != file.etag:
        raise DataError(
            f"{folder / file.name}: changed since it was ingested (its ETag is {entry.tag}, not {file.etag}); "
            "ingest the set again. Copy a set with `emc2dist ingest OLD NEW`: other tools may give it other ETags"
        )


def _of_footers(places: list[Place], entries: list[Entry], cache_dir: Path, remarks: list[str]) -> Catalogue:
    identities = [[kept.identity(p), *e] for p, e in zip(places, entries, strict=True)]
    key = hashlib.sha256(json.dumps([Footer._fields, identities]).encode()).hexdigest()
    of_footers, of_labels = (cache_dir / "catalogues" / f"{key}.{what}" for what in ("footers", "labels"))
    noted, labels = kept.recall(of_footers), kept.recall(of_labels)
    if noted is None:
        footers = [columns.read_footer(place, entry) for place, entry in zip(places, entries, strict=True)]
        kept.keep(of_footers, json.dumps(footers).encode())
    else:
        footers = [Footer(*facts) for facts in json.loads(noted)]
    full = [n for n, footer in enumerate(footers) if footer.rows]
    if len(full) < len(footers):
        empty = next(place for place, footer in zip(places, footers, strict=True) if not footer.rows)
        remarks = [*remarks, f"{len(footers) - len(full)} of {len(footers)} files have no rows, as {empty.name}"]
    places, entries, footers = [places[n] for n in full], [entries[n] for n in full], [footers[n] for n in full]
    _check_distinct(places, entries)
    _check_one_column(places, footers)
    rows = sum(footer.rows for footer in footers)
    if rows and rows == sum(footer.nulls for footer in footers):
        raise DataError(
            f"{', '.join(map(str, places))}: all {rows} images are null, for only their bytes are read, no files that "
            "they may name; write the bytes of these into `bytes`"
        )
    problem = columns.label_problem(places, footers)
    return Catalogue(
        places,
        entries,
        counts=[footer.counts for footer in footers],
        starts=None,
        lengths=None,
        image=footers[0].image if footers else "",
        remarks=remarks + (columns.remarks_on(footers) if footers else []),
        digests=[footer.digest for footer in footers],
        labelled=any(footer.labelled for footer in footers),
        kept_labels=None if labels is None else _labels_of(labels),
        label_problem=problem,
        on_labels=columns.on_labels(footers) if footers and not problem else [],
        footers=footers,
        keep_labels_at=of_labels,
    )


def _labels_bytes(labels: Labels) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, numbers=labels.numbers, classes=np.array(labels.classes, str))
    return buffer.getvalue()


def _labels_of(content: bytes) -> Labels:
    with np.load(io.BytesIO(content)) as held:
        return Labels(held["numbers"], held["classes"].tolist())


def _groups(counts: Sequence[Sequence[int]], starts: Sequence[Sequence[int]] | None) -> Iterator[Group]:
    first_index = 0
    for file, rows_of_groups in enumerate(counts):
        first_row = 0
        for number, rows in enumerate(rows_of_groups):
            start = None if starts is None else starts[file][number]
            yield Group(file, number, first_row, first_index, rows, start)
            first_row += rows
            first_index += rows


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


def _check_one_column(places: list[Place], footers: list[Footer]) -> None:
    for place, footer in zip(places, footers, strict=True):
        if footer.image != footers[0].image:
            raise DataError(
                f"{place}: the images are those of column {footer.image}, but of {footers[0].image} in {places[0]}; "
                "files of one split need the same columns"
            )
