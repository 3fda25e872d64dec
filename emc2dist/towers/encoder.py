"""The encoder: images in, unit-norm features out; or texts (`emc2dist.towers.text`).

    uint8 [n, 3, H, W] -> normalise -> backbone -> representation [n, R] -> projector -> feature [n, D], |feature| = 1
    int32 [n, L] ---------------------> backbone ...

Images with captions have a tower each, `TwoTowers`, whose features are of one width.

An image's backbone is a torchvision ResNet whose `fc` is taken off, or the small `Conv4`. Its normalisation layers
follow one policy:

    batch       BatchNorm2d: a sample's feature depends on the others of its worker's batch
    sync_batch  SyncBatchNorm: on those of all workers' batches
    group       GroupNorm, 32 groups: on its own image alone
    none        no normalisation; on its own image alone

Chains carry features between batches, so `group` and `none` are the policies under which a feature has one meaning.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

from emc2dist.config import Encoder as EncoderConfig
from emc2dist.config import Norm, Text
from emc2dist.config.sections import TRANSFORMERS, Precision
from emc2dist.core import kernels
from emc2dist.errors import SpecError
from emc2dist.towers.norms import GroupNorm

# ImageNet's, in units of a pixel value.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


class Encoder(nn.Module, ABC):
    """What makes features of views.

    Follows the dtype of its parameters: after `.double()` features are float64.
    """

    features: int
    """D."""
    learnt: nn.Module | None
    """What the objective learns with it, which only that reads; None: nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.learnt = None

    @abstractmethod
    def representation(self, views: Tensor) -> Tensor:
        """Backbone output [n, R] of views [n, ...]; what kNN and the linear probe use."""

    @abstractmethod
    def forward(self, views: Tensor) -> Tensor:
        """Unit-norm features [n, D] of views [n, ...]; float32 or wider, also under autocast."""


class Tower(Encoder):
    """Backbone and projector, as `emc2dist.config.Encoder` describes them. `width` is R, `features` is D."""

    def __init__(self, backbone: nn.Module, width: int, config: EncoderConfig) -> None:
        """Begin; `width` is the backbone's. Raises SpecError where there is no projector and `features` is another."""
        super().__init__()
        if not config.projector and width != config.features:
            raise SpecError(
                f"encoder.features: {config.features}, but without a projector a feature is the representation, which "
                f"is {width} wide; give encoder.features={width}"
            )
        self.backbone, self.width, self.features = backbone, width, config.features
        self.projector = _projector(width, config) if config.projector else nn.Identity()

    @override
    def forward(self, views: Tensor) -> Tensor:
        return self.feature(self.representation(views))

    def feature(self, representation: Tensor) -> Tensor:
        """Unit-norm features [n, D] of representations [n, R]."""
        projected = self.projector(representation)
        # A bf16 vector has unit norm only to two digits, and scores are divided by a small temperature.
        return functional.normalize(projected.to(torch.promote_types(projected.dtype, torch.float32)), dim=1)


def layout(config: EncoderConfig, precision: Precision, device: torch.device) -> torch.memory_format:
    """The order in memory in which the encoder is fastest on the device.

    With channels last a GPU's convolutions need no copies. So do our kernels of group norm for bf16, but torch's takes
    more than twice as long (docs/performance.md).
    """
    if device.type == "cpu":
        return torch.contiguous_format
    by_torch = config.norm == "group" and not (precision == "bf16" and kernels.run_there(device))
    return torch.contiguous_format if by_torch else torch.channels_last


