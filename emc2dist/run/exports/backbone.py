"""The backbone of images as safetensors, without head and projector, for torchvision's or timm's own model.

Keys are that library's; those of conv4 are of `emc2dist.towers.images.Conv4`. What a model has to be like to give the
same representations is said where it is not the library's own; what images have to be like stands in the file's
metadata: `mean` and `std` of RGB from 0 to 1, `size` as trained on.
"""

import json
from typing import Any

from safetensors.torch import save
from torch import Tensor

from emc2dist.config.backbones import TIMM
from emc2dist.files import Place
from emc2dist.run.loaded import LoadedCheckpoint
from emc2dist.terminal import say
from emc2dist.towers.encoder import ImageEncoder
from emc2dist.towers.images import backbone_state_dict, not_its_own

_USE = (
    "images for it: RGB from 0 to 1, less `mean`, by `std` (README.md, The encoder elsewhere); neither projector nor "
    "head is in it: model.set_submodule(head, torch.nn.Identity()) before it is loaded, `head` as in its metadata, or "
    "load with strict=False"
)


def write(newest: LoadedCheckpoint, place: Place) -> dict[str, Any]:
    """Write it to a file; returns what the metadata tell, and remarks, which were said."""
    told, remarks = described(newest), not_its_own(newest.spec.encoder, newest.spec.views.size)
    place.write(serialised(newest, told))
    for remark in remarks:
        say(remark)
    say(_USE)
    return told | {"remarks": remarks}


def described(newest: LoadedCheckpoint) -> dict[str, Any]:
    """What a backbone of images is built of, and what images it takes."""
    spec, tower = newest.spec, newest.tower("image")
    assert isinstance(tower, ImageEncoder)
    # Nothing where the library leaves the head out itself, or has none.
    head = "" if spec.encoder.backbone.startswith(TIMM) else next(iter(tower.heads), "")
    return {
        "backbone": spec.encoder.backbone,
        "head": head,
        "stem": spec.encoder.stem,
        "norm": spec.encoder.norm,
        "width": tower.width,
        "size": spec.views.size,
        "mean": _from_0_to_1(tower.mean),
        "std": _from_0_to_1(tower.std),
    }


def serialised(newest: LoadedCheckpoint, told: dict[str, Any]) -> bytes:
    """The backbone's tensors as safetensors, with such metadata."""
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in told.items()}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in backbone_state_dict(newest.tower("image")).items()}
    return save(tensors, metadata)


def _from_0_to_1(pixels: Tensor) -> list[float]:
    return [round(value / 255, 6) for value in pixels.flatten().tolist()]
