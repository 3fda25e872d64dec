"""`DEST/.ingest`: what is kept while a set is being written, so that the same command can go on.

    job.json      what the set is made from and how; another job in the same folder is refused
    NAME.npz      a note of a finished file. It counts while the file is there with the size (and ETag) it names
    lock          held by the process that writes, where DEST is a disk
    draft-*/      files being written, where DEST is a disk

`ingest.json`, the job of a finished set, stays beside its manifest.
"""

import fcntl
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emc2dist import files
from emc2dist.data.catalogue import MANIFEST, UNFINISHED
from emc2dist.data.ingest.kinds import images_below
from emc2dist.data.ingest.source import printable
from emc2dist.data.ingest.writer import Note, note_place
from emc2dist.errors import DataError
from emc2dist.files import Place
from emc2dist.terminal import say

JOB = "ingest.json"
_NOTED_JOB = "job.json"
_OTHERWISE = "remove the set that it belongs to, or give another DEST"

Job = dict[str, Any]
"""What decides the content of a set, as JSON."""


def is_done(dest: Place, job: Job) -> bool:
    """Whether the set at `dest` is finished, by this very job.

    Raises:
        DataError: there is a finished set of another job.
    """
    names = {entry.name for entry in dest.entries()}
    if MANIFEST not in names:
        return False
    if JOB not in names:
        raise DataError(f"{dest}: holds a finished set already; give another DEST, or remove it")
    changed = _differences(_read_job(dest / JOB), job)
    if changed:
        raise DataError(f"{dest}: holds a finished set of another job: {changed}; give another DEST, or remove it")
    return True


class Unfinished:
    """The folder of notes at `dest`, for one job.

    Raises:
        DataError: `dest` holds another job, or Parquet files of unknown origin, or images, or is a file.
    """

    def __init__(self, dest: Place, job: Job) -> None:
        self._dest, self.notes = dest, dest / UNFINISHED
        known = {entry.name for entry in self.notes.entries()}
        if _NOTED_JOB in known:
            noted = _read_job(self.notes / _NOTED_JOB)
            of_another = _differences(noted | {"source": job["source"]}, job)  # each note tells what it was made from
            begun = dest.remote or any(name.endswith(".npz") for name in known)
            if of_another and begun:
                changed = _differences(noted, job)
                raise DataError(f"{dest}: another job is unfinished here: {changed}; give another DEST, or remove it")
            if not of_another:
                return
            with self._locked(Path(str(self.notes))):  # nothing was finished, and nobody is at it
                (self.notes / _NOTED_JOB).write(json.dumps(job).encode())
            return
        if dest.entry() is not None:
            raise DataError(f"{dest}: is a file; give a folder for the Parquet files")
        others = [entry.name for entry in dest.entries() if entry.name.endswith(".parquet")]
        if others:
            raise DataError(f"{dest}: holds {others[0]}, which no unfinished ingest wrote; give another DEST")
        image = None if dest.remote else next(images_below(Path(str(dest))), None)
        if image:
            raise DataError(f"{dest}: holds images, as {printable(image)}, and is no set; give a new folder as DEST")
        (self.notes / _NOTED_JOB).write(json.dumps(job).encode())

    def finished(self, *, with_unreadable: bool) -> dict[str, Note]:
        """Notes that count, by the name of their file; without `with_unreadable`, of files that left nothing out."""
        there = {entry.name: entry for entry in self._dest.entries()}
        noted = {entry.name for entry in self.notes.entries()}
        notes = {}
        for name in there:
            if note_place(self.notes, name).name not in noted:
                continue
            note = Note.from_bytes(note_place(self.notes, name).read())
            if note is None:
                say(f"{note_place(self.notes, name)}: damaged; {name} is written again")
                continue
            same = (there[name].size, note.file.etag or there[name].tag) == (note.file.size, there[name].tag)
            if same and (with_unreadable or not note.unreadable):
                notes[name] = note
        return notes

    @contextmanager
    def drafts(self) -> Iterator[Path]:
        """A local folder for files being written, gone afterwards: where a finished file need only be renamed."""
        if self.notes.remote:
            with files.explained(tempfile.gettempdir()):
                temporary = tempfile.TemporaryDirectory(prefix="emc2dist-ingest-")
            with temporary as folder:
                yield Path(folder)
            return
        notes = Path(str(self.notes))
        with self._locked(notes):
            for name in self.notes.folders():  # of a run that was killed
                (self.notes / name).remove()
            with tempfile.TemporaryDirectory(prefix="draft-", dir=notes) as folder:
                yield Path(folder)

    @contextmanager
    def _locked(self, notes: Path) -> Iterator[None]:
        with files.explained(notes / "lock"):
            lock = (notes / "lock").open("w")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DataError(f"{self._dest}: another process is writing this set; wait for it, or end it") from error
            except OSError as error:  # a file system without locks
                say(f"{self._dest}: not locked ({error.strerror}); see that no other process writes this set")
            yield

    def remove(self) -> None:
        """Forget the job."""
        self.notes.remove()


def _read_job(place: Place) -> Job:
    try:
        job = json.loads(place.read())
    except ValueError as error:
        raise DataError(
            f"{place}: damaged ({error}); remove the folder that it describes, or give another DEST"
        ) from error
    if not isinstance(job, dict):
        raise DataError(f"{place}: holds no job; remove the folder that it describes, or give another DEST")
    return job


def _differences(old: Job, new: Job) -> str:
    """What differs, in words; empty where nothing does."""
    changed = [key for key in new if old.get(key) != new[key]]
    told = {key: f"{key} {old.get(key)} there, {new.get(key)} here" for key in ("kind", "seed", "rows_per_file")}
    told["source"] = "source (its files have other names, sizes or times)"
    told["images"] = "which images are in " + _splits_that_differ(old, new, "images")
    told["labels"] = "the labels of " + _splits_that_differ(old, new, "labels")
    return ", ".join(told.get(key, key) for key in changed)


def _splits_that_differ(old: Job, new: Job, key: str) -> str:
    before, after = old.get(key) or {}, new.get(key) or {}
    return ", ".join(name for name in sorted({*before, *after}) if before.get(name) != after.get(name))
