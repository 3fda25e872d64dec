"""Group norm of bf16 and float16 by kernels of a GPU: a program takes one group of one image, or a few of them.

What goes in and comes out keeps its type and layout; sums, mean and deviation are float32. A program holds one tile
[CHANNELS, PIXELS] at a time. Channels before pixels, a group lies in one piece. Channels last, a pixel's channels do,
and a program takes as many groups as fill the 32 bytes that memory is read by. Forward reads numbers twice, the second
time from the cache, and writes them once; backward reads them and their gradients twice, and writes once. No atomics:
what the parameters get of each image is summed over images afterwards.

Needs what `emc2dist/core/walk_triton.py` needs.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from typing_extensions import override

_TILE = 2048  # numbers that a program holds of each tensor
_TOGETHER = 16  # channels of a pixel that a program reads at least, channels last


class GroupNormFunction(torch.autograd.Function):
    """Normalise [n, C, ...] of a short type by `groups` groups, with float32 weight and bias [C]."""

    @staticmethod
    @override
    def forward(ctx: Any, given: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        """The normalised tensor, in the type of `given`."""
        last = _takes_channels_last(given, groups)
        given = _laid_out(given, last)
        made = torch.empty_like(given)
        mean, scale = (torch.empty(len(given) * groups, device=given.device) for _ in range(2))
        kernel, arranged = (_forward_last, _last) if last else (_forward, _first)
        programs, shape = arranged(given, groups)
        kernel[(programs,)](given, weight, bias, made, mean, scale, eps, **shape)
        ctx.save_for_backward(given, weight, mean, scale)
        ctx.groups, ctx.last = groups, last
        return made

    @staticmethod
    @override
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Gradients of the tensor, its type kept, and of weight and bias."""
        given, weight, mean, scale = ctx.saved_tensors
        (pull,) = gradients
        pull, made = _laid_out(pull, ctx.last), torch.empty_like(given)
        of_weight, of_bias = (torch.empty(given.shape[:2], device=given.device) for _ in range(2))
        parts = (given, pull, weight, mean, scale, made, of_weight, of_bias)
        kernel, arranged = (_backward_last, _last) if ctx.last else (_backward, _first)
        programs, shape = arranged(given, ctx.groups)
        kernel[(programs,)](*parts, **shape)
        return made, of_weight.sum(0).to(weight.dtype), of_bias.sum(0).to(weight.dtype), None, None


def _takes_channels_last(given: Tensor, groups: int) -> bool:
    """Whether it lies so, and whole groups fill what a program reads of a pixel."""
    group = given.shape[1] // groups
    lies = given.dim() == 4 and not given.is_contiguous() and given.is_contiguous(memory_format=torch.channels_last)
    return lies and group == triton.next_power_of_2(group) and given.shape[1] % max(group, _TOGETHER) == 0


