"""`compile: true` trains as operators do, compiles a few graphs and no more, and tells where it cannot."""

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import config as inductor
from train.harness import Run, small_spec
from train.test_loop import assert_equal

from emc2dist.data.images import open_images
from emc2dist.errors import RunError, SpecError
from emc2dist.towers.encoder import ImageEncoder
from emc2dist.towers.norms import GroupNorm
from emc2dist.train import checkpoint, compilation
from emc2dist.train.encoding import Encoding
from emc2dist.train.profile import alone

CPU = torch.device("cpu")
EXACT = ["precision=float64", "lr=0.1", "optimiser.warmup_epochs=0"]
ISIR = ["negatives.kernel=isir", "negatives.cache_proposals=12"]  # encodes another number of images in every step
STEPS = 14


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """Everything but the making of machine code: graphs of forward and backward, by torch's operators."""
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def trained(*overrides):
    """Losses, what is in the encoder then, how many images were encoded apart, and graphs after each step."""
    numbers, graphs = [], []
    encode = Encoding.of_others

    def watched(self, images):
        numbers.append(len(images))
        return encode(self, images)

    with pytest.MonkeyPatch.context() as patch, alone(small_spec(*overrides), images(), CPU) as trainer:
        patch.setattr(Encoding, "of_others", watched)
        losses = []
        for step in range(STEPS):
            losses.append(trainer.step(step).values["loss"].detach())
            graphs.append(counters["stats"]["unique_graphs"])
        state = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    return torch.stack(losses), state, numbers, graphs


def images():
    return open_images(small_spec().data, "train")


@pytest.mark.parametrize(
    ("kind", "most"),
    [
        (ISIR, 2),
        ([*ISIR, "encoder.norm=group", "precision=bf16", "lr=1e-3"], 2),
        ([*ISIR, "encoder.norm=batch"], 2),
        ([*ISIR, "negatives.draws=12", "optimiser.name=lars"], 3),
        ([*ISIR, "encode_chunk=5"], 5),
        (["objective=simclr", "batch_size=16", "optimiser.accumulate=2"], 1),
    ],
    ids=str,
)
def test_it_trains_as_operators_do_and_compiles_a_few_graphs_once(kind, most):
    losses, state, numbers, graphs = trained(*EXACT, *kind)
    assert graphs[-1] == 0
    compiled, found, _, graphs = trained(*EXACT, *kind, "compile=true")
    assert 1 <= graphs[-1] <= most
    assert "objective=simclr" in kind or len(set(numbers)) > 1
    close = {"rtol": 0, "atol": 0.02 if "precision=bf16" in kind else 1e-9}
    torch.testing.assert_close(compiled, losses, **close)
    torch.testing.assert_close(found, state, **close)  # under the same names


def test_a_run_resumes_bit_for_bit_under_the_names_that_it_has_without(tmp_path):
    spec = small_spec(*ISIR, "compile=true", "encoder.norm=batch")
    whole = Run(spec, tmp_path).go()
    again = Run(spec, tmp_path / "again").go(resume=whole.checkpoints[6])
    assert counters["stats"]["unique_graphs"] > 0
    assert_equal(whole, again, 12)
    assert whole.column("loss")[6:] == again.column("loss")
    names = {name for name, _ in ImageEncoder(spec.encoder).state_dict().items()}
    assert checkpoint.load_trainer(whole.checkpoints[12])["encoder"].keys() == names


def test_one_image_is_encoded_by_the_code_for_any_number():
    encoder = ImageEncoder(small_spec("encoder.norm=group").encoder).double()
    images = torch.randint(0, 256, (9, 3, 8, 8), dtype=torch.uint8)
    expected = encoder(images)
    compilation.compile_encoder(encoder)
    for count in (5, 1, 9, 2):
        found = compilation.of_any_number(encoder, images[:count].clone())
        torch.testing.assert_close(found, expected[:count])
    assert counters["stats"]["unique_graphs"] == 1


def test_group_norm_is_compiled_in_float32():
    """Triton's kernels are no operators that it could trace; what is converted costs no pass of its own."""
    norm = GroupNorm(4, 8)
    image = torch.randn(3, 8, 5, 5).bfloat16()
    expected = torch.nn.functional.group_norm(image.float(), 4)
    found = torch.compile(norm, backend="aot_eager", fullgraph=True)(image)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected.bfloat16(), rtol=0, atol=0)


def test_what_cannot_be_compiled_ends_the_run(monkeypatch):
    monkeypatch.setattr(compilation, "BACKEND", "inductor")
    monkeypatch.setattr(inductor.cpp, "cxx", ("/nowhere/c++",))
    with (
        inductor.patch(force_disable_caches=True),
        pytest.raises(
            RunError, match=r"^compile: true, but torch cannot compile the encoder here \(.*; it needs a C\+\+"
        ),
    ):
        trained("compile=true")


def test_code_made_again_and_again_ends_the_run(monkeypatch):
    monkeypatch.setattr(torch._dynamo, "mark_dynamic", lambda tensor, axis: None)
    with pytest.raises(RunError, match="compile: true, but torch makes code for the encoder again and again"):
        trained(*ISIR, "compile=true")


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("encoder.norm=sync_batch", "compile: true cannot be of encoder.norm: sync_batch"),
        ("deterministic=true", "leave out compile or deterministic"),
    ],
)
def test_what_does_not_go_with_it_is_refused(key, reason):
    with pytest.raises(SpecError, match=reason):
        small_spec("compile=true", key)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_machine_code_trains_as_operators_do(norm, monkeypatch):
    kind = [*EXACT, *ISIR, f"encoder.norm={norm}"]
    losses, state, _, _ = trained(*kind)
    monkeypatch.setattr(compilation, "BACKEND", "inductor")
    compiled, found, _, graphs = trained(*kind, "compile=true")
    assert 1 <= graphs[-1] <= 2
    torch.testing.assert_close(compiled, losses, rtol=0, atol=1e-9)
    torch.testing.assert_close(found, state, rtol=0, atol=1e-9)