class ImageEncoder(Tower):
    """The encoder of images uint8 [n, 3, H, W]."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(*_backbone(config), config)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    @override
    def representation(self, views: Tensor) -> Tensor:
        if views.dtype != torch.uint8:
            raise TypeError(f"images are {views.dtype}; the encoder takes uint8 and normalises them itself")
        return self.backbone((views - self.mean) / self.std)


class TextEncoder(Tower):
    """The encoder of texts, tokens int32 [n, L] of 0 for padding and t for the tokenizer's token t - 1."""

    remarks: Sequence[str]
    """What a person should know of how its weights were read."""

    def __init__(self, config: EncoderConfig, text: Text, described: str | None = None) -> None:
        """Begin; a model of transformers with the weights of its folder, or of its config.json `described` without any.

        Raises SpecError where transformers cannot do that (`emc2dist.towers.text`).
        """
        backbone = _text_backbone(config.backbone, text, described)
        super().__init__(backbone, backbone.width, config)
        self.remarks = getattr(backbone, "remarks", ())

    @override
    def representation(self, views: Tensor) -> Tensor:
        return self.backbone(views)


class TwoTowers(Encoder):
    """The encoder of images and of their captions, which `text.tower` describes and `text`; what a view is tells whose.

    `config` is that of the images' tower; the captions' has a projector like its, of its own.
    """

    def __init__(self, config: EncoderConfig, text: Text, described: str | None = None) -> None:
        """Begin; `described` and what is raised as of `TextEncoder`, with `text.tower` in the backbone's stead."""
        super().__init__()
        self.image, self.features = ImageEncoder(config), config.features
        self.text = TextEncoder(config.model_copy(update={"backbone": text.tower}), text, described)

    @override
    def representation(self, views: Tensor) -> Tensor:
        return self._tower(views).representation(views)

    @override
    def forward(self, views: Tensor) -> Tensor:
        return self._tower(views)(views)

    def _tower(self, views: Tensor) -> Tower:
        return self.image if views.dtype == torch.uint8 else self.text


@contextmanager
def running_statistics(encoder: nn.Module) -> Iterator[None]:
    """Inside, batch-norm layers use and keep their running statistics; afterwards each is as it was.

    Other layers are left alone, so this changes nothing under the norms `group` and `none`.
    """
    layers = [m for m in encoder.modules() if isinstance(m, _BatchNorm) and m.training]
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.train()


def backbone_state_dict(encoder: Tower) -> dict[str, Tensor]:
    """The backbone's tensors, under torchvision's own key names and without `fc`; of a `Conv4`, under its own.

    With the `imagenet` stem and norm `batch` a ResNet's load into `torchvision.models` with `strict=False`.
    """
    return dict(encoder.backbone.state_dict())


def not_torchvisions(config: EncoderConfig) -> list[str]:
    """How torchvision's own model has to be built for an exported backbone to give there what it gives here.

    Keys alone do not tell: a BatchNorm takes the weights of a GroupNorm.
    """
    if config.backbone == "conv4":
        norm = config.norm
        return [
            f"encoder.backbone: conv4 is none of torchvision's; build emc2dist.towers.encoder.Conv4({norm!r}) for it"
        ]
    model = f"torchvision.models.{config.backbone}"
    layers = {"group": "lambda channels: torch.nn.GroupNorm(32, channels)", "none": "torch.nn.Identity"}
    remarks = []
    if config.norm in layers:
        build = f"{model}(norm_layer={layers[config.norm]})"
        remarks.append(f"encoder.norm: {config.norm} is not torchvision's BatchNorm; build the model as {build}")
    if config.stem == "cifar":
        remarks.append(
            f"encoder.stem: cifar is not {model}'s; set its conv1 to torch.nn.Conv2d(3, 64, 3, padding=1, bias=False), "
            "its maxpool to torch.nn.Identity()"
        )
    return remarks


def _group_norm(channels: int) -> nn.Module:
    """GroupNorm of 32 groups, or of the most that divide the channels."""
    groups = next(g for g in range(min(32, channels), 0, -1) if channels % g == 0)
    return GroupNorm(groups, channels)


# nn.Identity accepts, and ignores, the number of channels.
_NORM_2D: dict[Norm, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "sync_batch": nn.SyncBatchNorm,
    "group": _group_norm,
    "none": nn.Identity,
}
_NORM_1D: dict[Norm, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm1d,
    "sync_batch": nn.SyncBatchNorm,
    "group": nn.LayerNorm,
    "none": nn.Identity,
}


