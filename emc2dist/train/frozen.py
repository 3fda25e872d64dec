"""Images in random views, encoded once, by an encoder that stands still."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emc2dist.config import Spec
from emc2dist.core.streams import fork
from emc2dist.data.images import Images
from emc2dist.data.loader import ViewLoader
from emc2dist.errors import NonFiniteError
from emc2dist.terminal import Progress
from emc2dist.train.views import view_loader

_VIEWS = 2  # label of random streams, as in `emc2dist.train.step`
_CHUNK = 256  # views encoded at once


@torch.no_grad()
def freeze(
    spec: Spec,
    encode: Callable[[Tensor], Tensor],
    device: torch.device,
    images: Images,
    index: NDArray[np.int64],
    views: int,
) -> Tensor:
    """What `encode` gives, [views, n, ...] on the CPU, of images at `index` [n] in random views, as training has them.

    `encode` takes uint8 [m, 3, S, S] on the device: an `Encoder`, or its `representation`. Where the encoder is in
    training mode, batch norms take the statistics of a few hundred views.

    Raises:
        NonFiniteError: a number is NaN or infinite.
    """
    there = np.sort(index)  # neighbours lie together
    parts = []
    once = spec.data.model_copy(update={"on_device": False})  # each is asked for once
    with (
        view_loader(spec.model_copy(update={"data": once}), images, device) as loader,
        closing(Progress(len(index) * views, unit="view")) as progress,
    ):
        for pixels in _views(loader, spec.seed, there, views):
            parts.append(encode(pixels.flatten(0, 1).to(device)).cpu().unflatten(0, pixels.shape[:2]))
            progress.add(pixels.shape[0] * pixels.shape[1])
    found = torch.cat(parts, 1)
    if not found.isfinite().all():
        raise NonFiniteError("the encoder's features are not finite: it has diverged, or its weights are damaged")
    return found[:, np.searchsorted(there, index)]


def _views(loader: ViewLoader, seed: int, index: NDArray[np.int64], views: int) -> Iterator[Tensor]:
    """uint8 [views, n, 3, S, S] of a few images after the other; the next ones are begun."""
    numbers = torch.arange(views).unsqueeze(1)
    ahead: deque[Future[Tensor]] = deque()
    chunk = max(1, _CHUNK // views)
    for part in np.split(index, range(chunk, len(index), chunk)):
        # As the first views of so many steps are drawn.
        seeds = fork(seed, _VIEWS, numbers, torch.from_numpy(part), 0)
        ahead.append(loader.submit(part, seeds.numpy()))
        if len(ahead) > 1:
            yield ahead.popleft().result()
    yield from (made.result() for made in ahead)
