"""Two sides: queries and documents, as pairs or judged, against explicit loops and by the estimators that train."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from emc2dist.core.batch import judged_pairs
from emc2dist.core.certify import certify
from emc2dist.core.certify_pairs import FrozenPairs
from emc2dist.core.closing import Closing
from emc2dist.core.contrast import Contrast
from emc2dist.core.estimators import ESTIMATORS
from emc2dist.core.exact import exact_loss_of_pairs
from emc2dist.core.objectives import Dcl, InfoNce

TEMPERATURE, STEPS = 0.3, 500


def unit(*shape, seed=0):
    return normalize(torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), dim=-1)


def bijection(count):
    return torch.arange(count).unsqueeze(1).expand(-1, 2)


def judged(queries, documents, seed=0):
    """Pairs of which some documents have many, most one or none (Zipf), and some queries two."""
    generator = torch.Generator().manual_seed(seed)
    popular = 1 / torch.arange(1.0, documents + 1)
    first = torch.multinomial(popular, queries, replacement=True, generator=generator)
    second = torch.multinomial(popular, queries, replacement=True, generator=generator)
    pairs = [(query, int(first[query])) for query in range(queries)]
    pairs += [(query, int(second[query])) for query in range(0, queries, 3) if second[query] != first[query]]
    return torch.tensor(pairs)


FOUR = ("forward", "backward", "queries", "documents")
JOINT = [("forward", "queries"), ("documents", "forward"), "all"]


def by_loops(queries, documents, pairs, kind, directions):
    """The mean over queries, and over each one's documents, of -s + log sum over the documents that are not judged.

    Several directions or `all` have one sum, in which the pair stands once for each way across.
    """
    of_query, of_document = {}, {}
    for query, document in pairs.tolist():
        of_query.setdefault(query, set()).add(document)
        of_document.setdefault(document, set()).add(query)
    total = 0.0
    for query, document in pairs.tolist():
        score = torch.dot(queries[query], documents[document]) / TEMPERATURE
        sums = {
            name: sum(
                torch.exp(torch.dot(mine, other) / TEMPERATURE) for row, other in enumerate(side) if row not in own
            )
            for name, mine, side, own in (
                ("forward", queries[query], documents, of_query[query]),
                ("backward", documents[document], queries, of_document[document]),
                ("queries", queries[query], queries, {query}),
                ("documents", documents[document], documents, {document}),
            )
        }
        if directions in ("forward", "both"):
            ways = [(1, sums[name]) for name in FOUR[: 1 + (directions == "both")]]
        else:
            chosen = FOUR if directions == "all" else directions
            ways = [(len({"forward", "backward"} & set(chosen)), sum(sums[name] for name in chosen))]
        for times, z in ways:
            log_sum = torch.log(times * torch.exp(score) + z) if kind is InfoNce else torch.log(z)
            total = total + (log_sum - score) / len(ways) / len(of_query[query]) / len(queries)
    return total


@pytest.mark.parametrize("kind", [InfoNce, Dcl])
@pytest.mark.parametrize("relation", ["bijection", "judged"])
@pytest.mark.parametrize("directions", ["forward", "both", *JOINT], ids=str)
def test_the_exact_loss_of_pairs_is_that_of_explicit_loops(kind, relation, directions):
    pairs = bijection(7) if relation == "bijection" else judged(9, 6)
    queries = unit(int(pairs[:, 0].max()) + 1, 5).requires_grad_()
    documents = unit(7 if relation == "bijection" else 6, 5, seed=1).requires_grad_()
    found = exact_loss_of_pairs(kind(directions), queries, documents, pairs, TEMPERATURE)
    wanted = by_loops(queries, documents, pairs, kind, directions)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad(loss, (queries, documents)) for loss in (found, wanted))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("objective", [InfoNce("forward"), InfoNce("all"), Dcl("all")], ids=str)
def test_the_gradient_of_pairs_is_that_of_finite_differences(objective):
    pairs = judged(5, 4)

    def loss(queries, documents):
        return exact_loss_of_pairs(
            objective, normalize(queries, dim=-1), normalize(documents, dim=-1), pairs, TEMPERATURE
        )

    assert torch.autograd.gradcheck(loss, (unit(5, 3).requires_grad_(), unit(4, 3, seed=1).requires_grad_()))


def test_pairs_with_a_document_each_are_no_judged_ones():
    assert judged_pairs(bijection(4), 4, 8) is None
    assert judged_pairs(torch.tensor([[0, 0], [1, 0]]), 2, 4).tolist() == [2, 6, 8, 9]
    assert judged_pairs(torch.tensor([[0, 0], [1, 1]]), 2, 5) is not None  # a document is nobody's


def test_all_pairs_as_one_batch_are_the_exact_loss():
    queries, documents = unit(8, 5), unit(8, 5, seed=1)
    run = FrozenPairs(
        Contrast(InfoNce("both"), ESTIMATORS["in_batch"]()), torch.cat([queries, documents]), 8, bijection(8), 8, 0.3
    )
    outcome = run.outcome(0)
    wanted = exact_loss_of_pairs(InfoNce("both"), queries, documents, bijection(8), 0.3)
    torch.testing.assert_close(outcome.loss, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(run.gradient(outcome), run.exact(), rtol=1e-9, atol=1e-12)


def clustered(count, seed):
    """Features that lie in clusters, so that few candidates have most of the weight."""
    centres = unit(6, 8, seed=99)
    return normalize(centres[torch.arange(count) % 6] + 0.7 * unit(count, 8, seed=seed), dim=-1)


CHAINS = [
    {"kernel": "mh"},
    {"kernel": "isir"},
    {"kernel": "isir", "cache_proposals": 16},
    {"kernel": "isir", "carried": "complete"},
]


def ratio_of(contrast, relation, steps, proposes=None):
    queries, documents = (48, 48) if relation == "bijection" else (60, 36)
    pairs = bijection(48) if relation == "bijection" else judged(queries, documents)
    features = torch.cat([clustered(queries, 1), clustered(documents, 2)])
    run = FrozenPairs(contrast, features, queries, pairs, 6, TEMPERATURE, proposes=proposes)
    return certify(run, steps)


@pytest.mark.parametrize("directions", ["forward", "both"])
@pytest.mark.parametrize("options", CHAINS, ids=lambda options: "-".join(map(str, options.values())))
def test_chains_over_pairs_have_the_exact_gradient_on_average(options, directions):
    report = ratio_of(Contrast(Dcl(directions), ESTIMATORS["chain"](**options)), "bijection", STEPS)
    assert report.ratio < 1.5
    assert report.relbias < 0.3


@pytest.mark.parametrize(
    ("directions", "options"),
    [*(("forward", options) for options in CHAINS), ("both", CHAINS[0]), ("both", CHAINS[2])],
    ids=str,
)
def test_chains_over_judged_documents_have_the_exact_gradient_by_draws(directions, options):
    """Back from documents, which come as often as they are judged, to queries, which come uniformly, too."""
    report = ratio_of(Contrast(Dcl(directions), ESTIMATORS["chain"](**options, draws=6)), "judged", STEPS)
    assert report.ratio < 1.5
    assert report.relbias < 0.3


@pytest.mark.parametrize("objective", [InfoNce("all"), Dcl(("forward", "documents"))], ids=str)
def test_chains_over_directions_in_one_denominator_are_nearer_to_the_exact_gradient_than_the_batch(objective):
    """Near, not exact: the shares of directions are by averages of each one's log Z."""
    chains = ratio_of(Contrast(objective, ESTIMATORS["chain"](kernel="isir")), "bijection", STEPS)
    alone = ratio_of(Contrast(objective, ESTIMATORS["in_batch"]()), "bijection", STEPS)
    assert chains.excess < 0.4 * alone.excess
    assert alone.excess > 4 * alone.excess_error


