"""Random streams that belong to a sample, not to a rank.

Every random number of a run is a pure function of (seed, purpose, step, sample, view, counter). So W workers draw
what one worker draws, ranks can never share a stream by accident, and a resumed run needs no generator state: the
step number is the state. The mixer is SplitMix64 (Steele, Lea & Flood, OOPSLA 2014), in wrapping int64 arithmetic,
the same on CPU and GPU.
"""

import numpy as np
import torch
from torch import Tensor

from emc2dist.core import kernels

_MASK, _CHAIN = (1 << 64) - 1, (1 << 63) - 1
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_UFIRST, _USECOND, _U27, _U30, _U31 = (np.uint64(number) for number in (_FIRST, _SECOND, 27, 30, 31))

ORDER, ACCEPT, DRAW = range(3)  # lanes of a chain's stream that `emc2dist.core.sweep` takes


def fork(stream: int | Tensor, *labels: int | Tensor) -> Tensor:
    """Child streams of `stream`, one for each label (int or int64 tensors, broadcast); int64, in [0, 2^63).

    Different labels, or the same labels in another order, give unrelated streams.
    """
    state = stream
    for label in labels:
        state = _mix(_after(_mix(state), label))
    return torch.tensor(state & _CHAIN) if isinstance(state, int) else state & _CHAIN


def _after(state: int | Tensor, label: int | Tensor) -> int | Tensor:
    # A number stays one as long as it can: a tensor of it would be a copy to the GPU, which waits.
    if isinstance(label, int):
        return state + fork_label(label) if isinstance(state, int) else state + _signed(fork_label(label))
    return (_signed(state) if isinstance(state, int) else state) + label.long() * _signed(_GOLDEN) + 1


def fork_label(label: int) -> int:
    """What `fork` adds for a label that is a number: unsigned, 64 bits."""
    return (label * _GOLDEN + 1) & _MASK


def uniforms(streams: Tensor, count: int, *, lane: int = 0) -> Tensor:
    """`count` float64 uniforms in (0, 1) of each stream; shape [*streams.shape, count].

    Lanes of one stream are unrelated sequences.
    """
    if kernels.run_on(streams):
        from emc2dist.core import streams_triton  # here: it needs Triton

        return streams_triton.uniforms(streams, count, lane)
    counters = torch.arange(count, device=streams.device) + 1
    bits = _mix(fork(streams, lane).unsqueeze(-1) + counters * _signed(_GOLDEN))
    assert isinstance(bits, Tensor)
    return (_shift(bits, 11).to(torch.float64) + 0.5) * 2.0**-53


def gumbels(streams: Tensor, count: int, *, lane: int = 0) -> Tensor:
    """`count` Gumbel variates of each stream, float64. Added to scores, the largest is a draw of their softmax."""
    return -(-uniforms(streams, count, lane=lane).log()).log()


def seed_of(stream: int, *labels: int) -> int:
    """One child stream as a plain int, for generators of other libraries."""
    return int(fork(stream, *labels).item())


def _mix(x: int | Tensor) -> int | Tensor:
    """SplitMix64's mixer; of int64 tensors, whose bits are those of unsigned numbers."""
    if isinstance(x, int):
        x &= _MASK
        x = (x ^ (x >> 30)) * _FIRST & _MASK
        x = (x ^ (x >> 27)) * _SECOND & _MASK
        return x ^ (x >> 31)
    if x.device.type == "cpu" and x.ndim:  # numpy has unsigned numbers, and takes less time for a few of them
        bits = x.numpy().view(np.uint64)
        bits = (bits ^ (bits >> _U30)) * _UFIRST
        bits = (bits ^ (bits >> _U27)) * _USECOND
        return torch.from_numpy((bits ^ (bits >> _U31)).view(np.int64))
    x = (x ^ _shift(x, 30)) * _signed(_FIRST)
    x = (x ^ _shift(x, 27)) * _signed(_SECOND)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of an int64 tensor."""
    return (x >> bits) & (_MASK >> bits)


def _signed(x: int) -> int:
    """The int64 with the same bits as an unsigned 64-bit number."""
    return x - (1 << 64) if x >= 1 << 63 else x
