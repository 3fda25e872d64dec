"""`emc2dist ingest SOURCE DEST`: any set of images as Parquet that trains fast, on disk or on S3.

    SOURCE   -> names, sizes, labels            kinds, source and folder, pixels, tar, parquet
             -> which, in which order           selection
             -> SPLIT-00000-of-00013.parquet    workers, writer: side by side, each file whole or not at all
             -> SPLIT.index.npz, ingest.json, and last of all manifest.json, which tells copies of images too (copies)

Rows are shuffled once, here: later, row groups are fetched and shuffled as blocks, and so each has to be a random part
of the set. A run that was stopped goes on with the files it had not finished (`unfinished`), and the set is the same
byte for byte. What is held in memory: names, labels, 28 bytes for each image, and one row group per worker.
"""

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emc2dist import __version__, files
from emc2dist.config import BUILT_IN, S3, Data
from emc2dist.data.cache import DiskCache
from emc2dist.data.catalogue import (
    MANIFEST,
    UNFINISHED,
    Manifest,
    ManifestSplit,
    index_bytes,
    index_name,
    open_catalogue,
    read_manifest,
)
from emc2dist.data.columns import groups_of
from emc2dist.data.ingest.captions import Said, Written, gather, write
from emc2dist.data.ingest.copies import Rows, on_copies
from emc2dist.data.ingest.kinds import KINDS, open_source, recognise
from emc2dist.data.ingest.selection import Selection, ordered, read_classes, select, such_as
from emc2dist.data.ingest.source import Source, Split
from emc2dist.data.ingest.unfinished import JOB, Job, Unfinished, is_done
from emc2dist.data.ingest.workers import write_files
from emc2dist.data.ingest.writer import Note, Target, Task
from emc2dist.data.kept import cache_folder
from emc2dist.data.parquet import ParquetImages
from emc2dist.data.texts.tables import VOCABULARY
from emc2dist.data.texts.tokenizer import check_vocabulary
from emc2dist.errors import DataError, SpecError, StorageError
from emc2dist.files import Place
from emc2dist.machine import cpus
from emc2dist.terminal import Progress, say

__all__ = ["KINDS", "ingest", "within"]

_WORTH_A_WORKER = 2  # files
_SHOWN = 5  # unreadable images named on stderr; the manifest has them all


