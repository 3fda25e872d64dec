"""An encoder in stages, from its input to its output: what is frozen first, and what learns slowest.

    stage 0          what comes before the first numbered part: a stem, embeddings
    stages 1 ... S   the backbone's numbered parts, as it numbers them: a ResNet's `layer1` to `layer4`, a transformer's
                     blocks, a Sequential's members
    the top, S + 1   what follows them (a last norm), and the projector

A part counts if it is made of parts; where none is, as in VGG, each numbered layer is a stage.
"""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from emc2dist.errors import SpecError
from emc2dist.towers.encoder import Encoder, Tower


def stages_of(backbone: nn.Module) -> dict[str, int]:
    """The stage of each of the backbone's parameters, by name; the top for what follows the last numbered part."""
    parts = _parts(backbone)
    order = list(dict.fromkeys(part for part in parts.values() if part))
    last = max((place for place, part in enumerate(parts.values()) if part), default=-1)
    stages, stage = dict[str, int](), 0
    for place, (name, part) in enumerate(parts.items()):
        stage = order.index(part) + 1 if part else stage
        stages[name] = stage if place <= last else len(order) + 1
    return stages


def depths(encoder: Encoder) -> dict[str, int]:
    """The stage of each of the encoder's parameters, by name; the top is also what is beside the backbone."""
    backbone = encoder.described.backbone
    stages = {id(parameter): stages_of(backbone)[name] for name, parameter in backbone.named_parameters()}
    return {name: stages.get(id(one), count(backbone) + 1) for name, one in encoder.named_parameters()}


def count(backbone: nn.Module) -> int:
    """S, the numbered stages of a backbone."""
    return len(set(_parts(backbone).values()) - {""})


def freeze(tower: Tower, first: int | str | None) -> None:
    """Leave the backbone's first stages, or all of it (`backbone`), as they are from now on; None: nothing.

    Their BatchNorms keep to their running statistics, so that nothing frozen depends on a batch.

    Raises:
        SpecError: there are fewer stages.
    """
    if first is None:
        return
    stages = stages_of(tower.backbone)
    there = sorted({stage for stage in stages.values() if stage <= count(tower.backbone)})  # there may be no stem
    if isinstance(first, int) and first > len(there):
        raise SpecError(
            f"encoder.freeze: {first}, but the backbone has {len(there)} stages; give at most that, or backbone for all"
        )
    frozen = {name for name, stage in stages.items() if first == "backbone" or stage in there[: int(first)]}
    for name, parameter in tower.backbone.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    tower.still = [
        layer
        for layer in tower.backbone.modules()
        if isinstance(layer, _BatchNorm) and not any(parameter.requires_grad for parameter in layer.parameters())
    ]
    tower.train(tower.training)


def _parts(backbone: nn.Module) -> dict[str, str]:
    """The outermost numbered part that each parameter is in, by name; empty where it is in none."""
    names = [name for name, _ in backbone.named_parameters()]
    parts = {name: _part(backbone, name, of_parts=True) for name in names}
    return parts if any(parts.values()) else {name: _part(backbone, name, of_parts=False) for name in names}


def _part(backbone: nn.Module, name: str, *, of_parts: bool) -> str:
    words = name.split(".")
    for end in range(1, len(words)):
        part = ".".join(words[:end])
        is_numbered = any(letter.isdigit() for letter in words[end - 1])
        if is_numbered and (not of_parts or any(True for _ in backbone.get_submodule(part).children())):
            return part
    return ""
