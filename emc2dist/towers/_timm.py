"""The one place that imports timm, which is installed apart: `pip install 'emc2dist[timm]'`."""

import difflib
from typing import Any, NamedTuple

import torch
from torch import nn

from emc2dist.config.backbones import TIMM
from emc2dist.errors import SpecError
from emc2dist.terminal import brief

_NEAREST = 3


class Published(NamedTuple):
    """What timm knows of a model's published weights."""

    heads: tuple[str, ...]
    """Names of the layers that `num_classes=0` leaves out."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """What RGB from 0 to 1 is normalised by."""
    has_fixed_size: bool
    """Whether the model is built for images of one size."""


def published(name: str) -> Published:
    """What timm knows of a model, which it has. Raises SpecError where timm is not installed."""
    timm = _timm()
    known = timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
    heads = known.classifier or ()
    return Published(
        (heads,) if isinstance(heads, str) else tuple(heads), known.mean, known.std, bool(known.fixed_input_size)
    )


def build(name: str, size: int) -> tuple[nn.Module, int]:
    """timm's model of a name, without its head and its dropout, for images of `size` pixels; and its width.

    Weights are random. A model of images of a fixed size is built for `size`.

    Raises:
        SpecError: timm is not installed or has no such model, or the model takes no such images.
    """
    timm = _timm()
    if not timm.is_model(name):
        nearest = ", ".join(difflib.get_close_matches(name, timm.list_models(), n=_NEAREST, cutoff=0.0))
        raise SpecError(f"encoder.backbone: {TIMM}{name}: timm has no model of this name; the nearest are {nearest}")
    fixed = {"img_size": size} if published(name).has_fixed_size else {}
    try:
        model = timm.create_model(name, pretrained=False, num_classes=0, drop_rate=0.0, **fixed)
        was_training = model.training
        with torch.no_grad():
            width = model.eval()(torch.zeros(1, 3, size, size)).shape[1:]
    except Exception as error:  # each model has errors of its own
        raise SpecError(
            f"encoder.backbone: {TIMM}{name}: takes no images of views.size: {size} ({type(error).__name__}: "
            f"{brief(error)}); give the size that it was made for"
        ) from error
    if len(width) != 1:
        raise SpecError(f"encoder.backbone: {TIMM}{name}: gives {list(width)} of an image, and no vector; take another")
    return model.train(was_training), int(width[0])


def synchronised(model: nn.Module) -> nn.Module:
    """The model with SyncBatchNorm, its activations within kept, for every BatchNorm."""
    return _timm().layers.convert_sync_batchnorm(model)


def _timm() -> Any:
    """The library; torchvision first, which it imports and which not every machine can import by itself."""
    from emc2dist.towers import _torchvision  # noqa: F401

    try:
        import timm
    except ModuleNotFoundError:
        raise SpecError("encoder.backbone: timm is not installed; pip install 'emc2dist[timm]'") from None
    return timm
