"""The numbers of processes and threads, and of open files, that are allowed here: Ray takes hundreds, and meets a limit
silently.
"""

import os
import resource
from contextlib import suppress
from pathlib import Path

from emc2dist.errors import LaunchError

_RAY, _WORKER = 280, 30
"""Threads that a Ray of one node and a worker take at least: 348 were counted for one worker on two cores."""
_AMPLE = 4
"""Times as many as that: who meets a limit of so many is not short of threads."""
_PIDS = ("/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max")
_FILES = 4096
"""Open files below which Ray itself warns, once it has raised the limit as far as it may."""


def refuse_too_few(workers: int) -> None:
    """Raise LaunchError where a Ray that is started here for so many workers can surely not start all its threads."""
    found, least = allowed(), _RAY + _WORKER * workers
    if found is not None and found[0] < least:
        raise LaunchError(
            f"{_told(*found)}; Ray with workers: {workers} takes {least} at least, and what else you run counts too"
        )


def scarce(workers: int) -> str:
    """The end of a message on what does not start: the limit, where it may well be the cause; else empty."""
    found, least = allowed(), _RAY + _WORKER * workers
    if found is None or found[0] >= _AMPLE * least:
        return scarce_files()
    return f"; {_told(*found)}; Ray with workers: {workers} takes more than {least}, and what else you run counts too"


def scarce_files() -> str:
    """The end of a message on what does not start or has ended: `ulimit -n`, where it is low; else empty."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)  # to which Ray raises what is allowed so far
    if most == resource.RLIM_INFINITY or most >= _FILES:
        return ""
    return (
        f"; at most {most} open files are allowed here (ulimit -n), which may be why: Ray takes some for each CPU, and "
        f"wants {_FILES}; raise it, or use another machine"
    )


def allowed() -> tuple[int, str] | None:
    """The number of processes and threads that are allowed here, and what sets it; None where nothing does."""
    limits = []
    for path in _PIDS:
        with suppress(OSError, ValueError):  # no such file, or `max`
            limits.append((int(Path(path).read_text()), f"the container's limit, {path}"))
    number, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if number != resource.RLIM_INFINITY and os.getuid() != 0:  # of whom the kernel does not ask it
        limits.append((number, "ulimit -u"))
    return min(limits, default=None)


def _told(number: int, what: str) -> str:
    return f"at most {number} processes and threads are allowed here ({what}): raise it, or use another machine"
