"""Whether a checkpoint is whole: each rank lists the files that it wrote, their sizes and their SHA-256.

    checksums-00000-of-00002.json    {"generation": "9f0c...", "files": {"manifest.json": {"size": 812, "sha256": ...}}}

No rank knows what the others write, so each writes a list of its own. A checkpoint is whole when the lists of all
ranks are there and every listed file is as listed; what is not listed does not belong to it. All lists name one
generation, that of the start which wrote it: what two attempts at the same step left of theirs never passes for one.

Errors name the file and what is wrong with it; whoever asked knows the folder.
"""

import hashlib
import io
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from emc2dist.errors import RunError
from emc2dist.files import Place
from emc2dist.files.pointers import pointer, pointer_at
from emc2dist.train import collectives

_BUFFER = 2**24  # bytes read at a time: a GET each on S3


class Checksum(BaseModel):
    """A file as it was written."""

    model_config = ConfigDict(strict=True, extra="forbid")

    size: int
    """Bytes."""
    sha256: str


_Model = TypeVar("_Model", bound=BaseModel)


class _List(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    generation: str
    files: dict[str, Checksum]


def write(folder: Path, generation: str) -> None:
    """List all files of `folder`, which this rank wrote; the list is the last file to be written there."""
    files = {path.name: _checksum(path) for path in sorted(folder.iterdir())}
    text = _List(generation=generation, files=files).model_dump_json()
    (folder / list_name(collectives.rank(), collectives.world_size())).write_text(text)


def list_name(rank: int, ranks: int) -> str:
    """The file name of one rank's list."""
    return f"checksums-{rank:05d}-of-{ranks:05d}.json"


def read(place: Place, ranks: int, generation: str) -> dict[str, Checksum]:
    """All files of the checkpoint in `place`, by its lists. Raises RunError where a list is missing or damaged."""
    found: dict[str, Checksum] = {}
    names = {entry.name for entry in place.entries()}
    for name in (list_name(rank, ranks) for rank in range(ranks)):
        if name not in names:
            raise RunError(f"{name} is missing")
        listed = parsed(_List, place / name)
        if listed.generation != generation:
            raise RunError(f"{name} belongs to another attempt at this step than manifest.json")
        found |= listed.files
    return found


def check(place: Place, checksums: Mapping[str, Checksum], names: Collection[str], *, contents: bool = True) -> None:
    """Raise RunError unless these files are there, with the size and, if `contents`, the content that is listed."""
    entries = {entry.name: entry for entry in place.entries()}
    for name in sorted(names):
        if name not in entries:
            raise RunError(f"{name} is missing")
        if name not in checksums:
            raise RunError(f"{name} is in no list of the checkpoint's files")
        if entries[name].size != checksums[name].size:
            if what := pointer_at(place / name, entries[name]):
                raise RunError(f"{name} is {what}")
            raise RunError(f"{name} has {entries[name].size} bytes, {checksums[name].size} were written")
    for name in sorted(names) if contents else ():
        with io.BufferedReader(cast(io.RawIOBase, (place / name).open(entries[name])), _BUFFER) as stream:
            if _digest(stream) != checksums[name].sha256:
                raise RunError(f"{name} is damaged: its SHA-256 is not the one that was written")


def parsed(model: type[_Model], place: Place) -> _Model:
    """A JSON file of a checkpoint. Raises RunError where it is damaged, or not fetched."""
    content = place.read()
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        if what := pointer(content):
            raise RunError(f"{place.name} is {what}") from error
        raise RunError(f"{place.name} is damaged ({error.errors()[0]['msg']})") from error


def _checksum(path: Path) -> Checksum:
    with path.open("rb") as stream:
        return Checksum(size=path.stat().st_size, sha256=_digest(stream))


def _digest(stream: "io.BufferedReader[Any]") -> str:
    return hashlib.file_digest(stream, "sha256").hexdigest()
