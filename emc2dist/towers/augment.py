"""The augmentations of one view, compiled by numba; without the interpreter's lock.

What each does to pixels is what `torchvision.transforms.v2.functional` does to a uint8 tensor, its rounding between one
transform and the next included. Nothing is reordered for speed (no fastmath), so the same input gives the same bits on
any machine but for what its sine, cosine and exponential do in their last place.

Importing this module compiles it, once: the code is kept beside it, or in the user's cache folder.
"""

import math
from typing import Any

import numpy as np
from numba import from_dtype, njit, types
from numpy.typing import NDArray

from emc2dist.core.compiled import OPTIONS, ahead_of_time
from emc2dist.towers.parameters import BRIGHTNESS, CONTRAST, PARAMETERS, SATURATION, THRESHOLD

Pixels = NDArray[np.uint8]
"""[3, S, S], in one piece."""

_ZERO, _HALF, _ONE, _WHITE = np.float32(0), np.float32(0.5), np.float32(1), np.float32(255)
_RED, _GREEN, _BLUE = np.float32(0.2989), np.float32(0.587), np.float32(0.114)
_LEAST_TAP = 2.0**-20  # of the blur: what is left out is less than a hundredth of a grey level

_compiled = njit(**OPTIONS)


@_compiled
def resize(image: Any, top: int, left: int, height: int, width: int, flip: bool, made: Pixels) -> None:
    """Crop uint8 [3, H, W] and resize it to fill `made`, bilinear with antialiasing; then flip it, or not.

    Takes memory as the view needs it and a row of the crop, however many rows there are.
    """
    size = made.shape[2]
    columns, across = _taps(width, size)
    rows, down = _taps(height, size)
    row = np.empty(size, np.float32)
    total = np.zeros((3, size, size), np.float32)
    first = 0
    for y in range(height):
        while rows[first, 1] <= y:
            first += 1
        for channel in range(3):
            for x in range(size):
                value, start = _HALF, columns[x, 0]
                for tap in range(columns[x, 1] - start):
                    value += across[x, tap] * np.float32(image[channel, top + y, left + start + tap])
                row[size - 1 - x if flip else x] = np.float32(np.uint8(value))
            for into in range(first, size):
                if rows[into, 0] > y:
                    break
                weight, line = down[into, y - rows[into, 0]], total[channel, into]
                for x in range(size):
                    line[x] += weight * row[x]
    flat, sums = made.reshape(-1), total.reshape(-1)
    for i in range(len(flat)):
        flat[i] = np.uint8(sums[i] + _HALF)


