"""The one place that imports timm, which is installed apart: `pip install 'emc2dist[timm]'`."""

import difflib
from typing import Any

import torch
from torch import nn

from emc2dist.config.backbones import TIMM
from emc2dist.errors import SpecError
from emc2dist.terminal import brief

_NEAREST = 3


def build(name: str, size: int) -> tuple[nn.Module, int, tuple[str, ...]]:
    """timm's model of a name, without its head and its dropout, for images of `size` pixels; its width, and its heads.

    Weights are random. A model of images of a fixed size is built for `size`.

    Raises:
        SpecError: timm is not installed or has no such model, or the model takes no such images.
    """
    timm = _timm()
    if not timm.is_model(name):
        nearest = ", ".join(difflib.get_close_matches(name, timm.list_models(), n=_NEAREST, cutoff=0.0))
        raise SpecError(f"encoder.backbone: {TIMM}{name}: timm has no model of this name; the nearest are {nearest}")
    config = timm.get_pretrained_cfg(name)
    fixed = {"img_size": size} if config is not None and config.fixed_input_size else {}
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
    heads = () if config is None or config.classifier is None else config.classifier
    return model.train(was_training), int(width[0]), (heads,) if isinstance(heads, str) else tuple(heads)


def has_fixed_size(name: str) -> bool:
    """Whether a model is built for images of one size. Raises SpecError where timm is not installed."""
    config = _timm().get_pretrained_cfg(name)
    return config is not None and bool(config.fixed_input_size)


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
