"""Files and folders on this machine or on S3, by one set of names.

    folder = files.at("s3://bucket/sets/cifar10", spec.s3)       # or files.at("data/cifar10")
    for entry in folder.entries(): ...                            # name, size, tag
    (folder / "manifest.json").write(data)                        # whole or not at all
    (folder / entry.name).read_range(start, size, entry.tag)      # refused if the file is no longer the one of that tag

A tag changes when the content does: the ETag on S3, the time of change on disk. S3 is spoken to through s3fs, with one
rule for retries: what may pass (no connection, a 5xx, "slow down", an answer cut short) is tried `s3.attempts` times
with random, doubling pauses; what will not pass is not tried again. Every error is a `StorageError` that names the URI
and says what to do. Credentials come from the ordinary AWS chain alone, and no message repeats them.

    place   what a file or a folder can do        disk   on this machine        s3   on S3: retries, clear errors
"""

from pathlib import Path

from emc2dist.config import S3
from emc2dist.errors import StorageError
from emc2dist.files.disk import DiskPlace
from emc2dist.files.place import Entry, Place
from emc2dist.files.s3 import LONGEST_PAUSE_S, SCHEME, S3Place, retries

__all__ = ["LONGEST_PAUSE_S", "Entry", "Place", "at", "is_remote", "retries"]


def at(path: str | Path, s3: S3 | None = None) -> Place:
    """The place at a local path or an `s3://bucket/key` URI.

    Raises:
        StorageError: the URI names no bucket.
    """
    text = str(path)
    if not text.startswith(SCHEME):
        return DiskPlace(Path(text).expanduser())
    key = text.removeprefix(SCHEME).rstrip("/")
    if not key:
        raise StorageError(f"{text}: names no bucket; write s3://bucket/folder")
    return S3Place(key, s3 or S3())


def is_remote(path: str) -> bool:
    """Whether `at(path)` lies beyond the network."""
    return path.startswith(SCHEME)
