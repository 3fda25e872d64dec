"""SIRL: triplets of answers, whole in a batch or not there at all."""

import pytest
import torch
from core.oracles import sirl
from core.test_objectives import contrast, features
from torch.nn.functional import normalize

from emc2dist.config import parse
from emc2dist.core.certify import FrozenRun
from emc2dist.core.exact import exact_loss
from emc2dist.core.objectives import Sirl
from emc2dist.data.digits import DigitsImages
from emc2dist.errors import SpecError
from emc2dist.train.certificate import samples_for

QUERIES = {"label": torch.tensor([0, 1, 0, 1, 1, 0, 2, 2, -1]), "odd": torch.tensor([0, 1, 0, 0, 0, 1, 0, 0, 0])}


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("margin", [0.3, 4.0])
def test_whole_queries_equal_explicit_loops_with_gradient(views, margin):
    z = features(views, 9).requires_grad_()
    value = exact_loss(Sirl(margin), z, 0.3, columns=QUERIES)
    oracle = sirl(z, 0.3, margin=margin, label=QUERIES["label"], odd=QUERIES["odd"])
    assert oracle.item() > 0
    torch.testing.assert_close(value, oracle, atol=1e-12, rtol=0)
    torch.testing.assert_close(torch.autograd.grad(value, z), torch.autograd.grad(oracle, z), atol=1e-12, rtol=0)


def test_gradcheck():
    free = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: exact_loss(Sirl(), normalize(x, dim=-1), 0.5, columns=QUERIES), free)


def test_limits():
    """Features alike: the margin of four anchors of nine. The odd ones opposite the others: nothing."""
    alike = torch.ones(2, 9, 4, dtype=torch.float64) / 2
    assert exact_loss(Sirl(0.7), alike, 0.1, columns=QUERIES).item() == pytest.approx(0.7 * 4 / 9)
    apart = torch.where(QUERIES["odd"].view(1, -1, 1) > 0, -alike, alike)
    assert exact_loss(Sirl(4.0), apart, 0.1, columns=QUERIES).item() == pytest.approx(0, abs=1e-12)


def test_a_query_that_is_not_whole_in_the_batch_counts_nothing():
    run = FrozenRun(contrast("sirl", "in_batch"), features(1, 9), 4, 0.2, columns=QUERIES)
    run._batches = lambda t: torch.tensor([0, 2, 5, 1])
    assert run.outcome(0).loss.item() > 0
    run._batches = lambda t: torch.tensor([0, 2, 3, 1])
    assert run.outcome(1).loss.item() == 0


def test_there_is_no_sampler_to_certify():
    spec = parse(
        "name: a\nepochs: 1\nbatch_size: 6\nlr: 1\n",
        ["objective.name=sirl", "negatives.name=in_batch", "data.per_class=3"],
    )
    with pytest.raises(SpecError, match="no sampler to certify"):
        samples_for(spec, DigitsImages("train"), None, 20)


@pytest.mark.parametrize("given", [["negatives=chain"], ["negatives={name: in_batch, draws: 6}"]])
def test_images_nobody_was_asked_about_are_refused(given):
    with pytest.raises(SpecError, match="objective: sirl reads answers alone"):
        parse(
            "name: a\nepochs: 1\nbatch_size: 6\nlr: 1\n",
            ["objective.name=sirl", "data.per_class=3", *given],
        )
