"""Random views by the batch, as tensor code for any device.

    where images are decoded   images of any sizes, streams [V, n]  ->  one uint8 buffer        `Packer`
    on the device              buffers, one copy                    ->  uint8 [V, n, 3, S, S]   `BatchedViews`

The parameters of each view are drawn from its stream (`emc2dist.towers.parameters`) and its pixels are those that
`emc2dist.towers.augment` makes of them, for each does the same arithmetic in the same order. Every operation works on
each pixel by itself, and what is added up is added tap by tap, so a view is the same to the bit in any batch.

An augmentation is done to those views of a batch that it changes. Which these are is known where the parameters are
drawn, on the host, so nothing waits for a GPU. A batch is made a part of `_PIXELS` at a time (or one view, if that is
more), so that it takes about 1 GiB besides the buffer and the views, however large crops and batches are.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emc2dist.config import Views
from emc2dist.towers.parameters import BRIGHTNESS, CONTRAST, HUE, PARAMETERS, SATURATION, THRESHOLD, draw, kernel

LONGEST = 4
"""Sides of a view: an image that is longer is cropped and resized where it is decoded.

So the buffer holds at most `LONGEST` ** 2 views' worth of pixels of an image, and resizing is a sum of few taps.
Resizing two crops of such an image takes about as long as decoding it."""

_PIXELS = 2**23  # of views, or of rows of crops resized to their width; up to 125 bytes are needed for each
_LEAST_TAP = 2.0**-20  # of the blur, as in `augment`
_RED, _GREEN, _BLUE = 0.2989, 0.587, 0.114

PLACED = np.dtype(
    [
        ("drawn", PARAMETERS),
        ("first", np.int64),  # of all pixels the one with which its crop begins
        ("pitch", np.int64),  # pixels from one row to the next
    ],
    align=True,
)
"""A view: its parameters, and where its crop lies."""

WHOLE = np.dtype([("first", np.int64), ("height", np.int64), ("width", np.int64)])
"""An image among all pixels; its height is 0 where there are crops of it only."""

_SHAPE = np.dtype((np.int64, 2))  # views of an image, and images; a buffer begins with it


class Packer:
    """Decoded images and the parameters of their views, in one buffer. Picklable; any number of threads may call it."""

    def __init__(self, config: Views) -> None:
        from emc2dist.towers.augment import augment  # here: it loads numba, and compiles

        self._config = config
        self._augment = augment

    def __reduce__(self) -> tuple[type["Packer"], tuple[Views]]:
        return Packer, (self._config,)

    def most(self, views: int) -> int:
        """Bytes that each image adds to a buffer at most, if there are so many views of it."""
        pixels = max(views, LONGEST**2) * self._config.size**2
        return 3 * pixels + views * PLACED.itemsize + WHOLE.itemsize + _SHAPE.itemsize

    def __call__(self, images: Sequence[Tensor], streams: NDArray[np.int64]) -> Tensor:
        """The buffer, uint8 [bytes], of n images, uint8 [3, H, W] each, and the streams [V, n] of their views."""
        heights, widths = np.array([image.shape[1:] for image in images], np.int64).reshape(-1, 2).T
        sides = (np.broadcast_to(side, streams.shape).ravel() for side in (heights, widths))
        placed = np.zeros(streams.shape, PLACED)
        placed["drawn"] = draw(self._config, streams.ravel(), *sides).reshape(streams.shape)
        whole = np.zeros(len(images), WHOLE)
        sources, pixels = list[NDArray[np.uint8]](), 0
        for slot, image in enumerate(images):
            if self._is_sent(image):
                whole[slot] = pixels, *image.shape[1:]
            for views, source in self._sources(image, placed[:, slot]):
                height, width = source.shape[1:]
                views["pitch"] = width
                views["first"] = pixels + views["drawn"]["top"] * width + views["drawn"]["left"]
                sources.append(source.permute(1, 2, 0).reshape(-1).numpy())
                pixels += height * width
        head = np.array(streams.shape, np.int64)
        return torch.from_numpy(np.concatenate([_bytes(head), _bytes(whole), _bytes(placed), *sources]))

    def _is_sent(self, image: Tensor) -> bool:
        """Whether all of it is."""
        return max(image.shape[1:]) <= LONGEST * self._config.size

    def _sources(self, image: Tensor, placed: NDArray) -> Iterator[tuple[NDArray, Tensor]]:
        """Which of the views [V] of an image are made of which pixels, uint8 [3, H, W].

        All of the image itself; but of a large one each of its own crop, resized to [3, S, S], which is all of it then.
        """
        size = self._config.size
        if self._is_sent(image):
            yield placed, image
            return
        crops = np.zeros((len(placed), 1), PARAMETERS)
        for name, after in (("top", 0), ("left", 0), ("height", size), ("width", size)):
            crops[name][:, 0] = placed["drawn"][name]
            placed["drawn"][name] = after
        crops["factors"][..., :HUE] = 1
        made = np.empty((len(placed), 1, 3, size, size), np.uint8)
        self._augment(image.numpy(), crops, 0, kernel(size), made)
        for view, (crop,) in enumerate(made):
            yield placed[view : view + 1], torch.from_numpy(crop)


def _bytes(array: NDArray) -> NDArray[np.uint8]:
    return np.ascontiguousarray(array).view(np.uint8).reshape(-1)


class BatchedViews:
    """Views on a device, made of buffers. Any number of threads may call it; on a GPU each has a stream of its own."""

    def __init__(self, config: Views, device: torch.device) -> None:
        self.pack = Packer(config)
        """Makes the buffers."""
        self._size, self._device = config.size, device
        self._of_thread = threading.local()

    def __call__(self, buffers: Sequence[Tensor]) -> Tensor:
        """Views uint8 [V, n, 3, S, S] on the device, of the images of all buffers.

        On a GPU they are there when this returns: the calling thread waits for its own stream, and no other one does.
        """
        _, placed, sources = unpacked(buffers)
        with self.beside():
            views, _ = self.of(placed, sources)
        return views

    def begin(
        self, indices: NDArray[np.int64], streams: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], "BatchedViews"]:
        """See `emc2dist.data.loader.DeviceView`: all images are packed."""
        return indices, streams, self

    def of(self, placed: NDArray, sources: Sequence[Tensor], there: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Views uint8 [V, n, 3, S, S] that lie as `placed` [V, n], `PLACED`, says, and the pixels on the device.

        The pixels are those of all `sources`, uint8 [bytes] each, which are sent; or those that are already `there`,
        uint8 [P, 3], of which `BEHIND` at least come behind the last crop.
        """
        views, pixels = _Batch(placed.reshape(-1), self._size).views(sources, there, self._device)
        return views.unflatten(0, placed.shape), pixels

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Inside, the device works on a stream of this thread's own; afterwards it has done so."""
        with self._stream():
            yield
        if self._device.type == "cuda":
            self._of_thread.stream.synchronize()

    def _stream(self) -> AbstractContextManager[Any]:
        if self._device.type != "cuda":
            return nullcontext()
        if not hasattr(self._of_thread, "stream"):
            self._of_thread.stream = torch.cuda.Stream(
                self._device, priority=-1
            )  # little work, and a step waits for it
        return torch.cuda.stream(self._of_thread.stream)


