"""One harness over the registry: every objective, and every estimator that it may be combined with."""

import dataclasses
import functools
from pathlib import Path
from typing import get_args

import pytest
import torch
from core.oracles import COLUMNS, ORACLES
from torch.nn.functional import normalize

from emc2dist.config import negatives as negatives_options
from emc2dist.config import objectives as objectives_options
from emc2dist.config import parse
from emc2dist.core.certify import FrozenRun, certify
from emc2dist.core.contrast import Contrast, contrast_for
from emc2dist.core.estimators import ESTIMATORS, InBatch
from emc2dist.core.exact import exact_loss
from emc2dist.core.objectives import OBJECTIVES

ROOT = Path(__file__).parent.parent.parent
SPEC = "name: a\nepochs: 1\nbatch_size: 4\nlr: 1\n"


def options_of(union):
    return {get_args(one.model_fields["name"].annotation)[0]: one for one in get_args(get_args(union)[0])}


OBJECTIVE_OPTIONS = options_of(objectives_options.Objective)
ESTIMATOR_OPTIONS = options_of(negatives_options.Negatives)
PAIRS = [
    (objective, estimator)
    for objective, options in OBJECTIVE_OPTIONS.items()
    for estimator, negatives in ESTIMATOR_OPTIONS.items()
    if options(name=objective).refusal(negatives(name=estimator)) is None
]


ISIR = ["negatives.kernel=isir", "negatives.cache_proposals=6"]


def features(views, samples, width=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(views, samples, width, generator=generator, dtype=torch.float64), dim=-1)


def contrast(objective, negatives, *more):
    more = [*more, "encoder.momentum=0.9"] if negatives == "queue" else more
    more = [*more, "batch_size=6", "data.per_class=3"] if objective == "sirl" else more
    more = [*more, "batch_size=8"] if objective == "whitenedcse" else more
    return contrast_for(parse(SPEC, [f"objective={objective}", f"negatives={negatives}", *more]))


def test_option_class_formula_oracle_and_row_of_the_docs_belong_together():
    assert OBJECTIVE_OPTIONS.keys() == OBJECTIVES.keys() == ORACLES.keys()
    assert ESTIMATOR_OPTIONS.keys() == ESTIMATORS.keys()
    for name, options in {**OBJECTIVE_OPTIONS, **ESTIMATOR_OPTIONS}.items():
        built = {**OBJECTIVES, **ESTIMATORS}[name]
        defaults = {field.name: field.default for field in dataclasses.fields(built)}
        closing = negatives_options.Closing.model_fields  # the contrast's, not the estimator's own
        assert defaults == {k: v.default for k, v in options.model_fields.items() if k not in closing}
    text = (ROOT / "docs" / "objectives.md").read_text()
    for name in [*OBJECTIVES, *ESTIMATORS]:
        assert f"| `{name}` |" in text


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_exact_loss_equals_explicit_loops_with_gradient(name, views):
    z = features(views, 6).requires_grad_()
    value, oracle = exact_loss(OBJECTIVES[name](), z, 0.3, columns=COLUMNS), ORACLES[name](z, 0.3)
    assert value.item() == pytest.approx(oracle.item(), abs=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, z), torch.autograd.grad(oracle, z), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "name", sorted(OBJECTIVES.keys() - {"dclw", "groco", "nnclr", "supremix"})
)  # of which parts are constants
def test_gradcheck(name):
    free = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)

    def loss(x):
        return exact_loss(OBJECTIVES[name](), normalize(x, dim=-1), 0.5, columns=COLUMNS)

    assert torch.autograd.gradcheck(loss, free)


