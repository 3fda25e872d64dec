"""The views: augmented (`RandomView`), by a person's own code (`OwnView`) or plain (`PlainView`) square images, uint8.

All are picklable callables, by what they are made of, and keep no state. They draw from no generator: a random view is
a function of the image and of a stream of its own.
"""

import importlib
import operator
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from emc2dist.config import Views
from emc2dist.errors import SpecError
from emc2dist.terminal import brief
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


class OwnView:
    """Views of images by a person's own callable, `views.transform`.

    What it draws has to come of torch's global generator, as all of torchvision's v2 transforms do: that begins at the
    view's stream, so that a view is a function of image and stream here as well. That it is so is tried once.

    Raises:
        SpecError: there is no such callable, or it makes no such views.
    """

    def __init__(self, config: Views) -> None:
        assert config.transform is not None
        self._config, self._transform = config, _imported(config.transform)
        image = torch.arange(3 * 40 * 56).view(3, 40, 56).remainder(251).to(torch.uint8)
        streams = np.zeros((1, 2), np.int64)
        twice = self([image.clone(), image.clone()], streams)[0]
        if not twice[0].equal(twice[1]):
            raise SpecError(
                f"views.transform: {config.transform} draws what does not come of torch's global generator (of random "
                "or numpy, maybe), so no view could be made again; draw by torch.rand and the like"
            )

    def __reduce__(self) -> tuple[type["OwnView"], tuple[Views]]:
        return OwnView, (self._config,)

    def __call__(self, images: Sequence[Tensor], streams: NDArray[np.int64]) -> Tensor:
        """Views [V, n, 3, size, size] of n images, uint8 [3, H, W] each, by their streams [V, n]."""
        made = torch.empty(*streams.shape, 3, self._config.size, self._config.size, dtype=torch.uint8)
        with torch.random.fork_rng(devices=[]):
            for view, of_view in enumerate(streams.tolist()):
                for slot, stream in enumerate(of_view):
                    torch.default_generator.manual_seed(stream)
                    made[view, slot] = self._checked(self._transform(images[slot]))
        return made

    def _checked(self, view: object) -> Tensor:
        shape = (3, self._config.size, self._config.size)
        if isinstance(view, Tensor) and view.dtype == torch.uint8 and view.shape == shape:
            return view
        what = f"{view.dtype} {list(view.shape)}" if isinstance(view, Tensor) else type(view).__name__
        raise SpecError(
            f"views.transform: {self._config.transform} gives {what} of an image; it has to give torch.uint8 "
            f"{list(shape)}, as views.size says"
        )


def _imported(name: str) -> Callable[[Tensor], object]:
    """The callable MODULE:NAME. Raises SpecError where there is none."""
    module, _, attribute = name.partition(":")
    try:
        found = operator.attrgetter(attribute)(importlib.import_module(module))
    except Exception as error:  # whatever the module raises
        raise SpecError(
            f"views.transform: {name}: {type(error).__name__}: {brief(error)}; name what can be imported where workers "
            "run, MODULE:NAME, its folder in PYTHONPATH or in the job's working folder"
        ) from error
    if not callable(found):
        raise SpecError(f"views.transform: {name} is {type(found).__name__}, which cannot be called; name a callable")
    return found


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
