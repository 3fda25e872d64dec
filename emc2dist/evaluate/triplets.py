"""Triplets: do features agree with answers to "which two of three are alike?"."""

import numpy as np
from numpy.typing import NDArray


def triplet_accuracy(vectors: NDArray[np.floating], queries: NDArray[np.int64]) -> float | None:
    """Share of queries whose first two vectors are nearer to each other than either is to the third; None without any.

    Args:
        vectors: [n, R], of unit length.
        queries: int64 [n], the query that each is of, its odd one last. Those that have not three are passed over.
    """
    right = []
    for query in np.unique(queries):
        rows = vectors[queries == query]
        if len(rows) == 3:
            alike, one, other = rows[0] @ rows[1], rows[0] @ rows[2], rows[1] @ rows[2]
            right.append(alike > max(one, other))
    return float(np.mean(right)) if right else None
