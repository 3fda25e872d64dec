"""Byte strings by name on this machine's disk, shared by all processes that name the same folder, and bounded.

Each is a file. The operating system keeps in memory what is read often. When room is needed, what was unused longest is
dropped; whoever has it open can still read it.
"""

import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from emc2dist.errors import StorageError

_LOCKS = 256
_ABANDONED_S = 3600
_ONE_WRITER = threading.Lock()  # of this process: else each thread would see room that another is about to fill


class DiskCache:
    """At most `limit_bytes` in `folder`; names are FOLDER/NAME, without dots.

    The bound holds for one process exactly; each further one may exceed it by a sixteenth before it notices.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder.expanduser(), limit_bytes
        self._held: int | None = None
        self._written = 0  # since the folder was last looked through

    def open(self, name: str) -> FileIO | None:
        """What is kept under a name, or None."""
        try:
            file = FileIO(self.folder / name)
        except FileNotFoundError:
            return None
        os.utime(file.fileno())  # used just now
        return file

    @contextmanager
    def filling(self, name: str) -> Iterator[None]:
        """Only one process or thread at a time makes what is to be kept; the lock of one that dies is free."""
        number = int(hashlib.sha256(name.encode()).hexdigest(), 16) % _LOCKS
        with self._writing():
            (self.folder / "locks").mkdir(parents=True, exist_ok=True)
            lock = FileIO(self.folder / "locks" / str(number), "w")
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def put(self, name: str, content: bytes) -> FileIO:
        """Keep something, and open it.

        Raises:
            StorageError: it cannot be written; names the keys to change.
        """
        path = self.folder / name
        draft = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
        with self._writing(), _ONE_WRITER:
            self._make_room(len(content))
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(content)
            file = FileIO(draft)
            if len(content) > self.limit_bytes:
                draft.unlink()  # more than may be kept: readable until it is closed
            else:
                draft.replace(path)
        return file

    def drop(self, name: str) -> None:
        """Forget something."""
        (self.folder / name).unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        if self._held is None or self._held + size > self.limit_bytes or self._written > self.limit_bytes // 16:
            files = sorted(self._files())  # unused longest first
            self._held, self._written = sum(size for _, size, _ in files), 0
            if self._held + size > self.limit_bytes:
                self._drop_until(files, self.limit_bytes * 7 // 8 - size)  # not to the brim: looking through costs time
        self._held += size
        self._written += size

    def _drop_until(self, files: list[tuple[int, int, str]], bound: int) -> None:
        """Drop files, in order, until at most `bound` bytes are left."""
        assert self._held is not None
        for _, size, path in files:
            if self._held <= max(0, bound):
                return
            Path(path).unlink(missing_ok=True)
            self._held -= size

    def _files(self) -> Iterator[tuple[int, int, str]]:
        """(time of last use, bytes, path) of all that is kept."""
        for folder in os.scandir(self.folder) if self.folder.is_dir() else ():
            for file in os.scandir(folder.path) if folder.name != "locks" else ():
                with suppress(FileNotFoundError):  # another process was faster
                    status = file.stat()
                    # A draft is in the writing, unless whoever wrote it is long gone.
                    if "." not in file.name or status.st_mtime < time.time() - _ABANDONED_S:
                        yield status.st_mtime_ns, status.st_size, file.path

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"{self.folder}: {error.strerror}; set data.cache_dir to a folder with room, or lower data.cache_mib"
            ) from error
