"""Views of images, made ahead of time: on a thread of this process, or in a pool of processes.

    future = loader.submit(indices, seeds)        # indices [n], seeds [V, n]
    views = future.result()                       # uint8 [V, n, 3, S, S]

An image is decoded once for its V views. View v of image i is a function of seeds[v, i] and the image alone: not of
the rank, the thread, the process, or its batch-mates.

Or an image is decoded here or in a process, and its views are made on a device: a `DeviceView` packs the pixels and
what its seeds say of each view into a buffer, and makes the views of a batch of all its buffers, on a thread beside. An
image whose pixels it has there already is not packed.

The views, or the buffers, are written where the batch lies: with processes, in memory that they share with this one and
that has no name, so that nothing is left behind and the size of /dev/shm, small in many containers, does not matter.
Where there is no such memory, they come through a pipe, and that is said.

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
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from emc2dist.data.encoded import Traffic
from emc2dist.data.images import Pixels
from emc2dist.errors import Emc2Error
from emc2dist.terminal import say_once

View = Callable[[Sequence[Tensor], NDArray[np.int64]], Tensor]
"""n images, uint8 [3, H, W] each, and seeds [V, n] -> uint8 [V, n, 3, S, S], each by its own seed; picklable."""


class Packer(Protocol):
    """The first half of a `DeviceView`; picklable."""

    def __call__(self, images: Sequence[Tensor], seeds: NDArray[np.int64], /) -> Tensor:
        """A buffer, uint8 [bytes], of n images, uint8 [3, H, W] each, and seeds [V, n]."""
        ...

    def most(self, views: int, /) -> int:
        """Bytes that each image adds to a buffer at most, if there are so many views of it."""
        ...


@runtime_checkable
class DeviceView(Protocol):
    """Views in two halves: packed where images are decoded, made on a device."""

    @property
    def pack(self) -> Packer:
        """Packs them."""
        ...

    def begin(
        self, indices: NDArray[np.int64], seeds: NDArray[np.int64], /
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], "Finish"]:
        """Of images [n] and seeds [V, n] those that have to be packed, maybe none, and what makes all views then."""
        ...


Finish = Callable[[Sequence[Tensor]], Tensor]
"""The buffers of what was packed, in order -> uint8 [V, n, 3, S, S] of all, on the device. Any thread may call it."""


_PIECE_BYTES = 3 * 2**20  # of views: little enough that an urgent batch need not wait long for a process


class ViewLoader:
    """Makes views of `images` with `view`, S = `size` pixels wide and high.

    With `processes` > 0 the pieces of a batch are shared out over so many spawned processes, each of which receives a
    copy of `images` and `view` (of a `DeviceView` its packer) once; a script that starts them needs its
    `if __name__ == "__main__"`.
    """

    def __init__(self, images: Pixels, view: View | DeviceView, size: int, *, processes: int = 0) -> None:
        self.traffic = Traffic()
        """What making the views has asked of the images so far."""
        self._size, self._processes = size, processes
        self._device_view = view if isinstance(view, DeviceView) else None
        # One for urgent batches, so that they do not wait for others.
        self._finishers = {urgent: ThreadPoolExecutor(1, thread_name_prefix="device views") for urgent in (True, False)}
        make = view.pack if isinstance(view, DeviceView) else view
        self._executor: Executor
        if processes:
            # Spawned, for a fork would copy this process's threads and its CUDA context in whatever state they are.
            spawn = multiprocessing.get_context("spawn")
            with _starting():
                self._executor = ProcessPoolExecutor(processes, spawn, initializer=_receive, initargs=(images, make))
            self._make: Callable[..., _Made] = _make_there
        else:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="views")
            self._make = partial(_make, images, make)
        self._slots = 2 * max(1, processes)  # one piece in the making and one at hand for every process
        self._running = 0
        self._waiting: list[_Piece] = []
        self._numbers = itertools.count()
        self._lock = threading.RLock()  # a piece may be done, and come back here, while it is being submitted

    def submit(self, indices: NDArray[np.int64], seeds: NDArray[np.int64], *, urgent: bool = False) -> Future[Tensor]:
        """Begin on the views of n >= 1 images; seeds are int64 [V, n].

        The future gives uint8 [V, n, 3, S, S], of a `DeviceView` on its device, or raises what was raised in the
        making, such as a `DataError`; an `Emc2Error` where a process was killed.
        """
        batch = self._batch(indices, seeds, urgent)
        piece = self._piece(len(seeds), batch.images)
        with self._lock:
            for start in range(0, batch.images, piece):
                stop = min(start + piece, batch.images)
                heapq.heappush(self._waiting, _Piece(not urgent, next(self._numbers), start, stop, batch))
            self._take_up()
        if not batch.images:
            batch.end()
        return batch.future

    def close(self) -> None:
        """Drop what has not begun, wait for what has, and end the thread or the processes."""
        with self._lock:
            dropped, self._waiting = self._waiting, []
        for piece in dropped:
            piece.batch.future.cancel()
        self._executor.shutdown(cancel_futures=True)
        for finisher in self._finishers.values():
            finisher.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _batch(self, indices: NDArray[np.int64], seeds: NDArray[np.int64], urgent: bool) -> "_Batch":
        shared = self._processes > 0
        if self._device_view is None:
            return _ViewsBatch(indices, seeds, self._size, shared=shared)
        most = self._device_view.pack.most(len(seeds))
        indices, seeds, finish = self._device_view.begin(indices, seeds)
        return _PackedBatch(indices, seeds, most, finish, self._finishers[urgent], shared=shared)

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
        traffic, sent = made.result()
        self.traffic += traffic
        piece.batch.complete(piece.start, piece.stop, sent)


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


class _Batch(ABC):
    """A batch in the making."""

    def __init__(self, indices: NDArray[np.int64], seeds: NDArray[np.int64], memory: "_SharedMemory | None") -> None:
        self.future: Future[Tensor] = Future()
        self.images = len(indices)
        """Of which its pieces are."""
        self._indices, self._seeds, self._memory = indices, seeds, memory
        self._missing = self.images

    def arguments(self, start: int, stop: int) -> tuple[Any, ...]:
        """What `_make` (or, in a process, `_make_there`) needs to make a piece."""
        return self._indices[start:stop], self._seeds[:, start:stop], self._writer(start, stop)

    def complete(self, start: int, stop: int, sent: Any) -> None:
        """These images are done, and `sent` is what the piece's writer gave; the last piece completes the batch."""
        self._take(start, stop, sent)
        self._missing -= stop - start
        if not self._missing and not self.future.done():
            self.end()

    def fail(self, error: BaseException) -> None:
        """A piece could not be made."""
        if not self.future.done():
            self.future.set_exception(error)

    @abstractmethod
    def _writer(self, start: int, stop: int) -> "_Writer": ...

    @abstractmethod
    def _take(self, start: int, stop: int, sent: Any) -> None: ...

    @abstractmethod
    def end(self) -> None:
        """All pieces are done."""


