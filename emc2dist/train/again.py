"""Views that are encoded again: those of one step, each once, and those that are asked for a step ahead."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emc2dist.core.batch import locate, view_number
from emc2dist.core.transfer import to_device
from emc2dist.train.finite import Finite
from emc2dist.train.memory import Encoded


def view_ids(samples: Tensor, numbers: Tensor, count: int) -> Tensor:
    """number * N + sample of views, given by their samples and numbers; N = `count`."""
    return numbers * count + samples


@dataclass(frozen=True)
class Foreseen:
    """Views in the making that a step to come is sure to encode again."""

    ids: Tensor
    """int64 [n >= 1], ascending."""
    views: Future[Tensor]
    """[1, n, ...]."""

    def has(self, ids: Tensor) -> bool:
        """Whether views [m] are all among them."""
        _, there = locate(ids, self.ids)
        return bool(there.all())

    def of(self, ids: Tensor, made: Tensor) -> Tensor:
        """Of those made [n, ...] the views [m], ascending, which are all among them."""
        if len(ids) == len(self.ids):
            return made
        slot, _ = locate(ids, self.ids)
        (slot,) = to_device([slot], made.device)
        return made[slot]


class Again:
    """Views that are encoded again in one step, each once."""

    def __init__(self, like: Tensor, samples: int, encode: Callable[[str, Tensor], Tensor]) -> None:
        """None yet, of features as `like` [..., D] is.

        `encode` takes ids [m] of views of a side, ascending, of a dataset of so many `samples`.
        """
        self._samples, self._encode = samples, encode
        self._views = torch.zeros(0, dtype=torch.int64)
        """Ids, each once."""
        self._features = like.new_zeros(0, like.shape[-1])

    def __call__(self, side: str, samples: Tensor, numbers: Tensor) -> Tensor:
        """Features [R, m, D] of samples int64 [m] by their views numbered [R, m], both on the CPU; with gradient."""
        views = view_ids(samples, numbers, self._samples)
        missing = views.unique()
        missing = missing[~torch.isin(missing, self._views, assume_unique=True)]
        if len(missing):
            features = self._encode(side, missing)
            self._views = torch.cat([self._views, missing])
            self._features = torch.cat([self._features, features])
        slot, _ = locate(views.flatten(), self._views)
        (slot,) = to_device([slot], self._features.device)
        return self._features[slot].unflatten(0, views.shape)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._views)

    def finite(self, rank: int, named: Callable[[int], str]) -> Finite:
        """Which of the features are finite; they are `rank`'s, and `named` says what a sample is."""
        samples = self._views % self._samples
        return Finite.of(self._features, lambda row: (rank, named(int(samples[row]))))

    def encoded(
        self, own: NDArray[np.int64], features: Tensor, batch: NDArray[np.int64], step: int, views: int
    ) -> Encoded:
        """What is cached of this step: the worker's `own` samples by their last view, and fresh views of others.

        A view that a chain carries is not: it was chosen, and another rank may encode another one of its sample. The
        step's first fresh view is the same on all ranks.

        Args:
            own: int64 [b].
            features: [b, D], of their last views.
            batch: int64 [n], the samples of all ranks.
            step: its number.
            views: V.
        """
        samples, numbers = self._views % self._samples, self._views // self._samples
        is_fresh = numbers == view_number(step, views, views)
        (rows,) = (is_fresh & ~torch.isin(samples, torch.from_numpy(batch))).nonzero(as_tuple=True)
        index = torch.cat([torch.from_numpy(own), samples[rows]])
        slot = torch.tensor([views - 1, views]).repeat_interleave(torch.tensor([len(own), len(rows)]))
        (rows,) = to_device([rows], self._features.device)
        return Encoded(index, torch.cat([features, self._features[rows]]).detach(), slot)
