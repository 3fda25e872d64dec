"""Of what pixels the views of a spec are made, where, and by how many processes: what `auto` stands for is chosen here.

views.made_on      beside the decoder, or by the batch on the device
data.on_device     whether the set's pixels stay on the device
data.loaders       processes that decode
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import psutil
import torch

from emc2dist.config import BUILT_IN, Spec
from emc2dist.data.decoded import DecodedFile, DecodedImages, shorter_side
from emc2dist.data.images import Images, Pixels
from emc2dist.data.loader import DeviceView, View, ViewLoader
from emc2dist.errors import SpecError
from emc2dist.machine import cpus
from emc2dist.towers.batched import LONGEST, BatchedViews
from emc2dist.towers.resident import ResidentViews
from emc2dist.towers.views import OwnView, RandomView

SHARES = {"auto": 1 / 8, True: 1 / 2}
"""Of the device's free memory, what pixels may take there, by `data.on_device`."""
_LOOKED_AT = 32  # images, by whose sizes a set is judged
_MOST_LOADERS = 16


def view_loader(
    spec: Spec,
    images: Images,
    device: torch.device,
    *,
    cores: int | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> ViewLoader:
    """The loader of the random views of `images`, for a worker on `device`; `tell` is told in a line what was chosen.

    `cores` are the worker's; None: all of this machine's.

    Raises:
        SpecError: `data.on_device: true` cannot be. Where it looks at images, DataError as their `get` does.
    """
    made_on = spec.views.made_on
    if spec.views.transform is not None:
        made_on = "cpu"
    elif made_on == "auto":
        made_on = "device" if device.type == "cuda" else "cpu"
    pixels = _decoded(spec, images)
    room = _room(spec, pixels, len(images), device, made_on)
    processes = loaders(spec, device, made_on, cores_of(spec) if cores is None else cores)
    view: View | DeviceView = RandomView(spec.views) if spec.views.transform is None else OwnView(spec.views)
    if room is not None:
        view = ResidentViews(spec.views, device, len(images), room)
    elif made_on == "device":
        view = BatchedViews(spec.views, device)
    stay = "" if room is None else f", of pixels that stay there ({_size(3 * room)})"
    decoding = f"decoded by {processes} processes" if processes else "decoded by a thread of the worker"
    tell(f"views: made on {device.type if made_on == 'device' else 'cpu'}{stay}; images are {decoding}")
    return ViewLoader(pixels, view, spec.views.size, processes=processes)


def cores_of(spec: Spec, beside: int = 1) -> int:
    """Cores of a worker: its CPUs by `resources.worker_cpus`, else its share of the machine's, for `beside` workers."""
    if spec.resources.worker_cpus:
        return max(1, int(spec.resources.worker_cpus))
    return max(1, cpus() // beside)


def loaders(spec: Spec, device: torch.device, made_on: str, cores: int) -> int:
    """Processes that decode, and make views where they are made on the CPU; see `data.loaders`."""
    if spec.data.loaders != "auto":
        return spec.data.loaders
    if spec.data.path in BUILT_IN:
        return 0  # nothing is decoded, and the code that makes views leaves the interpreter to others
    spare = cores - 1  # which has the GPU work
    if device.type == "cpu":  # the others compute
        spare = cores - spec.threads if spec.threads else cores // 4
    if made_on == "device":
        spare = -(-spare // 2)  # decoding is about half of the work, or less
    return max(0, min(spare, _MOST_LOADERS))


def _decoded(spec: Spec, images: Images) -> Pixels:
    """The images as `data.shrink` and `data.decoded_mib` have them."""
    data, shorter, file = spec.data, None, None
    if data.shrink:
        shorter = shorter_side(spec.views)
    if data.decoded_mib:
        file = DecodedFile.of(images.fingerprint, len(images), shorter, data.cache_dir, data.decoded_mib)
    return DecodedImages(images, file, shorter) if data.shrink or data.decoded_mib else images


class _Set(NamedTuple):
    """What a set takes, as far as a few of its images tell."""

    pixels: int
    """Of all images, by the mean."""
    most: int
    """Of all images, if each were as large as the largest."""
    longest: int
    """Side of an image, pixels."""


def _room(spec: Spec, pixels: Pixels, count: int, device: torch.device, made_on: str) -> int | None:
    """Pixels of the set for which to make room on the device; None where they do not stay there."""
    wanted = spec.data.on_device
    if wanted is False or (wanted == "auto" and (made_on == "cpu" or device.type != "cuda")):
        return None
    if made_on == "cpu":
        raise SpecError(
            f"data.on_device: true, but on {device} views are made where images are decoded; give "
            "views.made_on: device, or data.on_device: auto"
        )
    found, free = _looked_at(pixels, count), free_bytes(device)
    allowed = int(SHARES[wanted] * free) // 3
    if found.longest > LONGEST * spec.views.size:
        reason = f"has images of {found.longest} pixels, longer than {LONGEST} views, of which only crops go there"
    elif found.pixels > allowed:
        takes, share = f"takes {_size(3 * found.pixels)} ({count:,} images)", f"{SHARES[wanted]:g} of the {_size(free)}"
        reason = f"{takes}, more than {share} that are free on {device}"
    else:
        return min(found.most, allowed)
    if wanted == "auto":
        return None
    raise SpecError(
        f"data.on_device: true, but {spec.data.path} {reason}; give data.shrink: true, or data.on_device: auto"
    )


def _looked_at(pixels: Pixels, count: int) -> _Set:
    some = np.unique(np.linspace(0, count - 1, min(count, _LOOKED_AT)).astype(np.int64))
    shapes = np.array([image.shape[1:] for image in pixels.get(some)])
    sizes = shapes.prod(1)
    return _Set(round(count * sizes.mean()), count * int(sizes.max()), int(shapes.max()))


def free_bytes(device: torch.device) -> int:
    """Memory of the device that nobody has."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return psutil.virtual_memory().available


def _size(count: int) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 2**29 else f"{count / 2**20:,.1f} MiB"
