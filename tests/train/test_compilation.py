"""`compile: true` trains as operators do, compiles a few graphs and no more, and tells where it cannot."""

import pytest
import torch
from torch._dynamo.utils import counters
from train.harness import small_spec

from emc2dist.data.images import open_images
from emc2dist.train import compilation
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