def unpacked(buffers: Sequence[Tensor]) -> tuple[NDArray, NDArray, list[Tensor]]:
    """Of all buffers together images [n], `WHOLE`, views [V, n], `PLACED`, and of each the pixels, uint8 [bytes]."""
    wholes, placed, sources, pixels = [], [], [], 0
    for buffer in buffers:
        content = buffer.numpy()
        shape = content[: _SHAPE.itemsize].view(np.int64)
        middle = _SHAPE.itemsize + int(shape[1]) * WHOLE.itemsize
        end = middle + int(shape.prod()) * PLACED.itemsize
        wholes.append(content[_SHAPE.itemsize : middle].view(WHOLE).copy())
        placed.append(content[middle:end].view(PLACED).reshape(shape).copy())
        for part in (wholes[-1], placed[-1]):
            part["first"] += pixels
        sources.append(buffer[end:])
        pixels += len(sources[-1]) // 3
    return np.concatenate(wholes), np.concatenate(placed, 1), sources


class _Step(NamedTuple):
    """An augmentation of some views of a part."""

    augment: Callable[..., Tensor]
    """uint8 [m, 3, S, S], and what follows -> uint8 [m, 3, S, S]"""
    arguments: Sequence[NDArray]
    """int64 or float64: which views of the part, [m], and for each of them what the augmentation takes."""


class _Part(NamedTuple):
    """Neighbouring views that are made at a time."""

    start: int
    stop: int
    crops: Sequence[NDArray]
    """Of each view: its first pixel, pitch, height, width, and whether it is flipped; int64 [m]."""
    steps: Sequence[_Step]


