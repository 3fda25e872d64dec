"""WhitenedCSE: what whitening does to the loss, in batches larger than its groups and in those that are not."""

import pytest
import torch
from core.oracles import ORACLES
from core.test_objectives import features

from emc2dist.config import parse
from emc2dist.core.exact import exact_loss
from emc2dist.core.objectives import WhitenedCse
from emc2dist.core.objectives.whitenedcse import groups_of
from emc2dist.errors import SpecError


@pytest.mark.parametrize(("channels", "shuffles"), [(6, 2), (4, 3), (5, 4), (1, 3)])
def test_groups_and_shuffles_are_those_of_explicit_loops(channels, shuffles):
    z = features(2, 20, width=12, seed=3).requires_grad_()
    found = exact_loss(WhitenedCse(channels, shuffles), z, 0.2)
    wanted = ORACLES["whitenedcse"](z, 0.2, channels=channels, shuffles=shuffles)
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=0)
    ours, theirs = (torch.autograd.grad(loss, z)[0] for loss in (found, wanted))
    assert theirs.abs().max() > 1e-3
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)


def test_the_papers_groups_are_the_default_at_the_papers_width():
    assert groups_of(768, WhitenedCse().channels) == 128
    assert [groups_of(width, 6) for width in (12, 128, 7, 5)] == [2, 32, 7, 1]


def test_no_scale_or_mean_of_a_channel_matters_and_with_one_in_a_group_no_shuffle():
    z = features(1, 30, width=6, seed=1)
    loss = exact_loss(WhitenedCse(), z.expand(2, -1, -1), 0.2)
    moved = 0.3 * z * torch.linspace(1, 2, 6, dtype=z.dtype) + torch.linspace(-1, 1, 6, dtype=z.dtype)
    alone = [exact_loss(WhitenedCse(channels=1), one.expand(2, -1, -1), 0.2) for one in (z, moved)]
    torch.testing.assert_close(*alone, atol=1e-6, rtol=0)
    assert (loss - alone[0]).abs() > 1e-3


def test_whitening_tells_apart_what_a_common_direction_makes_alike():
    z = features(1, 40, width=6, seed=2)
    alike = torch.nn.functional.normalize(z + 20 * z[:, :1], dim=-1)
    assert (alike[0] @ alike[0].T).min() > 0.9
    of_alike = exact_loss(WhitenedCse(), alike.expand(2, -1, -1), 0.1)
    of_apart = exact_loss(WhitenedCse(), z.expand(2, -1, -1), 0.1)
    torch.testing.assert_close(of_alike, of_apart, atol=0.2, rtol=0)


def test_a_batch_that_is_no_larger_than_a_group_is_refused_and_so_are_other_negatives():
    spec = ["name: a\nepochs: 1\nbatch_size: 6\nlr: 1\nobjective: whitenedcse"]
    with pytest.raises(SpecError, match=r"objective\.channels: 6 have no covariance of full rank over a batch of 6"):
        parse(*spec)
    assert parse(*spec, ["objective.channels=4"]).objective.channels == 4
    for negatives in ("chain", "{name: in_batch, draws: 2}", "moving_average"):
        with pytest.raises(SpecError, match="whitens over one"):
            parse(*spec, ["objective.channels=4", f"negatives={negatives}"])
