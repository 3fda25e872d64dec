"""The vote of the nearest neighbours."""

from numpy.typing import NDArray


def accuracy(bank: NDArray, voters: NDArray, queries: NDArray, asked: NDArray, *, neighbours: int) -> float:
    """Share of `queries` [m, R] of labels `asked` [m] whose nearest rows of `bank` [n, R], by cosine, vote for that.

    `voters` [n] are the bank's labels; `neighbours` is at most n.
    """
    from sklearn.neighbors import KNeighborsClassifier  # here: it takes a second, and not all evaluate

    nearest = KNeighborsClassifier(neighbours, metric="cosine", algorithm="brute")
    return float(nearest.fit(bank, voters).score(queries, asked))