class _Batch:
    """What is to be done for views `placed` [N], and the numbers that the device needs for it."""

    def __init__(self, placed: NDArray, size: int) -> None:
        self._views, self._size = len(placed), size
        self._parts = [self._part(placed, *ends) for ends in _cut(placed["drawn"]["height"], size)]

    def _part(self, placed: NDArray, start: int, stop: int) -> _Part:
        part = placed[start:stop]
        drawn = part["drawn"]
        crops = [part["first"], part["pitch"], *(drawn[name].astype(np.int64) for name in ("height", "width", "flip"))]
        return _Part(start, stop, crops, list(_steps(drawn, self._size)))

    def views(self, sources: Sequence[Tensor], there: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor]:
        """uint8 [N, 3, S, S], and the pixels uint8 [P, 3], of which they are (see `BatchedViews.of`)."""
        arrived = self._arrived(sources, device)
        sent = next(arrived).view(-1, 3)
        pixels = sent if there is None else there
        made = torch.empty((self._views, 3, self._size, self._size), dtype=torch.uint8, device=device)
        for start, stop, crops, steps in self._parts:
            views = made[start:stop]
            views.copy_(_resized(pixels, self._size, crops, [next(arrived) for _ in crops]))
            for augment, arguments in steps:
                which, *others = (next(arrived) for _ in arguments)
                views.index_copy_(0, which, augment(views.index_select(0, which), *others))
        return made, pixels

    def _arrived(self, sources: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
        """On the device, for one copy: the pixels, and then the numbers in the order in which they are needed."""
        arrays = []
        for part in self._parts:
            arrays += [*part.crops, *(array for step in part.steps for array in step.arguments)]
        numbers = [torch.from_numpy(array.copy()) for array in arrays]  # of fields: a copy lies in one piece
        flat = [number.view(-1).view(torch.uint8) for number in numbers]
        sources = [*sources, torch.zeros(3 * BEHIND, dtype=torch.uint8)]
        sizes = [len(one) for one in (*flat, *sources)]
        sent = _for_sending(sum(sizes), device)
        torch.cat([*flat, *sources], out=sent)
        arrived = sent.to(device, non_blocking=True)
        before = sum(sizes[: len(flat)])
        yield arrived[before:]
        for number, part in zip(numbers, arrived[:before].split(sizes[: len(flat)]), strict=True):
            yield part.view(number.dtype).view(number.shape)


def _for_sending(size: int, device: torch.device) -> Tensor:
    """Room for so many bytes, from where they go to the device without a wait."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")


def _cut(heights: NDArray[np.int64], size: int) -> Iterator[tuple[int, int]]:
    """The ends of parts of no more than `_PIXELS`, or of one view."""
    costs = np.maximum(heights, size) * size
    start = total = 0
    for place, cost in enumerate(costs.tolist()):
        if place > start and total + cost > _PIXELS:
            yield start, place
            start, total = place, 0
        total += cost
    if len(heights):
        yield start, len(heights)


def _steps(drawn: NDArray, size: int) -> Iterator[_Step]:
    """The augmentations that views with such parameters [m] need, in order; those of the jitter in each view's own."""
    (turned,) = np.nonzero(drawn["angle"])
    angle = np.deg2rad(drawn["angle"][turned])
    steps = [_Step(_rotated, [turned, np.cos(angle), np.sin(angle)])]
    for place in range(4):
        for which, augment in _JITTER.items():
            factor = drawn["factors"][:, which]
            (changed,) = np.nonzero((drawn["order"][:, place] == which) & (factor != (which != HUE)))
            steps.append(_Step(augment, [changed, factor[changed]]))
    steps.append(_Step(_greyed, [np.flatnonzero(drawn["grey"])]))
    (blurred,) = np.nonzero(drawn["sigma"])
    steps.append(_Step(_blurred, [blurred, _gaussian(drawn["sigma"][blurred], kernel(size) // 2)]))
    steps.append(_Step(_solarised, [np.flatnonzero(drawn["solarise"])]))
    return (step for step in steps if len(step.arguments[0]))


def _resized(pixels: Tensor, size: int, crops: Sequence[NDArray], arrived: Sequence[Tensor]) -> Tensor:
    """Crops of `pixels` [P, 3], resized, bilinear with antialiasing, and flipped or not: uint8 [m, 3, S, S].

    `crops` are as in `_Part`, and `arrived` the same on the device.
    """
    first, pitch, height, width, flip = arrived
    rows, widest = int(crops[2].sum()), int(crops[3].max())
    left, across = _taps(width, size, widest)
    left, across = (torch.where(flip.unsqueeze(-1) != 0, line.flip(-1), line) for line in (left, across))
    top, down = _taps(height, size, int(crops[2].max()))

    # The rows of all crops, one after the other: of which view each is, and where its first pixel lies.
    above = height.cumsum(0) - height
    view = torch.repeat_interleave(height, output_size=rows)
    within = torch.arange(rows, device=pixels.device) - above[view]
    begin = (first[view] + within * pitch[view]).unsqueeze(1) + left[view]

    wide = torch.full((rows, size, 3), 0.5, dtype=torch.float32, device=pixels.device)
    for tap, weights in enumerate(across):
        place = (begin + tap).view(-1)  # beyond the crop too, where the weight is 0
        wide += pixels.index_select(0, place).view(wide.shape) * weights[view].unsqueeze(-1)
    lines = wide.to(torch.uint8).view(rows, size * 3)
    del wide, begin

    made = torch.zeros((len(height), size, size * 3), dtype=torch.float32, device=pixels.device)
    begin = above.unsqueeze(1) + top
    for tap, weights in enumerate(down):
        place = (begin + tap).clamp_(max=rows - 1)
        made += lines.index_select(0, place.view(-1)).view(made.shape) * weights.unsqueeze(-1)
    return (made + 0.5).to(torch.uint8).view(-1, size, size, 3).permute(0, 3, 1, 2)


def _taps(lengths: Tensor, size: int, longest: int) -> tuple[Tensor, Tensor]:
    """Where triangles begin in lines of `lengths` [m], int64 [m, S], and their weights, float32 [taps, m, S]."""
    length = lengths.double().unsqueeze(1)
    scale = length / size
    reach = scale.clamp(min=1)
    centre = scale * (torch.arange(size, device=lengths.device) + 0.5)
    start = (centre - reach + 0.5).long().clamp_(min=0)
    end = (centre + reach + 0.5).long().minimum(lengths.unsqueeze(1))
    taps = torch.arange(_most_taps(longest / size), device=lengths.device)
    place = start + taps.view(-1, 1, 1)
    weights = (1 - (place + 0.5 - centre).abs() / reach).clamp_(min=0) * (place < end)
    total = torch.zeros_like(centre)
    for weight in weights:
        total += weight
    return start, (weights / total).float()


def _most_taps(scale: float) -> int:
    """Pixels of a line that may make one of it, resized to a `scale`-th."""
    return int(2 * max(scale, 1)) + 2


BEHIND = _most_taps(LONGEST)
"""Pixels that have to come behind the last crop, whatever they are: weights of 0 are of them."""


def _rotated(images: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turned round the centre, bilinear; black outside, and darkened at the rim."""
    size = images.shape[-1]
    middle = (size - 1) / 2
    line = torch.arange(size, dtype=torch.float64, device=images.device) - middle
    cosine, sine = cosine.view(-1, 1, 1), sine.view(-1, 1, 1)
    at_x = cosine * line - sine * line.unsqueeze(1) + middle
    at_y = sine * line + cosine * line.unsqueeze(1) + middle
    flat = images.flatten(2)
    total = torch.zeros(flat.shape, dtype=torch.float64, device=images.device)
    inside = torch.zeros_like(at_x)
    for down in range(2):
        for across in range(2):
            i, j = at_y.floor() + down, at_x.floor() + across
            weight = (1 - (at_x - j).abs()) * (1 - (at_y - i).abs())
            weight *= (i >= 0) & (i < size) & (j >= 0) & (j < size)
            inside += weight
            place = i.clamp(0, size - 1).mul_(size).add_(j.clamp(0, size - 1)).long().flatten(1).unsqueeze(1)
            total += flat.gather(2, place.expand(-1, 3, -1)) * weight.flatten(1).unsqueeze(1)
    return (total * inside.flatten(1).unsqueeze(1) + 0.5).to(torch.uint8).view(images.shape)


def _of_views(numbers: Tensor) -> Tensor:
    """A number of each view, float32 [m, 1, 1, 1]."""
    return numbers.float().view(-1, 1, 1, 1)


def _levels(values: Tensor) -> Tensor:
    return values.clamp_(0, 255).to(torch.uint8)


def _luma(images: Tensor) -> Tensor:
    """Grey levels, rounded down: uint8 [m, 1, S, S]."""
    red, green, blue = images.split(1, 1)
    return (red * _RED + green * _GREEN + blue * _BLUE).to(torch.uint8)


def _brightened(images: Tensor, factor: Tensor) -> Tensor:
    return _levels(images * _of_views(factor))


def _contrasted(images: Tensor, factor: Tensor) -> Tensor:
    """Blended with the mean grey level."""
    mean = _luma(images).flatten(1).sum(1).double() / images[0, 0].numel()
    return _levels(images * _of_views(factor) + _of_views((1 - factor) * mean))


def _saturated(images: Tensor, factor: Tensor) -> Tensor:
    """Blended with their grey levels."""
    return _levels(images * _of_views(factor) + _luma(images) * _of_views(1 - factor))


def _hue_turned(images: Tensor, shift: Tensor) -> Tensor:
    """The hue of HSV turned by `shift` of a full circle."""
    red, green, blue = images.float().unbind(1)
    top = red.maximum(green.maximum(blue))
    span = top - red.minimum(green.minimum(blue))
    over = 1 / span.clamp(min=1)
    hue = torch.where(top == green, 2 + (blue - red) * over, 4 + (red - green) * over)
    hue = torch.where(top == red, (green - blue) * over, hue)
    hue += (6 * shift).float().view(-1, 1, 1)
    return torch.stack([_of_hue(place + hue, top, span) for place in (5, 3, 1)], 1)


def _of_hue(place: Tensor, top: Tensor, span: Tensor) -> Tensor:
    """Levels of a channel that stands at `place` on the circle of six colours."""
    place -= 6 * (place * (1 / 6)).floor()
    share = place.minimum(4 - place).clamp_(0, 1)
    return ((top - span * share) * (255.999 / 255)).to(torch.uint8)


def _greyed(images: Tensor) -> Tensor:
    return _luma(images).expand_as(images)


_JITTER = {BRIGHTNESS: _brightened, CONTRAST: _contrasted, SATURATION: _saturated, HUE: _hue_turned}


def _gaussian(sigma: NDArray[np.float64], half: int) -> NDArray[np.float64]:
    """Weights [m, taps] of the middle of each blur's kernel and of one side of it; no more taps than any needs."""
    distance = np.arange(half + 1)
    weights = np.exp(-0.5 * (distance / sigma[:, None]) ** 2)
    total = weights[:, 0].copy()
    for k in range(1, half + 1):
        total += 2 * weights[:, k]
    weights = (weights / total[:, None]).astype(np.float32).astype(np.float64)
    weights[(weights < _LEAST_TAP) & (distance > 0)] = 0
    return weights[:, : 1 + max(np.flatnonzero(weights.any(0)), default=0)]


def _blurred(images: Tensor, weights: Tensor) -> Tensor:
    """Convolved with a Gaussian, of weights as `_gaussian` has them; reflected at the edges."""
    size, half = images.shape[-1], weights.shape[1] - 1
    seen = _reflected(size, half, images.device)
    columns = _convolved(images.index_select(2, seen).float(), weights, 2, 0.0)
    return _levels(_convolved(columns.index_select(3, seen), weights, 3, 0.5))


def _convolved(padded: Tensor, weights: Tensor, axis: int, begin: float) -> Tensor:
    """`begin` and the sum of all taps along an axis, which is shorter then by all but one of them."""
    half = weights.shape[1] - 1
    size = padded.shape[axis] - 2 * half
    middle, *sides = (_of_views(weight) for weight in weights.unbind(1))
    total = padded.narrow(axis, half, size) * middle + begin
    for k, weight in enumerate(sides, 1):
        total += (padded.narrow(axis, half - k, size) + padded.narrow(axis, half + k, size)) * weight
    return total


def _solarised(images: Tensor) -> Tensor:
    """Levels from `THRESHOLD` on inverted."""
    return torch.where(images >= THRESHOLD, 255 - images, images)


def _reflected(size: int, beyond: int, device: torch.device) -> Tensor:
    """The pixels of a line that are seen from `beyond` before it to as many behind it, int64 [size + 2 beyond]."""
    place = torch.arange(-beyond, size + beyond, device=device).abs()
    if size == 1:
        return place.mul_(0)
    place %= 2 * size - 2
    return place.minimum(2 * size - 2 - place)
