"""Any backbone: each family trains, is evaluated, leaves, and gives elsewhere what it gives here."""

import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from train.harness import Run

import emc2dist.towers.images
from emc2dist.config import Encoder as Config
from emc2dist.config import changed, parse
from emc2dist.config.backbones import FAMILIES, size_misfit
from emc2dist.errors import SpecError
from emc2dist.run.exports import export
from emc2dist.run.folder import RunFolder, checkpoint_name
from emc2dist.run.loaded import LoadedCheckpoint
from emc2dist.run.results import evaluate
from emc2dist.towers._torchvision import models
from emc2dist.towers.encoder import ImageEncoder
from emc2dist.towers.images import MEAN as IMAGENET
from emc2dist.towers.images import image_backbone, not_its_own, with_norm
from emc2dist.towers.norms import GroupNorm

slow = pytest.mark.slow
PAGE = Path(__file__).parents[2] / "docs" / "backbones.md"
SMALLEST = [
    ("resnet18", 8), ("convnext_tiny", 32), ("densenet121", 29), ("efficientnet_b0", 16), ("googlenet", 15),
    ("mnasnet0_5", 8), ("mobilenet_v2", 8), ("mobilenet_v3_small", 8), ("regnet_y_400mf", 8),
    ("shufflenet_v2_x0_5", 8), ("squeezenet1_1", 21), ("swin_t", 8), ("vit_b_32", 32),
    *(pytest.param(*one, marks=slow) for one in [
        ("alexnet", 63), ("inception_v3", 75), ("maxvit_t", 224), ("swin_v2_t", 8), ("vgg11", 32), ("vgg11_bn", 32),
    ]),
]  # fmt: skip
"""One of each kind, with images as small as it takes; slow where the model is large."""
OF_TIMM = [
    ("test_vit", "own", 32), ("test_convnext", "own", 32), ("test_resnet", "group", 16), ("test_byobnet", "group", 16),
    ("test_efficientnet", "group", 16),
]  # fmt: skip