def test_an_anchor_all_of_whose_candidates_are_closed_is_only_pulled_in_any_direction():
    queries, documents = (unit(4, 3, seed=seed).requires_grad_() for seed in (0, 1))
    same = {"label": torch.zeros(8, dtype=torch.int64)}
    loss = exact_loss_of_pairs(
        Dcl("all"), queries, documents, bijection(4), TEMPERATURE, Closing(columns=("label",)), same
    )
    torch.testing.assert_close(loss, -(queries * documents).sum(1).mean() / TEMPERATURE)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, (queries, documents)))


def test_judged_documents_of_the_batch_as_proposals_would_be_far_off():
    report = ratio_of(Contrast(Dcl("forward"), ESTIMATORS["chain"](kernel="isir")), "judged", STEPS, proposes=True)
    assert report.ratio > 2
    assert report.relbias > 0.35


def test_a_ceiling_closes_candidates_of_pairs_in_chains_as_in_the_exact_loss():
    contrast = Contrast(Dcl("forward"), ESTIMATORS["chain"](kernel="isir", draws=6), Closing(ceiling=0.9))
    for relation in ("bijection", "judged"):
        report = ratio_of(contrast, relation, STEPS)
        assert report.ratio < 1.5
        assert report.facts["closed_ratio"] > 0.05


