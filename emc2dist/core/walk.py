"""The walk of a Metropolis-Hastings chain through its proposals: the definition, and the CPU's hot path.

`metropolis_row` is the readable walk of one chain. `visit` does the same for all chains, their random numbers included
(those of `emc2dist.core.streams`), by code that numba compiles; importing this module does, or loads what was compiled
before (`emc2dist.core.compiled`). It goes from acceptance to acceptance, and most proposals are rejected
without a logarithm: eight bits of u bound log u well enough.
"""

import math
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


_GOLDEN, _FIRST, _SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_1, _11, _27, _30, _31, _56 = (np.uint64(number) for number in (1, 11, 27, 30, 31, 56))
# Most of -log u, by the first 8 bits of u, with room for its rounding; u is at least 2^-54.
_MOST = np.array([54 * math.log(2), *(-math.log(n / 256) for n in range(1, 256))]) * (1 + 1e-6) + 1e-6


def visit(
    scores: NDArray[Any],
    carried: NDArray[Any],
    order_streams: NDArray[np.uint64],
    accept_streams: NDArray[np.uint64],
    burn_in_fraction: float,
    shuffle: bool,
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Walk A chains through `scores` [A, P], each in an order of its own; -inf in `carried` [A] where not visited.

    The streams [A] are lanes of each chain's, of the order and of log u. Returns weights [A, P+1], and int64 [3, A]:
    the column on which the chain ends, acceptances, valid proposals.
    """
    chains, columns = scores.shape
    # A random number above, the column's own below; as on a GPU, where 12 bits are the column's.
    below = (1 << max(12, columns.bit_length())) - 1
    if shuffle:
        keys = np.empty((chains, columns), np.uint64)
        _fill_keys(order_streams, np.uint64(below), keys)
        keys.sort(axis=1)
    else:
        keys = np.tile(np.arange(columns, dtype=np.uint64), (chains, 1))
    weights = np.zeros((chains, columns + 1), scores.dtype)
    ends = np.zeros((3, chains), np.int64)
    _walk(scores, carried, accept_streams, keys, np.uint64(below), burn_in_fraction, weights, ends)
    return weights, ends


_matrix = types.uint64[:, ::1]


def _signature(real: Any) -> Any:
    scores, carried, streams = real[:, ::1], real[::1], types.uint64[::1]
    return types.void(scores, carried, streams, _matrix, types.uint64, types.float64, scores, types.int64[:, ::1])


@njit(**OPTIONS)
def _bits(stream: Any, place: Any) -> Any:
    """The stream's number at a place, 64 bits: SplitMix64, as in `emc2dist.core.streams`."""
    x = stream + (np.uint64(place) + _1) * _GOLDEN
    x = (x ^ (x >> _30)) * _FIRST
    x = (x ^ (x >> _27)) * _SECOND
    return x ^ (x >> _31)


@ahead_of_time(types.void(types.uint64[::1], types.uint64, _matrix))
def _fill_keys(streams: Any, below: Any, keys: Any) -> None:
    for a in range(keys.shape[0]):
        for column in range(keys.shape[1]):
            keys[a, column] = (_bits(streams[a], column) & ~below) | np.uint64(column)


@njit(**OPTIONS)
def _is_accepted(score: Any, current: Any, bits: Any, log_u: Any) -> bool:
    """Whether score - log u > current, in their type; `log_u` [1] is of it."""
    if score > current:  # for u < 1
        return True
    if not score + _MOST[bits >> _56] > current:
        return False
    log_u[0] = math.log((np.float64(bits >> _11) + 0.5) * 2.0**-53)
    return score - log_u[0] > current


@njit(**OPTIONS)
def _kept(entered: Any, left: Any, burn_in: Any, current: Any) -> int:
    """Steps from `entered` to before `left` that are not burnt in; none where the chain is nowhere yet."""
    return 0 if current == -np.inf else max(0, left - max(entered, burn_in))


@ahead_of_time(_signature(types.float32), _signature(types.float64))
def _walk(
    scores: Any, carried: Any, streams: Any, keys: Any, below: Any, burn_in_fraction: Any, weights: Any, ends: Any
) -> None:
    chains, columns = scores.shape
    log_u = np.empty_like(carried[:1])
    for a in range(chains):
        valid = 0
        for column in range(columns):
            valid += scores[a, column] != -np.inf
        burn_in = min(int(burn_in_fraction * valid), valid - 1)
        state, current = columns, carried[a]
        accepted = step = entered = kept = 0
        for place in range(columns):
            at = np.int64(keys[a, place] & below)
            score = scores[a, at]
            if score == -np.inf:
                continue
            if _is_accepted(score, current, _bits(streams[a], place), log_u):
                stay = _kept(entered, step, burn_in, current)
                weights[a, state] += stay
                kept += stay
                state, current, entered = at, score, step
                accepted += 1
            step += 1
        stay = _kept(entered, valid, burn_in, current)
        weights[a, state] += stay
        kept += stay
        if kept > 0:
            for column in range(columns + 1):
                weights[a, column] /= kept
        elif carried[a] != -np.inf:
            weights[a, columns] = 1
        ends[0, a], ends[1, a], ends[2, a] = state, accepted, valid
