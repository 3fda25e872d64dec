"""scikit-learn's handwritten digits: 1,797 real 8x8 grey images in ten classes, on disk wherever scikit-learn is.

Every fifth image (0, 5, 10, ...) is the test split, 360 images; the other 1,437 are the training split.
"""

import numpy as np

from emc2dist.data.grey import GreyImages


class DigitsImages(GreyImages):
    """One split of the digits, its first `limit` images. Images are uint8 [3, 8, 8]; a label is the digit."""

    splits = ("train", "test")

    def __init__(self, split: str, *, limit: int | None = None) -> None:
        from sklearn.datasets import load_digits  # here, for it takes a second that loader processes need not spend

        digits = load_digits()
        test = np.arange(len(digits.target)) % 5 == 0
        chosen = np.flatnonzero(test if split == "test" else ~test)[:limit]
        pixels = np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8)  # [n, 8, 8], from 0..16
        super().__init__(pixels, digits.target[chosen].astype(np.int64), [str(name) for name in digits.target_names])
