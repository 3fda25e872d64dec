"""A linear classifier on a frozen representation."""

import numpy as np
from numpy.typing import NDArray

from emc2dist.errors import DataError


def predictions(bank: NDArray, voters: NDArray, queries: NDArray) -> NDArray[np.int64]:
    """Labels of `queries` [m, R] by multinomial logistic regression on `bank` [n, R], `voters` [n].

    Features are standardised; the fit is by L-BFGS.

    Raises:
        DataError: all of the bank are of one class.
    """
    from sklearn.linear_model import LogisticRegression  # here, for its import takes a second
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(np.unique(voters)) == 1:
        raise DataError(f"all {len(voters)} voters are of one class, which no probe can tell from another")
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return probe.fit(bank, voters).predict(queries)
