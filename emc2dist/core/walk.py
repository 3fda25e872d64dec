"""The walk of a Metropolis-Hastings chain through its proposals: the definition, and the CPU's hot path.

`metropolis_row` is the readable walk of one chain. numba compiles it for all chains of a visit; importing this module
does, or loads what was compiled before (`emc2dist.core.compiled`).
"""

from typing import Any

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from emc2dist.core.compiled import OPTIONS, ahead_of_time


def metropolis_row(
    scores: NDArray[Any], carried: float, log_u: NDArray[Any], burn_in_fraction: float, weights: NDArray[Any]
) -> tuple[int, int, int]:
    """Walk one chain through `scores` [P] in order; fills `weights` [P+1]; returns (state, accepted, valid).

    This is the definition: every other implementation must agree with it.
    """
    valid = 0
    for score in scores:
        valid += score != -np.inf
    burn_in = min(int(burn_in_fraction * valid), valid - 1)
    state, current = len(scores), carried
    accepted = step = kept = 0
    for column, score in enumerate(scores):
        if score == -np.inf:
            continue
        # log u < s(c) - s(e). An unvisited chain has current = -inf and takes its first proposal; NaN is a rejection.
        if score - log_u[column] > current:
            state, current = column, score
            accepted += 1
        if step >= burn_in and current != -np.inf:
            weights[state] += 1
            kept += 1
        step += 1
    if kept > 0:
        for column in range(len(weights)):
            weights[column] /= kept
    elif carried != -np.inf:
        weights[-1] = 1
    return state, accepted, valid


def _signature(real: Any) -> Any:
    matrix, ends = real[:, ::1], types.int64[:, ::1]
    return types.void(matrix, real[::1], matrix, types.float64, matrix, ends)


_row = njit(**OPTIONS)(metropolis_row)


@ahead_of_time(_signature(types.float32), _signature(types.float64))
def metropolis_rows(scores: Any, carried: Any, log_u: Any, burn_in_fraction: float, weights: Any, ends: Any) -> None:
    """Walk A chains through `scores` [A, P]; fills `weights` [A, P+1], which are 0, and int64 `ends` [3, A]."""
    for a in range(len(scores)):
        ends[0, a], ends[1, a], ends[2, a] = _row(scores[a], carried[a], log_u[a], burn_in_fraction, weights[a])
