"""What is kept of a set on this machine, for the next opening and for other processes.

Whatever is kept can be found out again. So it counts only if it is, byte for byte, what this version of emc2dist wrote
under that very name; else it is passed over and made anew. And where nothing can be kept, or locked, or noted, things
go on without. Either is said once per process.

    draft       a new file beside the one that it will replace: never seen half-written, whoever else writes the same
    seal        a digest of version, name and content, which stands before the content of a small file
"""

import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from emc2dist import __version__, files
from emc2dist.files import Place
from emc2dist.terminal import say_once

_SEAL_BYTES = 16
_DRAFT = ".draft"
_SHARED = stat.S_IWGRP | stat.S_IWOTH | stat.S_ISVTX


def cache_folder(cache_dir: str | Path) -> Path:
    """The folder that `data.cache_dir` means on this machine, absolute.

    Raises:
        StorageError: it is a URL, as of S3.
    """
    folder = files.local(cache_dir)
    with files.explained(folder):
        return folder if _homeless(folder) else Path(os.path.abspath(folder))


def _homeless(folder: Path) -> bool:
    return not folder.is_absolute() and folder.parts[0].startswith("~")


def recall(file: Path) -> bytes | None:
    """What `keep` kept; None where there is nothing, or anything else."""
    try:
        with open_regular(file) as opened:
            sealed = opened.readall()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        without(file.parent, "what is kept cannot be read", error)
        return None
    content = sealed[_SEAL_BYTES:]
    if sealed[:_SEAL_BYTES] != _seal(file.name, content):
        made_anew(file)
        return None
    return content


def keep(file: Path, content: bytes) -> None:
    """Keep something at `file`, in a folder of `data.cache_dir`, for `recall`; where that cannot be, do not."""
    try:
        make_folder(file.parent, file.parent.parent)
        with drafted(file) as draft:
            write_all(draft, _seal(file.name, content))
            write_all(draft, content)
    except OSError as error:
        without(file.parent, "what is found out about a set cannot be kept for the next opening", error)


def _seal(name: str, content: bytes) -> bytes:
    seal = hashlib.blake2b(f"emc2dist {__version__}\0{name}\0".encode(), digest_size=_SEAL_BYTES)
    seal.update(content)
    return seal.digest()


def without(folder: Path, what: str, error: OSError) -> None:
    """Say, once, what has to be done without in a folder of the cache, and why."""
    say_once((folder, what), f"{folder}: {what} ({error.strerror or error}); {advice(error)}")


def advice(error: OSError) -> str:
    """What would help against an error of a cache."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "let this process open more files (ulimit -n)"
    return "set data.cache_dir (ingest: --cache-dir) to a folder that can be written, on a disk with room"


def made_anew(file: Path) -> None:
    """Say, once for its folder, that a file of the cache is not what was written there."""
    text = f"{file}: a damaged file of the cache, or one of another version; it is made anew, and so are others like it"
    say_once((file.parent, "made anew"), text)


def identity(place: Place) -> str:
    """Names a place, whatever folder a process works in."""
    with files.explained(place):  # a relative one in a folder that is gone
        return str(place) if place.remote else os.path.abspath(str(place))


def open_regular(path: Path, mode: str = "r", more: int = 0) -> FileIO:
    """A file, for reading; OSError where something else has its name, which a pipe would wait for ever to tell.

    `mode` is that of `FileIO`, and `more` are flags of `os.open` beside its own.
    """
    file = FileIO(path, mode, opener=lambda name, flags: os.open(name, flags | more | os.O_NONBLOCK, 0o666))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(f"{path} is no file")
    return file


def make_folder(folder: Path, root: Path) -> None:
    """Make a folder below `root` (and that): as open to other users as `root`, where that is shared on purpose."""
    if _homeless(root):
        raise OSError(errno.ENXIO, "no home folder is known")
    root.mkdir(parents=True, exist_ok=True)
    missing = [one for one in (folder, *folder.parents) if one.is_relative_to(root) and not one.is_dir()]
    shared = root.stat().st_mode & _SHARED  # not the parent's: whoever makes that may not have opened it yet
    for one in reversed(missing):
        one.mkdir(exist_ok=True)
        if shared & ~stat.S_ISVTX:
            with suppress(PermissionError):  # another user was faster
                one.chmod(stat.S_IMODE(one.stat().st_mode) | shared)


def new_draft(file: Path) -> FileIO:
    """A new file beside `file`, for writing and reading, of a name that nobody else has."""
    return FileIO(f"{file}.{secrets.token_hex(8)}{_DRAFT}", "x+")


@contextmanager
def drafted(file: Path) -> Iterator[FileIO]:
    """A file that is written, and then takes the place of `file`; what could not be finished is removed."""
    with new_draft(file) as draft:
        path = Path(os.fsdecode(draft.name))
        try:
            yield draft
            path.replace(file)
        except BaseException:
            with suppress(OSError):
                path.unlink()
            raise


def write_all(file: FileIO, content: bytes | bytearray | memoryview) -> None:
    """Write everything, where a disk takes it piece by piece."""
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]
