"""One Parquet file of a set: written on this machine, read back, moved to where it belongs.

    image: struct<bytes: binary, path: string>, label: int64 (left out where there are no labels)

as Hugging Face `datasets` writes images, with its schema metadata. Row groups hold `GROUP_ROWS` rows, or fewer once
`GROUP_BYTES` are reached. Images stand in them uncompressed, plainly encoded, in one page: the last bytes of the column
are, for each row, the image's length (uint32, little-endian) and the image. So an image can be read by its place in the
file; the file is read back to make sure that it is there.

Each image is decoded once before it is written, because what cannot be decoded must not get into the set.
"""

import hashlib
import io
import json
import mmap
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from emc2dist.data.catalogue import ManifestFile
from emc2dist.data.decode import examine
from emc2dist.data.ingest.source import Samples
from emc2dist.errors import DataError, StorageError
from emc2dist.files import Place
from emc2dist.files.pointers import pointer

GROUP_ROWS = 100
GROUP_BYTES = 2**24
DIGEST = np.dtype("V16")
_PREFIX = 4  # bytes of the length that stands before each value in Parquet's plain encoding
_ONE_PAGE = 2**30  # bytes; pages are cut when they get longer
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@dataclass(frozen=True)
class Task:
    """A file to write: its name, its images in order, and their labels."""

    name: str
    samples: Samples
    labels: NDArray[np.int64] | None


@dataclass(frozen=True)
class Target:
    """What all files of a set have in common."""

    root: str
    """The source's, for messages."""
    dest: Place
    notes: Place
    classes: list[str]
    skip_unreadable: bool


@dataclass(frozen=True)
class Note:
    """What is known of a finished file."""

    file: ManifestFile
    unreadable: list[str]
    """Images that were left out, each with the reason."""
    converted: dict[str, int]
    """Of how many images the pixels are not simply those of the file, by what is done to them, in words."""
    lengths: NDArray[np.uint32]
    """Bytes of each image."""
    labels: NDArray[np.int64]
    """-1 where there is none."""
    digests: NDArray[np.void]
    """Of each image's bytes, 16 bytes each."""
    source: str
    """Digest of what they were read from, see `Samples.digest`."""

    def tells_of(self, task: Task) -> bool:
        """Whether the file was made from what the task would read now."""
        return self.source == task.samples.digest()

    @property
    def images(self) -> int:
        """Images that were read for the file."""
        return len(self.lengths) + len(self.unreadable)

    def to_bytes(self) -> bytes:
        """The content of a note's file."""
        buffer = io.BytesIO()
        told = {"unreadable": self.unreadable, "converted": self.converted, "source": self.source}
        facts = json.dumps({"file": self.file.model_dump(), **told})
        np.savez(buffer, facts=np.array(facts), lengths=self.lengths, labels=self.labels, digests=self.digests)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Note | None":
        """What `to_bytes` wrote; None where it is damaged."""
        try:
            with np.load(io.BytesIO(content)) as held:
                facts = json.loads(str(held["facts"]))
                file = ManifestFile.model_validate_json(json.dumps(facts["file"]))
                told = facts["unreadable"], facts["converted"]
                return cls(file, *told, held["lengths"], held["labels"], held["digests"], facts["source"])
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error):
            return None


class _Row(NamedTuple):
    encoded: bytes
    path: str | None
    label: int


def write_file(task: Task, target: Target, drafts: Path, count: Callable[[], None]) -> Note:
    """Write a file of the set, then its note, and return that. `count` is called after each image.

    Raises:
        DataError: an image cannot be read or decoded, and is not to be skipped; names it.
        StorageError: source or destination cannot be reached.
    """
    draft, unreadable, converted = drafts / task.name, list[str](), Counter[str]()
    try:
        written = _write(draft, _schema(task, target.classes), _rows(task, target, unreadable, converted, count))
        sha256, starts = _inspect(draft, written)
        entry = (target.dest / task.name).put(draft)
    except (OSError, pa.ArrowException) as error:
        raise StorageError(
            f"{draft}: cannot be written ({error}); make room, then run the same command again"
        ) from error
    finally:
        draft.unlink(missing_ok=True)
    file = ManifestFile(
        name=task.name,
        rows=len(written.lengths),
        size=entry.size,
        sha256=sha256,
        etag=entry.tag if target.dest.remote else None,
        groups=list(zip(written.counts, starts, strict=True)),
    )
    note = Note(
        file,
        unreadable,
        dict(converted),
        np.array(written.lengths, np.uint32),
        np.array(written.labels, np.int64),
        np.array(written.digests, DIGEST),
        task.samples.digest(),
    )
    note_place(target.notes, task.name).write(note.to_bytes())
    return note