def ingest(
    source: str,
    dest: str,
    *,
    kind: str | None = None,
    splits: Sequence[str] = (),
    classes: str | None = None,
    seed: int = 0,
    keep_order: bool = False,
    rows_per_file: int = 4096,
    workers: int | None = None,
    skip_unreadable: bool = False,
    labels: bool = True,
    captions: str | None = None,
    vocabulary: int = VOCABULARY,
    s3: S3 | None = None,
    cache_dir: str = Data().cache_dir,
) -> dict[str, Any]:
    """Write the images at `source` to the folder `dest`, a path or an s3:// URI; returns what was written.

    `kind` is one of `KINDS`; without it, what is there tells. `splits` are written SOURCE or SOURCE=NAME, `classes` is
    the name of a pinned list or of a text file (both: `selection`). The order of rows follows from `seed` and their
    number, or is the source's with `keep_order`. `workers` processes, by default one for each CPU and two files at
    least, write files of `rows_per_file` rows; 0 and 1: this process does. Images that cannot be decoded stop the work,
    or are left out and listed. Without `labels` none are looked at. `captions` is what those are called that are
    written beside the images, `auto` what custom calls so (docs/captions.md), None: none are; `vocabulary` bounds their
    tokenizer's tokens. `s3` says how S3 is reached; `cache_dir` is where
    Parquet sources are unpacked.

    Returns: rows of each split, files, bytes, classes, unnamed_classes (how many labels differ where none has a name,
    else 0), unreadable, duplicates, remarks (what was guessed, passed over,
    converted or dropped), seconds, images_per_second (of what this call wrote), dest; of captions also captions and
    images_with_captions by split, vocabulary and dropped.

    Raises:
        SpecError: an argument is out of range.
        DataError: source or destination cannot be used as asked; names file and row, and what to do.
        StorageError: source or destination cannot be reached.
        Emc2Error: a worker was killed.
    """
    began = time.monotonic()
    _check(seed, rows_per_file, workers, kind)
    if captions is not None:
        check_vocabulary(vocabulary)
    place = files.at(dest, s3)
    if within(dest, source):
        raise DataError(f"{dest}: is the source, or lies in it; give a DEST beside it")
    for name, what in BUILT_IN.items():
        if within(dest, name):
            say(f"{dest}: data.path={name} is {what}; this set is data.path=./{name}")
    kind = kind or recognise(source)
    say(f"listing {source} ({kind})")
    listed = open_source(source, kind, s3, cache_dir, splits, labels=labels, captions=captions)
    if listed.has_captions and captions is None:
        listed.remarks.append("the captions of the set are not taken along; give --captions auto, if they are meant")
    chosen = select(listed, splits, None if classes is None else read_classes(classes), labels=labels)
    plan = _Plan(kind, listed, chosen, None if keep_order else seed, rows_per_file)
    told = None if captions is None else gather(listed, plan.splits, captions, skip=skip_unreadable)
    if is_done(place, plan.job):
        say(f"{place}: this very set is finished already")
        (place / UNFINISHED).remove()  # which a run that was killed at the very end leaves
        manifest, images = read_manifest(place), 0
        for name in manifest.splits:
            open_catalogue(place, name, cache_folder(cache_dir))  # refuses what is no longer whole
        if manifest.unreadable and not skip_unreadable:
            raise DataError(
                f"{place}: finished already, but without {len(manifest.unreadable)} images ({manifest.unreadable[0]}); "
                "give --skip-unreadable if that is meant, or remove the set and replace them"
            )
    else:
        if not skip_unreadable:
            listed.check(np.concatenate([split.positions for split in plan.splits.values()]))
        manifest, images = _write(plan, place, skip_unreadable, plan.workers if workers is None else workers)
    of_captions = {} if told is None else _with_captions(told, place, plan, manifest, vocabulary, cache_dir)
    summary = _summary(place, plan, manifest, images, time.monotonic() - began)
    return summary | of_captions | {"remarks": summary["remarks"] + of_captions.get("remarks", [])}


def _with_captions(
    told: Said, dest: Place, plan: "_Plan", manifest: Manifest, vocabulary: int, cache_dir: str
) -> dict[str, Any]:
    """Write the captions of a finished set; what is told of them."""
    cache, splits = DiskCache(cache_folder(cache_dir) / "images", 0), dict[str, Written]()
    for name in plan.splits:
        positions = ordered(plan.splits[name], plan.seed).positions
        catalogue = open_catalogue(dest, name, cache_folder(cache_dir))
        assert catalogue is not None, "it was written"
        splits[name] = Written(ParquetImages(catalogue, cache), positions, plan.source.samples(positions))
    of_captions = write(told, dest, splits, manifest.unreadable, vocabulary)
    for remark in of_captions.remarks:
        say(remark)
    return {
        "captions": of_captions.documents,
        "images_with_captions": of_captions.queries,
        "vocabulary": of_captions.vocabulary,
        "dropped": of_captions.dropped,
        "remarks": of_captions.remarks,
    }


def _check(seed: int, rows_per_file: int, workers: int | None, kind: str | None) -> None:
    if seed < 0:
        raise SpecError(f"--seed {seed}: give 0 or more")
    if rows_per_file < 1:
        raise SpecError(f"--rows-per-file {rows_per_file}: give 1 or more")
    if workers is not None and workers < 0:
        raise SpecError(f"--workers {workers}: give 0 or more")
    if kind is not None and kind not in KINDS:
        raise SpecError(f"--kind {kind}: unknown; give one of {', '.join(KINDS)}, pairs, texts")


def within(dest: str, source: str) -> bool:
    """Whether a path leads to a folder or into it."""
    if files.is_remote(dest) or files.is_remote(source):
        return f"{dest.rstrip('/')}/".startswith(f"{source.rstrip('/')}/")
    inner, outer = (os.path.realpath(files.local(path)) for path in (dest, source))
    return os.path.commonpath([inner, outer]) == outer


