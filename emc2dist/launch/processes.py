"""Processes that outlive whoever starts them: each a session of its own, found again by the pid of its leader.

Whatever the processes of a session do, they stay in it. But a pid that was written down may have become somebody
else's. So a session counts as ours only while one of its processes works in our folder, where `launch` puts them.
(Command lines would not tell: Ray's processes replace theirs.)
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from emc2dist.errors import LaunchError

KILL_TIMEOUT_S = 15.0
POLL_S = 0.1


def launch(command: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the leader of a new session, in the folder of its log."""
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env=environment,
            start_new_session=True,
        )


def lives(session: int, folder: Path) -> bool:
    """Whether a session is ours and its leader lives."""
    return any(process.pid == session for process in members(session)) and _is_ours(session, folder)


def end(sessions: Iterable[int], folder: Path, *, grace_s: float) -> None:
    """Ask the leaders to end, wait for them up to `grace_s` seconds, and kill what is left of sessions of ours.

    Raises:
        LaunchError: a process outlived SIGKILL by KILL_TIMEOUT_S.
    """
    # Asked once: processes that work elsewhere are ours as well, and while they live nobody else gets the pid.
    ours = [session for session in sessions if _is_ours(session, folder)]
    leaders = [process for session in ours for process in members(session) if process.pid == session]
    _send(signal.SIGTERM, leaders)
    wait_for(lambda: not any(_is_of(leader, leader.pid) for leader in leaders), grace_s)

    def none_left() -> bool:
        left = [process for session in ours for process in members(session)]
        _send(signal.SIGKILL, left)
        return not left

    if not wait_for(none_left, KILL_TIMEOUT_S):
        raise LaunchError(f"processes of the sessions {ours} live on, {KILL_TIMEOUT_S:g} s after SIGKILL")


def members(session: int) -> list[psutil.Process]:
    """The living processes of a session."""
    return [process for process in psutil.process_iter() if _is_of(process, session)]


def wait_for(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Whether a condition came true within `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def _is_ours(session: int, folder: Path) -> bool:
    for process in members(session):
        with suppress(psutil.Error):
            if Path(process.cwd()).is_relative_to(folder.resolve()):
                return True
    return False


def _is_of(process: psutil.Process, session: int) -> bool:
    try:
        return os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, psutil.Error):  # it has just ended, or it is another user's and not ours to see
        return False


def _send(number: signal.Signals, processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
