"""Stages of an encoder: which parameters are in which, what is frozen, how fast each learns."""

import pytest
import torch
from torch import nn

from emc2dist.config import Encoder as Config
from emc2dist.config import Optimiser, Text
from emc2dist.errors import SpecError
from emc2dist.towers.encoder import ImageEncoder, TextEncoder
from emc2dist.towers.optim import build_optimiser, set_learning_rate
from emc2dist.towers.stages import count, depths, freeze, stages_of


def encoder(**keys) -> ImageEncoder:
    torch.manual_seed(0)
    return ImageEncoder(Config(**({"features": 8} | keys)), 32)


def images(n: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


def stages(backbone: nn.Module) -> dict[int, set[str]]:
    """Of each stage the names, cut to two words."""
    found: dict[int, set[str]] = {}
    for name, stage in stages_of(backbone).items():
        found.setdefault(stage, set()).add(".".join(name.split(".")[:2]))
    return found


def test_stages_of_a_resnet_are_its_stem_and_its_four_layers():
    found = stages(encoder(norm="batch").backbone)
    assert found[0] == {"conv1.weight", "bn1.weight", "bn1.bias"}
    assert [found[stage] for stage in (1, 4)] == [{f"layer{n}.0", f"layer{n}.1"} for n in (1, 4)]
    assert sorted(found) == [0, 1, 2, 3, 4]


def test_a_last_norm_is_of_the_top_and_what_is_between_two_parts_of_the_first():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1))
            self.block1 = nn.Sequential(nn.Linear(2, 2))
            self.between = nn.LayerNorm(2)
            self.block2 = nn.Sequential(nn.Linear(2, 2))
            self.norm = nn.LayerNorm(2)

    between, last = ({f"{norm}.weight", f"{norm}.bias"} for norm in ("between", "norm"))
    assert stages(Odd()) == {0: {"token"}, 1: {"block1.0"} | between, 2: {"block2.0"}, 3: last}
    assert count(Odd()) == 2


def test_stages_of_a_transformer_of_texts_are_its_blocks():
    text = Text(vocabulary=20, width=8, layers=3, heads=2)
    model = TextEncoder(Config(backbone="mini", features=4), text)
    found = stages(model.backbone)
    assert found[0] == {"positions", "embeddings.weight"}
    assert [found[n] for n in (1, 2, 3)] == [{f"blocks.{n}"} for n in range(3)]
    assert found[4] == {"norm.weight", "norm.bias"}


def test_where_no_part_has_parts_each_numbered_layer_is_a_stage():
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    assert stages(backbone) == {1: {"0.weight", "0.bias"}, 2: {"2.weight", "2.bias"}}


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_a_stage_learns_at_the_rate_of_the_one_above_times_layer_decay(name):
    model = encoder(backbone="conv4", norm="group")
    config = Optimiser(name=name, layer_decay=0.5, weight_decay=0.1)
    optimiser = build_optimiser(model, config, 8.0, depths(model))
    set_learning_rate(optimiser, 4.0)
    rates, decays = {}, {}
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            rates[id(parameter)], decays[id(parameter)] = group["lr"], group["weight_decay"]
    names = dict(model.named_parameters())
    assert len(rates) == len(names)
    for key, parameter in names.items():
        above = 0 if key.startswith("projector") else 4 - int(key.split(".")[2])  # conv4's blocks 0 to 3
        assert rates[id(parameter)] == 4.0 * 0.5**above
        assert decays[id(parameter)] == (0.1 if parameter.ndim > 1 else 0.0)


def test_steps_of_sgd_are_as_long_as_layer_decay_says():
    model = encoder(backbone="conv4", norm="none").double()
    optimiser = build_optimiser(model, Optimiser(name="sgd", momentum=0.0, layer_decay=0.9), 0.0, depths(model))
    set_learning_rate(optimiser, 0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(images(4))[:, 0].sum().backward()
    for group in optimiser.param_groups:
        group["weight_decay"] = 0.0
    optimiser.step()
    for name, parameter in model.named_parameters():
        above = 0 if name.startswith("projector") else 4 - int(name.split(".")[2])
        expected = before[name] - 0.1 * 0.9**above * parameter.grad
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-12, atol=1e-15)


def test_frozen_stages_stay_and_their_batch_norms_keep_to_their_statistics():
    model = encoder(norm="batch")
    freeze(model, 2)
    model.eval()
    model.train()
    trained = {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad and "backbone" in name}
    assert trained == {"layer2", "layer3", "layer4"}
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    optimiser = build_optimiser(model, Optimiser(name="adamw", weight_decay=0.5), 0.1)
    model(images(4))[:, 0].sum().backward()
    optimiser.step()
    moved = {name.split(".")[0] for name, value in model.backbone.state_dict().items() if not before[name].equal(value)}
    assert moved == {"layer2", "layer3", "layer4"}


def test_a_frozen_backbone_leaves_the_projector_alone_to_learn():
    model = encoder(norm="batch", hidden=16)
    freeze(model, "backbone")
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {"projector"}
    model.train()
    alone, among = model.representation(images(4)[:1]), model.representation(images(4))
    torch.testing.assert_close(alone[0], among[0], rtol=1e-4, atol=1e-5)


def test_more_stages_than_there_are_cannot_be_frozen():
    with pytest.raises(SpecError, match=r"encoder\.freeze: 6, but the backbone has 5 stages; give at most that"):
        freeze(encoder(), 6)
