"""A guard over the Ray that was started here: nothing can go on once its raylet or its GCS server has been ended.

Ray's C++ then ends this process without a word, at the next call or after a minute of waiting. So whoever waits is told
as soon as a process is gone, by a thread that asks nothing of Ray.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress

from emc2dist.errors import RayEnded
from emc2dist.run.limits import scarce_files
from emc2dist.terminal import say

GRACE_S = 5.0
"""Seconds in which the process may end by itself, before it is ended: a call of Ray's may wait much longer."""
_INTERVAL_S = 0.1
_VITAL = ("raylet", "gcs_server")


class Guard:
    """Watches until `stop`.

    Of Ray it is given `gone`, names and exit codes of processes that have ended; and `end`, which ends this process.
    """

    def __init__(
        self,
        gone: Callable[[], Iterable[tuple[str, int]]],
        end: Callable[[], None],
        grace_s: float = GRACE_S,
    ) -> None:
        self._gone, self._end, self._grace_s = gone, end, grace_s
        self.told = ""
        """What has been told; empty while Ray lives."""
        self._telling, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise RayEnded where Ray has been ended; the person has been told by then, once."""
        if self._over.is_set():
            return
        with self._telling:
            gone = [(name, code) for name, code in self._gone() if name in _VITAL]
            ended, killed = [_ended(*one) for one in gone], all(code <= 0 for _, code in gone)
            if ended and not self.told:
                self.told = (
                    f"the Ray that was started here has been ended ({', '.join(ended)}), as by `ray stop` or by the "
                    f"system{'' if killed else scarce_files()}; the same command resumes from the newest checkpoint"
                )
                say(f"emc2dist: {self.told}")
        if self.told:
            raise RayEnded(self.told)

    def stop(self) -> None:
        """Watch no more: what ends from now on was to, or this process ends by itself."""
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(_INTERVAL_S):
            try:
                self.check()
            except RayEnded:
                if not self._over.wait(self._grace_s):
                    self._end()
                return


def _ended(name: str, code: int) -> str:
    if code < 0:
        with suppress(ValueError):
            return f"{name}: {signal.Signals(-code).name}"
    return f"{name}: exit status {code}"


def end_process(kill: Callable[[], None]) -> None:
    """End this process as a failure, and what it has started by `kill`; nothing of Python's end is waited for."""
    with suppress(Exception):
        kill()
    os._exit(1)
