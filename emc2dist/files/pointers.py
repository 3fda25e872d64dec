"""Pointers: what Git LFS and git-annex leave where a file was not fetched."""

from pathlib import Path

from emc2dist import files
from emc2dist.errors import DataError
from emc2dist.files.place import Entry, Place

_LEFT_BY = {
    b"version https://git-lfs.github.com/spec": "a pointer of Git LFS and not the file: fetch that with `git lfs pull`",
    b"/annex/objects/": "a pointer of git-annex and not the file: fetch that with `git annex get`",
}
_LONGEST = 1024  # bytes of a pointer


def pointer(content: bytes) -> str | None:
    """What a file is, and what helps, where its content is that of a pointer; None where it is not."""
    if len(content) > _LONGEST:
        return None
    return next((what for begin, what in _LEFT_BY.items() if content.startswith(begin)), None)


def pointer_at(place: Place, entry: Entry) -> str | None:
    """The same of the file at a place, of which nothing is read where it is too long for a pointer."""
    return pointer(place.read_range(0, entry.size, entry.tag)) if entry.size <= _LONGEST else None


def refuse(file: Path) -> None:
    """Raise DataError where a file is a pointer; StorageError where it cannot be read."""
    with files.explained(file), file.open("rb") as opened:
        what = pointer(opened.read(_LONGEST + 1))
    if what:
        raise DataError(f"{file}: {what}")


def text(file: Path) -> str:
    """The text of a file. Raises as `refuse` and `files.text` do."""
    refuse(file)
    return files.text(file)
