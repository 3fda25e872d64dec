"""One driver at a time for a run folder: two would remove each other's checkpoints and mix their metrics.

On disk the driver holds a lock of the operating system on RUN/driver.lock, which ends with its process however that
ends, so there is nothing stale to clear away. A shared folder keeps to it where its file system passes locks on between
machines, as NFS 4 does. S3 has no such lock: there it is for whoever starts runs to start each once.
"""

import fcntl
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from emc2dist.errors import RunError, StorageError
from emc2dist.files import Place, explained
from emc2dist.terminal import say


@contextmanager
def held(place: Place) -> Iterator[None]:
    """Hold the run folder's lock, where its file system has locks; where not, that is said.

    Folders that are made for it, and into which nothing else is written, go with it.

    Raises:
        RunError: another driver holds it; says which. StorageError: the folder cannot be written to.
    """
    if place.remote:
        yield
        return
    path, folder = place / "driver.lock", Path(str(place))
    new = [one for one in (folder, *folder.parents) if not os.path.lexists(one)]
    with _opened(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"{place}: another driver trains this run ({file.read()}); stop that one, or wait until it has ended"
            ) from None
        except OSError as error:
            say(f"{place}: not locked ({error.strerror}); see that no other driver trains it")
        if not os.fstat(file.fileno()).st_nlink:  # the driver that held it was refused, and has just removed it
            with held(place):
                yield
            return
        with suppress(OSError):  # no room: whom it names is a convenience
            file.truncate()
            file.write(f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now(UTC):%F %T} UTC")
            file.flush()
        try:
            yield
        finally:
            if new:
                _remove_unused(new, path)


def _opened(path: Place) -> TextIO:
    """The lock's file, made where it is missing."""
    path.append(b"")
    with explained(path):
        return open(str(path), "r+", errors="replace")


def _remove_unused(new: Sequence[Path], path: Place) -> None:
    """Remove the folder of a run that was refused before anything was written into it, and those made to hold it."""
    with suppress(OSError, StorageError):
        if os.listdir(new[0]) == ["driver.lock"]:
            path.remove()
            for folder in new:
                os.rmdir(folder)
