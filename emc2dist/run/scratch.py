"""Temporary folders of a run's processes, for files before they go elsewhere, or while they are read."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from emc2dist.files import explained
from emc2dist.run.folder import RunFolder


@contextmanager
def scratch(run: RunFolder) -> Iterator[Path]:
    """An empty folder, removed at the end; those of processes of this run that were killed are removed at once."""
    prefix = f"emc2-{hashlib.sha256(str(run.place).encode()).hexdigest()[:12]}-"
    for left in Path(_shared()).glob(f"{prefix}*"):
        pid = left.name.removeprefix(prefix).split("-")[0]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    with temporary(f"{prefix}{os.getpid()}-") as folder:
        yield Path(folder)


def temporary(prefix: str) -> tempfile.TemporaryDirectory[str]:
    """A folder below TMPDIR, removed at the end. Raises StorageError where none can be made there."""
    with explained(shared := _shared()):
        return tempfile.TemporaryDirectory(prefix=prefix, dir=shared, ignore_cleanup_errors=True)


def _shared() -> str:
    with explained(f"TMPDIR={os.environ.get('TMPDIR', '')}"):
        return tempfile.gettempdir()
