"""The backbones of images by name, and what each takes; here, so that a spec is checked without torch.

conv4        four convolutions, `emc2dist.towers.images.Conv4`
NAME         any classification model of torchvision, its head taken off
timm:NAME    any model of the library timm, its head taken off; what it takes is seen when it is built
"""

import difflib
from collections.abc import Mapping
from typing import NamedTuple

TIMM = "timm:"
"""Begins the name of one of timm's models."""
CONV4 = "conv4"


class Family(NamedTuple):
    """Models of torchvision that are built alike."""

    title: str
    names: tuple[str, ...]
    has_batch_norm: bool
    """Whether there are BatchNorms, which `encoder.norm` replaces. Without, an image's feature depends on no other."""
    least: int = 1
    """Least side of an image, pixels."""
    multiple: int = 1
    """What the side has to be a multiple of: the model's parameters, or its windows, are of a fixed size."""


RESNETS = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d",
    "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2",
)  # fmt: skip
_VGGS = ("vgg11", "vgg13", "vgg16", "vgg19")
_REGNETS = ("400mf", "800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf")

FAMILIES = (
    Family("ResNet, ResNeXt, Wide ResNet", RESNETS, True),
    Family("AlexNet", ("alexnet",), False, least=63),
    Family("ConvNeXt", tuple(f"convnext_{size}" for size in ("tiny", "small", "base", "large")), False, least=32),
    Family("DenseNet", tuple(f"densenet{depth}" for depth in (121, 161, 169, 201)), True, least=29),
    Family(
        "EfficientNet",
        (*(f"efficientnet_b{scale}" for scale in range(8)), *(f"efficientnet_v2_{size}" for size in "sml")),
        True,
    ),
    Family("GoogLeNet", ("googlenet",), True, least=15),
    Family("Inception v3", ("inception_v3",), True, least=75),
    Family("MaxViT", ("maxvit_t",), True, least=224, multiple=224),
    Family("MNASNet", tuple(f"mnasnet{width}" for width in ("0_5", "0_75", "1_0", "1_3")), True),
    Family("MobileNet", ("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"), True),
    Family("RegNet", (*(f"regnet_{kind}_{size}" for kind in "xy" for size in _REGNETS), "regnet_y_128gf"), True),
    Family("ShuffleNet", tuple(f"shufflenet_v2_x{width}" for width in ("0_5", "1_0", "1_5", "2_0")), True),
    Family("SqueezeNet", ("squeezenet1_0", "squeezenet1_1"), False, least=21),
    Family("Swin", tuple(f"swin_{version}{size}" for version in ("", "v2_") for size in "tsb"), False),
    Family("VGG", _VGGS, False, least=32),
    Family("VGG with BatchNorm", tuple(f"{name}_bn" for name in _VGGS), True, least=32),
    Family("ViT, patches of 14", ("vit_h_14",), False, least=14, multiple=14),
    Family("ViT, patches of 16", ("vit_b_16", "vit_l_16"), False, least=16, multiple=16),
    Family("ViT, patches of 32", ("vit_b_32", "vit_l_32"), False, least=32, multiple=32),
)
_BY_NAME = {name: family for family in FAMILIES for name in family.names}

_NEAREST = 3


def is_image(backbone: str) -> bool:
    """Whether a backbone is one of images; of timm's models any name counts."""
    return backbone == CONV4 or backbone in _BY_NAME or backbone.startswith(TIMM)


def own_parts(backbone: object) -> Mapping[str, str]:
    """`stem` and `norm` where a spec leaves them out, of backbones that have parts of their own."""
    if not isinstance(backbone, str) or backbone == CONV4 or backbone in RESNETS or not is_image(backbone):
        return {}
    has_batch_norm = backbone in _BY_NAME and _BY_NAME[backbone].has_batch_norm
    return {"stem": "own", "norm": "group" if has_batch_norm else "own"}


def misfit(backbone: str, stem: str, norm: str) -> str | None:
    """Why a backbone of images cannot have such a stem or norm, the key named, and what to do; None: it can."""
    if backbone == CONV4 and stem != "cifar":
        return (
            f"encoder.stem: {stem} is no stem of conv4, which begins with a 3x3 convolution of stride 1: leave "
            "encoder.stem out, or give cifar"
        )
    is_resnet = backbone in RESNETS
    if is_resnet and stem == "own":
        return f"encoder.stem: own, but {backbone} has one of two; give cifar or imagenet"
    if not (is_resnet or backbone == CONV4) and stem != "own":
        return f"encoder.stem: {stem} is a stem of ResNets, and {backbone} has its own; give own, or leave it out"
    if backbone.startswith(TIMM):
        return _NONE.format(backbone=backbone) if norm == "none" else None
    if backbone != CONV4 and not _BY_NAME[backbone].has_batch_norm:
        if norm == "own":
            return None
        return (
            f"encoder.norm: {norm}, but {backbone} has no BatchNorm that it could replace, and a feature depends on "
            "its image alone already; give own, or leave it out"
        )
    if norm == "own":
        return (
            f"encoder.norm: own, but {backbone} has BatchNorm, which would couple the images of a batch unsaid; give "
            "group, or batch or sync_batch if that is meant"
        )
    if norm == "none" and not (is_resnet or backbone == CONV4):
        return _NONE.format(backbone=backbone)
    return None


_NONE = (
    "encoder.norm: none, but without normalisation the activations of {backbone} would grow or die out with its depth; "
    "give group, or take a ResNet, whose branches are scaled for it"
)


def size_misfit(backbone: str, size: int) -> str | None:
    """Why a backbone cannot take images of `size` pixels, and the nearest that it can; None: it can, or who knows."""
    family = _BY_NAME.get(backbone)
    if family is None or (size >= family.least and size % family.multiple == 0):
        return None
    nearest = max(family.least, round(size / family.multiple) * family.multiple)
    wanted = f"a multiple of {family.multiple}" if family.multiple > 1 else f"at least {family.least}"
    return f"views.size: {size}, but encoder.backbone: {backbone} takes {wanted}; give {nearest}"


def unknown(backbone: str, others: tuple[str, ...]) -> str:
    """What to say of a name that is none of these and none of `others`."""
    names = (CONV4, *_BY_NAME, *others)
    nearest = ", ".join(difflib.get_close_matches(backbone.lower(), names, n=_NEAREST, cutoff=0.0))
    return (
        f"encoder.backbone: {backbone!r} is neither conv4 nor a classification model of torchvision, and none of "
        f"texts; the nearest are {nearest}, and {TIMM}NAME takes timm's"
    )
