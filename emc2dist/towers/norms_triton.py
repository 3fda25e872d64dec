"""Group norm of bf16 and float16 by kernels of a GPU: a program takes one group of one image.

What goes in and comes out keeps its type; sums, mean and deviation are float32. A group lies in one piece (channels
before pixels), in tiles [CHANNELS, PIXELS] of which a program holds one at a time. Forward reads it twice, the second
time from the cache, and writes it once; backward reads it and its gradient twice, and writes once. No atomics: what the
parameters get of each image is summed over images afterwards.

Needs what `emc2dist/core/walk_triton.py` needs.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from typing_extensions import override

_TILE = 2048  # numbers that a program holds of each tensor


class GroupNormFunction(torch.autograd.Function):
    """Normalise [n, C, ...] of a short type by `groups` groups, with float32 weight and bias [C]."""

    @staticmethod
    @override
    def forward(ctx: Any, given: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        """The normalised tensor, in the type of `given`."""
        given = given.contiguous()
        made = torch.empty_like(given)
        mean, scale = (torch.empty(len(given) * groups, device=given.device) for _ in range(2))
        _forward[(len(mean),)](given, weight, bias, made, mean, scale, eps, **_shape(given, groups))
        ctx.save_for_backward(given, weight, mean, scale)
        ctx.groups = groups
        return made

    @staticmethod
    @override
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Gradients of the tensor, its type kept, and of weight and bias."""
        given, weight, mean, scale = ctx.saved_tensors
        (pull,) = gradients
        pull, made = pull.contiguous(), torch.empty_like(given)
        of_weight, of_bias = (torch.empty(given.shape[:2], device=given.device) for _ in range(2))
        parts = (given, pull, weight, mean, scale, made, of_weight, of_bias)
        _backward[(len(mean),)](*parts, **_shape(given, ctx.groups))
        return made, of_weight.sum(0).to(weight.dtype), of_bias.sum(0).to(weight.dtype), None, None


def _shape(given: Tensor, groups: int) -> dict[str, int]:
    group, size = given.shape[1] // groups, given[0, 0].numel()
    pixels = min(_TILE, triton.next_power_of_2(size))
    channels = min(triton.next_power_of_2(group), _TILE // pixels)
    return {"GROUPS": groups, "GROUP": group, "SIZE": size, "CHANNELS": channels, "PIXELS": pixels, "num_warps": 8}


@triton.jit(do_not_specialize=["eps"])
def _forward(
    given: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    made: tl.tensor,
    means: tl.tensor,
    scales: tl.tensor,
    eps: tl.tensor,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
) -> None:
    program = tl.program_id(0).to(tl.int64)
    given += program * GROUP * SIZE
    made += program * GROUP * SIZE
    near = tl.load(given).to(tl.float32)  # to the mean, so that squares of what is left lose no digits
    total = tl.zeros([CHANNELS, PIXELS], tl.float32)
    squares = tl.zeros([CHANNELS, PIXELS], tl.float32)
    for c in range(0, GROUP, CHANNELS):
        for p in range(0, SIZE, PIXELS):
            at, here = _tile(c, p, GROUP, SIZE, CHANNELS, PIXELS)
            x = tl.where(here, tl.load(given + at, mask=here, other=0.0).to(tl.float32) - near, 0.0)
            total += x
            squares += x * x
    off = tl.sum(total) / (GROUP * SIZE)
    variance = tl.sum(squares) / (GROUP * SIZE) - off * off
    mean = near + off
    scale = 1 / tl.sqrt(tl.maximum(variance, 0.0) + eps)
    for c in range(0, GROUP, CHANNELS):
        factor = _of_channels(weight, program % GROUPS * GROUP, c, GROUP, CHANNELS) * scale
        term = _of_channels(bias, program % GROUPS * GROUP, c, GROUP, CHANNELS)
        for p in range(0, SIZE, PIXELS):
            at, here = _tile(c, p, GROUP, SIZE, CHANNELS, PIXELS)
            x = tl.load(given + at, mask=here, other=0.0).to(tl.float32)
            y = (x - mean) * factor[:, None] + term[:, None]
            tl.store(made + at, y.to(made.dtype.element_ty), mask=here)
    tl.store(means + program, mean)
    tl.store(scales + program, scale)


@triton.jit
def _backward(
    given: tl.tensor,
    pull: tl.tensor,
    weight: tl.tensor,
    means: tl.tensor,
    scales: tl.tensor,
    made: tl.tensor,
    of_weight: tl.tensor,
    of_bias: tl.tensor,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
) -> None:
    program = tl.program_id(0).to(tl.int64)
    given += program * GROUP * SIZE
    pull += program * GROUP * SIZE
    made += program * GROUP * SIZE
    of_weight += program * GROUP
    of_bias += program * GROUP
    mean, scale = tl.load(means + program), tl.load(scales + program)
    plain, slanted = 0.0, 0.0  # sums of weight * gradient, and of that times what came out
    for c in range(0, GROUP, CHANNELS):
        by_bias = tl.zeros([CHANNELS, PIXELS], tl.float32)
        by_weight = tl.zeros([CHANNELS, PIXELS], tl.float32)
        for p in range(0, SIZE, PIXELS):
            at, here = _tile(c, p, GROUP, SIZE, CHANNELS, PIXELS)
            x = (tl.load(given + at, mask=here, other=0.0).to(tl.float32) - mean) * scale
            g = tl.load(pull + at, mask=here, other=0.0).to(tl.float32)
            by_bias += g
            by_weight += g * x
        channel = c + tl.arange(0, CHANNELS)
        bias_sum, weight_sum = tl.sum(by_bias, 1), tl.sum(by_weight, 1)
        tl.store(of_bias + channel, bias_sum, mask=channel < GROUP)
        tl.store(of_weight + channel, weight_sum, mask=channel < GROUP)
        factor = _of_channels(weight, program % GROUPS * GROUP, c, GROUP, CHANNELS)
        plain += tl.sum(factor * bias_sum)
        slanted += tl.sum(factor * weight_sum)
    plain = plain / (GROUP * SIZE)
    slanted = slanted / (GROUP * SIZE)
    for c in range(0, GROUP, CHANNELS):
        factor = _of_channels(weight, program % GROUPS * GROUP, c, GROUP, CHANNELS)
        for p in range(0, SIZE, PIXELS):
            at, here = _tile(c, p, GROUP, SIZE, CHANNELS, PIXELS)
            x = (tl.load(given + at, mask=here, other=0.0).to(tl.float32) - mean) * scale
            g = tl.load(pull + at, mask=here, other=0.0).to(tl.float32)
            dx = (g * factor[:, None] - plain - x * slanted) * scale
            tl.store(made + at, dx.to(made.dtype.element_ty), mask=here)


@triton.jit
def _tile(
    c: tl.tensor,
    p: tl.tensor,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
) -> tl.tensor:
    """Where the tile's numbers lie in the group, and which of them are there."""
    channel = (c + tl.arange(0, CHANNELS))[:, None]
    pixel = (p + tl.arange(0, PIXELS))[None, :]
    return channel * SIZE + pixel, (channel < GROUP) & (pixel < SIZE)


@triton.jit
def _of_channels(
    parameter: tl.tensor, first: tl.tensor, c: tl.tensor, GROUP: tl.constexpr, CHANNELS: tl.constexpr
) -> tl.tensor:
    channel = c + tl.arange(0, CHANNELS)
    return tl.load(parameter + first + channel, mask=channel < GROUP, other=0.0).to(tl.float32)
