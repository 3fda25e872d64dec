"""A linear classifier on a frozen representation: by logistic regression, or quickly by ridge regression."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emc2dist.errors import DataError

_SHRINKAGE = 0.01  # of the variance of a standardised feature


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


def by_ridge(bank: Tensor, voters: NDArray[np.int64], queries: Tensor) -> NDArray[np.int64]:
    """Labels of `queries` [m, R] by ridge regression of one-hot labels on `bank` [n, R], `voters` [n].

    In closed form, on the device of the bank, so that it costs little beside encoding: W = (X'X + n I / 100)^-1 X'Y of
    standardised features X and centred labels Y. Of labels that score alike the least one wins.
    """
    classes, numbers = np.unique(voters, return_inverse=True)
    mean, deviation = bank.double().mean(0), bank.double().std(0, correction=0).clamp(min=1e-6)
    points = (bank.double() - mean) / deviation
    wanted = torch.nn.functional.one_hot(torch.from_numpy(numbers).to(bank.device), len(classes)).double()
    share = wanted.mean(0)
    gram = points.T @ points
    gram.diagonal().add_(_SHRINKAGE * len(points))
    weights = torch.linalg.solve(gram, points.T @ (wanted - share))
    scores = (queries.double() - mean) / deviation @ weights + share
    return classes[scores.argmax(1).cpu().numpy()]
