"""The backbones of images: normalised float [n, 3, H, W] in, representation [n, R] out.

    conv4        `Conv4`, four convolutions
    NAME         a classification model of torchvision whose head is taken off
    timm:NAME    the same of timm (`emc2dist.towers._timm`)

BatchNorms are replaced by one policy, wherever they stand:

    batch       BatchNorm: a sample's feature depends on the others of its worker's batch
    sync_batch  SyncBatchNorm: on those of all workers' batches
    group       GroupNorm, 32 groups: on its own image alone
    none        no normalisation; on its own image alone; of ResNets and `Conv4`
    own         there are none: on its own image alone

Chains carry features between batches, so `group`, `none` and `own` are the policies under which a feature has one
meaning. For the same reason dropout and stochastic depth are off: a view has one feature, in training too.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from typing_extensions import override

from emc2dist.config import Encoder, Norm
from emc2dist.config.backbones import CONV4, RESNETS, TIMM
from emc2dist.errors import SpecError
from emc2dist.towers.norms import GroupNorm

NATIVE_SIZE = 224
"""Side of the images, pixels, that torchvision's models are built for unless they are told another."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of RGB from 0 to 1: ImageNet's, which torchvision's models see images by."""
_GROUPS = 32
_AUXILIARY = ("aux1", "aux2", "AuxLogits")
"""Of GoogLeNet and Inception v3: heads for training, which published weights have and models here do not."""


class Built(NamedTuple):
    """A backbone, and what is known of it."""

    backbone: nn.Module
    width: int
    """R."""
    heads: tuple[str, ...] = ()
    """Names of what the library's own model has beside: the layer that was taken off first, then heads for training."""
    remarks: tuple[str, ...] = ()
    """What a person should know of how it was built."""
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    """What RGB from 0 to 1 is normalised by, as the library's published weights want it."""


def image_backbone(config: Encoder, size: int) -> Built:
    """The backbone of a spec, weights random, for images of `size` pixels.

    Raises:
        SpecError: timm is not installed, has no such model or cannot build it so; or the norm is none that it can have.
    """
    if config.backbone == CONV4:
        return Built(Conv4(config.norm), Conv4.WIDTHS[-1])
    if config.backbone.startswith(TIMM):
        return _of_timm(config, size)
    return _of_torchvision(config, size)


def backbone_state_dict(encoder: Any) -> dict[str, Tensor]:
    """An encoder's backbone's tensors, under torchvision's or timm's own key names and without the head.

    Of a `Conv4`, under its own. With the norm `batch` they load into the model as its library builds it (but see
    `not_its_own`) with `strict=False`.
    """
    return dict(encoder.backbone.state_dict())


def not_its_own(config: Encoder, size: int) -> list[str]:
    """How its library's own model has to be built for an exported backbone to give there what it gives here.

    Keys alone do not tell: a BatchNorm takes the weights of a GroupNorm.
    """
    name, norm = config.backbone, config.norm
    if name == CONV4:
        return [
            f"encoder.backbone: conv4 is none of torchvision's; build emc2dist.towers.images.Conv4({norm!r}) for it"
        ]
    build = _build(name, size)
    remarks = [f"encoder.backbone: {name}: build the model as {build}"] if build else []
    layers = {"group": "lambda channels: torch.nn.GroupNorm(32, channels)", "none": "torch.nn.Identity"}
    if norm in layers and name in RESNETS:
        build = f"torchvision.models.{name}(norm_layer={layers[norm]})"
        remarks.append(f"encoder.norm: {norm} is not torchvision's BatchNorm; build the model as {build}")
    elif norm in layers:
        remarks.append(
            f"encoder.norm: {norm} is not the model's BatchNorm; have it replaced, once it is built, by "
            f"emc2dist.towers.images.with_norm(model, {norm!r})"
        )
    if name.startswith("mnasnet"):
        remarks.append(
            f"encoder.backbone: {name}: takes only a state dict that knows its version, which safetensors keep not; "
            "put the weights into a collections.OrderedDict and set its _metadata to model.state_dict()._metadata"
        )
    if config.stem == "cifar":
        remarks.append(
            f"encoder.stem: cifar is not torchvision.models.{name}'s; set its conv1 to torch.nn.Conv2d(3, 64, 3, "
            "padding=1, bias=False), its maxpool to torch.nn.Identity()"
        )
    return remarks


def _build(name: str, size: int) -> str:
    """How the library builds the model, in Python; empty where its name alone does."""
    if name.startswith(TIMM):
        from emc2dist.towers import _timm

        called = name.removeprefix(TIMM)
        fixed = f", img_size={size}" if _timm.published(called).has_fixed_size else ""
        return f"timm.create_model({called!r}, num_classes=0{fixed})"
    options = ", ".join(f"{key}={value!r}" for key, value in _options(name, size).items())
    return f"torchvision.models.{name}({options})" if options else ""


def versioned(tensors: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """A state dict that says of itself what the model's own does, which no safetensors file keeps.

    torchvision's MNASNets take no other.
    """
    told: Any = OrderedDict(tensors)
    told._metadata = getattr(model.state_dict(), "_metadata", None)
    return told


def with_norm(model: nn.Module, norm: Norm) -> nn.Module:
    """The model with its BatchNorms replaced by a policy's layers; it is not to be used any more itself.

    What timm's layers do beside normalising, they do still.

    Raises:
        SpecError: it has none, and the policy is not `own`; or it has some, and it is.
    """
    found = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)]
    if bool(found) == (norm == "own"):
        has, give = ("BatchNorm", "group, batch or sync_batch") if found else ("no BatchNorm", "own")
        raise SpecError(f"encoder.norm: {norm}, but {type(model).__name__} has {has}; give {give}")
    if norm == "sync_batch":
        return _synchronised(model, any(hasattr(layer, "act") for _, layer in found))
    if norm != "batch":
        for name, layer in found:
            model.set_submodule(name, nn.Identity() if norm == "none" else _in_its_stead(layer))
    return model


