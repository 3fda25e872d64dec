"""Encoding in chunks gives the gradient of the whole batch, and holds no more than a chunk."""

import pytest
import torch
from train.harness import Run, small_spec

from emc2dist.data.images import open_images
from emc2dist.train.profile import alone

STEPS = 12
ISIR = ["negatives.kernel=isir", "negatives.cache_proposals=12"]


def trained(*overrides):
    """Losses, parameters, and the most images that the encoder met with a graph and without."""
    spec, most = small_spec(*overrides), {True: 0, False: 0}

    def watch(encoder, images):
        graph = torch.is_grad_enabled()
        most[graph] = max(most[graph], len(images[0]))

    with alone(spec, open_images(spec.data, "train"), torch.device("cpu")) as trainer:
        trainer.model.register_forward_pre_hook(watch)
        losses = torch.stack([trainer.step(step).values["loss"].detach() for step in range(STEPS)])
        parameters = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    return losses, parameters, most


@pytest.mark.parametrize(
    ("chunk", "kind"),
    [
        (5, [*ISIR, "negatives.draws=12"]),
        (1, ["negatives.carried=complete"]),
        (16, ["objective=simclr"]),
        (100, ["objective=infonce", "negatives.name=chain", *ISIR]),
        (3, [*ISIR, "batch_size=16", "optimiser.accumulate=2"]),
    ],
    ids=str,
)
def test_chunks_give_the_gradient_of_the_whole(chunk, kind):
    exact = ["precision=float64", "lr=0.1", "optimiser.warmup_epochs=0", *kind]
    losses, parameters, most = trained(*exact)
    assert most[True] >= 16
    chunked, found, largest = trained(*exact, f"encode_chunk={chunk}")
    assert max(largest.values()) <= chunk
    torch.testing.assert_close(chunked, losses, rtol=0, atol=1e-6)
    torch.testing.assert_close(found, parameters, rtol=0, atol=1e-6)
    # An update in between tells gradients that are missing.
    assert not chunked.isclose(trained(*exact, "lr=1e-9")[0], rtol=0, atol=1e-6)[2:].any()


def test_chunks_in_bf16_train_as_the_whole_does():
    kind = ["precision=bf16", *ISIR, "optimiser.warmup_epochs=0"]
    losses, _, _ = trained(*kind)
    chunked, _, _ = trained(*kind, "encode_chunk=5")
    torch.testing.assert_close(chunked, losses, rtol=0, atol=0.02)


def test_a_run_may_be_resumed_with_chunks(tmp_path):
    """As where memory did not suffice."""
    whole = Run(small_spec("precision=float64", *ISIR), tmp_path / "whole").go()
    again = Run(small_spec("precision=float64", *ISIR, "encode_chunk=4"), tmp_path / "again")
    again.go(resume=whole.checkpoints[6])
    assert again.column("loss") == pytest.approx(whole.column("loss")[6:], abs=1e-9)
