"""Files written side by side, by processes that end with the one that leads.

How many images are done is one number in shared memory, and so is the wish to stop, which workers look at after every
image. The leader reads and writes them without a lock, which a worker may have been killed with. A worker whose leader
is gone removes its drafts and ends.
"""

import multiprocessing as mp
import os
import shutil
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from ctypes import c_byte
from dataclasses import dataclass
from itertools import islice
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

from emc2dist.data.ingest.writer import Note, Target, Task, write_file
from emc2dist.errors import Emc2Error
from emc2dist.terminal import Progress

_POLL_SECONDS = 0.5


def write_files(
    tasks: Iterable[Task], target: Target, drafts: Path, workers: int, progress: Progress
) -> Iterator[Note]:
    """Write every file and yield its note, in the order in which files are finished.

    At most 2 `workers` tasks are taken from `tasks` ahead of what is finished. 0 or 1 workers: this process does it.

    Raises:
        Emc2Error: a file could not be written, or a worker died; the others stop, and finished files stay.
    """
    if workers <= 1:
        yield from (write_file(task, target, drafts, progress.add) for task in tasks)
    else:
        yield from _Pool(target, drafts, workers).run(tasks, progress)


class _Pool:
    def __init__(self, target: Target, drafts: Path, workers: int) -> None:
        context = mp.get_context("spawn")
        self._workers, self._counted = workers, 0
        self._shared = _Shared(target, drafts, context.Value("q", 0), context.RawValue("b", 0))
        self._executor = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(self._shared,))

    def run(self, tasks: Iterable[Task], progress: Progress) -> Iterator[Note]:
        waiting, pending = iter(tasks), set[Future[Note]]()
        try:
            while True:
                ahead = islice(waiting, 2 * self._workers - len(pending))
                pending |= {self._submit(task) for task in ahead}
                if not pending:
                    return
                done, pending = wait(pending, _POLL_SECONDS, FIRST_COMPLETED)
                self._show(progress)
                yield from (future.result() for future in done)
        except BrokenProcessPool as error:
            raise Emc2Error(
                "a worker process was killed, perhaps for want of memory; finished files stay: run the same command "
                "again, with fewer --workers"
            ) from error
        finally:
            self._shared.stop.value = 1
            self._executor.shutdown(cancel_futures=True)

    def _submit(self, task: Task) -> Future[Note]:
        with _deaf():  # a first task starts the workers
            return self._executor.submit(_write, task)

    def _show(self, progress: Progress) -> None:
        counted = self._shared.count.get_obj().value
        progress.add(counted - self._counted)
        self._counted = counted


@contextmanager
def _deaf() -> Iterator[None]:
    """Processes that are started here never hear Ctrl-C, which a terminal sends to all: who leads tells them to stop.

    Nor is their start interrupted by it; it is heeded afterwards. (Blocked, it may still reach another thread.)
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    leads, pressed = threading.current_thread() is threading.main_thread(), []
    handler = signal.signal(signal.SIGINT, lambda *_: pressed.append(True)) if leads else None
    try:
        yield
    finally:
        if leads:
            signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if pressed:
            signal.raise_signal(signal.SIGINT)


@dataclass(frozen=True)
class _Shared:
    """What all workers have."""

    target: Target
    drafts: Path
    count: "Synchronized[int]"
    """Images that are done."""
    stop: c_byte
    """Not 0 once the leader has ended the job."""


_shared: _Shared


def _start(shared: _Shared) -> None:
    """Make this process a worker."""
    global _shared
    _shared = shared
    threading.Thread(target=_end_with_leader, args=(shared.drafts,), daemon=True).start()


def _end_with_leader(drafts: Path) -> None:
    leader = mp.parent_process()
    assert leader is not None, "a worker has a leader"
    leader.join()
    shutil.rmtree(drafts, ignore_errors=True)
    os._exit(1)


class _Stopped(Exception):
    """The leader has ended the job."""


def _count() -> None:
    if _shared.stop.value:
        raise _Stopped
    with _shared.count.get_lock():
        _shared.count.value += 1


def _write(task: Task) -> Note:
    return write_file(task, _shared.target, _shared.drafts, _count)