@dataclass(frozen=True)
class _Plan:
    """What is to be written."""

    kind: str
    source: Source
    chosen: Selection
    """Classes, and splits in the source's order."""
    seed: int | None
    """Of the order in which they are written; None keeps the source's."""
    rows_per_file: int

    @property
    def classes(self) -> list[str]:
        return self.chosen.classes

    @property
    def splits(self) -> dict[str, Split]:
        return self.chosen.splits

    @property
    def unnamed_classes(self) -> int:
        """How many different labels there are where classes have no names."""
        told = [split.labels for split in self.splits.values() if split.labels is not None and not self.classes]
        return int((np.unique(np.concatenate(told)) >= 0).sum()) if told else 0

    @property
    def remarks(self) -> list[str]:
        """What was guessed, passed over or dropped so far."""
        return self.source.remarks + self.chosen.remarks

    @property
    def images(self) -> int:
        return sum(len(split.positions) for split in self.splits.values())

    @property
    def job(self) -> Job:
        """All that decides the content of the set."""
        return {
            "kind": self.kind,
            "source": self.source.digest,
            "classes": self.classes,
            "images": {name: _digest(split.positions) for name, split in self.splits.items()},
            "labels": {name: _digest(split.labels) for name, split in self.splits.items()},
            "seed": self.seed,
            "rows_per_file": self.rows_per_file,
        }

    @property
    def workers(self) -> int:
        """One for each CPU that may be used, if each gets some files: a start takes as long as thousands of images."""
        files = sum(len(self.files(name)) for name in self.splits)
        return max(1, min(cpus(), files // _WORTH_A_WORKER))

    def files(self, split: str) -> list[str]:
        """Names of the split's files, in order."""
        count = -(-len(self.splits[split].positions) // self.rows_per_file)
        return [f"{split}-{number:05}-of-{count:05}.parquet" for number in range(count)]

    def tasks(self) -> Iterator[Task]:
        """All files, in order."""
        for name in self.splits:
            split = ordered(self.splits[name], self.seed)
            for number, file in enumerate(self.files(name)):
                rows = slice(number * self.rows_per_file, (number + 1) * self.rows_per_file)
                labels = None if split.labels is None else split.labels[rows]
                yield Task(file, self.source.samples(split.positions[rows]), labels)


def _digest(numbers: NDArray[np.int64] | None) -> str:
    return hashlib.sha256(b"" if numbers is None else numbers.astype("<i8").tobytes()).hexdigest()


def _write(plan: _Plan, dest: Place, skip_unreadable: bool, workers: int) -> tuple[Manifest, int]:
    """Write the set, or what is missing of it; returns its manifest, and how many images were read for it."""
    unfinished = Unfinished(dest, plan.job)
    target = Target(plan.source.root, dest, unfinished.notes, plan.classes, skip_unreadable)
    with unfinished.drafts() as drafts:
        noted = unfinished.finished(with_unreadable=skip_unreadable)
        notes = {
            task.name: note
            for task in (plan.tasks() if noted else ())
            if (note := noted.get(task.name)) and note.tells_of(task)
        }
        before = sum(note.images for note in notes.values())
        if notes:
            say(f"{dest}: goes on after {len(notes)} finished files")
        if len(notes) < len(noted):
            say(f"{dest}: {len(noted) - len(notes)} files are written again, for their images have changed")
        tasks = (task for task in plan.tasks() if task.name not in notes)
        left = sum(len(plan.files(name)) for name in plan.splits) - len(notes)
        with closing(Progress(plan.images, before, unit="image")) as progress:
            for note in write_files(tasks, target, drafts, min(workers, left), progress):
                notes[note.file.name] = note
        manifest = _finish(plan, dest, notes)
    try:
        unfinished.remove()
    except StorageError as error:
        say(f"{dest}: the set is complete; what was noted for it could not be removed ({error})")
    return manifest, plan.images - before


def _finish(plan: _Plan, dest: Place, notes: dict[str, Note]) -> Manifest:
    """Write what makes a set of the files, the manifest last of all, and return that."""
    of_split = {name: [notes[file] for file in plan.files(name)] for name in plan.splits}
    unreadable = [line for found in of_split.values() for note in found for line in note.unreadable]
    for name, found in of_split.items():
        if not any(note.file.rows for note in found):
            for note in found:  # others would take them for a set without images
                (dest / note.file.name).remove()
            raise DataError(f"{plan.source.root}: no image of split {name} can be read; {unreadable[0]}")
    for name, found in of_split.items():
        lengths = np.concatenate([note.lengths for note in found])
        labels = np.concatenate([note.labels for note in found])
        twins = groups_of(np.concatenate([note.digests for note in found]))
        (dest / index_name(name)).write(index_bytes(lengths, labels, twins))
    digests = np.concatenate([note.digests for note in notes.values()])
    converted = sum((Counter(note.converted) for note in notes.values()), Counter[str]())
    duplicates = len(digests) - len(np.unique(digests))
    done = _on_unreadable(plan, of_split) + (_on_copies(plan, of_split) if duplicates else [])
    done += [f"{images} images: {what}" for what, images in sorted(converted.items())]
    manifest = Manifest(
        version=__version__,
        classes=plan.classes,
        splits={
            name: ManifestSplit(labelled=plan.splits[name].labels is not None, files=[note.file for note in found])
            for name, found in of_split.items()
        },
        unreadable=unreadable,
        duplicates=duplicates,
        remarks=plan.remarks + done,
    )
    (dest / JOB).write(json.dumps(plan.job).encode())
    (dest / MANIFEST).write(manifest.model_dump_json(indent=1).encode())
    return manifest


def _on_unreadable(plan: _Plan, of_split: dict[str, list[Note]]) -> list[str]:
    """Remarks on classes of which no image could be read."""
    remarks = []
    for name, notes in of_split.items():
        labels = plan.splits[name].labels
        planned = np.unique(labels[labels >= 0]) if labels is not None else np.empty(0, np.int64)
        lost = np.setdiff1d(planned, np.concatenate([note.labels for note in notes]))
        if len(lost):
            example = such_as(plan.classes, lost[0])
            remarks.append(f"{name}: no image of {len(lost)} of {len(planned)} classes could be read{example}")
    return remarks


def _on_copies(plan: _Plan, of_split: dict[str, list[Note]]) -> list[str]:
    """Remarks on images that stand several times in the set."""

    def where(split: str, row: int) -> str:
        for note in of_split[split]:
            if row < len(note.lengths):
                break
            row -= len(note.lengths)
        samples = next(task.samples for task in plan.tasks() if task.name == note.file.name)
        found = (samples.where(k) for k in range(len(samples)))
        read = (one for one in found if not any(line.startswith(f"{one}: ") for line in note.unreadable))
        return next(islice(read, row, None))

    rows = {
        name: Rows(np.concatenate([note.digests for note in notes]), np.concatenate([note.labels for note in notes]))
        for name, notes in of_split.items()
    }
    return on_copies(rows, where)


def _summary(dest: Place, plan: _Plan, manifest: Manifest, images: int, seconds: float) -> dict[str, Any]:
    for remark in manifest.remarks:
        say(remark)
    for line in manifest.unreadable[:_SHOWN]:
        say(f"left out: {line}")
    if len(manifest.unreadable) > _SHOWN:
        say(f"left out: {len(manifest.unreadable) - _SHOWN} more, see {dest / MANIFEST}")
    written = [file for split in manifest.splits.values() for file in split.files]
    return {
        "dest": str(dest),
        "rows": {name: split.rows for name, split in manifest.splits.items()},
        "files": len(written),
        "bytes": sum(file.size for file in written),
        "classes": len(manifest.classes),
        "unnamed_classes": plan.unnamed_classes,
        "unreadable": len(manifest.unreadable),
        "duplicates": manifest.duplicates,
        "remarks": manifest.remarks,
        "seconds": seconds,
        "images_per_second": images / seconds,
    }
