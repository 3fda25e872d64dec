"""Grey images in memory: what the sets that come with the package are made of."""

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emc2dist.data.columns import groups_of
from emc2dist.data.encoded import Traffic


class GreyImages:
    """Grey images of one size, all labelled; implements `emc2dist.data.images.Images`.

    `pixels` are uint8 [n, H, W], `labels` int64 [n] number `classes`. Images are uint8 [3, H, W], grey.
    """

    remarks: tuple[str, ...] = ()

    def __init__(self, pixels: NDArray[np.uint8], labels: NDArray[np.int64], classes: list[str]) -> None:
        self.classes = classes
        self._pixels, self._labels = pixels, labels

    def __len__(self) -> int:
        return len(self._labels)

    def unlabelled(self) -> None:
        """None: all have labels."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the pixels."""
        return hashlib.sha256(self._pixels.tobytes()).hexdigest()

    @property
    def blocks(self) -> NDArray[np.int64]:
        """One: they are in memory."""
        return np.array([len(self)], dtype=np.int64)

    @property
    def traffic(self) -> Traffic:
        """None: nothing is fetched."""
        return Traffic()

    def get(self, indices: NDArray[np.int64]) -> list[Tensor]:
        """The images, uint8 [3, H, W] each, in the order asked. Raises IndexError where an index is out of range."""
        self._check(indices)
        return [torch.from_numpy(np.repeat(self._pixels[None, index], 3, axis=0)) for index in indices]

    def labels(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Class of each image, [n]. Raises IndexError where an index is out of range."""
        self._check(indices)
        return self._labels[indices]

    def duplicates(self) -> NDArray[np.int64]:
        """The group of images with the very same pixels that each is of, [N]; -1 where it is alone."""
        return groups_of(self._pixels.reshape(len(self), -1).view(f"V{self._pixels[0].nbytes}").squeeze(1))

    def names(self, indices: NDArray[np.int64]) -> list[str | None]:
        """None of each: they came from no files."""
        self._check(indices)
        return [None] * len(indices)

    def _check(self, indices: NDArray[np.int64]) -> None:
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"indices {indices.min()}..{indices.max()} are outside 0..{len(self) - 1}")
