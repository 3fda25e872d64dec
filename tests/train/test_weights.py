"""Weights that an encoder begins with: what fits is taken, whatever does not is told with numbers."""

import shutil

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from train.harness import Run, small_spec

from emc2dist import files
from emc2dist.errors import SpecError
from emc2dist.towers._torchvision import models
from emc2dist.train.checkpoint import restore_trainer
from emc2dist.train.loop import encoder_for, initial_encoder
from emc2dist.train.weights import _renamed, file_of, load_weights

RESNET = ("encoder.backbone=resnet18", "encoder.stem=imagenet", "encoder.norm=batch", "views.size=16")


def published(model):
    """A model's state dict, as torchvision publishes it."""
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """A ResNet of torchvision whose statistics have moved, and its file."""
    torch.manual_seed(3)
    model = models.resnet18()
    model(torch.randn(4, 3, 16, 16))
    file = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(published(model), file)
    return model.eval(), file


def loaded(*overrides):
    spec = small_spec(*overrides)
    torch.manual_seed(0)
    encoder = encoder_for(spec)
    return encoder, load_weights(encoder, spec)


def test_published_weights_give_what_they_give_in_torchvision_and_the_head_is_passed_over(resnet):
    model, file = resnet
    encoder, taken = loaded(*RESNET, f"encoder.weights={file}")
    assert taken.remarks == [
        f"encoder.weights: {file}: all 120 tensors of the backbone were taken; 2 of its head were left (fc.bias, "
        "fc.weight)"
    ]
    views = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    model.fc = nn.Identity()
    with torch.no_grad():
        here, there = encoder.eval().representation(views), model((views - encoder.mean) / encoder.std)
    torch.testing.assert_close(here, there)


def test_the_encoder_that_training_begins_with_has_them(resnet):
    spec = small_spec(*RESNET, f"encoder.weights={resnet[1]}", "encoder.freeze=backbone")
    encoder = initial_encoder(spec, torch.device("cpu"))
    assert torch.equal(encoder.backbone.conv1.weight, resnet[0].conv1.weight)
    assert not encoder.backbone.conv1.weight.requires_grad
    other = initial_encoder(spec, torch.device("cpu"), weights=False)
    assert torch.equal(encoder.projector.weight, other.projector.weight)  # loading draws no random number
    assert not torch.equal(encoder.backbone.conv1.weight, other.backbone.conv1.weight)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("encoder.stem=cifar", r"1 have another shape \(conv1\.weight \[64, 3, 7, 7\], and here \[64, 3, 3, 3\]\)"),
        ("encoder.norm=group", r"60 of its tensors have no place here \(bn1\.num_batches_tracked, .*, \.\.\.\)"),
        ("encoder.backbone=resnet34", r"80 of the backbone's are not in it \(layer1\.2\.bn1\.bias"),
    ],
)
def test_what_does_not_fit_is_told_with_numbers(override, said, resnet):
    with pytest.raises(SpecError, match=rf"does not fit resnet\d\d of encoder\.stem: .* and views\.size: 16: {said}"):
        loaded(*RESNET, override, f"encoder.weights={resnet[1]}")


def test_files_without_counts_fit_and_halves_are_said_to_be_converted(resnet, tmp_path):
    found = {name: tensor for name, tensor in published(resnet[0]).items() if "num_batches" not in name}
    save_file({name: tensor.half() for name, tensor in found.items()}, tmp_path / "old.safetensors")
    encoder, taken = loaded(*RESNET, f"encoder.weights={tmp_path / 'old.safetensors'}")
    assert "100 of the backbone's 120 tensors were taken, all but counts, float16 converted" in taken.remarks[0]
    assert encoder.backbone.conv1.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("features.denseblock1.denselayer6.norm.1.weight", "features.denseblock1.denselayer6.norm1.weight"),
        ("features.denseblock1.denselayer6.conv.2.weight", "features.denseblock1.denselayer6.conv2.weight"),
        ("encoder.layers.encoder_layer_0.mlp.linear_1.bias", "encoder.layers.encoder_layer_0.mlp.0.bias"),
        ("encoder.layers.encoder_layer_0.mlp.linear_2.bias", "encoder.layers.encoder_layer_0.mlp.3.bias"),
        ("layer1.0.bn1.weight", "layer1.0.bn1.weight"),
    ],
)
def test_names_of_older_published_files_are_read(old, new):
    assert _renamed(old) == new


def test_a_run_gives_its_backbone_and_its_projector_where_that_is_alike(tmp_path):
    run = Run(small_spec("epochs=1", "eval.every=0", "data.limit=8"), tmp_path).go()
    folder = tmp_path / "run"
    shutil.move(run.checkpoints[1], folder / "checkpoint-000001")
    (folder / "checkpoint-000000").mkdir()  # an older one
    trained = encoder_for(small_spec())
    restore_trainer(folder / "checkpoint-000001", trained)
    encoder, taken = loaded(f"encoder.weights={folder}")
    assert taken.remarks[0].endswith("all 8 tensors of the backbone were taken, and 2 of the projector")
    assert all(torch.equal(tensor, trained.state_dict()[name]) for name, tensor in encoder.state_dict().items())

    encoder, taken = loaded(f"encoder.weights={folder}", "encoder.features=8")
    assert taken.remarks[0].endswith("; its projector, 2 tensors, is another, and was left")
    assert torch.equal(encoder.backbone.blocks[0][0].weight, trained.backbone.blocks[0][0].weight)


def test_a_pickle_is_refused_with_the_lines_that_convert_it(resnet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(resnet[0].state_dict(), "resnet18.pth")
    with pytest.raises(SpecError, match=r"\.pth is a pickle, which can run code as it is read; convert it:") as refusal:
        loaded(*RESNET, "encoder.weights=resnet18.pth")
    exec("\n".join(line.strip() for line in str(refusal.value).splitlines()[1:]), {})
    encoder, _ = loaded(*RESNET, "encoder.weights=resnet18.safetensors")
    assert torch.equal(encoder.backbone.conv1.weight, resnet[0].conv1.weight)


def test_what_is_no_file_of_weights_is_refused(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"not one")
    with pytest.raises(SpecError, match=r"a\.safetensors: is no safetensors file, or a damaged one"):
        loaded(f"encoder.weights={tmp_path / 'a.safetensors'}")
    for path in (tmp_path, tmp_path / "gone"):
        with pytest.raises(SpecError, match=r"is no file and holds no checkpoint"):
            file_of(files.at(path))
    with pytest.raises(SpecError, match=r"encoder\.freeze: backbone would leave random weights as they are"):
        small_spec("encoder.freeze=backbone")
    with pytest.raises(SpecError, match=r"encoder\.weights: a, but start_from: b brings the encoder"):
        small_spec("encoder.weights=a", "start_from=b")
