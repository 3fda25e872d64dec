"""Views of images, made ahead of time: on a thread of this process, or in a pool of processes.

    future = loader.submit(indices, seeds)        # indices [n], seeds [V, n]
    views = future.result()                       # uint8 [V, n, 3, S, S]

An image is decoded once for its V views. View v of image i is a function of seeds[v, i] and the image alone: not of
the rank, the thread, the process, or its batch-mates.

The views are written where the batch lies: with processes, in memory that they share with this one and that has no
name, so that nothing is left behind and the size of /dev/shm, small in many containers, does not matter. Where there is
no such memory, they come through a pipe, and that is said.

A batch is made in pieces of a few images, taken up in the order submitted, except that an urgent batch (one that a
step waits for, such as carried negatives) goes before all that has not been taken up. Nothing is made that was not
submitted, so whoever submits decides how much lies ready.
"""

import heapq
import itertools
import math
import mmap
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emc2dist.data.encoded import Traffic
from emc2dist.data.images import Images
from emc2dist.errors import Emc2Error
from emc2dist.terminal import say_once

View = Callable[[Sequence[Tensor], NDArray[np.int64]], Tensor]
"""n images, uint8 [3, H, W] each, and seeds [V, n] -> uint8 [V, n, 3, S, S], each by its own seed; picklable."""

_PIECE_BYTES = 3 * 2**20  # of views: little enough that an urgent batch need not wait long for a process