def _synchronised(model: nn.Module, of_timm: bool) -> nn.Module:
    if of_timm:
        from emc2dist.towers import _timm

        return _timm.synchronised(model)
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


class _GroupNormAct(GroupNorm):
    """What a BatchNorm of timm's that acts as well becomes."""

    def __init__(self, groups: int, layer: Any) -> None:
        super().__init__(groups, layer.num_features, layer.eps)
        self.drop, self.act = layer.drop, layer.act

    @override
    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))


def _group_norm(channels: int) -> nn.Module:
    """GroupNorm of 32 groups, or of the most that divide the channels."""
    return GroupNorm(_most_groups(channels, least=1), channels)


def _in_its_stead(layer: Any) -> nn.Module:
    """GroupNorm for a BatchNorm: of two channels a group at least, for one alone at a 1x1 place would come out as 0."""
    groups = _most_groups(layer.num_features, least=2)
    return _GroupNormAct(groups, layer) if hasattr(layer, "act") else GroupNorm(groups, layer.num_features, layer.eps)


def _most_groups(channels: int, least: int) -> int:
    """The most groups, up to 32, of as many channels each, `least` of them or more."""
    return next((g for g in range(min(_GROUPS, channels // least), 0, -1) if channels % g == 0), 1)


# nn.Identity accepts, and ignores, the number of channels.
_NORM: dict[Norm, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "sync_batch": nn.SyncBatchNorm,
    "group": _group_norm,
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
            blocks.append(nn.Sequential(convolution, _NORM[norm](width), nn.ReLU(inplace=True), pool))
        self.blocks = nn.Sequential(*blocks)

    def forward(self, images: Tensor) -> Tensor:
        """Representations [n, 256] of normalised images [n, 3, H, W]."""
        return self.blocks(images).mean(dim=(2, 3))


def _of_timm(config: Encoder, size: int) -> Built:
    from emc2dist.towers import _timm

    name = config.backbone.removeprefix(TIMM)
    model, width = _timm.build(name, size)
    try:
        model = with_norm(model, config.norm)
    except SpecError as error:
        raise SpecError(f"{error} (encoder.backbone: {config.backbone})") from None
    known = _timm.published(name)
    return Built(model, width, known.heads, _without_dropout(model, config.backbone), known.mean, known.std)


def _of_torchvision(config: Encoder, size: int) -> Built:
    from emc2dist.towers._torchvision import models

    model: Any = models.get_model(config.backbone, weights=None, **_options(config.backbone, size))
    head, width = _take_off_head(model)
    model = with_norm(model, config.norm)
    if config.stem == "cifar":
        model.conv1 = nn.Conv2d(3, model.conv1.out_channels, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    if config.norm == "none":
        _shrink_residuals(model)
    return Built(model, width, (head, *_AUXILIARY), _without_dropout(model, config.backbone))


def _options(name: str, size: int) -> dict[str, Any]:
    """What torchvision is told beside a model's name: the size where parameters depend on it.

    `transform_input` has weights that were published for pixels from -1 to 1 see them so.
    """
    if name.startswith("vit_"):
        return {} if size == NATIVE_SIZE else {"image_size": size}
    if name.startswith("maxvit_"):
        return {} if size == NATIVE_SIZE else {"input_size": (size, size)}
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "transform_input": True, "init_weights": True}
    return {}


def _take_off_head(model: nn.Module) -> tuple[str, int]:
    """Leave the last linear layer out, or the last convolution where there is none; its name, and what it took."""
    layers: list[tuple[str, Any]] = list(model.named_modules())
    linear = [(name, layer.in_features) for name, layer in layers if isinstance(layer, nn.Linear)]
    convolutions = [(name, layer.in_channels) for name, layer in layers if isinstance(layer, nn.Conv2d)]
    name, width = (linear or convolutions)[-1]
    model.set_submodule(name, nn.Identity())
    return name, width


def _without_dropout(model: nn.Module, name: str) -> tuple[str, ...]:
    """Sets every probability of dropping something to 0; says which were not."""
    rates = {"p": (_DropoutNd, *_of_class(model, "StochasticDepth")), "drop_prob": _of_class(model, "DropPath")}
    off = dict[str, float]()
    for layer in model.modules():
        for rate, kinds in rates.items():
            if isinstance(layer, kinds) and (before := getattr(layer, rate)):
                kind = type(layer).__name__
                off[kind] = max(off.get(kind, 0.0), before)
                setattr(layer, rate, 0.0)
    if not off:
        return ()
    told = ", ".join(f"{kind} of up to {rate:g}" for kind, rate in off.items())
    return (f"encoder.backbone: {name}: {told} is off, for a feature has to be a function of its image",)


def _of_class(model: nn.Module, name: str) -> tuple[type, ...]:
    """The types of the model's layers that are called so: torchvision's and timm's, which are not imported here."""
    return tuple({type(layer) for layer in model.modules() if type(layer).__name__ == name})


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
