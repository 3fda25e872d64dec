"""Hydra: gates that are learnt, partners that are drawn, chains that begin anew."""

import pytest
import torch
from core.oracles import COLUMNS, hydra, infonce
from core.test_objectives import contrast, features
from torch.nn.functional import normalize

from emc2dist.config import parse
from emc2dist.core.batch import Batch, Side
from emc2dist.core.certify import FrozenRun, certify
from emc2dist.core.estimators import Recall
from emc2dist.core.exact import exact_loss
from emc2dist.core.objectives import Hydra
from emc2dist.core.streams import fork
from emc2dist.errors import SpecError

SMALL = {"classes": 3, "embedding": 4, "hidden": 6}
BEGINS_ANEW = ["negatives.kernel=isir", "negatives.restart=true", "negatives.cache_proposals=24"]


def gates(width=5):
    torch.manual_seed(7)
    return Hydra(**SMALL).learns(width).double()


@pytest.mark.parametrize("partner", ["distinct", "arbitrary", "identical"])
@pytest.mark.parametrize("views", [2, 3])
def test_gated_it_equals_explicit_loops_with_gradient_to_features_and_gates(views, partner):
    z, learnt = features(views, 8).requires_grad_(), gates()
    value = exact_loss(Hydra(partner), z, 0.3, columns=COLUMNS, learnt=learnt)

    def gate(one, other):
        return learnt(torch.tensor([one]), torch.tensor([other]))[0]

    oracle = hydra(z, 0.3, gate=gate, partner=partner)
    assert value.item() == pytest.approx(oracle.item(), abs=1e-12)
    moved = [z, *learnt.parameters()]
    for found, expected in zip(torch.autograd.grad(value, moved), torch.autograd.grad(oracle, moved), strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_gradcheck_with_gates():
    free = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    learnt = gates(3)

    def loss(x):
        return exact_loss(Hydra(), normalize(x, dim=-1), 0.5, columns=COLUMNS, learnt=learnt)

    assert torch.autograd.gradcheck(loss, free)


def test_limits():
    """An open gate, the own class, and one positive each: InfoNCE. No class but one and no gate: nothing to push."""
    z = features(2, 6)
    label = torch.arange(6)
    alone = exact_loss(Hydra("identical"), z, 0.3, columns={"label": label})
    torch.testing.assert_close(alone, infonce(z, 0.3), atol=1e-12, rtol=0)
    one_class = exact_loss(Hydra(), z, 0.3, columns={"label": torch.zeros(6, dtype=torch.int64)})
    assert one_class.item() == pytest.approx(0, abs=1e-12)
    alike = torch.ones(2, 6, 4, dtype=torch.float64) / 2
    value = exact_loss(Hydra(), alike, 0.1, columns={"label": label}, learnt=Hydra(classes=6).learns(4).double())
    assert value.item() == pytest.approx(torch.tensor(1.0 + 4 * 2).log().item())  # a positive and four classes


def batch_of(label, count=4000):
    z = normalize(torch.ones(1, len(label), 2), dim=-1)
    index = torch.arange(len(label)).repeat(count)
    streams = fork(0, torch.arange(len(index)))
    side = Side(z[:, index], z)
    batch = Batch(torch.arange(len(label)), 0, {"x": side}, 0.2, len(label), streams=streams, columns={"label": label})
    object.__setattr__(batch, "anchor_index", lambda _: index)
    return batch, index


@pytest.mark.parametrize(
    ("partner", "expected"),
    [
        ("distinct", [[0, 2 / 3, 1 / 3], [3 / 4, 0, 1 / 4], [3 / 5, 2 / 5, 0]]),
        ("arbitrary", [[1 / 2, 1 / 3, 1 / 6]] * 3),
        ("identical", [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
    ],
)
def test_partners_are_those_of_samples_drawn_from_the_batch(partner, expected):
    """Three samples of class 0, two of 4, one of 5, and one of none."""
    label = torch.tensor([4, 0, -1, 0, 5, 4, 0])
    batch, index = batch_of(label)
    found = Hydra(partner).prepared(batch, Recall({})).partner
    assert (found[label[index] < 0] == -1).all()
    for row, own in enumerate((0, 4, 5)):
        drawn = found[label[index] == own]
        shares = [(drawn == other).double().mean().item() for other in (0, 4, 5)]
        assert shares == pytest.approx(expected[row], abs=0.02)


def test_a_chain_that_begins_anew_at_the_cache_beats_the_batch():
    z = features(1, 24, seed=5)
    found = certify(FrozenRun(contrast("hydra", "chain", *BEGINS_ANEW), z, 6, 0.2, columns=COLUMNS), 900)
    alone = certify(FrozenRun(contrast("hydra", "in_batch"), z, 6, 0.2, columns=COLUMNS), 900)
    assert found.relbias < 0.5 * alone.relbias
    assert found.facts["visited_ratio"] == 0


def test_what_does_not_go_together_is_refused():
    for given, key in (
        (["negatives=chain"], "negatives.restart"),
        (["negatives=moving_average"], "moving_average"),
        (["negatives.name=chain", "negatives.restart=true"], "negatives.cache_proposals"),
        (["encode_chunk=8"], "encode_chunk"),
    ):
        with pytest.raises(SpecError, match=key):
            parse("name: a\nepochs: 1\nbatch_size: 4\nlr: 1\n", ["objective=hydra", *given])
