"""One driver at a time for a run folder: two would remove each other's checkpoints and mix their metrics.

On disk the driver holds a lock of the operating system on RUN/driver.lock, which ends with its process however that
ends, so there is nothing stale to clear away. A shared folder keeps to it where its file system passes locks on between
machines, as NFS 4 does. S3 has no such lock: there it is for whoever starts runs to start each once.
"""

import fcntl
import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from time import sleep
from typing import Literal, TextIO

import psutil

from emc2dist.errors import RunError, StorageError
from emc2dist.files import Place, explained
from emc2dist.terminal import say

_TRIES = 20
_PAUSE_S = 0.01
_FILE = "driver.lock"
_STARTED = {  # variables that say how many processes of a command were started, and by what
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpirun",
    "SLURM_STEP_NUM_TASKS": "srun",
    "WORLD_SIZE": "torchrun",
}


@contextmanager
def held(place: Place) -> Iterator[None]:
    """Hold the run folder's lock, where its file system has locks; where not, that is said.

    Folders that are made for it, and into which nothing else is written, go with it.

    Raises:
        RunError: another driver holds it; says which. StorageError: the folder cannot be written to.
    """
    if place.remote:
        if several := _one_of_several():
            say(f"{place}: nothing on S3 keeps a second driver from this run{several}")
        yield
        return
    path, folder = place / _FILE, Path(str(place))
    new = [one for one in (folder, *folder.parents) if not os.path.lexists(one)]
    with _opened(path) as file:
        try:
            _take(file)
        except BlockingIOError:
            raise RunError(f"{place}: another driver trains this run ({_of_other(file.read())}") from None
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


def state(place: Place) -> Literal["held", "suspended", "free"] | None:
    """Of the run folder's lock: "free" where the driver that it names, of this machine, has ended however it did.

    "suspended" where that is stopped, as by Ctrl-Z. None where it cannot be told: on S3, of a driver on another machine
    whose lock is not seen here, or where the file system has no locks and the process may be another one by now.
    """
    path = Path(str(place)) / _FILE
    if place.remote or not path.is_file():
        return None
    try:
        with path.open(errors="replace") as file:
            found = _process(file.read())
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return "suspended" if _is_suspended(found) else "held"
    except OSError:
        return "free" if found is not None and not psutil.pid_exists(found) else None
    return "free" if found is not None else None


def driver(place: Place) -> str:
    """The process that the lock names, its machine and since when, for people."""
    with explained(place), (Path(str(place)) / _FILE).open(errors="replace") as file:
        return file.read()


def _take(file: TextIO) -> None:
    """Lock the file. Raises BlockingIOError where it is held for longer than `state` looks at it."""
    for _ in range(_TRIES):
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        sleep(_PAUSE_S)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _of_other(text: str) -> str:
    """The driver that holds a lock, by the lock's text, and what to do."""
    process = _process(text)
    if _is_suspended(process):
        return (
            f"{text}), which is suspended, as by Ctrl-Z: have it go on by `fg` in its shell or `kill -CONT {process}`, "
            "or end it after that"
        )
    return f"{text}); stop that one, or wait until it has ended{_one_of_several()}"


def _one_of_several() -> str:
    """The end of a message where the environment says that this command was started several times at once."""
    for name, launcher in _STARTED.items():
        if (count := os.environ.get(name, "")).isdecimal() and int(count) > 1:
            return (
                f"; or, where {launcher} started {count} of this command ({name}={count}), start it once, without "
                f"{launcher}: it starts its workers itself, workers={count}"
            )
    return ""


def _process(text: str) -> int | None:
    """The process of this machine that a lock names; None where it names none, or one of another machine."""
    found = re.match(r"process (\d+) on (\S+),", text)
    return int(found[1]) if found and found[2] == socket.gethostname() else None


def _is_suspended(process: int | None) -> bool:
    try:
        return process is not None and psutil.Process(process).status() == psutil.STATUS_STOPPED
    except psutil.Error:
        return False


def _opened(path: Place) -> TextIO:
    """The lock's file, made where it is missing."""
    path.append(b"")
    with explained(path):
        return open(str(path), "r+", errors="replace")


def _remove_unused(new: Sequence[Path], path: Place) -> None:
    """Remove the folder of a run that was refused before anything was written into it, and those made to hold it."""
    with suppress(OSError, StorageError):
        if os.listdir(new[0]) == [_FILE]:
            path.remove()
            for folder in new:
                os.rmdir(folder)
