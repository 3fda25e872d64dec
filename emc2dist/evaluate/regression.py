"""Labels that are numbers, told by what lies near or by a line: how far off the answers are."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from emc2dist.evaluate.neighbours import nearest


def of_neighbours(bank: Tensor, numbers: NDArray[np.int64], queries: Tensor, *, neighbours: int) -> NDArray[np.float64]:
    """The mean of `numbers` [n] over the nearest rows of `bank` [n, R], for each of `queries` [m, R]; at most n."""
    return numbers[nearest(bank, queries, neighbours).cpu().numpy()].mean(1)


def of_line(bank: NDArray, numbers: NDArray[np.int64], queries: NDArray) -> NDArray[np.float64]:
    """Numbers of `queries` [m, R] by ridge regression on `bank` [n, R], `numbers` [n].

    Features are standardised; of penalties from 0.01 to 1e4 the one that leaves the least error on rows left out.
    """
    from sklearn.linear_model import RidgeCV  # here, for its import takes a second
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 4, 7)))
    return probe.fit(bank, numbers).predict(queries)


def absolute_error(found: NDArray[np.float64], asked: NDArray[np.int64]) -> float:
    """The mean distance of numbers `found` [m] from those that are `asked` [m]; m >= 1."""
    return float(np.abs(found - asked).mean())
