"""Weights that an encoder begins with (`encoder.weights`): a file of a backbone, or another run's encoder.

    FILE.safetensors    a backbone, as `emc2dist export` writes it, or as torchvision or timm publish it: its head,
                        which has no place here, is passed over
    RUN                 the newest checkpoint of a run, or a checkpoint's folder: the backbone, and the projector where
                        it is alike

The backbone has to fit as a whole: each of its tensors is taken from there, and none is left there but the head's.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from emc2dist import files
from emc2dist.config import Spec
from emc2dist.errors import SpecError
from emc2dist.files import Place
from emc2dist.towers.encoder import Tower
from emc2dist.towers.images import versioned
from emc2dist.train.checkpoint import TRAINER

LARGEST = 2**36
"""Bytes of a file of weights."""
_PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".tar")
_CHECKPOINT = re.compile(r"checkpoint-\d+")
_OLD_NAMES = (  # of torchvision's published DenseNets and ViTs; its models rename them as they load
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)
_COUNT = "num_batches_tracked"  # older files have none, and nothing here reads it
_TOLD = 3


class Taken(NamedTuple):
    """What an encoder began with."""

    sha256: str
    """Of the file, hexadecimal."""
    remarks: list[str]
    """What was taken, and what was left."""


def load_weights(tower: Tower, spec: Spec) -> Taken:
    """Have a tower begin with what `encoder.weights` names; nothing where it names nothing.

    Raises:
        SpecError: there is nothing, or nothing that fits. StorageError: it cannot be read.
    """
    path = spec.encoder.weights
    if path is None:
        return Taken("", [])
    file = file_of(files.at(path, spec.s3))
    found, sha256 = _read(file)
    where = f"encoder.weights: {file}"
    if file.name != TRAINER:
        heads = tuple(f"{head}." for head in getattr(tower, "heads", ()))
        return Taken(sha256, [_fit(where, tower.backbone, found, spec, heads)])
    parts = {part: _of_part(found, f"encoder/{part}.") for part in ("backbone", "projector", "learnt")}
    remark = _fit(where, tower.backbone, parts["backbone"], spec, ())
    own = tower.projector.state_dict()
    if parts["projector"] and _shapes(own) == _shapes(parts["projector"]):
        tower.projector.load_state_dict(parts["projector"])
        remark += f", and {len(own)} of the projector"
    elif parts["projector"]:
        remark += f"; its projector, {len(parts['projector'])} tensors, is another, and was left"
    if parts["learnt"]:
        remark += f"; {len(parts['learnt'])} tensors that its objective learnt were left"
    return Taken(sha256, [remark])


def file_of(place: Place) -> Place:
    """The file of weights at a place: itself, or what the newest checkpoint there holds.

    Raises:
        SpecError: there is none, or one that can run code as it is read.
    """
    suffix = PurePath(place.name).suffix
    if suffix in _PICKLES and not place.folders():
        raise SpecError(
            f"encoder.weights: {place}: {suffix} is a pickle, which can run code as it is read; convert it:\n"
            "    import torch, safetensors.torch\n"
            f"    safetensors.torch.save_file(torch.load({place.name!r}, weights_only=True), "
            f"{PurePath(place.name).with_suffix('.safetensors').name!r})"
        )
    if place.entry() is not None:
        return place
    if (place / TRAINER).entry() is not None:
        return place / TRAINER
    for name in sorted(filter(_CHECKPOINT.fullmatch, place.folders()), key=_number, reverse=True):
        if (place / name / TRAINER).entry() is not None:
            return place / name / TRAINER
    raise SpecError(
        f"encoder.weights: {place}: is no file and holds no checkpoint; give a .safetensors file or a run folder"
    )


def fingerprint(place: Place) -> str:
    """SHA-256 of the file of weights at a place, hexadecimal. Raises as `file_of` does."""
    return _read(file_of(place))[1]


def _number(name: str) -> int:
    return int(name.rpartition("-")[2])


def _read(file: Place) -> tuple[dict[str, Tensor], str]:
    entry = file.entry()
    if entry is not None and entry.size > LARGEST:
        raise SpecError(f"encoder.weights: {file}: more than {LARGEST / 2**30:.0f} GiB; give those of an encoder")
    data = file.read()
    try:
        return load(data), hashlib.sha256(data).hexdigest()
    except SafetensorError as error:
        raise SpecError(
            f"encoder.weights: {file}: is no safetensors file, or a damaged one ({error}); give a .safetensors file "
            "or a run folder"
        ) from None


def _of_part(found: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _fit(where: str, backbone: nn.Module, found: Mapping[str, Tensor], spec: Spec, heads: tuple[str, ...]) -> str:
    """Have the backbone take what was found; a remark on that. Raises SpecError where it does not fit."""
    own, given = backbone.state_dict(), {_renamed(name): tensor for name, tensor in found.items()}
    head = sorted(name for name in given if name.startswith(heads) and name not in own) if heads else []
    given = {name: tensor for name, tensor in given.items() if name not in head}
    uncounted = [name for name in own if name.endswith(_COUNT) and name not in given]
    given |= {name: own[name] for name in uncounted}
    wrong = [
        _some("of its tensors have no place here", sorted(given.keys() - own.keys())),
        _some("of the backbone's are not in it", sorted(own.keys() - given.keys())),
        _some(
            "have another shape",
            [
                f"{name} {list(given[name].shape)}, and here {list(own[name].shape)}"
                for name in own
                if name in given and given[name].shape != own[name].shape
            ],
        ),
    ]
    if any(wrong):
        encoder = spec.encoder
        built = f"{encoder.backbone} of encoder.stem: {encoder.stem}, encoder.norm: {encoder.norm}"
        sized = "" if spec.of_texts else f" and views.size: {spec.views.size}"
        raise SpecError(
            f"{where}: does not fit {built}{sized}: {'; '.join(filter(None, wrong))}; give what the weights were "
            "trained with"
        )
    backbone.load_state_dict(versioned(given, backbone))
    remark = f"{where}: all {len(own)} tensors of the backbone were taken"
    if uncounted:
        remark = f"{where}: {len(own) - len(uncounted)} of the backbone's {len(own)} tensors were taken, all but counts"
    kinds = sorted({str(t.dtype).removeprefix("torch.") for name, t in given.items() if t.dtype != own[name].dtype})
    remark += f", {' and '.join(kinds)} converted" if kinds else ""
    return remark + (f"; {_some('of its head were left', head)}" if head else "")


def _renamed(name: str) -> str:
    for old, new in _OLD_NAMES:
        name = old.sub(new, name)
    return name


def _some(what: str, names: list[str]) -> str:
    """How many, and some of them; empty where there are none."""
    more = ", ..." if len(names) > _TOLD else ""
    return f"{len(names)} {what} ({', '.join(names[:_TOLD])}{more})" if names else ""
