"""Files by name on this machine's disk, shared by all processes that name the same folder, and bounded.

The operating system keeps in memory what is read often. When room is needed, what was unused longest is dropped;
whoever has it open can still read it. Nothing but what a cache wrote is ever dropped, whatever else lies in the folder.

A cache is a convenience: where a file cannot be kept, or one that is there cannot be read, locked or noted as used, it
is said once (`emc2dist.data.kept`); what cannot be kept is made without a name, and is gone when it is closed.
"""

import fcntl
import hashlib
import os
import re
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from emc2dist.data import kept
from emc2dist.errors import StorageError
from emc2dist.terminal import say_once

_LOCKS = 256
_LONGEST_LOCK_S = 60.0  # then it is done twice rather than not at all: who holds the lock may have been halted
_LONGEST_PAUSE_S = 0.05
_ABANDONED_S = 3600
_NOT_KEPT = "what is fetched or decoded cannot be kept, so it is fetched or decoded again each time, which is slow"
_FOLDER, _FILE = re.compile(r"[0-9a-f]{24}"), re.compile(r"\d+(\.[0-9a-f]+\.draft)?")
_ONE_WRITER = threading.Lock()  # of this process: else each thread would see room that another is about to fill

Write = Callable[[FileIO], object]
"""Writes the content of a file; may be called again with another file, where a disk is full."""


