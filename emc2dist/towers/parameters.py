"""The parameters of random views, each drawn from a stream of its own (`emc2dist.core.streams`).

A transform that is left out has the value that changes nothing, and takes no other transform's random numbers: with the
rotation switched off, the same stream gives the same crop.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from emc2dist.config import Views
from emc2dist.core.streams import uniforms

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

PARAMETERS = np.dtype(
    [
        ("top", np.int64),  # of the crop, pixels of the image
        ("left", np.int64),
        ("height", np.int64),
        ("width", np.int64),
        ("flip", np.bool_),  # left to right
        ("angle", np.float64),  # degrees, counter-clockwise
        ("order", np.int64, (4,)),  # of the jitter: BRIGHTNESS, CONTRAST, SATURATION and HUE in some order
        ("factors", np.float64, (4,)),  # 1 changes nothing; of HUE a shift in [-0.5, 0.5], and 0 does
        ("grey", np.bool_),
        ("sigma", np.float64),  # of the blur, pixels of the view; 0: none
        ("solarise", np.bool_),
    ],
    align=True,
)

THRESHOLD = 128
"""The level from which on solarisation inverts."""
SIGMA = (0.1, 2.0)
"""Range of the blur's sigma, pixels."""

_TRIES = 10  # to find a crop that fits the image
_LANE = 0


def kernel(size: int) -> int:
    """Side of the blur's kernel for a view of `size` pixels: about a tenth of it, and odd."""
    return max(3, size // 10 | 1)


def draw(config: Views, streams: NDArray[np.int64], heights: NDArray[np.int64], widths: NDArray[np.int64]) -> NDArray:
    """Parameters [n] of the type `PARAMETERS`, of views with streams [n] of images so high and wide [n]."""
    u = iter(uniforms(torch.from_numpy(streams), 2 * _TRIES + 17, lane=_LANE).numpy().T.copy())
    made = np.zeros(len(streams), PARAMETERS)
    fits = _size(made, config, [(next(u), next(u)) for _ in range(_TRIES)], heights, widths)
    for side, length, start in (("height", heights, "top"), ("width", widths, "left")):
        beyond = length - made[side]
        anywhere = np.minimum(next(u) * (beyond + 1), beyond)
        made[start] = np.where(fits, anywhere, beyond // 2)
    made["flip"] = next(u) < config.flip
    made["angle"] = _between(-config.rotate, config.rotate, next(u))
    jittered = next(u) < config.jitter_probability
    made["order"] = np.stack([next(u) for _ in range(4)], 1).argsort(1, kind="stable")
    for which, strength in enumerate(config.jitter):
        neutral, least = (0.0, -strength) if which == HUE else (1.0, max(0.0, 1 - strength))
        made["factors"][:, which] = np.where(jittered, _between(least, neutral + strength, next(u)), neutral)
    made["grey"] = next(u) < config.grey
    made["sigma"] = np.where(next(u) < config.blur, _between(*SIGMA, next(u)), 0)
    made["solarise"] = next(u) < config.solarise
    return made


def _size(
    made: NDArray, config: Views, tries: list[tuple[NDArray, NDArray]], heights: NDArray, widths: NDArray
) -> NDArray[np.bool_]:
    """Height and width of the crops: by the first try that fits the image, and whether one does [n].

    Else as much as `aspect` allows.
    """
    low, high = config.aspect
    ratios = widths / heights
    # Of a very thin image a very small `aspect` would leave no pixel.
    made["height"] = np.where(ratios < low, np.maximum(1, np.rint(widths / low)), heights)
    made["width"] = np.where(ratios > high, np.maximum(1, np.rint(heights * high)), widths)
    found = np.zeros(len(made), np.bool_)
    for of_area, of_aspect in tries:
        area = heights * widths * _between(*config.crop, of_area)
        aspect = np.exp(_between(np.log(low), np.log(high), of_aspect))
        height, width = np.rint(np.sqrt(area / aspect)), np.rint(np.sqrt(area * aspect))
        takes = ~found & (height >= 1) & (height <= heights) & (width >= 1) & (width <= widths)
        made["height"] = np.where(takes, height, made["height"])
        made["width"] = np.where(takes, width, made["width"])
        found |= takes
    return found


def _between(low: float, high: float, u: NDArray) -> NDArray:
    return low + (high - low) * u