@_compiled
def _taps(length: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Of each of `size` pixels, where in a line of `length` its triangle begins and ends [size, 2], and its weights."""
    scale = length / size
    reach = max(scale, 1.0)
    ends = np.empty((size, 2), np.int64)
    weights = np.zeros((size, int(2 * reach) + 2), np.float32)
    for x in range(size):
        centre = scale * (x + 0.5)
        start = max(int(centre - reach + 0.5), 0)
        end = min(int(centre + reach + 0.5), length)
        total = 0.0
        for i in range(start, end):
            total += max(0.0, 1 - abs(i + 0.5 - centre) / reach)
        for i in range(start, end):
            weights[x, i - start] = np.float32(max(0.0, 1 - abs(i + 0.5 - centre) / reach) / total)
        ends[x, 0], ends[x, 1] = start, end
    return ends, weights


@_compiled
def rotate(image: Pixels, angle: float, made: Pixels) -> None:
    """Turn by `angle` degrees round the centre, bilinear, into `made`; black outside, and darkened at its rim."""
    size = image.shape[1]
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    middle = (size - 1) / 2
    for y in range(size):
        for x in range(size):
            at_x = cosine * (x - middle) - sine * (y - middle) + middle
            at_y = sine * (x - middle) + cosine * (y - middle) + middle
            left, top = math.floor(at_x), math.floor(at_y)
            red = green = blue = inside = 0.0
            for down in range(2):
                for across in range(2):
                    i, j = int(top) + down, int(left) + across
                    if 0 <= i < size and 0 <= j < size:
                        weight = (1 - abs(at_x - j)) * (1 - abs(at_y - i))
                        inside += weight
                        red += weight * image[0, i, j]
                        green += weight * image[1, i, j]
                        blue += weight * image[2, i, j]
            # torchvision blends what has faded to black with black once more.
            made[0, y, x] = np.uint8(red * inside + 0.5)
            made[1, y, x] = np.uint8(green * inside + 0.5)
            made[2, y, x] = np.uint8(blue * inside + 0.5)


@_compiled
def jitter(image: Pixels, order: Any, factors: Any) -> None:
    """Brightness, contrast, saturation and hue of an image in place, in an order [4] and by factors [4]."""
    for which in order:
        factor = factors[which]
        if which == BRIGHTNESS:
            if factor != 1:
                _blend(image, factor, 0.0)
        elif which == CONTRAST:
            if factor != 1:
                _blend(image, factor, (1 - factor) * _mean_grey(image))
        elif which == SATURATION:
            if factor != 1:
                _saturation(image, factor)
        elif factor != 0:
            _hue(image, factor)


@_compiled
def _luma(red: Any, green: Any, blue: Any) -> Any:
    """Grey level of a pixel, rounded down."""
    return np.uint8(np.float32(red) * _RED + np.float32(green) * _GREEN + np.float32(blue) * _BLUE)


@_compiled
def _to_level(value: Any) -> Any:
    """A float32 as a grey level, rounded down."""
    return np.uint8(min(max(value, _ZERO), _WHITE))


@_compiled
def _blend(image: Pixels, factor: float, beside: float) -> None:
    by, more, flat = np.float32(factor), np.float32(beside), image.reshape(-1)
    for i in range(len(flat)):
        flat[i] = _to_level(np.float32(flat[i]) * by + more)


@_compiled
def _mean_grey(image: Pixels) -> float:
    planes = image.reshape(3, -1)
    red, green, blue = planes[0], planes[1], planes[2]
    total = 0
    for i in range(len(red)):
        total += _luma(red[i], green[i], blue[i])
    return total / len(red)


@_compiled
def _saturation(image: Pixels, factor: float) -> None:
    by, rest, planes = np.float32(factor), np.float32(1 - factor), image.reshape(3, -1)
    red, green, blue = planes[0], planes[1], planes[2]
    for i in range(len(red)):
        grey = rest * np.float32(_luma(red[i], green[i], blue[i]))
        red[i] = _to_level(np.float32(red[i]) * by + grey)
        green[i] = _to_level(np.float32(green[i]) * by + grey)
        blue[i] = _to_level(np.float32(blue[i]) * by + grey)


@_compiled
def _hue(image: Pixels, shift: float) -> None:
    """Turn the hue of HSV by `shift` of a full circle."""
    by, planes = np.float32(6 * shift), image.reshape(3, -1)
    red, green, blue = planes[0], planes[1], planes[2]
    for i in range(len(red)):
        r, g, b = np.float32(red[i]), np.float32(green[i]), np.float32(blue[i])
        top = max(r, max(g, b))
        span = top - min(r, min(g, b))
        over = _ONE / max(span, _ONE)
        hue = np.float32(4) + (r - g) * over
        hue = np.float32(2) + (b - r) * over if top == g else hue
        hue = (g - b) * over if top == r else hue
        hue += by
        red[i] = _of_hue(np.float32(5) + hue, top, span)
        green[i] = _of_hue(np.float32(3) + hue, top, span)
        blue[i] = _of_hue(np.float32(1) + hue, top, span)


@_compiled
def _of_hue(place: Any, top: Any, span: Any) -> Any:
    """Level of a channel that stands at `place` on the circle of six colours, in [-6, 18)."""
    six = np.float32(6)
    place -= six * np.float32(math.floor(place * (_ONE / six)))
    share = min(max(min(place, np.float32(4) - place), _ZERO), _ONE)
    return np.uint8((top - span * share) * np.float32(255.999 / 255))  # torchvision scales so from [0, 1]


@_compiled
def grey(image: Pixels) -> None:
    """Drop the colour of an image, in place."""
    planes = image.reshape(3, -1)
    red, green, blue = planes[0], planes[1], planes[2]
    for i in range(len(red)):
        level = _luma(red[i], green[i], blue[i])
        red[i] = level
        green[i] = level
        blue[i] = level


@_compiled
def blur(image: Pixels, sigma: float, taps: int, made: Pixels) -> None:
    """Convolve with a Gaussian of `taps` x `taps` pixels, an odd number, into `made`; reflected at the edges."""
    size = image.shape[1]
    half = taps // 2
    weights = np.empty(half + 1, np.float32)
    total = 0.0
    for k in range(half + 1):
        total += (1 if k == 0 else 2) * math.exp(-0.5 * (k / sigma) ** 2)
    for k in range(half + 1):
        weights[k] = np.float32(math.exp(-0.5 * (k / sigma) ** 2) / total)
    while half > 0 and weights[half] < _LEAST_TAP:
        half -= 1
    column, row = np.empty(size + 2 * half, np.float32), np.empty(size, np.float32)
    inner = column[half : half + size]
    for channel in range(3):
        for y in range(size):
            line = image[channel, y]
            for x in range(size):
                inner[x] = weights[0] * np.float32(line[x])
            for k in range(1, half + 1):
                weight = weights[k]
                above, below = image[channel, _reflected(y - k, size)], image[channel, _reflected(y + k, size)]
                for x in range(size):
                    inner[x] += weight * (np.float32(above[x]) + np.float32(below[x]))
            for k in range(1, half + 1):
                column[half - k] = inner[_reflected(-k, size)]
                column[half + size - 1 + k] = inner[_reflected(size - 1 + k, size)]
            for x in range(size):
                row[x] = _HALF + weights[0] * inner[x]
            for k in range(1, half + 1):
                weight, before, after = weights[k], column[half - k :], column[half + k :]
                for x in range(size):
                    row[x] += weight * (before[x] + after[x])
            into = made[channel, y]
            for x in range(size):
                into[x] = _to_level(row[x])


@_compiled
def solarise(image: Pixels) -> None:
    """Invert the levels from `THRESHOLD` on, in place."""
    flat = image.reshape(-1)
    for i in range(len(flat)):
        if flat[i] >= THRESHOLD:
            flat[i] = np.uint8(255 - flat[i])


@_compiled
def _reflected(i: int, size: int) -> int:
    """The pixel of a line of `size` that is seen at `i`, beyond either end too."""
    if size == 1:
        return 0
    i = abs(i) % (2 * size - 2)
    return min(i, 2 * size - 2 - i)


_IMAGE, _VIEWS = types.uint8[:, :, :], types.uint8[:, :, :, :, ::1]


@ahead_of_time(types.void(_IMAGE, from_dtype(PARAMETERS)[:, ::1], types.int64, types.int64, _VIEWS))
def augment(image: Any, parameters: Any, slot: int, taps: int, made: Any) -> None:
    """Draw views of an image, uint8 [3, H, W], into `made` [V, slot] of uint8 [V, n, 3, S, S].

    `parameters` are [V, n], `taps` the side of the blur's kernel.
    """
    size = made.shape[3]
    other = np.empty((3, size, size), np.uint8)
    for v in range(len(made)):
        chosen, now, then = parameters[v, slot], made[v, slot], other
        turned, blurred = chosen.angle != 0, chosen.sigma > 0
        if turned != blurred:  # written from one to the other once, and the last has to be the view
            now, then = then, now
        resize(image, chosen.top, chosen.left, chosen.height, chosen.width, chosen.flip, now)
        if turned:
            rotate(now, chosen.angle, then)
            now, then = then, now
        jitter(now, chosen.order, chosen.factors)
        if chosen.grey:
            grey(now)
        if blurred:
            blur(now, chosen.sigma, taps, then)
            now = then
        if chosen.solarise:
            solarise(now)
