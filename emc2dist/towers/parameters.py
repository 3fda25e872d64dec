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
    ],
    align=True,
)

SIGMA = (0.1, 2.0)
"""Range of the blur's sigma, pixels."""

_TRIES = 10  # to find a crop that fits the image
_LANE = 0


def draw(config: Views, streams: NDArray[np.int64], heights: NDArray[np.int64], widths: NDArray[np.int64]) -> NDArray:
    """Parameters [n] of the type `PARAMETERS`, of views with streams [n] of images so high and wide [n]."""
    u = iter(uniforms(torch.from_numpy(streams), 2 * _TRIES + 16, lane=_LANE).numpy().T.copy())
    made = np.zeros(len(streams), PARAMETERS)
    _crop(made, config, [(next(u), next(u)) for _ in range(_TRIES)], heights, widths)
    made["top"] = _whole_number(next(u), heights - made["height"])
    made["left"] = _whole_number(next(u), widths - made["width"])
    made["flip"] = next(u) < config.flip
    made["angle"] = _between(-config.rotate, config.rotate, next(u))
    jittered = next(u) < config.jitter_probability
    made["order"] = np.stack([next(u) for _ in range(4)], 1).argsort(1, kind="stable")
    for which, strength in enumerate(config.jitter):
        neutral, least = (0.0, -strength) if which == HUE else (1.0, max(0.0, 1 - strength))
        made["factors"][:, which] = np.where(jittered, _between(least, neutral + strength, next(u)), neutral)
    made["grey"] = next(u) < config.grey
    made["sigma"] = np.where(next(u) < config.blur, _between(*SIGMA, next(u)), 0)
    return made


def _crop(
    made: NDArray, config: Views, tries: list[tuple[NDArray, NDArray]], heights: NDArray, widths: NDArray
) -> None:
    """Height and width: the first try that fits the image, else the largest crop of an aspect ratio allowed."""
    low, high = config.aspect
    ratios = widths / heights
    # Where no try fits. A very thin image with a very small `aspect` still has a pixel.
    made["height"] = np.where(ratios < low, np.maximum(1, np.rint(widths / low)), heights)
    made["width"] = np.where(ratios > high, np.maximum(1, np.rint(heights * high)), widths)
    for of_area, of_aspect in reversed(tries):
        area = heights * widths * _between(*config.crop, of_area)
        aspect = np.exp(_between(np.log(low), np.log(high), of_aspect))
        height, width = np.rint(np.sqrt(area / aspect)), np.rint(np.sqrt(area * aspect))
        fits = (height >= 1) & (height <= heights) & (width >= 1) & (width <= widths)
        made["height"] = np.where(fits, height, made["height"])
        made["width"] = np.where(fits, width, made["width"])


def _between(low: float, high: float, u: NDArray) -> NDArray:
    return low + (high - low) * u


def _whole_number(u: NDArray, most: NDArray) -> NDArray:
    """Uniform over 0 .. `most`."""
    return np.minimum(u * (most + 1), most).astype(np.int64)