def test_a_moving_average_over_pairs_comes_to_log_z():
    contrast = Contrast(InfoNce("both"), ESTIMATORS["moving_average"](rate=0.05))
    run = FrozenPairs(contrast, torch.cat([clustered(24, 1), clustered(24, 2)]), 24, bijection(24), 8, TEMPERATURE)
    for t in range(600):
        outcome = run.outcome(t)
    for side, table in (("query", "negatives"), ("document", "backward")):
        own = 0 if side == "query" else 24
        there = 24 - own
        z = run.features[0]
        scores = z[own : own + 24] @ z[there : there + 24].T / TEMPERATURE
        exact = scores.fill_diagonal_(-torch.inf).logsumexp(1) - math.log(23)
        found = run.tables[table]["log_mean"][own : own + 24, 0]
        assert (found - exact).abs().mean() < 0.15
    assert outcome.loss.isfinite()


def test_a_learnt_temperature_has_the_gradient_of_the_loss_by_it_under_a_chain():
    """Of the exact loss by finite differences; of a chain on average, over the same pairs."""
    objective, pairs = InfoNce("both", learn_temperature=True), bijection(32)
    queries, documents = clustered(32, 1), clustered(32, 2)
    learnt = objective.learns(8).double()

    def exact(shift):
        learnt.log.data.fill_(shift)
        return exact_loss_of_pairs(objective, queries, documents, pairs, TEMPERATURE, learnt=learnt)

    (by_autograd,) = torch.autograd.grad(exact(0.0), learnt.log)
    by_differences = (exact(1e-5) - exact(-1e-5)).detach() / 2e-5
    torch.testing.assert_close(by_autograd, by_differences, rtol=1e-6, atol=1e-9)
    fixed = exact_loss_of_pairs(InfoNce("both"), queries, documents, pairs, TEMPERATURE / math.exp(0.3))
    torch.testing.assert_close(exact(0.3), fixed)
    learnt.log.data.fill_(0.0)
    contrast = Contrast(objective, ESTIMATORS["chain"](kernel="isir"))
    run = FrozenPairs(contrast, torch.cat([queries, documents]), 32, pairs, 8, TEMPERATURE)
    run.learnt = learnt
    found = [torch.autograd.grad(run.outcome(t).loss, learnt.log)[0] for t in range(400)]
    assert torch.stack(found[100:]).mean().item() == pytest.approx(by_autograd.item(), rel=0.1)


def test_a_learnt_temperature_stays_above_its_bound():
    learnt = InfoNce(learn_temperature=True).learns(4)
    learnt.log.data.fill_(9.0)
    assert learnt(0.07).item() == pytest.approx(0.01)
    (-learnt(0.07)).backward()
    learnt.log.data -= 10 * learnt.log.grad  # and comes back from there
    assert learnt(0.07).item() > 0.011