def images(n: int, size: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


def trained(folder, backbone, size, *overrides):
    """The folder of a run of two steps of the backbone, and its rows."""
    spec = parse(
        f"""
        {{name: family, run_dir: {folder}, epochs: 1, batch_size: 8, lr: 1e-3, log_every: 1,
        data: {{path: digits, limit: 16}}, views: {{size: {size}}}, encoder: {{backbone: "{backbone}", features: 8}},
        optimiser: {{name: sgd, momentum: 0.0}}, eval: {{every: 0, bank: 16, queries: 8, neighbours: 3}}}}
        """,
        overrides,
    )
    run = RunFolder.prepare(spec)
    rows = Run(spec, run.place.path).go()
    rows.checkpoints[2].rename(run.place.path / checkpoint_name(2))
    return run, rows


def built_elsewhere(told, file):
    """The library's own model, built as `export` says, with the weights of its file."""
    known = {"torch": torch, "torchvision": sys.modules["torchvision"], "emc2dist": emc2dist}
    if told["backbone"].startswith("timm:"):
        known["timm"] = sys.modules["timm"]
    builds = [remark.partition(" as ")[2] for remark in told["remarks"] if " build " in remark]
    model = eval(builds[-1], known) if builds else models.get_model(told["backbone"])
    for remark in told["remarks"]:
        if "have it replaced" in remark:
            model = eval(remark.partition("it is built, by ")[2], known | {"model": model})
        if "set its conv1" in remark:
            conv1, maxpool = remark.partition("set its conv1 to ")[2].split(", its maxpool to ")
            model.conv1, model.maxpool = eval(conv1, known), eval(maxpool, known)
    if told["head"]:
        model.set_submodule(told["head"], nn.Identity())
    weights = OrderedDict(load_file(file))
    if any("_metadata" in remark for remark in told["remarks"]):
        weights._metadata = model.state_dict()._metadata
    model.load_state_dict(weights)
    return model.eval()


def check_the_way_of(backbone, size, tmp_path, *overrides):
    run, rows = trained(tmp_path, backbone, size, *overrides)
    assert torch.tensor(rows.column("loss")).isfinite().all()
    assert min(rows.column("gradient_norm")) > 0

    told = export(str(run.place), tmp_path / "b.safetensors")
    newest = LoadedCheckpoint.newest(run)
    batch = images(3, size)
    elsewhere = built_elsewhere(told, tmp_path / "b.safetensors")
    with torch.no_grad():
        here = newest.encoder.representation(batch)
        torch.testing.assert_close(
            elsewhere((batch - newest.encoder.mean) / newest.encoder.std), here, rtol=1e-4, atol=1e-4
        )
    assert here.shape[1] == told["width"]
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        assert file.metadata()["head"] == told["head"]

    assert 0 <= evaluate(str(run.place), ["eval.asked=train"])["representation"]["knn_accuracy"] <= 1

    model = newest.encoder.double().train()  # as in training: a feature is of its image alone, and the same twice
    with torch.no_grad():
        among = model(batch)
        torch.testing.assert_close(model(batch), among, rtol=0, atol=0)
        torch.testing.assert_close(model(batch[:1])[0], among[0])


@pytest.mark.parametrize(("backbone", "size"), SMALLEST)
def test_a_family_of_torchvision_trains_leaves_and_is_the_same_elsewhere(backbone, size, tmp_path):
    check_the_way_of(backbone, size, tmp_path)


@pytest.mark.parametrize(("backbone", "norm", "size"), OF_TIMM)
def test_a_model_of_timm_trains_leaves_and_is_the_same_elsewhere(backbone, norm, size, tmp_path):
    pytest.importorskip("timm")
    check_the_way_of(f"timm:{backbone}", size, tmp_path, f"encoder.norm={norm}")


def test_the_page_has_every_family_with_its_least_side():
    rows = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    told = {row[0].removeprefix("| "): row for row in rows}
    for family in FAMILIES:
        *_, norm, size = told[family.title]
        assert norm.startswith("`group`" if family.has_batch_norm else "`own`")
        assert str(family.least) in size
        assert family.names[0] in told[family.title][1]


def test_the_families_are_the_classification_models_of_torchvision():
    assert {name for family in FAMILIES for name in family.names} == set(models.list_models(module=models))


@pytest.mark.parametrize("family", [family for family in FAMILIES if family.least > 1], ids=lambda family: family.title)
def test_a_size_is_refused_where_the_model_fails_and_taken_where_it_does_not(family):
    name = family.names[0]
    assert size_misfit(name, family.least) is None
    assert name in size_misfit(name, family.least - 1)

    def fails(size):
        try:
            with torch.device("meta"), torch.no_grad():
                built = image_backbone(Config(backbone=name), size)
                built.backbone.eval()(torch.zeros(2, 3, size, size))
        except (AssertionError, RuntimeError, ValueError):
            return True
        return False

    assert not fails(family.least)
    assert fails(family.least - 1) or family.multiple > 1


@pytest.mark.parametrize("size", [8, 63, 100])
def test_the_size_of_views_is_checked_with_the_spec(size):
    spec = "{name: a, epochs: 1, batch_size: 8, lr: 1e-3, encoder: {backbone: vit_b_32}, views: {size: %d}}"
    nearest = {8: 32, 63: 64, 100: 96}[size]
    with pytest.raises(SpecError, match=rf"views\.size: {size}, .* vit_b_32 takes a multiple of 32; give {nearest}"):
        parse(spec % size)
    assert parse(spec % nearest).encoder.norm == "own"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"backbone": "vit_b_16", "norm": "batch"}, "encoder.norm: batch, but vit_b_16 has no BatchNorm"),
        ({"backbone": "vgg11", "norm": "group"}, "encoder.norm: group, but vgg11 has no BatchNorm"),
        ({"backbone": "vit_b_16", "stem": "cifar"}, "encoder.stem: cifar is a stem of ResNets, and vit_b_16"),
        ({"backbone": "resnet18", "norm": "own"}, "encoder.norm: own, but resnet18 has BatchNorm"),
        ({"backbone": "resnet18", "stem": "own"}, "encoder.stem: own, but resnet18 has one of two"),
        ({"backbone": "densenet121", "norm": "none"}, "activations of densenet121 would grow"),
        ({"backbone": "timm:any", "norm": "none"}, "activations of timm:any would grow"),
        ({"backbone": "mini", "norm": "own"}, "encoder.norm: own is of images"),
    ],
)
def test_parts_that_a_backbone_cannot_have_are_refused(keys, said):
    with pytest.raises(ValueError, match=said):
        Config(**keys)


def test_parts_that_are_left_out_are_the_backbones_own_and_stay_so_when_written_out():
    for backbone, parts in {
        "vit_b_16": ("own", "own"), "densenet121": ("own", "group"), "timm:any": ("own", "own"),
        "resnet18": ("cifar", "group"), "conv4": ("cifar", "group"),
    }.items():  # fmt: skip
        config = Config(backbone=backbone)
        assert (config.stem, config.norm) == parts
        assert Config(**config.model_dump()) == config


