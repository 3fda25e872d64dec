"""Of what pixels the views of a spec are made, and where: beside the decoder, or by the batch on a device."""

import torch

from emc2dist.config import Spec
from emc2dist.data.decoded import DecodedFile, DecodedImages, shorter_side
from emc2dist.data.images import Images, Pixels
from emc2dist.data.loader import DeviceView, View, ViewLoader
from emc2dist.towers.batched import BatchedViews
from emc2dist.towers.views import RandomView


def view_loader(spec: Spec, images: Images, device: torch.device) -> ViewLoader:
    """The loader of the random views of `images`, for a worker on `device`, as `views.made_on` has it."""
    made_on = spec.views.made_on
    if made_on == "auto":
        made_on = "device" if device.type == "cuda" else "cpu"
    view: View | DeviceView = RandomView(spec.views)
    if made_on == "device":
        view = BatchedViews(spec.views, device)
    return ViewLoader(_decoded(spec, images), view, spec.views.size, processes=spec.data.loaders)


def _decoded(spec: Spec, images: Images) -> Pixels:
    """The images as `data.shrink` and `data.decoded_mib` have them."""
    data, shorter, file = spec.data, None, None
    if data.shrink:
        shorter = shorter_side(spec.views)
    if data.decoded_mib:
        file = DecodedFile.of(images.fingerprint, len(images), shorter, data.cache_dir, data.decoded_mib)
    return DecodedImages(images, file, shorter) if data.shrink or data.decoded_mib else images