class _ViewsBatch(_Batch):
    """A batch whose pieces are views."""

    def __init__(self, indices: NDArray[np.int64], seeds: NDArray[np.int64], size: int, *, shared: bool) -> None:
        self._shape = (len(seeds), len(indices), 3, size, size)
        count, self._in_processes = math.prod(self._shape), shared
        super().__init__(indices, seeds, _shared(count) if shared else None)
        flat = torch.empty(count, dtype=torch.uint8) if self._memory is None else self._memory.map()
        self._views = flat.view(self._shape)

    def _writer(self, start: int, stop: int) -> "_Writer":
        if self._in_processes:
            return _SharedViews(self._memory, self._shape, start)
        return partial(_copy, self._views[:, start:stop])

    def _take(self, start: int, stop: int, sent: NDArray[np.uint8] | None) -> None:
        if sent is not None:
            self._views[:, start:stop] = torch.from_numpy(sent)

    @override
    def end(self) -> None:
        self.future.set_result(self._views)


class _PackedBatch(_Batch):
    """A batch whose pieces are buffers, `most` bytes an image, of which `finish` makes views on `finisher`'s thread."""

    def __init__(
        self,
        indices: NDArray[np.int64],
        seeds: NDArray[np.int64],
        most: int,
        finish: Finish,
        finisher: Executor,
        *,
        shared: bool,
    ) -> None:
        self._most, self._finish_views, self._finisher, self._in_processes = most, finish, finisher, shared
        # Mostly empty: what is never written takes no memory.
        super().__init__(indices, seeds, _shared(len(indices) * most) if shared and len(indices) else None)
        self._whole = None if self._memory is None else self._memory.map()
        self._buffers = dict[int, Tensor]()

    def _writer(self, start: int, stop: int) -> "_Writer":
        return _SharedBuffer(self._memory, start * self._most) if self._in_processes else _as_it_is

    def _take(self, start: int, stop: int, sent: int | NDArray[np.uint8] | Tensor) -> None:
        if isinstance(sent, int):
            assert self._whole is not None
            first = start * self._most
            self._buffers[start] = self._whole[first : first + sent]
        else:
            self._buffers[start] = torch.as_tensor(sent)

    @override
    def end(self) -> None:
        self._finisher.submit(self._finish)

    def _finish(self) -> None:
        try:
            views = self._finish_views([self._buffers[start] for start in sorted(self._buffers)])
        except Exception as error:  # whatever torch raises on a device, such as a want of memory
            self.fail(error)
        else:
            self.future.set_result(views)


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


