"""Random streams in kernels of a GPU: the mixer, a chain's lanes, and uniforms by one launch.

The bits of `emc2dist.core.streams`. Needs what `emc2dist/core/walk_triton.py` needs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from emc2dist.core.streams import fork_label

GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
_CHAIN = tl.constexpr((1 << 63) - 1)
_BLOCK = 512  # numbers of a program


def uniforms(streams: Tensor, count: int, lane: int) -> Tensor:
    """float64 [*streams.shape, count] of int64 streams, as `emc2dist.core.streams.uniforms` has them."""
    made = torch.empty(*streams.shape, count, dtype=torch.float64, device=streams.device)
    if made.numel():
        programs = triton.cdiv(made.numel(), _BLOCK)
        _uniforms[(programs,)](streams.contiguous(), made, made.numel(), count, LABEL=fork_label(lane), BLOCK=_BLOCK)
    return made


@triton.jit(do_not_specialize=["size", "count"])
def _uniforms(
    streams: tl.tensor,
    made: tl.tensor,
    size: tl.tensor,
    count: tl.tensor,
    LABEL: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    stream = tl.load(streams + at // count, mask=at < size, other=0).to(tl.uint64, bitcast=True)
    tl.store(made + at, uniform(fork(stream, LABEL), at % count), mask=at < size)


@triton.jit
def uniform(lane: tl.tensor, place: tl.tensor) -> tl.tensor:
    """The number of a lane at a place, from 0 on: float64 in (0, 1)."""
    return ((bits(lane, place) >> 11).to(tl.float64) + 0.5) * 1.1102230246251565e-16  # 2^-53


@triton.jit
def bits(lane: tl.tensor, place: tl.tensor) -> tl.tensor:
    """The 64 bits of which that number is made."""
    return mix(lane + (place + 1).to(tl.uint64) * GOLDEN)


@triton.jit
def fork(stream: tl.tensor, label: tl.constexpr) -> tl.tensor:
    """The child of a stream, uint64, by `fork_label`."""
    return mix(mix(stream) + label) & _CHAIN


@triton.jit
def mix(x: tl.tensor) -> tl.tensor:
    """SplitMix64's mixer, of uint64."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)