class ViewLoader:
    """Makes views of `images` with `view`, S = `size` pixels wide and high.

    With `processes` > 0 the pieces of a batch are shared out over so many spawned processes, each of which receives a
    copy of `images` and `view` once; a script that starts them needs its `if __name__ == "__main__"`.
    """

    def __init__(self, images: Images, view: View, size: int, *, processes: int = 0) -> None:
        self.traffic = Traffic()
        """What making the views has asked of the images so far."""
        self._size, self._processes = size, processes
        self._executor: Executor
        if processes:
            # Spawned, for a fork would copy this process's threads and its CUDA context in whatever state they are.
            spawn = multiprocessing.get_context("spawn")
            with _starting():
                self._executor = ProcessPoolExecutor(processes, spawn, initializer=_receive, initargs=(images, view))
            self._make: Callable[..., _Made] = _make_there
        else:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="views")
            self._make = partial(_make_here, images, view)
        self._slots = 2 * max(1, processes)  # one piece in the making and one at hand for every process
        self._running = 0
        self._waiting: list[_Piece] = []
        self._numbers = itertools.count()
        self._lock = threading.RLock()  # a piece may be done, and come back here, while it is being submitted

    def submit(self, indices: NDArray[np.int64], seeds: NDArray[np.int64], *, urgent: bool = False) -> Future[Tensor]:
        """Begin on the views of n >= 1 images; seeds are int64 [V, n].

        The future gives uint8 [V, n, 3, S, S], or raises what was raised in the making, such as a `DataError`; an
        `Emc2Error` where a process was killed.
        """
        batch = _Batch(indices, seeds, self._size, shared=self._processes > 0)
        piece = self._piece(*seeds.shape)
        with self._lock:
            for start in range(0, len(indices), piece):
                stop = min(start + piece, len(indices))
                heapq.heappush(self._waiting, _Piece(not urgent, next(self._numbers), start, stop, batch))
            self._take_up()
        return batch.future

    def close(self) -> None:
        """Drop what has not begun, wait for what has, and end the thread or the processes."""
        with self._lock:
            dropped, self._waiting = self._waiting, []
        for piece in dropped:
            piece.batch.future.cancel()
        self._executor.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _piece(self, views: int, images: int) -> int:
        """Images of a piece: a process's share of the batch, or less."""
        share = -(-images // max(1, self._processes))
        return max(1, min(share, _PIECE_BYTES // (views * 3 * self._size**2)))

    def _take_up(self) -> None:
        """Give the executor what it has room for; the lock is held."""
        while self._waiting and self._running < self._slots:
            piece = heapq.heappop(self._waiting)
            if piece.batch.future.done():  # another piece of it has failed
                continue
            try:
                with _starting():  # processes are started as they are needed
                    made = self._executor.submit(self._make, *piece.batch.arguments(piece.start, piece.stop))
            except Emc2Error as error:
                piece.batch.fail(error)
                continue
            self._running += 1
            made.add_done_callback(lambda made, piece=piece: self._receive(made, piece))  # type: ignore[misc]

    def _receive(self, made: "Future[_Made]", piece: "_Piece") -> None:
        with self._lock:
            self._running -= 1
            if made.cancelled():
                piece.batch.future.cancel()
                return
            self._put(made, piece)
            self._take_up()

    def _put(self, made: "Future[_Made]", piece: "_Piece") -> None:
        error = made.exception()
        if error is not None:
            piece.batch.fail(_killed() if isinstance(error, BrokenExecutor) else error)
            return
        traffic, views = made.result()
        self.traffic += traffic
        piece.batch.complete(piece.start, piece.stop, views)


@contextmanager
def _starting() -> Iterator[None]:
    """Turn what is raised where processes cannot be started, or be spoken to, into an error that names the key."""
    try:
        yield
    except BrokenExecutor as error:
        raise _killed() from error
    except OSError as error:  # no more processes allowed, no memory, or no /dev/shm for semaphores
        reason = error.strerror or error
        raise Emc2Error(f"a loader process cannot be started ({reason}); lower data.loaders, or set it to 0") from error


def _killed() -> Emc2Error:
    return Emc2Error(
        "a loader process was killed, perhaps for want of memory; lower data.loaders, data.prefetch or batch_size, or "
        "give the worker more memory"
    )


class _Batch:
    """A batch in the making."""

    def __init__(self, indices: NDArray[np.int64], seeds: NDArray[np.int64], size: int, *, shared: bool) -> None:
        self.future: Future[Tensor] = Future()
        self._indices, self._seeds, self._processes = indices, seeds, shared
        self._missing = len(indices)
        self._shape = (len(seeds), len(indices), 3, size, size)
        self._memory = _shared(math.prod(self._shape)) if shared else None
        flat = torch.empty(math.prod(self._shape), dtype=torch.uint8) if self._memory is None else self._memory.map()
        self._views = flat.view(self._shape)

    def arguments(self, start: int, stop: int) -> tuple[Any, ...]:
        """What `_make_here` (or, in a process, `_make_there`) needs to make a piece."""
        indices, seeds = self._indices[start:stop], self._seeds[:, start:stop]
        if self._processes:
            return indices, seeds, self._memory, self._shape, start
        return indices, seeds, self._views[:, start:stop]

    def complete(self, start: int, stop: int, views: NDArray[np.uint8] | None) -> None:
        """These images are done, and their views here or given; the last piece completes the batch."""
        if views is not None:
            self._views[:, start:stop] = torch.from_numpy(views)
        self._missing -= stop - start
        if not self._missing and not self.future.done():
            self.future.set_result(self._views)

    def fail(self, error: BaseException) -> None:
        """A piece could not be made."""
        if not self.future.done():
            self.future.set_exception(error)


class _SharedMemory:
    """Nameless memory that processes of this one's can map while this one holds it. Linux."""

    def __init__(self, size: int, number: int) -> None:
        self._size, self._owner, self._number = size, os.getpid(), number
        os.ftruncate(self._number, size)

    def map(self) -> Tensor:
        """The memory, uint8 [size]; outlives this object."""
        if os.getpid() == self._owner:
            return torch.frombuffer(mmap.mmap(self._number, self._size), dtype=torch.uint8)
        with open(f"/proc/{self._owner}/fd/{self._number}", "r+b") as file:
            return torch.frombuffer(mmap.mmap(file.fileno(), self._size), dtype=torch.uint8)

    def __del__(self) -> None:
        if os.getpid() == self._owner:
            os.close(self._number)


def _shared(size: int) -> _SharedMemory | None:
    try:
        return _SharedMemory(size, os.memfd_create("views"))
    except OSError as error:
        _say_slow(error)
        return None


def _say_slow(error: OSError) -> None:
    reason = f"loader processes cannot share memory with their worker ({error.strerror or error})"
    say_once("shared memory", f"{reason}, so views come through a pipe, which is slower")


class _Piece(NamedTuple):
    """A few images of a batch; sorted as they are to be taken up."""

    patient: bool
    number: int
    start: int
    stop: int
    batch: _Batch


def _make(images: Images, view: View, indices: NDArray[np.int64], seeds: NDArray[np.int64], views: Tensor) -> Traffic:
    """Write the views of some images into uint8 [V, n, 3, S, S]."""
    before = images.traffic
    views[:] = view(images.get(indices), seeds)
    return images.traffic - before


_Made = tuple[Traffic, NDArray[np.uint8] | None]
"""What making a piece asked of the images, and the views where they could not be written where they belong."""


def _make_here(images: Images, view: View, *piece: Any) -> _Made:
    return _make(images, view, *piece), None


_received: tuple[Images, View] | None = None


def _receive(images: Images, view: View) -> None:
    """Start of a pool process."""
    global _received
    _received = (images, view)
    torch.set_num_threads(1)


def _make_there(
    indices: NDArray[np.int64],
    seeds: NDArray[np.int64],
    memory: _SharedMemory | None,
    shape: tuple[int, ...],
    start: int,
) -> _Made:
    """Make a piece in a process of the pool."""
    whole = None if memory is None else _mapped(memory)
    if whole is not None:
        return _make_received(indices, seeds, whole.view(shape)[:, start : start + len(indices)]), None
    views = torch.empty((shape[0], len(indices), *shape[2:]), dtype=torch.uint8)
    return _make_received(indices, seeds, views), views.numpy()


def _mapped(memory: _SharedMemory) -> Tensor | None:
    try:
        return memory.map()
    except OSError as error:  # as where there is no /proc, or it does not show other processes
        _say_slow(error)
        return None


def _make_received(indices: NDArray[np.int64], seeds: NDArray[np.int64], views: Tensor) -> Traffic:
    assert _received is not None, "a pool process makes views only after its initialiser has run"
    try:
        return _make(*_received, indices, seeds, views)
    except Exception as error:  # whatever a library raises
        if _travels(error):
            raise
        raise Emc2Error(f"{type(error).__name__}: {error}") from error


def _travels(error: Exception) -> bool:
    """Whether it can be pickled and built anew; else the pool would take this process for a dead one."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its class's own code raises
        return False
    return True
