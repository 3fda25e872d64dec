"""Omniglot, small: 32,459 real drawings of 1,623 characters from 50 alphabets, 28 x 28 grey pixels, in the package.

Every character was drawn by 20 people. Those numbered 1 to 15 are the training split, 24,345 drawings; 16 to 20 are the
test split, 8,114: hands that nobody has seen, of characters that 15 others drew. Rows are shuffled, so the first few
are of all alphabets.

Lake, Salakhutdinov & Tenenbaum 2015, "Human-level concept learning through probabilistic program induction"; MIT
licence, in the file LICENSE beside the drawings. `emc2dist.data.omniglot.pack` made `drawings.npz` of the originals:

    {train,test}_pixels  uint8 [n, 28, 28], 0..15: the share of a pixel that is ink, 15 where all of it is
    {train,test}_labels  int16 [n]: a number of `classes`
    classes              str [1623], as in Greek/01
"""

from collections.abc import Sequence
from importlib import resources

import numpy as np

from emc2dist.data.grey import GreyImages

DRAWINGS = "drawings.npz"
"""Name of the file beside this module."""

LEVELS = 15
"""The value of a pixel in the file that is all ink."""


SMALL = ("Balinese", "Early_Aramaic", "Greek", "Korean", "Latin")
"""The alphabets that the authors pass on by themselves, as `images_background_small1`."""


class OmniglotImages(GreyImages):
    """One split of Omniglot, its first `limit` drawings. Images are uint8 [3, 28, 28], ink is 255 and paper 0.

    With `alphabets`, only of theirs; with `others`, only of all others.
    """

    splits: tuple[str, ...] = ("train", "test")

    def __init__(
        self, split: str, *, limit: int | None = None, alphabets: Sequence[str] | None = None, others: bool = False
    ) -> None:
        with resources.files(__name__).joinpath(DRAWINGS).open("rb") as file, np.load(file) as arrays:
            pixels, labels, classes = arrays[f"{split}_pixels"], arrays[f"{split}_labels"], arrays["classes"]
        if alphabets is not None:
            kept = np.isin([name.partition("/")[0] for name in classes], alphabets, invert=others)
            number = kept.cumsum() - 1  # of a class among those that are kept
            chosen = kept[labels]
            pixels, labels, classes = pixels[chosen], number[labels[chosen]], classes[kept]
        pixels = pixels[:limit] * np.uint8(255 // LEVELS)
        super().__init__(pixels, labels[:limit].astype(np.int64), classes.tolist())


class SmallOmniglotImages(OmniglotImages):
    """One split of the 136 characters of the alphabets `SMALL`: 2,040 drawings to train on, 680 to test.

    `unseen` and `unseen_test` are of the 1,487 other characters, by drawers 1 to 15 and 16 to 20: 22,305 and 7,434.
    """

    splits = ("train", "test", "unseen", "unseen_test")

    def __init__(self, split: str, *, limit: int | None = None) -> None:
        drawers = {"unseen": "train", "unseen_test": "test"}
        super().__init__(drawers.get(split, split), limit=limit, alphabets=SMALL, others=split in drawers)
