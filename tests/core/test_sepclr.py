"""SepCLR: two heads in one feature, what each term sees of background and targets, and a kernel that is carried on."""

import math

import pytest
import torch
from core.oracles import COLUMNS, sepclr
from core.test_objectives import contrast, features

from emc2dist.config import parse
from emc2dist.core.batch import Batch, Side
from emc2dist.core.certify import FrozenRun, certify
from emc2dist.core.exact import exact_loss
from emc2dist.core.objectives import SepClr
from emc2dist.errors import SpecError

SPEC = "name: a\nepochs: 1\nbatch_size: 4\nlr: 1\n"


@pytest.mark.parametrize("background", [(0,), (0, 1), (7,)])
@pytest.mark.parametrize(
    "weights", [(1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.5, 2.0, 3.0, 4.0)]
)
def test_each_term_equals_explicit_loops_with_gradient(background, weights):
    z = features(3, 8, width=7).requires_grad_()
    value = exact_loss(SepClr(4, background, *weights), z, 0.3, columns=COLUMNS)
    oracle = sepclr(z, 0.3, width=4, background=background, weights=weights)
    torch.testing.assert_close(value, oracle + 0 * z.sum(), atol=1e-12, rtol=0)
    found, expected = torch.autograd.grad(value, z), torch.autograd.grad(oracle + 0 * z.sum(), z)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_limits():
    """Features alike: pairs count nothing, candidates count as many. No temperature to speak of: the same."""
    alike = torch.ones(2, 8, 4, dtype=torch.float64) / 2
    only_joint = SepClr(2, (9,), 0, 0, 0, 1)
    assert exact_loss(only_joint, alike, 0.5, columns=COLUMNS).item() == pytest.approx(math.log(7))
    assert exact_loss(only_joint, features(2, 8), 1e9, columns=COLUMNS).item() == pytest.approx(math.log(7), abs=1e-6)
    assert exact_loss(SepClr(2, (9,), 1, 1, 1, 0), alike, 0.5, columns=COLUMNS).item() == pytest.approx(0)
    heads = SepClr(2).heads(torch.tensor([0.6, 0.0, 0.0, 0.8]))
    torch.testing.assert_close(heads["common"], torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(heads["salient"], torch.tensor([0.0, 0.8 / 0.6]))


def test_a_candidate_by_itself_scores_as_it_does_among_many():
    """Also where it is background: s counts as 0."""
    z, objective = features(2, 6), SepClr(2, (0,))
    batch = Batch(torch.arange(6), 0, {"x": Side(z, z)}, 0.5, 6, columns=COLUMNS)
    (what,) = objective.denominators
    index = torch.tensor([1, 2, 3, 4, 5, 0] * 2)
    each = what.score_each(batch, z[:1, index], index)
    among = what.scores(batch, z[:1], torch.arange(6)).gather(1, index.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(each, among)
    moved = z.clone()
    moved[:, 0, 2:] *= 3  # salient coordinates of a background sample
    torch.testing.assert_close(
        what.scores(batch, moved[:1], torch.arange(6)), what.scores(batch, z[:1], torch.arange(6))
    )


def test_chains_estimate_the_joint_repulsion():
    z = features(1, 24, width=8, seed=5)
    made = {"columns": COLUMNS}
    options = ["objective.joint=1", "objective.width=4"]
    chain = contrast("sepclr", "chain", *options, "negatives.kernel=isir")
    found = certify(FrozenRun(chain, z, 6, 0.5, **made), 900)
    alone = certify(FrozenRun(contrast("sepclr", "in_batch", *options), z, 6, 0.5, **made), 900)
    assert found.relbias < 0.5 * alone.relbias


def test_what_does_not_go_together_is_refused():
    for given, key in (
        (["negatives={name: in_batch, draws: 4}"], "negatives.draws"),
        (["negatives={name: chain, carried: cached}"], "carried: cached"),
        (["negatives=in_batch", "encoder.features=4", "objective.width=4"], "objective.width"),
    ):
        with pytest.raises(SpecError, match=key):
            parse(SPEC, ["objective.name=sepclr", *given])