def note_place(notes: Place, name: str) -> Place:
    """Where the note of a file lies."""
    return notes / f"{name}.npz"


def _rows(
    task: Task, target: Target, unreadable: list[str], converted: "Counter[str]", count: Callable[[], None]
) -> Iterator[_Row]:
    """The rows to write; adds to `unreadable` what has to be left out, and counts in `converted` what is done."""
    for k in range(len(task.samples)):
        try:
            encoded, conversion = _readable(task.samples, k, target.root)
        except _Unreadable as error:
            where = task.samples.where(k)
            if not target.skip_unreadable:
                advice = "replace it, or leave such images out with --skip-unreadable"
                raise DataError(f"{target.root}/{where}: {error}; {advice}") from error
            unreadable.append(f"{where}: {error}")
        else:
            converted.update([conversion] if conversion else [])
            yield _Row(encoded, task.samples.path(k), -1 if task.labels is None else int(task.labels[k]))
        count()


class _Unreadable(Exception):
    """An image that cannot be read or decoded, and why."""


def _readable(samples: Samples, k: int, root: str) -> tuple[bytes, str | None]:
    """The image's bytes, which can be decoded, and what is done to its values. Raises _Unreadable."""
    try:
        encoded = samples.read(k)
    except DataError as error:
        raise _Unreadable(str(error).removeprefix(f"{root}/{samples.where(k)}: ")) from error
    if not encoded:
        raise _Unreadable("the file is empty")
    if what := pointer(encoded):
        raise _Unreadable(what)
    try:
        return encoded, examine(encoded)
    except ValueError as error:
        raise _Unreadable(f"the image cannot be decoded ({error})") from error


def _schema(task: Task, classes: list[str]) -> pa.Schema:
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    fields: list[pa.Field[Any]] = [pa.field("image", _IMAGE)]
    if task.labels is not None:
        features["label"] = (
            {"names": classes, "_type": "ClassLabel"} if classes else {"dtype": "int64", "_type": "Value"}
        )
        fields.append(pa.field("label", pa.int64()))
    return pa.schema(fields, {"huggingface": json.dumps({"info": {"features": features}})})


@dataclass
class _Written:
    """What went into a file: for each row group its rows, and for each row what is noted of it."""

    counts: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)

    def add(self, rows: list[_Row]) -> None:
        self.counts.append(len(rows))
        self.lengths += [len(row.encoded) for row in rows]
        self.labels += [row.label for row in rows]
        self.digests += [hashlib.blake2b(row.encoded, digest_size=DIGEST.itemsize).digest() for row in rows]


def _write(draft: Path, schema: pa.Schema, rows: Iterator[_Row]) -> _Written:
    written = _Written()
    with (
        draft.open("wb") as file,
        pq.ParquetWriter(  # opened here: names that are not UTF-8 are none to pyarrow
            file,
            schema,
            compression="none",
            use_dictionary=False,
            write_statistics=["label"],
            data_page_version="1.0",
            data_page_size=_ONE_PAGE,
        ) as writer,
    ):
        for group in _groups(rows):
            columns = {
                "image": pa.array([{"bytes": row.encoded, "path": row.path} for row in group], _IMAGE),
                "label": pa.array([row.label for row in group], pa.int64()),
            }
            writer.write_table(pa.table([columns[name] for name in schema.names], schema=schema))
            written.add(group)
    return written


def _groups(rows: Iterator[_Row]) -> Iterator[list[_Row]]:
    group, size = list[_Row](), 0
    for row in rows:
        group.append(row)
        size += len(row.encoded)
        if len(group) == GROUP_ROWS or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _inspect(draft: Path, written: _Written) -> tuple[str, list[int]]:
    """The file's SHA-256, and for each row group the byte at which its images begin; checks every image's place."""
    with draft.open("rb") as opened:
        metadata = pq.read_metadata(opened)
    lengths, starts = np.array(written.lengths, np.int64), []
    ends = np.cumsum(written.counts, dtype=np.int64)
    with draft.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for number, (end, rows) in enumerate(zip(ends, written.counts, strict=True)):
            column = metadata.row_group(number).column(0)
            sizes = lengths[end - rows : end] + _PREFIX
            start = column.data_page_offset + column.total_compressed_size - int(sizes.sum())
            places = start + np.cumsum(sizes) - sizes
            found = [int.from_bytes(content[place : place + _PREFIX], "little") for place in places]
            if column.path_in_schema != "image.bytes" or found != (sizes - _PREFIX).tolist():
                raise RuntimeError(
                    f"pyarrow {pa.__version__} lays out image.bytes otherwise than expected; report this"
                )
            starts.append(start)
        return hashlib.sha256(content).hexdigest(), starts