class Conv4(nn.Module):
    """A tower of four convolutions, 0.39 million parameters, for drawings and other small images.

        float [n, 3, H, W] -> 4 x (convolution 3x3, norm, ReLU, max-pool 2x2) -> mean over what is left -> [n, 256]

    Convolutions have a bias where `norm` is `none`. Pooling rounds an odd side up, so H and W may be small.
    """

    WIDTHS = (32, 64, 128, 256)

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        blocks = []
        for before, width in zip((3, *self.WIDTHS), self.WIDTHS, strict=False):
            convolution = nn.Conv2d(before, width, kernel_size=3, padding=1, bias=norm == "none")
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            pool = nn.MaxPool2d(2, ceil_mode=True)
            blocks.append(nn.Sequential(convolution, _NORM_2D[norm](width), nn.ReLU(inplace=True), pool))
        self.blocks = nn.Sequential(*blocks)

    def forward(self, images: Tensor) -> Tensor:
        """Representations [n, 256] of normalised images [n, 3, H, W]."""
        return self.blocks(images).mean(dim=(2, 3))


def _text_backbone(name: str, text: Text, described: str | None) -> Any:
    """A backbone of texts, which knows its `width`."""
    from emc2dist.towers import text as towers

    if described is not None:
        return towers.described(described, text.pooling)
    length = max(text.query_length, text.document_length)
    if name.startswith(TRANSFORMERS):
        return towers.pretrained(name.removeprefix(TRANSFORMERS), text.pooling, length)
    assert text.vocabulary is not None, "the set says it when a run begins"
    if name == "bag":
        return towers.Bag(text.vocabulary, text.width)
    return towers.Mini(text.vocabulary, text.width, text.layers, text.heads, length, text.pooling)


def _backbone(config: EncoderConfig) -> tuple[nn.Module, int]:
    """The backbone without a head, and the width of its representation."""
    return (Conv4(config.norm), Conv4.WIDTHS[-1]) if config.backbone == "conv4" else _resnet(config)


def _resnet(config: EncoderConfig) -> tuple[nn.Module, int]:
    from emc2dist.towers._torchvision import models

    backbone = models.get_model(config.backbone, weights=None, norm_layer=_NORM_2D[config.norm])
    width = backbone.fc.in_features
    backbone.fc = nn.Identity()
    if config.stem == "cifar":
        backbone.conv1 = nn.Conv2d(3, backbone.conv1.out_channels, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")
        backbone.maxpool = nn.Identity()
    if config.norm == "none":
        _shrink_residuals(backbone)
    return backbone, width


def _shrink_residuals(backbone: nn.Module) -> None:
    """Divide the last convolution of each of L residual blocks by sqrt(L).

    Without normalisation every block multiplies the variance of the activations, so that it grows exponentially with
    the depth; with this scale it grows by a constant (Hayou et al. 2021, "Stable ResNet"; after Zhang, Dauphin & Ma
    2019, "Fixup"). Not zero, as Fixup has it: LARS's steps are relative to |w| and would hardly leave zero.
    """
    from emc2dist.towers._torchvision import models

    blocks = [m for m in backbone.modules() if isinstance(m, models.resnet.BasicBlock | models.resnet.Bottleneck)]
    for block in blocks:
        last = [m for name, m in block.named_children() if name.startswith("conv")][-1]
        with torch.no_grad():
            last.weight.div_(math.sqrt(len(blocks)))


def _projector(width: int, config: EncoderConfig) -> nn.Module:
    if config.hidden == 0:
        return nn.Linear(width, config.features)
    return nn.Sequential(
        nn.Linear(width, config.hidden),
        _NORM_1D[config.norm](config.hidden),
        nn.ReLU(inplace=True),
        nn.Linear(config.hidden, config.features),
    )
