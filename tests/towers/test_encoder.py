"""The encoder: norm policies, stems, unit norm in every precision, exported keys."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from emc2dist.config import Encoder as Config
from emc2dist.config.backbones import RESNETS
from emc2dist.core import kernels
from emc2dist.towers._torchvision import models
from emc2dist.towers.encoder import Encoder, ImageEncoder, layout, running_statistics
from emc2dist.towers.images import Conv4, backbone_state_dict, not_its_own
from emc2dist.towers.norms import GroupNorm


def images(n: int, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


def encoder(**keys) -> Encoder:
    torch.manual_seed(0)
    return ImageEncoder(Config(**keys))


@pytest.mark.parametrize(
    ("norm", "in_backbone", "in_projector"),
    [
        ("batch", nn.BatchNorm2d, nn.BatchNorm1d),
        ("sync_batch", nn.SyncBatchNorm, nn.SyncBatchNorm),
        ("group", GroupNorm, nn.LayerNorm),
        ("none", nn.Identity, nn.Identity),
    ],
)
def test_norm_policy_has_its_layers_and_no_others(norm, in_backbone, in_projector):
    model = encoder(norm=norm, hidden=64, features=16)
    norms = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
    found = {type(m) for m in model.backbone.modules() if isinstance(m, norms)}
    assert found == ({in_backbone} if norm != "none" else set())
    assert type(model.backbone.bn1) is in_backbone
    assert [type(m) for m in model.projector] == [nn.Linear, in_projector, nn.ReLU, nn.Linear]


def test_group_norm_has_32_groups_or_the_most_that_divide():
    from emc2dist.towers.images import _group_norm

    assert [_group_norm(c).num_groups for c in (64, 48, 33, 7)] == [32, 24, 11, 7]


@pytest.mark.parametrize(("norm", "alone"), [("group", True), ("none", True), ("batch", False)])
def test_only_batch_norm_makes_a_feature_depend_on_its_batch_mates(norm, alone):
    model = encoder(norm=norm, hidden=32, features=8).double()
    batch = images(4, 16)
    other = torch.cat([batch[:1], images(5, 16)[:3]])
    same = torch.allclose(model(batch)[0], model(other)[0], atol=1e-10)
    assert same == alone


def test_width_features_and_linear_projector():
    model = encoder(features=24)
    assert isinstance(model.projector, nn.Linear)
    assert (model.width, model.features) == (512, 24)
    assert model.representation(images(2)).shape == (2, 512)
    assert model(images(2)).shape == (2, 24)


@pytest.mark.parametrize(("stem", "side"), [("cifar", 32), ("imagenet", 8)])
def test_resolution_that_reaches_layer1(stem, side):
    model = encoder(stem=stem)
    sides = []
    model.backbone.layer1.register_forward_hook(lambda _module, _inputs, output: sides.append(output.shape[-1]))
    model(images(2))
    assert sides == [side]


def test_images_are_normalised_as_imagenet():
    model = encoder(norm="none")
    seen = []
    model.backbone.conv1.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    model(torch.full((1, 3, 32, 32), 255, dtype=torch.uint8))
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(seen[0][0, :, 0, 0], expected)
    assert not {"mean", "std"} & set(model.state_dict())


def test_images_that_are_not_uint8_are_refused():
    with pytest.raises(TypeError, match=r"float32.*uint8"):
        encoder()(torch.zeros(1, 3, 32, 32))


def test_unit_norm_under_bf16_autocast_and_in_float64():
    model = encoder(hidden=32)
    with torch.autocast("cpu", torch.bfloat16):
        features = model(images(8))
    assert features.dtype == torch.float32
    torch.testing.assert_close(features.norm(dim=1), torch.ones(8), atol=1e-6, rtol=0)
    wide = model.double()(images(8))
    assert wide.dtype == torch.float64
    torch.testing.assert_close(wide.norm(dim=1), torch.ones(8).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_without_norm_activations_stay_in_scale_and_every_parameter_gets_a_gradient(backbone):
    model = encoder(backbone=backbone, norm="none")
    representation = model.representation(images(8))
    assert 0.01 < representation.std() < 10
    target = torch.randn(8, 128, generator=torch.Generator().manual_seed(1))
    (model(images(8)) * target).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize(("backbone", "last", "blocks"), [("resnet18", "conv2", 8), ("resnet50", "conv3", 16)])
def test_without_norm_the_last_convolution_of_a_block_is_divided_by_the_root_of_their_number(backbone, last, blocks):
    plain, shrunk = (encoder(backbone=backbone, norm=norm).backbone.layer4[1] for norm in ("group", "none"))
    torch.testing.assert_close(shrunk.get_submodule(last).weight * blocks**0.5, plain.get_submodule(last).weight)
    assert torch.equal(shrunk.conv1.weight, plain.conv1.weight)


def test_running_statistics_are_used_kept_and_the_mode_restored():
    model = encoder(norm="batch", hidden=16, features=8)
    model.backbone.bn1.eval()  # as someone froze it
    model(images(8, 16))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with running_statistics(model), torch.no_grad():
        alone, among = model(images(8, 16)[:1]), model(images(8, 16))
    torch.testing.assert_close(alone[0], among[0], atol=1e-5, rtol=1e-4)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert not model.backbone.bn1.training
    assert model.backbone.layer1[0].bn1.training


def test_running_statistics_change_nothing_under_group_norm():
    model = encoder(norm="group")
    with running_statistics(model):
        assert all(m.training for m in model.modules())


def test_exported_backbone_loads_into_torchvision_without_its_head():
    model = encoder(stem="imagenet", norm="batch")
    other = models.resnet18(weights=None)
    missing, unexpected = other.load_state_dict(backbone_state_dict(model), strict=False)
    assert sorted(missing) == ["fc.bias", "fc.weight"]
    assert unexpected == []
    assert torch.equal(other.layer4[1].conv2.weight, model.backbone.layer4[1].conv2.weight)


@pytest.mark.parametrize("norm", ["group", "none", "batch"])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_a_model_built_as_export_says_gives_the_same_representations(norm, stem):
    model = encoder(norm=norm, stem=stem).eval()
    remarks = not_its_own(Config(norm=norm, stem=stem), 32)
    assert len(remarks) == (norm != "batch") + (stem == "cifar")
    known = {"torch": torch, "torchvision": SimpleNamespace(models=models)}
    builds = [remark.partition("build the model as ")[2] for remark in remarks if "encoder.norm" in remark]
    other = eval(builds[0], known) if builds else models.resnet18()
    for remark in remarks:
        if "encoder.stem" in remark:
            conv1, maxpool = remark.partition("set its conv1 to ")[2].split(", its maxpool to ")
            other.conv1, other.maxpool = eval(conv1, known), eval(maxpool, known)
    other.fc = nn.Identity()
    other.load_state_dict(backbone_state_dict(model))
    normalised = (images(2) - model.mean) / model.std
    assert torch.equal(other.eval()(normalised), model.representation(images(2)))


@pytest.mark.parametrize(
    ("backbone", "nearest"), [("resnet19", "resnet1"), ("regnet_y_500mf", "regnet_y_"), ("vit_b_15", "vit_b_16")]
)
def test_other_backbones_are_refused_with_the_nearest_names(backbone, nearest):
    with pytest.raises(ValueError, match=rf"encoder\.backbone: '{backbone}'.*nearest are {nearest}\w*, "):
        encoder(backbone=backbone)


@pytest.mark.parametrize(
    ("norm", "layer", "parameters"),
    [
        ("batch", nn.BatchNorm2d, 388_896),
        ("sync_batch", nn.SyncBatchNorm, 388_896),
        ("group", nn.GroupNorm, 388_896),
        ("none", nn.Identity, 388_416),
    ],
)
def test_conv4_has_the_layers_of_its_norm_and_biases_only_without_one(norm, layer, parameters):
    backbone = encoder(backbone="conv4", norm=norm).backbone
    convolutions = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [(3, 32), (32, 64), (64, 128), (128, 256)]
    assert {c.bias is not None for c in convolutions} == {norm == "none"}
    assert sum(isinstance(module, layer) for module in backbone.modules()) == 4
    assert sum(p.numel() for p in backbone.parameters()) == parameters


@pytest.mark.parametrize("size", [1, 8, 28, 33])
def test_conv4_takes_images_of_any_size(size):
    model = encoder(backbone="conv4", hidden=16, features=8)
    assert model.width == 256
    assert model.representation(images(2, size)).shape == (2, 256)
    assert model(images(2, size)).shape == (2, 8)


@pytest.mark.parametrize("norm", ["group", "none"])
def test_conv4_keeps_activations_in_scale_and_looks_at_one_image_at_a_time(norm):
    model = encoder(backbone="conv4", norm=norm).double()
    batch = images(8, 28)
    representation = model.representation(batch)
    assert 0.05 < representation.std() < 10
    torch.testing.assert_close(model.representation(batch[:1])[0], representation[0])
    model(batch)[:, 0].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.backbone.parameters())


def test_conv4_under_bf16_autocast_gives_unit_norm():
    with torch.autocast("cpu", torch.bfloat16):
        features = encoder(backbone="conv4")(images(8, 28))
    assert features.dtype == torch.float32
    torch.testing.assert_close(features.norm(dim=1), torch.ones(8), atol=1e-6, rtol=0)


def test_an_exported_conv4_loads_into_the_class_of_that_name():
    model = encoder(backbone="conv4", norm="batch")
    model(images(8, 28))  # moves the running statistics
    other = Conv4("batch")
    other.load_state_dict(backbone_state_dict(model))
    normalised = (images(2, 28) - model.mean) / model.std
    assert torch.equal(other.eval()(normalised), model.eval().representation(images(2, 28)))


def test_what_cannot_be_built_is_refused_with_the_spec():
    with pytest.raises(ValueError, match=r"encoder\.stem: imagenet is no stem of conv4, which begins .* or give cifar"):
        encoder(backbone="conv4", stem="imagenet")
    for wrong, nearest in (("conv5", "conv4"), ("ResNet18", "resnet18")):
        with pytest.raises(ValueError, match=rf"'{wrong}' is neither conv4 nor .*nearest are {nearest}"):
            encoder(backbone=wrong)


def test_the_family_is_what_torchvision_builds_from_its_resnet():
    names = models.list_models(module=models)
    assert set(RESNETS) == {
        name for name in names if models.get_model_builder(name).__module__ == models.resnet.__name__
    }


@pytest.mark.parametrize("triton", [True, False])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("norm", ["batch", "sync_batch", "group", "none"])
def test_channels_come_last_on_a_gpu_but_under_group_norm_by_torch(norm, precision, triton, monkeypatch):
    monkeypatch.setattr(kernels, "run_there", lambda device: triton)
    ours = triton and precision == "bf16"
    on_gpu = torch.contiguous_format if norm == "group" and not ours else torch.channels_last
    assert layout(Config(norm=norm), precision, torch.device("cuda")) == on_gpu
    assert layout(Config(norm=norm), precision, torch.device("cpu")) == torch.contiguous_format


@pytest.mark.parametrize("backbone", ["conv4", "resnet18"])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_a_feature_is_the_same_in_either_layout(backbone, norm):
    features, gradients = [], []
    for order in (torch.contiguous_format, torch.channels_last):
        model = encoder(backbone=backbone, norm=norm).double().to(memory_format=order)
        seen = []
        first = model.backbone.blocks[0] if backbone == "conv4" else model.backbone.conv1
        first.register_forward_hook(lambda _module, _inputs, output, seen=seen: seen.append(output))
        made = model(images(4))
        assert seen[0].is_contiguous(memory_format=order)  # from the first layer on
        made[:, 0].sum().backward()
        features.append(made.detach())
        gradients.append([p.grad.contiguous() for p in model.parameters()])
    torch.testing.assert_close(*features, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-11)
