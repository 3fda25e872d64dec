"""scikit-learn's handwritten digits: 1,797 real 8x8 grey images in ten classes, on disk wherever scikit-learn is.

Every fifth image (0, 5, 10, ...) is the test split, 360 images; the other 1,437 are the training split.
"""

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emc2dist.data.encoded import Traffic


class DigitsImages:
    """One split of the digits; implements `emc2dist.data.images.Images`. Images are uint8 [3, 8, 8], grey."""

    splits = ("train", "test")
    remarks: tuple[str, ...] = ()

    def __init__(self, split: str, *, limit: int | None = None) -> None:
        from sklearn.datasets import load_digits  # here, for it takes a second that loader processes need not spend

        digits = load_digits()
        test = np.arange(len(digits.target)) % 5 == 0
        chosen = np.flatnonzero(test if split == "test" else ~test)[:limit]
        self.classes = [str(name) for name in digits.target_names]
        self._pixels = np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8)  # [n, 8, 8], from 0..16
        self._labels = digits.target[chosen].astype(np.int64)

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
        """The images, uint8 [3, 8, 8] each, in the order asked."""
        self._check(indices)
        return [torch.from_numpy(np.repeat(self._pixels[None, index], 3, axis=0)) for index in indices]

    def labels(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The digit on each image, [n], 0..9."""
        self._check(indices)
        return self._labels[indices]

    def _check(self, indices: NDArray[np.int64]) -> None:
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"indices {indices.min()}..{indices.max()} are outside 0..{len(self) - 1}")
