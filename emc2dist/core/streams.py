"""Random streams that belong to a sample, not to a rank.

Every random number of a run is a pure function of (seed, purpose, step, sample, view, counter). So W workers draw
what one worker draws, ranks can never share a stream by accident, and a resumed run needs no generator state: the
step number is the state. The mixer is SplitMix64 (Steele, Lea & Flood, OOPSLA 2014), in wrapping int64 arithmetic,
the same on CPU and GPU.
"""

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15

ORDER, ACCEPT, DRAW = range(3)  # lanes of a chain's stream that `emc2dist.core.sweep` takes


def fork(stream: int | Tensor, *labels: int | Tensor) -> Tensor:
    """Child streams of `stream`, one for each label (int or int64 tensors, broadcast); int64, in [0, 2^63).

    Different labels, or the same labels in another order, give unrelated streams.
    """
    state = stream if isinstance(stream, int) else stream.long()
    for label in labels:
        if isinstance(label, int):  # as a number: a tensor of it would be a copy to the GPU, which waits
            if isinstance(state, int):  # and without torch, whose calls would take longer than all that they compute
                state = _mix_number(_mix_number(state) + fork_label(label))
            else:
                state = _mix(_mix(state) + _signed(fork_label(label)))
        elif isinstance(state, int):
            state = _mix(label.long() * _signed(_GOLDEN) + _signed((_mix_number(state) + 1) & _MASK))
        else:
            # A number on the CPU goes along as it is: moved to the GPU, it would be waited for.
            state = state if state.ndim == 0 and state.device.type == "cpu" else state.to(label.device)
            state = _mix(_mix(state) + label.long() * _signed(_GOLDEN) + 1)
    return torch.as_tensor(_signed(state & _MASK) if isinstance(state, int) else state) & ((1 << 63) - 1)


def fork_label(label: int) -> int:
    """What `fork` adds for a label that is a number: unsigned, 64 bits."""
    return (label * _GOLDEN + 1) & _MASK


def uniforms(streams: Tensor, count: int, *, lane: int = 0) -> Tensor:
    """`count` float64 uniforms in (0, 1) of each stream; shape [*streams.shape, count].

    Lanes of one stream are unrelated sequences.
    """
    counters = torch.arange(count, device=streams.device) + 1
    bits = _mix(fork(streams, lane).unsqueeze(-1) + counters * _signed(_GOLDEN))
    return (_shift(bits, 11).to(torch.float64) + 0.5) * 2.0**-53


def gumbels(streams: Tensor, count: int, *, lane: int = 0) -> Tensor:
    """`count` Gumbel variates of each stream, float64. Added to scores, the largest is a draw of their softmax."""
    return -(-uniforms(streams, count, lane=lane).log()).log()


def seed_of(stream: int, *labels: int) -> int:
    """One child stream as a plain int, for generators of other libraries."""
    return int(fork(stream, *labels).item())


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _mix_number(x: int) -> int:
    """`_mix` of a number, unsigned."""
    x &= _MASK
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & _MASK
    return x ^ x >> 31


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of an int64 tensor."""
    return (x >> bits) & (_MASK >> bits)


def _signed(x: int) -> int:
    """The int64 with the same bits as an unsigned 64-bit number."""
    return x - (1 << 64) if x >= 1 << 63 else x
