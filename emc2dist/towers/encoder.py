"""The encoder: images in, unit-norm features out; or texts (`emc2dist.towers.text`).

    uint8 [n, 3, H, W] -> normalise -> backbone -> representation [n, R] -> projector -> feature [n, D], |feature| = 1
    int32 [n, L] ---------------------> backbone ...

Backbones of images, and what the policies of their normalisation are, are in `emc2dist.towers.images`.
Images with captions have a tower each, `TwoTowers`, whose features are of one width.
"""

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
from emc2dist.towers.images import NATIVE_SIZE, image_backbone


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

    @property
    @abstractmethod
    def described(self) -> "Tower":
        """The tower that the keys of `encoder` are of: that of images, where there are two."""

    @abstractmethod
    def representation(self, views: Tensor) -> Tensor:
        """Backbone output [n, R] of views [n, ...]; what kNN and the linear probe use."""

    @abstractmethod
    def forward(self, views: Tensor) -> Tensor:
        """Unit-norm features [n, D] of views [n, ...]; float32 or wider, also under autocast."""


class Tower(Encoder):
    """Backbone and projector, as `emc2dist.config.Encoder` describes them. `width` is R, `features` is D."""

    still: list[nn.Module]
    """Layers that stay in evaluation mode, as frozen BatchNorms do (`emc2dist.towers.stages.freeze`)."""

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
        self.still = []

    @override
    def train(self, mode: bool = True) -> "Tower":
        """Set the mode, but of layers that stay in evaluation mode."""
        super().train(mode)
        for layer in self.still:
            layer.eval()
        return self

    @property
    @override
    def described(self) -> "Tower":
        return self

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

    heads: tuple[str, ...]
    """Names of what its library's own model has beside, as in `emc2dist.towers.images.Built`."""
    remarks: Sequence[str]
    """What a person should know of how the backbone was built."""

    def __init__(self, config: EncoderConfig, size: int = NATIVE_SIZE) -> None:
        """Begin; raises SpecError where the backbone cannot be built for images of `size` pixels."""
        built = image_backbone(config, size)
        super().__init__(built.backbone, built.width, config)
        self.heads, self.remarks = built.heads, built.remarks
        for name, value in (("mean", built.mean), ("std", built.std)):  # in units of a pixel value
            pixels = torch.tensor([255 * channel for channel in value])
            self.register_buffer(name, pixels.view(1, 3, 1, 1), persistent=False)

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

    def __init__(self, config: EncoderConfig, text: Text, size: int, described: str | None = None) -> None:
        """Begin; images are of `size` pixels, `described` and what is raised as of `TextEncoder`, with `text.tower` in
        the backbone's stead.
        """
        super().__init__()
        self.image, self.features = ImageEncoder(config, size), config.features
        self.text = TextEncoder(config.model_copy(update={"backbone": text.tower}), text, described)

    @property
    @override
    def described(self) -> Tower:
        return self.image

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


# nn.Identity accepts, and ignores, the number of channels.
_NORM_1D: dict[Norm, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm1d,
    "sync_batch": nn.SyncBatchNorm,
    "group": nn.LayerNorm,
    "none": nn.Identity,
    "own": nn.LayerNorm,
}


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


def _projector(width: int, config: EncoderConfig) -> nn.Module:
    if config.hidden == 0:
        return nn.Linear(width, config.features)
    return nn.Sequential(
        nn.Linear(width, config.hidden),
        _NORM_1D[config.norm](config.hidden),
        nn.ReLU(inplace=True),
        nn.Linear(config.hidden, config.features),
    )