def _laid_out(given: Tensor, last: bool) -> Tensor:
    return given.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _first(given: Tensor, groups: int) -> tuple[int, dict[str, int]]:
    """Programs, and what they are compiled for, channels before pixels."""
    group, size = given.shape[1] // groups, given[0, 0].numel()
    pixels = min(_TILE, triton.next_power_of_2(size))
    channels = min(triton.next_power_of_2(group), _TILE // pixels)
    shape = {"GROUPS": groups, "GROUP": group, "SIZE": size, "CHANNELS": channels, "PIXELS": pixels, "num_warps": 8}
    return len(given) * groups, shape


def _last(given: Tensor, groups: int) -> tuple[int, dict[str, int]]:
    """Programs, and what they are compiled for, channels last."""
    group, size = given.shape[1] // groups, given[0, 0].numel()
    channels = max(group, _TOGETHER)
    pixels = min(max(1, _TILE // channels), triton.next_power_of_2(size))
    shape = {"ALL": given.shape[1], "GROUP": group, "SIZE": size, "CHANNELS": channels, "PIXELS": pixels}
    return len(given) * given.shape[1] // channels, shape | {"num_warps": 8}


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


@triton.jit(do_not_specialize=["eps"])
def _forward_last(
    given: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    made: tl.tensor,
    means: tl.tensor,
    scales: tl.tensor,
    eps: tl.tensor,
    ALL: tl.constexpr,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
) -> None:
    program = tl.program_id(0).to(tl.int64)
    first = program % (ALL // CHANNELS) * CHANNELS
    start = program // (ALL // CHANNELS) * ALL * SIZE + first
    given += start
    made += start
    channel = tl.arange(0, CHANNELS)
    near = tl.load(given + channel // GROUP * GROUP).to(tl.float32)  # to the mean of the channel's group
    total = tl.zeros([CHANNELS, PIXELS], tl.float32)
    squares = tl.zeros([CHANNELS, PIXELS], tl.float32)
    for p in range(0, SIZE, PIXELS):
        at, here = _tile_last(p, ALL, SIZE, CHANNELS, PIXELS)
        x = tl.where(here, tl.load(given + at, mask=here, other=0.0).to(tl.float32) - near[:, None], 0.0)
        total += x
        squares += x * x
    off = _group_sums(tl.sum(total, 1), GROUP, CHANNELS) / (GROUP * SIZE)
    variance = _group_sums(tl.sum(squares, 1), GROUP, CHANNELS) / (GROUP * SIZE) - off * off
    mean = near + off
    scale = 1 / tl.sqrt(tl.maximum(variance, 0.0) + eps)
    factor = tl.load(weight + first + channel).to(tl.float32) * scale
    term = tl.load(bias + first + channel).to(tl.float32)
    for p in range(0, SIZE, PIXELS):
        at, here = _tile_last(p, ALL, SIZE, CHANNELS, PIXELS)
        x = tl.load(given + at, mask=here, other=0.0).to(tl.float32)
        y = (x - mean[:, None]) * factor[:, None] + term[:, None]
        tl.store(made + at, y.to(made.dtype.element_ty), mask=here)
    group = program * (CHANNELS // GROUP) + channel // GROUP
    tl.store(means + group, mean, mask=channel % GROUP == 0)
    tl.store(scales + group, scale, mask=channel % GROUP == 0)


@triton.jit
def _backward_last(
    given: tl.tensor,
    pull: tl.tensor,
    weight: tl.tensor,
    means: tl.tensor,
    scales: tl.tensor,
    made: tl.tensor,
    of_weight: tl.tensor,
    of_bias: tl.tensor,
    ALL: tl.constexpr,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
) -> None:
    program = tl.program_id(0).to(tl.int64)
    first = program % (ALL // CHANNELS) * CHANNELS
    start = program // (ALL // CHANNELS) * ALL * SIZE + first
    given += start
    pull += start
    made += start
    channel = tl.arange(0, CHANNELS)
    group = program * (CHANNELS // GROUP) + channel // GROUP
    mean, scale = tl.load(means + group), tl.load(scales + group)
    by_bias = tl.zeros([CHANNELS, PIXELS], tl.float32)
    by_weight = tl.zeros([CHANNELS, PIXELS], tl.float32)
    for p in range(0, SIZE, PIXELS):
        at, here = _tile_last(p, ALL, SIZE, CHANNELS, PIXELS)
        x = (tl.load(given + at, mask=here, other=0.0).to(tl.float32) - mean[:, None]) * scale[:, None]
        g = tl.load(pull + at, mask=here, other=0.0).to(tl.float32)
        by_bias += g
        by_weight += g * x
    bias_sum, weight_sum = tl.sum(by_bias, 1), tl.sum(by_weight, 1)
    tl.store(of_bias + program * CHANNELS + channel, bias_sum)
    tl.store(of_weight + program * CHANNELS + channel, weight_sum)
    factor = tl.load(weight + first + channel).to(tl.float32)
    plain = _group_sums(factor * bias_sum, GROUP, CHANNELS) / (GROUP * SIZE)
    slanted = _group_sums(factor * weight_sum, GROUP, CHANNELS) / (GROUP * SIZE)
    for p in range(0, SIZE, PIXELS):
        at, here = _tile_last(p, ALL, SIZE, CHANNELS, PIXELS)
        x = (tl.load(given + at, mask=here, other=0.0).to(tl.float32) - mean[:, None]) * scale[:, None]
        g = tl.load(pull + at, mask=here, other=0.0).to(tl.float32)
        dx = (g * factor[:, None] - plain[:, None] - x * slanted[:, None]) * scale[:, None]
        tl.store(made + at, dx.to(made.dtype.element_ty), mask=here)


@triton.jit
def _tile_last(
    p: tl.tensor, ALL: tl.constexpr, SIZE: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr
) -> tl.tensor:
    """Where the tile's numbers lie from the program's first one, and which of them are there."""
    pixel = (p + tl.arange(0, PIXELS))[None, :]
    channel = tl.arange(0, CHANNELS)[:, None]
    return pixel * ALL + channel, (pixel < SIZE) & (channel < CHANNELS)


@triton.jit
def _group_sums(of_channels: tl.tensor, GROUP: tl.constexpr, CHANNELS: tl.constexpr) -> tl.tensor:
    """Of each channel [CHANNELS], the sum over its group."""
    groups = tl.reshape(of_channels, [CHANNELS // GROUP, GROUP])
    sums = tl.broadcast_to(tl.sum(groups, 1)[:, None], [CHANNELS // GROUP, GROUP])
    return tl.reshape(sums, [CHANNELS])
