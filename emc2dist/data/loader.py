"""Views of images, made ahead of time: on a thread of this process, or in a pool of processes.

    future = loader.submit(indices, seeds)        # indices [n], seeds [V, n]
    views = future.result()                       # uint8 [V, n, 3, S, S]

An image is decoded once for its V views. View v of image i is drawn with torch's generator seeded by seeds[v, i], so
it depends on that seed and the image alone: not on the rank, the thread, the process, or its batch-mates.

Views draw from torch's global CPU generator, of which a process has one. Hence the one thread; and with
`processes=0` nobody else may draw from that generator while views are being made (pass a `torch.Generator` instead).
Its state is put back after every view.
"""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emc2dist.data.images import Images

View = Callable[[Tensor], Tensor]
"""uint8 [3, H, W] -> uint8 [3, S, S], random by torch's global generator if at all; picklable."""


class ViewLoader:
    """Makes views of `images` with `view`, in the order submitted.

    With `processes` > 0 the views of a batch are shared out over so many spawned processes, each of which receives a
    copy of `images` and `view` once; a script that starts them needs its `if __name__ == "__main__"`.
    """

    def __init__(self, images: Images, view: View, *, processes: int = 0) -> None:
        self._images = images
        self._view = view
        self._processes = processes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="views")
        self._pool: ProcessPoolExecutor | None = None
        if processes:
            # Spawned, for a fork would copy this process's threads and its CUDA context in whatever state they are.
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(processes, spawn, initializer=_receive, initargs=(images, view))

    def submit(self, indices: NDArray[np.int64], seeds: NDArray[np.int64]) -> Future[Tensor]:
        """Begin on the views of n >= 1 images; seeds are int64 [V, n].

        The future gives uint8 [V, n, 3, S, S], or raises what was raised in the making, such as a `DataError`.
        """
        if self._pool is None:
            return self._thread.submit(lambda: torch.from_numpy(_views(self._images, self._view, indices, seeds)))
        count = min(self._processes, len(indices))
        shares = zip(np.array_split(indices, count), np.array_split(seeds, count, axis=1), strict=True)
        parts = [self._pool.submit(_views_here, *share) for share in shares]
        return self._thread.submit(_join, parts)

    def close(self) -> None:
        """Drop what has not begun, wait for what has, and end the thread and the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._thread.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


# Arrays, not tensors, cross between processes: tensors would go through shared memory, which containers are short of.
def _views(images: Images, view: View, indices: NDArray[np.int64], seeds: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Views uint8 [V, n, 3, S, S]."""
    decoded = images.get(indices)
    rows = [[_draw(view, image, int(seed)) for image, seed in zip(decoded, row, strict=True)] for row in seeds]
    return torch.stack([torch.stack(row) for row in rows]).numpy()


def _draw(view: View, image: Tensor, seed: int) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed the GPUs as well, and those fork_rng does not put back here.
        torch.default_generator.manual_seed(seed)
        return view(image)


_received: tuple[Images, View] | None = None


def _receive(images: Images, view: View) -> None:
    """Start of a pool process."""
    global _received
    _received = (images, view)
    torch.set_num_threads(1)


def _views_here(indices: NDArray[np.int64], seeds: NDArray[np.int64]) -> NDArray[np.uint8]:
    assert _received is not None, "a pool process makes views only after its initialiser has run"
    return _views(*_received, indices, seeds)


def _join(parts: list[Future[NDArray[np.uint8]]]) -> Tensor:
    return torch.from_numpy(np.concatenate([part.result() for part in parts], axis=1))