def losses_of(contrast, index, ranks, columns=COLUMNS):
    """Each rank's loss and its gradient, over one gathered batch, after the same past."""
    run = FrozenRun(contrast, features(2, 24, seed=2), 8, 0.2, seed=3, columns=columns)
    for t in range(6):
        run.outcome(t)
    recalls = run._recall(index)
    state = {name: recall.columns.get("state") for name, recall in recalls.items()}
    own, losses = len(index) // ranks, []
    for rank in range(ranks):
        mine = torch.arange(rank * own, (rank + 1) * own)
        anchors = torch.cat([mine, mine + len(index)])
        part = {name: _part(recall, anchors) for name, recall in recalls.items()}
        batch = run.batch(index, 6, rank * own, own)
        losses.append(contrast(batch, part, run.encode).loss)
    loss = sum(losses) / ranks
    return loss, torch.autograd.grad(loss, run.shift)[0], state


def _part(recall, anchors):
    def cut(rows):
        values = {field.name: getattr(rows, field.name)[anchors] for field in dataclasses.fields(rows)}
        return dataclasses.replace(rows, **values)

    columns = {name: values[anchors] for name, values in recall.columns.items()}
    return recall._replace(columns=columns, carried=None if recall.carried is None else cut(recall.carried))


@pytest.mark.parametrize(
    ("objective", "negatives", "more"),
    [
        *((objective, negatives, ISIR if negatives == "chain" else []) for objective, negatives in PAIRS),
        ("dcl", "chain", [*ISIR, "negatives.carried=roulette"]),
    ],
)
def test_two_ranks_are_two_parts_of_one_batch(objective, negatives, more):
    index = torch.tensor([3, 17, 8, 0, 21, 5, 11, 14])
    whole, gradient, state = losses_of(contrast(objective, negatives, *more), index, 1)
    parts, parts_gradient, same = losses_of(contrast(objective, negatives, *more), index, 2)
    assert all((state[name] == same[name]).all() for name in state if state[name] is not None)
    torch.testing.assert_close(whole, parts, atol=1e-12, rtol=0)
    torch.testing.assert_close(gradient, parts_gradient, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_order_of_a_batch_changes_nothing(name):
    z = features(3, 8)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    moved = {column: values[:8][order] for column, values in COLUMNS.items()}
    one = exact_loss(OBJECTIVES[name](), z, 0.2, columns=COLUMNS)
    other = exact_loss(OBJECTIVES[name](), z[:, order], 0.2, columns=moved)
    torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("name", "negatives"), PAIRS)
def test_over_the_whole_dataset_the_batch_is_exact_and_other_estimators_are_too_at_first(name, negatives):
    """A first visit knows the batch alone; a chain's `isir` weights over it are then its softmax."""
    z = features(1, 12, seed=4)
    more = ["negatives.kernel=isir"] if negatives == "chain" else []
    run = FrozenRun(contrast(name, negatives, *more), z, 12, 0.2, columns=COLUMNS)
    exact = run.exact(1)
    torch.testing.assert_close(run.step(0), exact, atol=1e-12, rtol=0)


@functools.cache
def certificate_of_the_batch(objective, follows, steps):
    z = features(1, 24, seed=5)
    return certify(
        FrozenRun(Contrast(OBJECTIVES[objective](), InBatch(), follows=follows), z, 6, 0.2, columns=COLUMNS), steps
    )


@pytest.mark.parametrize(("objective", "negatives"), PAIRS)
def test_a_short_certificate(objective, negatives):
    """The production estimators over many steps: a chain comes to the exact gradient, and what is biased stays so."""
    more = ["negatives.kernel=isir"] if negatives == "chain" else []
    steps = 24 if negatives == "in_batch" else 600  # which is the other, to the bit
    z = features(1, 24, seed=5)
    found = certify(FrozenRun(contrast(objective, negatives, *more), z, 6, 0.2, columns=COLUMNS), steps)
    alone = certificate_of_the_batch(objective, negatives == "queue", steps)
    if objective == "groco":  # which is hard among all, a batch does not know, and a chain knows a little of it
        assert found.relbias <= alone.relbias
    elif negatives == "chain":
        assert found.relbias < 0.5 * alone.relbias
    elif negatives == "in_batch":
        assert found.relbias == alone.relbias
    else:
        assert found.relbias < alone.relbias