class DiskCache:
    """At most `limit_bytes` in `folder`, a folder of `data.cache_dir`; names are 24 hexadecimal digits/NUMBER.

    The bound holds for one process exactly, apart from what it is writing; each further one may exceed it by a
    sixteenth before it notices.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self._held: int | None = None
        self._written = 0  # since the folder was last looked through

    def open(self, name: str) -> FileIO | None:
        """What is kept under a name, or None. Whoever reads it has to make sure that it is what was written."""
        try:
            file = kept.open_regular(self.folder / name)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            kept.without(self.folder, "what is kept cannot be read", error)
            return None
        try:
            os.utime(file.fileno())  # used just now
        except OSError as error:
            kept.without(self.folder, "when a file was last used cannot be noted", error)
        return file

    @contextmanager
    def filling(self, name: str) -> Iterator[None]:
        """Only one process or thread at a time makes what is to be kept; the lock of one that dies is free."""
        lock = self._lock(name)
        try:
            yield
        finally:
            if lock is not None:
                lock.close()

    def put(self, name: str, write: Write) -> FileIO:
        """Keep what `write` writes, and open it; where it cannot be kept, it is there until it is closed.

        Raises:
            StorageError: it can be written nowhere; names the keys to change.
        """
        path = self.folder / name
        try:
            draft = self._draft(path)
        except OSError as error:
            return self._nameless(write, error)
        try:
            write(draft)
        except OSError as error:
            _discard(draft)
            return self._nameless(write, error)
        except BaseException:
            _discard(draft)
            raise
        self._name(draft, path)
        return draft

    def drop(self, name: str, damaged: FileIO) -> None:
        """Forget a damaged file, unless another process has made it anew already."""
        path = self.folder / name
        kept.made_anew(path)
        with suppress(OSError):  # put will replace it, or say why not
            if os.path.samestat(os.fstat(damaged.fileno()), path.stat()):
                path.unlink()

    def _draft(self, path: Path) -> FileIO:
        try:
            return kept.new_draft(path)
        except FileNotFoundError:
            kept.make_folder(path.parent, self.folder.parent)
            return kept.new_draft(path)

    def _name(self, draft: FileIO, path: Path) -> None:
        """Keep a finished draft under its name; where that cannot be, it is readable until it is closed."""
        try:
            with _ONE_WRITER:
                size = os.fstat(draft.fileno()).st_size
                if self._make_room(size):
                    os.replace(draft.name, path)
                    return
            text = f"{self.folder}: no room to keep {size} bytes, so they are fetched or decoded again each time"
            say_once((self.folder, "no room"), f"{text}; raise data.cache_mib")
        except FileNotFoundError:  # somebody empties the folder
            return
        except OSError as error:
            kept.without(self.folder, _NOT_KEPT, error)
        _unlink(draft)

    def _nameless(self, write: Write, reason: OSError) -> FileIO:
        """A file that nobody else sees: on the disk for temporary files, or in memory."""
        kept.without(self.folder, _NOT_KEPT, reason)
        for make in (_temporary, _in_memory):
            file = None
            try:
                file = make()
                write(file)
                return file
            except OSError as error:
                reason = error
            if file is not None:
                file.close()
        raise StorageError(f"{self.folder}: {reason.strerror or reason}; {kept.advice(reason)}") from reason

    def _make_room(self, size: int) -> bool:
        """Drop what was unused longest; whether so many bytes may be kept now."""
        if self._held is None or self._held + size > self.limit_bytes or self._written > self.limit_bytes // 16:
            files = sorted(self._files())  # unused longest first
            self._held, self._written = sum(size for _, size, _ in files), 0
            if self._held + size > self.limit_bytes:
                self._drop_until(files, self.limit_bytes * 7 // 8 - size)  # not to the brim: looking through costs time
        if self._held + size > self.limit_bytes:
            return False
        self._held += size
        self._written += size
        return True

    def _drop_until(self, files: list[tuple[int, int, str]], bound: int) -> None:
        """Drop files, in order, until at most `bound` bytes are left."""
        assert self._held is not None
        for _, size, path in files:
            if self._held <= max(0, bound):
                return
            try:
                Path(path).unlink(missing_ok=True)
            except OSError as error:  # another user's
                kept.without(self.folder, "files of others cannot be dropped for room", error)
            else:
                self._held -= size

    def _files(self) -> Iterator[tuple[int, int, str]]:
        """(time of last use, bytes, path) of all that is kept, and of drafts that whoever wrote them is long gone."""
        folders = (one for one in _listed(self.folder) if _FOLDER.fullmatch(one.name))
        for file in (file for one in folders if one.is_dir(follow_symlinks=False) for file in _listed(one.path)):
            match = _FILE.fullmatch(file.name)
            with suppress(FileNotFoundError):  # another process was faster
                status = file.stat(follow_symlinks=False)
                whole = match is not None and match[1] is None
                if match and stat.S_ISREG(status.st_mode) and (whole or status.st_mtime < time.time() - _ABANDONED_S):
                    yield status.st_mtime_ns, status.st_size, file.path

    def _lock(self, name: str) -> FileIO | None:
        """A lock that is held until it is closed; None where there can be none."""
        number = int(hashlib.sha256(name.encode()).hexdigest(), 16) % _LOCKS
        try:
            lock = self._lock_file(self.folder / "locks" / str(number))
        except OSError:  # put will say that nothing can be written
            return None
        try:
            _wait(lock)
        except OSError as error:  # not every file system has locks
            lock.close()
            kept.without(self.folder, "a lock, so that no two processes fetch the same, cannot be had", error)
            return None
        return lock

    def _lock_file(self, path: Path) -> FileIO:
        try:
            return _for_locking(path)
        except FileNotFoundError:
            kept.make_folder(path.parent, self.folder.parent)
            return _for_locking(path)


def _for_locking(path: Path) -> FileIO:
    try:
        return FileIO(path, "a", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK, 0o666))
    except PermissionError:  # another user's
        return kept.open_regular(path)


def _wait(lock: FileIO) -> None:
    """Take a lock once it is free, or `_LONGEST_LOCK_S` have passed."""
    end, pause = time.monotonic() + _LONGEST_LOCK_S, 0.001
    while time.monotonic() < end:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)


def _temporary() -> FileIO:
    return tempfile.TemporaryFile(buffering=0)


def _in_memory() -> FileIO:
    return FileIO(os.memfd_create("extent"), "r+")


def _discard(draft: FileIO) -> None:
    _unlink(draft)
    draft.close()


def _unlink(draft: FileIO) -> None:
    with suppress(OSError):
        os.unlink(draft.name)


def _listed(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError:  # another process removed it, or another user keeps it closed
        return []
