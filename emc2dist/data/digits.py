"""scikit-learn's handwritten digits: 1,797 real 8x8 grey images in ten classes, on disk wherever scikit-learn is.

Every fifth image (0, 5, 10, ...) is the test split, 360 images; the other 1,437 are the training split.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from emc2dist.data.grey import GreyImages


class DigitsImages(GreyImages):
    """One split of the digits, its first `limit` images. Images are uint8 [3, 8, 8]; a label is the digit."""

    splits = ("train", "test")

    def __init__(self, split: str, *, limit: int | None = None) -> None:
        rows = np.loadtxt(_file(), np.uint8, delimiter=",")  # [1797, 65]: 64 pixels from 0 to 16, and the digit
        test = np.arange(len(rows)) % 5 == 0
        rows = rows[test if split == "test" else ~test][:limit]
        pixels = np.round(rows[:, :64].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        super().__init__(pixels, rows[:, 64].astype(np.int64), [str(digit) for digit in range(10)])


def _file() -> Path:
    """What scikit-learn's `load_digits` reads; to import that takes a second of every process."""
    package = find_spec("sklearn")
    assert package is not None, "it is a dependency"
    assert package.origin is not None, "it lies in a folder"
    return Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
