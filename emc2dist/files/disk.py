"""Files and folders on this machine."""

import errno
import io
import os
import secrets
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyarrow import fs as arrow

from emc2dist.errors import StorageError
from emc2dist.files.place import CHANGED, Entry, Place, whole

_SYSTEM = ("/dev", "/proc", "/sys")
_MOST_LINKS = 40  # as many as Linux follows


class DiskPlace(Place):
    """A file or a folder at a path of this machine. A tag is the time of the last change, in nanoseconds.

    What is written through a link takes the place of the link's target, never that of the link.
    """

    remote = False

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> Place:
        return DiskPlace(self.path / name)

    def beside(self, name: str) -> Place:
        return DiskPlace(self.path.parent / name)

    @property
    def name(self) -> str:
        return self.path.name

    def entry(self) -> Entry | None:
        with explained(self):
            return entry_of(self.path) if self.path.is_file() else None

    def age_s(self) -> float | None:
        with explained(self):
            return time.time() - self.path.stat().st_mtime if self.path.is_file() else None

    def entries(self) -> list[Entry]:
        found = []
        with explained(self):
            for file in self.path.iterdir() if self.path.is_dir() else ():
                with suppress(FileNotFoundError):  # a draft that has just been given its name
                    if file.is_file():
                        found.append(entry_of(file))
        return sorted(found)

    def folders(self) -> list[str]:
        with explained(self):
            return sorted(one.name for one in self.path.iterdir() if one.is_dir()) if self.path.is_dir() else []

    def read(self) -> bytes:
        with explained(self):
            return self.path.read_bytes()

    def read_range(self, start: int, size: int, tag: str) -> bytes:
        with explained(self), self._pinned(tag) as file:
            return whole(self, os.pread(file.fileno(), size, start), size)

    def local(self, entry: Entry) -> io.FileIO | None:
        with explained(self):
            return self._pinned(entry.tag)

    def _pinned(self, tag: str) -> io.FileIO:
        file = io.FileIO(self.path)
        if str(os.fstat(file.fileno()).st_mtime_ns) != tag:
            raise StorageError(f"{self}: {CHANGED}")
        return file

    def write(self, data: bytes) -> None:
        with explained(self), self._draft() as draft:
            draft.write_bytes(data)

    def append(self, data: bytes) -> None:
        with explained(self):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as file:
                size = file.tell()
                try:
                    written = file.write(data)
                    while written < len(data):
                        written += file.write(data[written:])
                except OSError:  # a full disk takes a part
                    file.truncate(size)
                    raise

    def put(self, source: Path) -> Entry:
        with explained(self):
            file = followed(self.path)
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                source.replace(file)
            except OSError:  # another disk
                with self._draft() as draft:
                    shutil.copyfile(source, draft)
                source.unlink()
            return entry_of(file)

    def remove(self) -> None:
        with explained(self):
            if self.path.is_dir():
                shutil.rmtree(self.path)
            else:
                self.path.unlink(missing_ok=True)

    def arrow(self) -> tuple[arrow.FileSystem, str]:
        return arrow.LocalFileSystem(), str(self.path)

    def fetch(self, folder: Path, names: Collection[str]) -> Path:
        return self.path

    @contextmanager
    def _draft(self) -> Iterator[Path]:
        """Where it is written before it gets its name; what could not be finished is removed."""
        file = followed(self.path)
        file.parent.mkdir(parents=True, exist_ok=True)
        # No longer than a name may be, and no other process's, which may write the same file.
        draft = file.with_name(f".{file.name[:40]}-{secrets.token_hex(4)}.draft")
        try:
            yield draft
            draft.replace(file)
        except BaseException:  # Ctrl-C, too
            draft.unlink(missing_ok=True)
            raise


def entry_of(file: Path) -> Entry:
    """A file of this machine, by its name. Raises OSError."""
    status = file.stat()
    return Entry(file.name, status.st_size, str(status.st_mtime_ns))


def followed(path: Path) -> Path:
    """The file that is meant by a path, links followed, where one can be written.

    Raises:
        StorageError: it is a folder, a pipe or a device, or the system's. OSError: it goes in circles.
    """
    file = path
    for _ in range(_MOST_LINKS):
        file = Path(os.path.realpath(file.parent)) / file.name
        if any(file.is_relative_to(root) for root in _SYSTEM) and not file.is_relative_to("/dev/shm"):
            raise StorageError(f"{path}: is no file, but the system's own; name a file on a disk")
        if not file.is_symlink():
            break
        file = file.parent / file.readlink()
    else:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    if file.exists() and not file.is_file():
        raise StorageError(f"{path}: is {'a folder' if file.is_dir() else 'no file'}; name a file to write")
    return file


def _on_the_way(path: Path) -> str:
    """What to look at where a path cannot be used: a part of its way that is no folder, or a link to nothing."""
    for part in reversed(path.parents):
        if os.path.islink(part) and not os.path.exists(part):  # of these none raises, as Path's own may
            return f"{part} is a link to {os.readlink(part)}, which is not there: make it, or remove the link"
        if os.path.exists(part) and not os.path.isdir(part):
            return f"{part} is no folder"
    return "check that it is there and may be used"


@contextmanager
def explained(what: object) -> Iterator[None]:
    """Turn what the operating system raises into a StorageError that begins with `what`: a path, or its place."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "make room on its disk, then run it again" if full else _on_the_way(Path(str(what)))
        raise StorageError(f"{what}: {error.strerror or error}; {advice}") from error