_Writer = Callable[[Tensor], Any]
"""Puts what was made of a piece where the batch lies, and gives what remains to be sent; picklable, for processes."""


@dataclass(frozen=True)
class _SharedViews:
    """Writes views into memory that is shared; gives them back where there is none."""

    memory: _SharedMemory | None
    shape: tuple[int, ...]
    """Of the batch."""
    start: int

    def __call__(self, views: Tensor) -> NDArray[np.uint8] | None:
        whole = None if self.memory is None else _mapped(self.memory)
        if whole is None:
            return views.numpy()
        whole.view(self.shape)[:, self.start : self.start + views.shape[1]] = views
        return None


@dataclass(frozen=True)
class _SharedBuffer:
    """Writes a buffer into memory that is shared, and gives its length; gives it back where there is none."""

    memory: _SharedMemory | None
    start: int

    def __call__(self, buffer: Tensor) -> NDArray[np.uint8] | int:
        whole = None if self.memory is None else _mapped(self.memory)
        if whole is None:
            return buffer.numpy()
        whole[self.start : self.start + len(buffer)] = buffer
        return len(buffer)


def _copy(into: Tensor, views: Tensor) -> None:
    into.copy_(views)


def _as_it_is(buffer: Tensor) -> Tensor:
    return buffer


_Made = tuple[Traffic, Any]
"""What making a piece asked of the images, and what its writer gave."""


def _make(
    images: Pixels, make: View | Packer, indices: NDArray[np.int64], seeds: NDArray[np.int64], write: _Writer
) -> _Made:
    """Make a piece."""
    before = images.traffic
    sent = write(make(images.get(indices), seeds))
    return images.traffic - before, sent


_received: tuple[Pixels, View | Packer] | None = None


def _receive(images: Pixels, make: View | Packer) -> None:
    """Start of a pool process."""
    global _received
    _received = (images, make)
    torch.set_num_threads(1)


def _mapped(memory: _SharedMemory) -> Tensor | None:
    try:
        return memory.map()
    except OSError as error:  # as where there is no /proc, or it does not show other processes
        _say_slow(error)
        return None


def _make_there(indices: NDArray[np.int64], seeds: NDArray[np.int64], write: _Writer) -> _Made:
    """Make a piece in a process of the pool."""
    assert _received is not None, "a pool process makes views only after its initialiser has run"
    try:
        return _make(*_received, indices, seeds, write)
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
