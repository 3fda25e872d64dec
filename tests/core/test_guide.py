"""A guide closes what it finds too near: against explicit loops, and by the estimators that train over pairs."""

import pytest
import torch
from core.test_pairs import STEPS, TEMPERATURE, bijection, clustered, judged, unit

from emc2dist.core.certify import certify
from emc2dist.core.certify_pairs import FrozenPairs
from emc2dist.core.closing import Closing, Guided
from emc2dist.core.contrast import Contrast
from emc2dist.core.estimators import ESTIMATORS
from emc2dist.core.exact import exact_loss_of_pairs
from emc2dist.core.objectives import Dcl, InfoNce

BOUNDS = [Guided(), Guided(share=0.8), Guided(margin=0.2), Guided(above=0.3)]


def bound_by_hand(of_positive, how):
    """As GISTEmbed's code has it: absolute and relative margin; MultiCSR's is fixed."""
    if how.above is not None:
        return how.above
    return of_positive - abs(of_positive) * (1 - how.share) - how.margin


@pytest.mark.parametrize("how", BOUNDS, ids=str)
@pytest.mark.parametrize("relation", ["bijection", "judged"])
def test_the_exact_loss_under_a_guide_is_that_of_explicit_loops(how, relation):
    pairs = bijection(9) if relation == "bijection" else judged(9, 8)
    count = int(pairs[:, 0].max()) + 1
    queries = unit(count, 5).requires_grad_()
    documents = unit(9 if relation == "bijection" else 8, 5, seed=1).requires_grad_()
    guide = unit(count + len(documents), 3, seed=2)
    closing = Closing(guide=how)
    found = exact_loss_of_pairs(InfoNce("forward"), queries, documents, pairs, TEMPERATURE, closing, guide=guide)
    answers = {query: {d for q, d in pairs.tolist() if q == query} for query in range(count)}
    wanted, closed = 0.0, 0
    for query, document in pairs.tolist():
        bound = bound_by_hand(float(guide[query] @ guide[count + document]), how)
        z = torch.exp(queries[query] @ documents[document] / TEMPERATURE)
        for other in range(len(documents)):
            if other in answers[query]:
                continue
            if float(guide[query] @ guide[count + other]) > bound:
                closed += 1
            else:
                z = z + torch.exp(queries[query] @ documents[other] / TEMPERATURE)
        loss = torch.log(z) - queries[query] @ documents[document] / TEMPERATURE
        wanted = wanted + loss / len(answers[query]) / count
    assert 0 < closed < len(pairs) * (len(documents) - 1)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad(loss, (queries, documents)) for loss in (found, wanted))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def run_of(estimator, relation, guide=None):
    queries, documents = (48, 48) if relation == "bijection" else (60, 36)
    pairs = bijection(48) if relation == "bijection" else judged(queries, documents)
    features = torch.cat([clustered(queries, 1), clustered(documents, 2)])
    contrast = Contrast(Dcl("forward"), estimator, Closing(guide=Guided()))
    guide = unit(len(features), 4, seed=3) if guide is None else guide
    return FrozenPairs(contrast, features, queries, pairs, 6, TEMPERATURE, guide=guide)


CHAINS = [{"kernel": "mh"}, {"kernel": "isir", "cache_proposals": 16}, {"kernel": "isir", "carried": "cached"}]


@pytest.mark.parametrize("relation", ["bijection", "judged"])
@pytest.mark.parametrize("options", CHAINS, ids=lambda options: "-".join(map(str, options.values())))
def test_chains_under_a_guide_have_the_exact_gradient_on_average(options, relation):
    report = certify(run_of(ESTIMATORS["chain"](**options, draws=6), relation), STEPS)
    assert report.facts["closed_ratio"] > 0.1
    if options.get("carried") != "cached":  # whose features get no gradient
        assert report.ratio < 1.5


@pytest.mark.parametrize("options", CHAINS, ids=lambda options: "-".join(map(str, options.values())))
def test_no_chain_carries_what_the_guide_closes_and_one_that_did_drops_it(options):
    run = run_of(ESTIMATORS["chain"](**options, draws=6), "bijection")
    first = run._guide
    run._guide = torch.nn.functional.normalize(torch.ones_like(first))  # all as near as the positive: nothing is closed
    for t in range(40):
        outcome = run.outcome(t)
    assert outcome.facts["closed_ratio"][0] == 0
    run._guide = first
    dropped = 0
    for t in range(40, 120):
        dropped += float(run.outcome(t).facts["carried_closed_ratio"][0])
    assert dropped > 0
    chains = run.tables["negatives"]
    last = chains["visited"][:48, 0] & (chains["visited_at"][:48, 0] >= 40)
    query = torch.arange(48)[last]
    state = chains["state"][:48, 0][last]
    near, positive = (first[query] * first[state]).sum(1), (first[query] * first[48 + query]).sum(1)
    assert last.sum() > 30
    assert (near <= positive + 1e-3).all()


def test_as_near_as_the_positive_is_open_and_a_bit_nearer_is_closed():
    guide = torch.zeros(6, 2)
    guide[:, 0] = 1
    assert run_of_three(guide).outcome(0).facts["closed_ratio"][0] == 0
    guide[3] = torch.tensor([0.98, (1 - 0.98**2) ** 0.5])  # the document of query 0; the other two are nearer to it
    assert run_of_three(guide).outcome(0).facts["closed_ratio"][0] == 2


def test_with_queries_and_documents_it_is_the_loss_of_gistembed():
    """By matrices, as its code has it: one mask by the guide's p for what an anchor is compared with on any side."""
    q, d, guide = unit(7, 5), unit(7, 5, seed=1), unit(14, 3, seed=2)
    of_q, of_d = guide[:7], guide[7:]
    p = (of_q * of_d).sum(1, keepdim=True)
    blocks = []
    for one, other, mine, theirs in ((q, d, of_q, of_d), (q, q, of_q, of_q), (d, d, of_d, of_d)):
        scores = (one @ other.T / TEMPERATURE).masked_fill(mine @ theirs.T > p, -torch.inf)
        if one is q and other is d:
            scores.diagonal().copy_((q * d).sum(1) / TEMPERATURE)
        else:
            scores.fill_diagonal_(-torch.inf)
        blocks.append(scores)
    wanted = torch.nn.functional.cross_entropy(torch.cat(blocks, 1), torch.arange(7))
    objective, closing = InfoNce(("forward", "queries", "documents")), Closing(guide=Guided())
    found = exact_loss_of_pairs(objective, q, d, bijection(7), TEMPERATURE, closing, guide=guide)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def run_of_three(guide):
    contrast = Contrast(InfoNce("forward"), ESTIMATORS["in_batch"](), Closing(guide=Guided()))
    features = torch.cat([unit(3, 4), unit(3, 4, seed=1)])
    return FrozenPairs(contrast, features, 3, bijection(3), 3, TEMPERATURE, guide=guide.half())
