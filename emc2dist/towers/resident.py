"""Views of images whose pixels stay on the device once they have been there.

    an image is seen for the first time    its pixels come in a buffer (`emc2dist.towers.batched`), and are kept
    from then on                           what its streams say of each view is all that is sent

The views are the same to the bit: they are made by the same code, of the same pixels. What finds no room is sent every
time, and so is an image longer than `LONGEST` views, of which crops come.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emc2dist.config import Views
from emc2dist.core.transfer import to_device
from emc2dist.terminal import say_once
from emc2dist.towers.batched import BEHIND, PLACED, BatchedViews, unpacked
from emc2dist.towers.parameters import draw


class ResidentViews:
    """Views of a set of so many `images`, and room on the device for so many `pixels` of theirs.

    On the host it takes 25 bytes an image. Any number of threads may call it.
    """

    def __init__(self, config: Views, device: torch.device, images: int, pixels: int) -> None:
        self._config, self._batched = config, BatchedViews(config, device)
        self.pack = self._batched.pack
        """Makes the buffers of images that are not there."""
        with self._batched.beside():  # memory that no other stream has had, whose work on it might not be done
            self._pixels = torch.empty((pixels + BEHIND, 3), dtype=torch.uint8, device=device)
        self._room, self._end = pixels, 0
        self._lock = threading.Lock()
        self._taken = np.zeros(images, np.bool_)  # there, or on its way there
        self._first = np.full(images, -1, np.int64)  # pixel; -1 until it is there
        self._sides = np.zeros((2, images), np.int64)

    def begin(
        self, indices: NDArray[np.int64], streams: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], Callable[[Sequence[Tensor]], Tensor]]:
        """Which images of `indices` [n], by their streams [V, n], have to be packed, and what makes all views then."""
        absent = self._first[indices] < 0
        return indices[absent], streams[:, absent], partial(self._views, indices, streams, absent)

    def _views(
        self,
        indices: NDArray[np.int64],
        streams: NDArray[np.int64],
        absent: NDArray[np.bool_],
        buffers: Sequence[Tensor],
    ) -> Tensor:
        """Views uint8 [V, n, 3, S, S] on the device; `buffers` are of those that were absent."""
        parts, arrived = list[Tensor](), None
        with self._batched.beside():
            if absent.any():
                whole, placed, sources = unpacked(buffers)
                views, pixels = self._batched.of(placed, sources)
                arrived = self._keep(indices[absent], whole, pixels)
                parts.append(views)
            if not absent.all():
                parts.append(self._of_kept(indices[~absent], streams[:, ~absent]))
            together = parts[0] if len(parts) == 1 else self._in_order(parts, absent)
        if arrived is not None:  # only now: another thread's stream does not wait for this one's
            arrived()
        return together

    def _of_kept(self, indices: NDArray[np.int64], streams: NDArray[np.int64]) -> Tensor:
        height, width = self._sides[:, indices]
        sides = (np.broadcast_to(side, streams.shape).ravel() for side in (height, width))
        placed = np.zeros(streams.shape, PLACED)
        placed["drawn"] = draw(self._config, streams.ravel(), *sides).reshape(streams.shape)
        placed["first"] = self._first[indices] + placed["drawn"]["top"] * width + placed["drawn"]["left"]
        placed["pitch"] = width
        return self._batched.of(placed, [], self._pixels)[0]

    def _in_order(self, parts: list[Tensor], absent: NDArray[np.bool_]) -> Tensor:
        """The views of those that were absent, and of the others, as they were asked for."""
        order = np.argsort(np.concatenate([np.flatnonzero(absent), np.flatnonzero(~absent)]))
        (places,) = to_device([torch.from_numpy(order)], self._pixels.device)
        return torch.cat(parts, 1).index_select(1, places)

    def _keep(self, indices: NDArray[np.int64], whole: NDArray, pixels: Tensor) -> Callable[[], None]:
        """Copy images [n], which lie in `pixels` as `whole` says, where there is room; gives what notes them then."""
        new, first = self._place(indices, whole)
        kept, image = indices[new], whole[new]
        for source, target, count in _runs(image["first"], image["height"] * image["width"], first):
            self._pixels[target : target + count].copy_(pixels[source : source + count])

        def note() -> None:
            self._sides[:, kept] = image["height"], image["width"]
            self._first[kept] = first

        return note

    def _place(self, indices: NDArray[np.int64], whole: NDArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which of the images [n] are to be kept, ascending, and the pixel with which each begins."""
        _, once = np.unique(indices, return_index=True)
        once.sort()
        with self._lock:
            new = once[(whole["height"][once] > 0) & ~self._taken[indices[once]]]
            sizes = whole["height"][new] * whole["width"][new]
            fits = self._end + sizes.cumsum() <= self._room
            if not fits.all():
                say_once("data.on_device", "data.on_device: no room is left there; other images are sent each time")
            new, sizes = new[fits], sizes[fits]
            first = self._end + sizes.cumsum() - sizes
            self._end += int(sizes.sum())
            self._taken[indices[new]] = True
        return new, first


def _runs(
    sources: NDArray[np.int64], sizes: NDArray[np.int64], targets: NDArray[np.int64]
) -> Iterator[tuple[int, int, int]]:
    """Where images begin that lie one behind the other, where they go, and how many pixels they have together.

    Targets do lie one behind the other.
    """
    ends = sources + sizes
    begins = [0, *(1 + np.flatnonzero(sources[1:] != ends[:-1]))] if len(sources) else []
    for begin, stop in zip(begins, [*begins[1:], len(sources)], strict=True) if begins else ():
        yield int(sources[begin]), int(targets[begin]), int(ends[stop - 1] - sources[begin])
