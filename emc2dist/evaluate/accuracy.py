"""The share of right answers."""

import numpy as np
from numpy.typing import NDArray


def accuracy(found: NDArray[np.int64], asked: NDArray[np.int64]) -> float:
    """The share of labels `found` [m] that are `asked` [m]; m >= 1."""
    return float((found == asked).mean())


def per_class(found: NDArray[np.int64], asked: NDArray[np.int64]) -> float:
    """The mean over classes of the share of each that was found, so that rare ones count as much: balanced accuracy."""
    return float(np.mean([(found[asked == label] == label).mean() for label in np.unique(asked)]))