def test_another_backbone_has_its_own_parts_where_the_first_had_them_by_default():
    spec = parse("{name: a, epochs: 1, batch_size: 8, lr: 1e-3, views: {size: 32}}")
    other = changed(spec, {"encoder.backbone": "vit_b_32"}, source="sweep").encoder
    assert (other.stem, other.norm) == ("own", "own")
    spec = changed(spec, {"encoder.norm": "batch"}, source="sweep")
    with pytest.raises(SpecError, match=r"encoder\.norm: batch, but vit_b_32 has no BatchNorm"):
        changed(spec, {"encoder.backbone": "vit_b_32"}, source="sweep")


@pytest.mark.parametrize(
    ("norm", "layer"), [("batch", nn.BatchNorm2d), ("sync_batch", nn.SyncBatchNorm), ("group", GroupNorm)]
)
def test_the_policy_replaces_every_batch_norm_and_keeps_its_epsilon(norm, layer):
    backbone = image_backbone(Config(backbone="mobilenet_v3_small", norm=norm), 32).backbone
    found = [one for one in backbone.modules() if isinstance(one, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm))]
    assert {type(one) for one in found} == {layer}
    assert {one.eps for one in found} == {0.001}
    assert norm != "group" or min(one.num_channels // one.num_groups for one in found) == 2  # of 16 channels


def test_what_is_dropped_is_said():
    said = ImageEncoder(Config(backbone="efficientnet_b0")).remarks
    assert said == (
        "encoder.backbone: efficientnet_b0: StochasticDepth of up to 0.1875, Dropout of up to 0.2 is off, for a "
        "feature has to be a function of its image",
    )
    assert ImageEncoder(Config(backbone="regnet_y_400mf")).remarks == ()


def test_timm_says_what_it_cannot():
    pytest.importorskip("timm")
    with pytest.raises(SpecError, match=r"timm:resnet1000: timm has no model of this name; the nearest are resnet"):
        image_backbone(Config(backbone="timm:resnet1000"), 32)
    with pytest.raises(SpecError, match=r"timm:test_vit: takes no images of views\.size: 8 "):
        image_backbone(Config(backbone="timm:test_vit"), 8)
    with pytest.raises(SpecError, match=r"norm: own, but \w+ has BatchNorm; give group.*timm:test_resnet"):
        image_backbone(Config(backbone="timm:test_resnet"), 32)
    with pytest.raises(SpecError, match=r"norm: group, but \w+ has no BatchNorm; give own .*timm:test_vit"):
        image_backbone(Config(backbone="timm:test_vit", norm="group"), 32)


def test_images_are_normalised_as_timms_weights_of_the_model_want_it():
    timm = pytest.importorskip("timm")
    for name, norm in (("vit_tiny_patch16_224", "own"), ("test_resnet", "group")):
        known = timm.get_pretrained_cfg(name)
        made = ImageEncoder(Config(backbone=f"timm:{name}", norm=norm), 32)
        torch.testing.assert_close(made.mean.flatten() / 255, torch.tensor(known.mean))
        torch.testing.assert_close(made.std.flatten() / 255, torch.tensor(known.std))
    assert timm.get_pretrained_cfg("vit_tiny_patch16_224").mean != IMAGENET  # so that it makes a difference


def test_layers_of_timm_that_normalise_and_act_still_act():
    timm = pytest.importorskip("timm")
    model = timm.create_model("test_efficientnet", num_classes=0)
    kinds = {
        norm: with_norm(timm.create_model("test_efficientnet", num_classes=0), norm) for norm in ("group", "sync_batch")
    }
    inside = [one for one in model.modules() if isinstance(one, timm.layers.BatchNormAct2d)]
    for made in kinds.values():
        acting = [one for one in made.modules() if hasattr(one, "act") and hasattr(one, "drop")]
        assert [type(one.act) for one in acting] == [type(one.act) for one in inside]
        assert not any(isinstance(one, nn.BatchNorm2d) for one in made.modules())


def test_without_timm_its_models_are_refused_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SpecError, match=r"timm is not installed; pip install 'emc2dist\[timm\]'"):
        image_backbone(Config(backbone="timm:test_vit"), 32)


def test_a_vit_of_another_size_is_built_for_it_elsewhere_too():
    (remark,) = not_its_own(Config(backbone="vit_b_32"), 64)
    assert remark.endswith("build the model as torchvision.models.vit_b_32(image_size=64)")
    assert not_its_own(Config(backbone="vit_b_32"), 224) == []
