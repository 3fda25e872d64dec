"""Files and folders on this machine or on S3, by one set of names.

    folder = files.at("s3://bucket/sets/cifar10", spec.s3)       # or files.at("data/cifar10"), "~/set", "file:///set"
    for entry in folder.entries(): ...                            # name, size, tag
    (folder / "manifest.json").write(data)                        # whole or not at all
    (folder / entry.name).read_range(start, size, entry.tag)      # refused if the file is no longer the one of that tag

A tag changes when the content does: the ETag on S3, the time of change on disk. S3 is spoken to through s3fs, with one
rule for retries: what may pass (no connection, a 5xx, "slow down", an answer cut short) is tried `s3.attempts` times
with random, doubling pauses; what will not pass is not tried again. Every error is a `StorageError` that names the URI
and says what to do. Credentials come from the ordinary AWS chain alone, and no message repeats them.

    place   what a file or a folder can do        disk   on this machine        s3   on S3: attempts, clear errors
    retries how often S3 was asked again
"""

import os
from contextlib import ExitStack
from pathlib import Path

from emc2dist.config import S3, is_remote, paths
from emc2dist.config.text import decoded
from emc2dist.errors import StorageError
from emc2dist.files.disk import DiskPlace, entry_of, explained, followed
from emc2dist.files.place import Entry, Place
from emc2dist.files.retries import LONGEST_PAUSE_S, retries

__all__ = [
    "LONGEST_PAUSE_S",
    "Entry",
    "Place",
    "at",
    "entry_of",
    "explained",
    "is_remote",
    "leads_nowhere",
    "local",
    "refuse_file",
    "refuse_folder",
    "refuse_lost",
    "retries",
    "text",
    "writable",
]

_LONGEST_TEXT = 2**26


def at(path: str | Path, s3: S3 | None = None) -> Place:
    """The place at a local path or an `s3://bucket/key` URI.

    Raises:
        StorageError: the URI names no bucket, or its scheme is another one.
    """
    uri = str(path)
    if not is_remote(uri):
        return DiskPlace(local(uri))
    from emc2dist.files.s3 import S3Place  # here, for S3's libraries take half a second that most runs need not spend

    try:
        return S3Place(paths.bucket_and_key(uri), s3 or S3())
    except ValueError as error:
        raise StorageError(f"{uri}: {error}") from None


def local(path: str | Path) -> Path:
    """A path on this machine's disk, as a person means it: `~` and `file:///` are understood.

    Raises:
        StorageError: it is a URL of another kind, which would become a folder of that name; or it is empty or holds a
            NUL.
    """
    name = str(path)
    try:
        return paths.on_disk(name)
    except ValueError as error:
        raise StorageError(f"{name!r}: {error}" if "\0" in name or not name else f"{name}: {error}") from None


def text(path: Path) -> str:
    """The text of a file that a person or a tool wrote on this machine, 64 MiB at most: UTF-8, or as its mark says.

    Raises:
        StorageError: it cannot be read, is longer, or is no text.
    """
    with explained(path), path.open("rb") as file:
        content = file.read(_LONGEST_TEXT + 1)
    if len(content) > _LONGEST_TEXT:
        raise StorageError(f"{path}: more than {_LONGEST_TEXT} bytes, which no list has; is it another file?")
    try:
        return decoded(content)
    except ValueError as error:
        raise StorageError(f"{path}: {error}; save the file as UTF-8") from None


def leads_nowhere(path: str | Path) -> str | None:
    """What is wrong with a link whose target is not there, and that; None of anything else."""
    is_lost = os.path.islink(path) and not os.path.exists(path)
    return f"a link that leads nowhere ({os.readlink(path)})" if is_lost else None


def refuse_lost(path: str | Path) -> None:
    """Raise StorageError where a file that counts is a link that leads nowhere."""
    if lost := leads_nowhere(path):
        raise StorageError(f"{path}: {lost}; bring back what it leads to, or remove the link")


def refuse_folder(path: str | Path) -> None:
    """Raise StorageError where a path, on disk or S3, can only mean a folder, though a file is to be written there."""
    if str(path).endswith(("/", "/.", "/..")):
        raise StorageError(f"{path}: means a folder; name a file in it")


def refuse_file(folder: Place) -> None:
    """Raise StorageError where what is to be a folder is a file, or lies in one, or may not be written to."""
    if folder.remote:
        if folder.entry():
            raise StorageError(f"{folder}: is a file; name a folder")
        return
    path = Path(str(folder))
    with explained(folder):
        there = next(one for one in (path, *path.absolute().parents) if os.path.lexists(one))
        if not there.is_dir():
            raise StorageError(
                f"{folder}: {'is' if there == path else f'{there} is'} no folder; name one, or a new one"
            )
        if not os.access(there, os.W_OK | os.X_OK):
            raise StorageError(f"{folder}: {there} may not be written to; name a folder that may")


def refuse_used(folder: Place) -> None:
    """Raise StorageError where what is to be a new folder has something in it, or cannot be one."""
    refuse_file(folder)
    if folder.entries() or folder.folders():
        raise StorageError(f"{folder}: is not empty; name a new folder")


def move_all(draft: Path, folder: Place, last: str) -> list[str]:
    """Move all files of a local draft into an empty folder, `last` behind the others; or none. Returns their names."""
    names = [path.relative_to(draft).as_posix() for path in draft.rglob("*") if path.is_file()]
    names.sort(key=lambda name: (name == last, name))
    with ExitStack() as undo:
        for name in names:
            undo.callback((folder / name).remove)
            (folder / name).put(draft / name)
        undo.pop_all()
    return names


def writable(path: str | Path) -> Path:
    """A local path where a file could be written now, links followed; to be asked before there is anything to write.

    Raises:
        StorageError: it is no path on disk, or a folder; or its folder is not there, or may not be written to.
    """
    refuse_folder(path)
    with explained(path):
        file = followed(local(path))
        if not file.parent.is_dir():
            raise StorageError(
                f"{path}: there is no folder {file.parent}; make it, or name a file in one that is there"
            )
        if not os.access(file.parent, os.W_OK):
            raise StorageError(f"{path}: {file.parent} may not be written to; name a file in a folder that may")
    return file
