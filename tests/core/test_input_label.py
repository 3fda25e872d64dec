"""Label vectors as keys: given ones, the axes, labels that are held out, and what is told of these."""

import numpy as np
import pytest
import torch
from core.oracles import COLUMNS, input_label
from core.test_objectives import contrast, features
from torch.nn.functional import cross_entropy, normalize

from emc2dist.config import parse
from emc2dist.core.certify import FrozenRun
from emc2dist.core.exact import exact_loss
from emc2dist.core.objectives import InputLabel
from emc2dist.errors import SpecError
from emc2dist.evaluate.zero_shot import zero_shot

VECTORS = ((1.0, 2.0, 0.0, 1.0, 1.0), (0.0, -1.0, 0.0, 3.0, 0.0), (1.0, 0.0, 1.0, 0.0, 0.0))


@pytest.mark.parametrize("held_out", [(), (2,)])
@pytest.mark.parametrize("views", [2, 3])
def test_given_vectors_equal_explicit_loops_with_gradient(views, held_out):
    z = features(views, 8).requires_grad_()
    value = exact_loss(InputLabel(VECTORS, held_out), z, 0.3, columns=COLUMNS)
    unit = normalize(torch.tensor(VECTORS, dtype=torch.float64), dim=1)
    oracle = input_label(z, 0.3, vectors=unit, held_out=held_out)
    torch.testing.assert_close(value, oracle, atol=1e-12, rtol=0)
    torch.testing.assert_close(torch.autograd.grad(value, z), torch.autograd.grad(oracle, z), atol=1e-12, rtol=0)


def test_over_all_samples_it_is_the_cross_entropy_over_labels_however_many_samples_each_has():
    z, label = features(2, 9), torch.tensor([0, 0, 0, 0, 1, 2, 2, 3, 4])
    value = exact_loss(InputLabel(), z, 0.3, columns={"label": label})
    torch.testing.assert_close(value, cross_entropy(z.flatten(0, 1) / 0.3, label.repeat(2)))
    alike = torch.ones(2, 9, 5, dtype=torch.float64) / 5**0.5
    assert exact_loss(InputLabel(), alike, 0.1, columns={"label": label}).item() == pytest.approx(np.log(5))


def test_a_batch_has_the_labels_that_it_brings_for_candidates():
    z, label = features(1, 6), torch.tensor([0, 0, 1, 2, 3, 4])
    run = FrozenRun(contrast("input_label", "in_batch"), z, 4, 0.3, columns={"label": label})
    run._batches = lambda t: torch.tensor([0, 1, 2, 4])
    loss = run.outcome(0).loss
    logits = z[0][[0, 1, 2, 4]][:, [0, 1, 3]] / 0.3  # labels 0, 1 and 3
    torch.testing.assert_close(loss, cross_entropy(logits, torch.tensor([0, 0, 1, 2])))


def test_zero_shot_is_told_among_the_labels_held_out_and_among_all():
    vectors = np.eye(4)
    features = np.array([[0, 0, 1, 0], [0.9, 0, 0.4, 0.1], [0.1, 0, 0.2, 0.9], [0, 0, 0.5, 0.8], [1, 0, 0, 0]])
    labels = np.array([2, 2, 3, 2, 0])
    assert zero_shot(features, labels, vectors, [2, 3]) == (0.75, 0.5)
    assert zero_shot(features, labels, vectors, [1]) is None


def test_what_does_not_fit_is_refused():
    rows = "[[1,0,0],[0,1,0],[0,1,1]]"
    for given, key in (
        (["negatives.name=chain"], "negatives: chain"),
        (["negatives.draws=8"], "negatives.draws"),
        ([f"objective.vectors={rows}"], "encoder.features=3"),
        (["objective.held_out=[1]"], "objective.vectors"),
        ([f"objective.vectors={rows}", "encoder.features=3", "objective.held_out=[3]"], "objective.held_out"),
        (["objective.vectors=[[1,0],[0]]", "encoder.features=2"], "row 1"),
    ):
        with pytest.raises(SpecError, match=key.replace("[", r"\[")):
            parse(
                "name: a\nepochs: 1\nbatch_size: 4\nlr: 1\n",
                ["objective.name=input_label", "negatives.name=in_batch", *given],
            )
    columns = {"label": np.array([0, 1, 2, -1])}
    assert InputLabel().unfit(columns, 3) is None
    assert "encoder.features" in InputLabel().unfit(columns, 2)
    assert "objective.vectors" in InputLabel(VECTORS[:2]).unfit(columns, 5)
    assert "objective.held_out" in InputLabel(VECTORS, (1, 2)).unfit(columns, 5)
