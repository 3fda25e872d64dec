"""The `mh` visit as one kernel of a GPU, its random numbers included: a program takes one chain.

It sorts the proposals by their random numbers, then goes through them in chunks that lie in registers, from acceptance
to acceptance: the next one is the first column t with score[t] - log u[t] > current, a minimum over the chunk. So
(acceptances + chunks) x chunk compares, and each score is read twice. What it gives is what `emc2dist.core.walk` gives
with `emc2dist.core.streams`; the order may differ where two of a row's uniforms agree in 52 bits, one row in 10^9 at
P = 4,096, and log u in its last bit, as it may between any two devices.

Needs Triton, which comes with torch's wheels for CUDA, and the C compiler that Triton builds its launchers with.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from emc2dist.core.streams import ACCEPT, ORDER, fork_label
from emc2dist.core.streams_triton import bits, fork, uniform

MOST = 4096
"""Proposals that one program can sort: their numbers have 12 bits, and lie in registers."""

_NUMBER = tl.constexpr(MOST - 1)
_SIGN = tl.constexpr(1 << 63)
_LAST = tl.constexpr((1 << 63) - 1)
_ORDER, _ACCEPT = tl.constexpr(fork_label(ORDER)), tl.constexpr(fork_label(ACCEPT))


def visit(
    scores: Tensor, carried: Tensor, streams: Tensor, burn_in_fraction: float, shuffle: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights [A, P+1], state, acceptance rate and valid proposals [A], as in `emc2dist.core.sweep.Sweep`.

    Of `scores` [A, P], `carried` [A] of the same type, and int64 `streams` [A]; P is at most `MOST`.
    """
    chains, columns = scores.shape
    weights = scores.new_empty(chains, columns + 1)
    order = torch.empty(scores.shape, dtype=torch.int16, device=scores.device)  # scratch
    state, valid = (torch.empty(chains, dtype=torch.int64, device=scores.device) for _ in range(2))
    rate = scores.new_empty(chains)
    row = max(16, triton.next_power_of_2(columns))
    warps = max(1, row // 1024)
    given = scores.contiguous(), carried.contiguous(), streams.contiguous()
    if chains:
        _visit[(chains,)](
            *given, order, weights, state, rate, valid, columns,
            FRACTION=float(burn_in_fraction), SHUFFLE=shuffle, ROW=row, CHUNK=min(row, 128 * warps), num_warps=warps,
        )  # fmt: skip
    return weights, state, rate, valid


@triton.jit(do_not_specialize=["columns"])
def _visit(
    scores: tl.tensor,
    carried: tl.tensor,
    streams: tl.tensor,
    order: tl.tensor,
    weights: tl.tensor,
    state: tl.tensor,
    rate: tl.tensor,
    valids: tl.tensor,
    columns: tl.tensor,
    FRACTION: tl.constexpr,
    SHUFFLE: tl.constexpr,
    ROW: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    chain = tl.program_id(0).to(tl.int64)
    scores += chain * columns
    order += chain * columns
    weights += chain * (columns + 1)
    lane = tl.arange(0, CHUNK)
    none = float("-inf")
    stream = tl.load(streams + chain).to(tl.uint64, bitcast=True)
    if SHUFFLE:
        _shuffle(stream, order, columns, ROW)
    valid = tl.full((), 0, tl.int32)
    for start in range(0, ROW, CHUNK):
        at = start + lane
        s = tl.load(scores + at, mask=at < columns, other=none)
        valid += tl.sum((s != none).to(tl.int32))
        tl.store(weights + at, tl.zeros_like(s), mask=at < columns)
    tl.store(weights + columns, 0.0)
    tl.debug_barrier()  # what one thread wrote, order and zeros, another one reads or writes over

    burn_in = tl.minimum((tl.full((), FRACTION, tl.float64) * valid.to(tl.float64)).to(tl.int32), valid - 1)
    first = tl.load(carried + chain)
    first = tl.where(first == first, first, none)
    current = first
    node = columns + tl.full((), 0, tl.int32)  # where the chain is: a column, or `columns`, the carried state
    entered = tl.full((), 0, tl.int32)  # the step that led there
    accepted, seen, kept = entered, entered, entered
    for start in range(0, ROW, CHUNK):
        here = start + lane < columns
        at = tl.load(order + start + lane, mask=here, other=0).to(tl.int32) if SHUFFLE else start + lane
        s = tl.load(scores + at, mask=here, other=none)
        is_step = s != none
        step = seen + tl.cumsum(is_step.to(tl.int32), 0) - 1
        log_u = _log_u(stream, start + lane, s)
        threshold = tl.where(is_step & (s == s), s - log_u, none)
        t = tl.min(tl.where(threshold > current, lane, CHUNK))
        while t < CHUNK:
            hit = lane == t
            now = tl.sum(tl.where(hit, step, 0))
            stay = tl.where(current == none, 0, tl.maximum(now - tl.maximum(entered, burn_in), 0))
            tl.store(weights + node, stay.to(s.dtype))
            kept += stay
            node = tl.sum(tl.where(hit, at, 0))
            current = tl.sum(tl.where(hit, s, 0.0))
            entered = now
            accepted += 1
            t = tl.min(tl.where((threshold > current) & (lane > t), lane, CHUNK))
        seen += tl.sum(is_step.to(tl.int32))
    stay = tl.where(current == none, 0, tl.maximum(valid - tl.maximum(entered, burn_in), 0))
    stays = (valid == 0) & (first != none)  # without a step, the weight is on the carried state
    stay = tl.where(stays, 1, stay)
    tl.store(weights + node, stay.to(first.dtype))
    tl.debug_barrier()

    kept = tl.maximum(kept + stay, 1).to(first.dtype)
    for start in range(0, ROW, CHUNK):
        at = start + lane
        count = tl.load(weights + at, mask=at < columns, other=0.0)
        tl.store(weights + at, _divided(count, kept), mask=at < columns)
    tl.store(weights + columns, _divided(tl.load(weights + columns), kept))
    tl.store(state + chain, node.to(tl.int64))
    tl.store(valids + chain, valid.to(tl.int64))
    share = _divided(accepted.to(tl.float32), tl.maximum(valid, 1).to(tl.float32))
    tl.store(rate + chain, share.to(first.dtype))


@triton.jit
def _shuffle(stream: tl.tensor, order: tl.tensor, columns: tl.tensor, ROW: tl.constexpr) -> None:
    """Write the columns [ROW] in the order of their uniforms: each a key of 52 bits, its own number below them."""
    place = tl.arange(0, ROW)
    drawn = bits(fork(stream, _ORDER), place)
    key = ((drawn - (drawn & _NUMBER) + place.to(tl.uint64)) ^ _SIGN).to(tl.int64, bitcast=True)
    key = tl.sort(tl.where(place < columns, key, _LAST))
    tl.store(order + place, (key & _NUMBER).to(tl.int16), mask=place < columns)


@triton.jit
def _log_u(stream: tl.tensor, place: tl.tensor, like: tl.tensor) -> tl.tensor:
    """The logarithms of the chain's uniforms, taken in float64, in the type of `like`."""
    return tl.log(uniform(fork(stream, _ACCEPT), place)).to(like.dtype)


@triton.jit
def _divided(x: tl.tensor, y: tl.tensor) -> tl.tensor:
    """Rounded to the nearest: Triton's own division of float32 is not."""
    if x.dtype == tl.float32:
        return tl.div_rn(x, y)
    return x / y
