"""Images that stand several times in a set, told by digests of their bytes.

Copies of training images among those of another split make its accuracy too high, and copies under two classes make one
of these wrong. They are said and not removed: which one is right is not known here.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Rows(NamedTuple):
    """The images of a split, in order."""

    digests: NDArray[np.void]
    """Of each image's bytes, [n], 16 bytes each."""
    labels: NDArray[np.int64]
    """Class of each, [n], -1 where it has none."""

    @property
    def pairs(self) -> NDArray[np.void]:
        """Digest and class of each image that has one, [m], 24 bytes each."""
        known = self.labels >= 0
        both = (_bytes(self.digests[known]), _bytes(self.labels[known].astype("<i8")))
        return np.ascontiguousarray(np.hstack(both)).view("V24").ravel()


def on_copies(splits: Mapping[str, Rows], where: Callable[[str, int], str]) -> list[str]:
    """Remarks on copies of training images in other splits, and on copies in one split that are of several classes;
    `where` tells where an image was found, by its split and its number in it.
    """
    remarks = []
    train = splits.get("train")
    for name, rows in splits.items():
        if train is not None and name != "train":
            copied = np.isin(rows.digests, train.digests)
            pairs = rows.pairs
            known = np.isin(_digests(pairs), _digests(train.pairs))
            others = int((known & ~np.isin(pairs, train.pairs)).sum())
            also = f"; {others} of them under another class" if others else ""
            if copied.any():
                example = where(name, int(copied.argmax()))
                remarks.append(
                    f"{copied.sum()} of {len(copied)} images of {name} are in train too (as {example}){also}"
                )
        digests, classes = np.unique(_digests(np.unique(rows.pairs)), return_counts=True)
        torn = np.isin(rows.digests, digests[classes > 1]) & (rows.labels >= 0)
        if torn.any():
            example = where(name, int(torn.argmax()))
            remarks.append(f"{name}: {torn.sum()} of {len(torn)} images have copies under another class (as {example})")
    return remarks


def _bytes(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """The bytes of each value, [n, size]."""
    return np.ascontiguousarray(values).view(np.uint8).reshape(len(values), values.itemsize)


def _digests(pairs: NDArray[np.void]) -> NDArray[np.void]:
    return np.ascontiguousarray(_bytes(pairs)[:, :16]).view("V16").ravel()
