"""`cuda_graphs: true` trains to the bit as launching from Python does, and is refused where it cannot."""

import pytest
import torch
from train.harness import small_spec

from emc2dist.data.images import open_images
from emc2dist.errors import RunError
from emc2dist.train.profile import alone

STEPS = 12
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


def trained(*overrides):
    """Losses, and what is in the encoder then."""
    spec = small_spec("device=cuda", "optimiser.name=adamw", "lr=1e-3", *overrides)
    with alone(spec, open_images(spec.data, "train"), torch.device("cuda")) as trainer:
        losses = [trainer.step(step).values["loss"].detach().clone() for step in range(STEPS)]
        return torch.stack(losses), {name: value.clone() for name, value in trainer.model.state_dict().items()}


@NEEDS_GPU
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize(
    "kind", [["objective=simclr"], ["negatives.kernel=isir", "negatives.cache_proposals=12"], ["negatives.draws=8"]]
)
def test_replayed_passes_give_the_bits_of_launched_ones(kind, norm):
    kind = [*kind, f"encoder.norm={norm}", "precision=bf16"]
    launched, replayed = trained(*kind), trained(*kind, "cuda_graphs=true")
    assert replayed[0].tolist() == launched[0].tolist()
    assert len(set(launched[0].tolist())) == STEPS
    for name, value in launched[1].items():
        assert value.equal(replayed[1][name]), name


def test_without_a_gpu_it_is_told():
    spec = small_spec("cuda_graphs=true")
    with (
        pytest.raises(RunError, match="cuda_graphs: true, but this worker trains on cpu"),
        alone(spec, open_images(spec.data, "train"), torch.device("cpu")),
    ):
        pass
