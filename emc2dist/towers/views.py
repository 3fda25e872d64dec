"""The views: augmented (`RandomView`) or plain (`PlainView`) square images, uint8.

Both are picklable callables, by what they are made of, and keep no state. They draw from no generator: a random view is
a function of the image and of a stream of its own.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from emc2dist.config import Views
from emc2dist.towers.parameters import draw, kernel


class RandomView:
    """Views of images by the augmentations that `config` describes, each view with parameters of its own.

    In order: random resized crop, flip, rotation, colour jitter, grey, blur; one by one as torchvision's v2 has them
    (`emc2dist.towers.augment`). Any number of threads may draw at a time. The first one on a machine takes some seconds
    to compile; what it compiled is kept.
    """

    def __init__(self, config: Views) -> None:
        from emc2dist.towers.augment import augment  # here: it loads numba, and compiles

        self._config = config
        self._augment = augment
        self.taps = kernel(config.size)
        """Side of the blur's kernel, pixels; odd."""

    def __reduce__(self) -> tuple[type["RandomView"], tuple[Views]]:
        return RandomView, (self._config,)

    def __call__(self, images: Sequence[Tensor], streams: NDArray[np.int64]) -> Tensor:
        """Views [V, n, 3, size, size] of n images, uint8 [3, H, W] each, by their streams [V, n]."""
        heights, widths = np.array([image.shape[1:] for image in images], np.int64).reshape(-1, 2).T
        shape, size = streams.shape, self._config.size
        sides = (np.broadcast_to(side, shape).ravel() for side in (heights, widths))
        parameters = draw(self._config, streams.ravel(), *sides).reshape(shape)
        views = torch.empty(*shape, 3, size, size, dtype=torch.uint8)
        for slot, image in enumerate(images):
            self._augment(image.numpy(), parameters, slot, self.taps, views.numpy())
        return views


class PlainViews:
    """The plain views of images, as a loader makes them: of whatever seeds, the same."""

    def __init__(self, size: int) -> None:
        self._view = PlainView(size)

    def __call__(self, images: Sequence[Tensor], streams: NDArray[np.int64]) -> Tensor:
        """Views uint8 [1, n, 3, size, size] of n images, uint8 [3, H, W] each."""
        return torch.stack([self._view(image) for image in images]).unsqueeze(0)


class PlainView:
    """uint8 [3, H, W] -> uint8 [3, size, size]: shorter side resized to `size`, then the centre. Deterministic.

    The pixels are those of torchvision's `Resize` and `CenterCrop`, which take more than a second to import.
    Of an image more than `LONGEST` times as long as wide only the middle is resized, so that no image, however thin,
    makes a resized one of more than about `LONGEST` * size ** 2 pixels.
    """

    LONGEST = 8

    def __init__(self, size: int) -> None:
        self._size = size

    def __reduce__(self) -> tuple[type["PlainView"], tuple[int]]:
        return PlainView, (self._size,)

    def __call__(self, image: Tensor) -> Tensor:
        """The one plain view of the image."""
        most = self.LONGEST * min(image.shape[1:])
        for axis in (1, 2):
            beside = (image.shape[axis] - most) // 2  # as much on either side, that the centre stays where it is
            if beside > 0:
                image = image.narrow(axis, beside, image.shape[axis] - 2 * beside)
        shorter = min(image.shape[1:])
        sides = [int(self._size * side / shorter) for side in image.shape[1:]]
        if sides != list(image.shape[1:]):
            image = interpolate(image[None], sides, mode="bilinear", antialias=True)[0]
        for axis, side in zip((1, 2), sides, strict=True):
            image = image.narrow(axis, round((side - self._size) / 2), self._size)
        return image
