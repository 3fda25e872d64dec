"""The exact loss of an objective: its denominators over the whole dataset, by brute force. The oracle of estimators.

O((N V)^2 D) work. Memory is linear in N: blocks of anchors are taken one after the other, as if each were a worker's
part of one batch, and recomputed in the backward pass.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from emc2dist.core.batch import Batch, Side, judged_pairs
from emc2dist.core.closing import OPEN, Closing
from emc2dist.core.denominator import Denominator, Estimate
from emc2dist.core.estimators import CachedRows, Recall, among, in_batch
from emc2dist.core.objectives import Objective
from emc2dist.core.scores import log_ratio

_BLOCK_ELEMENTS = 1 << 24  # scores held at once: 64 MiB in float32, a few times that while differentiating


def exact_loss(
    objective: Objective,
    features: Tensor,
    temperature: float,
    anchors: Tensor | None = None,
    together: int | None = None,
    closing: Closing = OPEN,
    columns: Mapping[str, Tensor] | None = None,
    support: CachedRows | None = None,
    followed: bool = False,
    learnt: nn.Module | None = None,
) -> Tensor:
    """The loss over the whole dataset; differentiable.

    Args:
        objective: whose formula.
        features: [V, N, D] unit-norm features, V >= 2 views of N >= 2 samples; the loss has their type.
        temperature: > 0; scores are inner products divided by it.
        anchors: [U, N, D], the views that are anchors and each other's positives; by default all of `features`.
            Where they or `together` are given, `features` are stored views, of which a step draws its own: a
            candidate of the anchor's own slot (`Denominator.views`) is then any of its sample's, each as often.
        together: of the U only so many stand together, as the V of a step do; the mean over all ways to choose them.
            By default all of them do.
        closing: which candidates are closed.
        columns: int64 [N] each, what is known of the samples (`Batch.columns`).
        support: the cached rows that an objective wants at hand.
        followed: keys, positives among them, are constants of the differentiation, as a follower's are.
        learnt: what the objective itself learns (`Objective.learns`).

    Raises:
        ValueError: if the shape has fewer than two views or samples, or the temperature is not positive; of an
            objective that takes the hardest candidates, which over stored views are no mean of anything.
    """
    if features.ndim != 3 or min(features.shape[:2]) < 2:
        raise ValueError(f"features must be [V >= 2, N >= 2, D], got {tuple(features.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    views, samples, _ = features.shape
    is_stored = anchors is not None or together is not None
    if is_stored and any(what.ranked for what in objective.denominators):
        raise ValueError("an objective that takes the hardest candidates has no exact loss over stored views")
    anchors = features if anchors is None else anchors
    block = max(1, _BLOCK_ELEMENTS // (views * views * samples))
    losses = [
        checkpoint(
            _block_loss,
            objective,
            anchors,
            features,
            (first, min(first + block, samples)),
            temperature,
            together,
            is_stored,
            closing,
            columns or {},
            support,
            followed,
            learnt,
            use_reentrant=False,
        )
        for first in range(0, samples, block)
    ]
    return torch.stack(losses).sum()


def exact_loss_of_pairs(
    objective: Objective,
    queries: Tensor,
    documents: Tensor,
    pairs: Tensor,
    temperature: float,
    closing: Closing = OPEN,
    columns: Mapping[str, Tensor] | None = None,
    learnt: nn.Module | None = None,
    guide: Tensor | None = None,
) -> Tensor:
    """The loss over a whole set of pairs; differentiable. The mean over queries, of each over its documents.

    Args:
        objective: with directions, forward alone where documents are judged.
        queries: [Q, D], of unit length.
        documents: [C, D], the same.
        pairs: int64 [R, 2], a query and a document that is its positive; every query has one at least.
        temperature: > 0.
        closing: which candidates are closed.
        columns: int64 [Q + C] each, what is known of the entities.
        learnt: what the objective itself learns.
        guide: as of `Batch`, [Q + C, E].
    """
    entities = len(queries) + len(documents)
    judged = judged_pairs(pairs, len(queries), entities)
    index = torch.arange(entities, device=queries.device).split([len(queries), len(documents)])
    denominators = [replace(what, closing=closing) for what in objective.denominators]
    number = torch.bincount(pairs[:, 0], minlength=len(queries))[pairs[:, 0]]
    losses = []
    for count in number.unique().tolist():  # of queries with as many documents each pair counts as much
        mine = pairs[number == count]
        every = {"query": (queries, index[0], mine[:, 0]), "document": (documents, index[1], mine[:, 1])}
        sides = {
            # All entities stand as draws, for a pair's own may be in any slot, or in several.
            name: Side(
                of_all[rows].unsqueeze(0), of_all[rows].unsqueeze(0), of_all.unsqueeze(0), there, drawn_learn=True,
                index=there[rows], entities=len(there), proposes=False,
            )
            for name, (of_all, there, rows) in every.items()
        }  # fmt: skip
        batch = Batch(
            mine[:, 0],
            0,
            sides,
            temperature,
            entities,
            columns=columns or {},
            guide=guide,
            judged=judged,
            learnt=learnt,
        )
        batch = objective.prepared(batch, Recall({}))
        estimates = {what.name: in_batch(what, batch) for what in denominators}
        losses.append(_sum(objective, batch, estimates) * (len(mine) / count / len(queries)))
    return torch.stack(losses).sum()


def _block_loss(
    objective: Objective,
    anchors: Tensor,
    features: Tensor,
    block: tuple[int, int],
    temperature: float,
    together: int | None,
    is_stored: bool,
    closing: Closing,
    columns: Mapping[str, Tensor],
    support: CachedRows | None,
    followed: bool,
    learnt: nn.Module | None,
) -> Tensor:
    """The part of the mean that samples first .. last - 1 of the block (first, last) bring."""
    samples, (first, last) = features.shape[1], block
    index = torch.arange(samples, device=features.device)
    denominators = [replace(what, closing=closing) for what in objective.denominators]

    def batch_of(own: Tensor, every: Tensor) -> Batch:
        own = own[:, first:last]
        side = Side(own, every.detach(), keys=own.detach()) if followed else Side(own, every)
        batch = Batch(index, first, {"x": side}, temperature, samples, columns=columns, learnt=learnt)
        return objective.prepared(batch, Recall({}, proposed=support))

    def estimates(own: Tensor) -> dict[str, Estimate]:
        estimate = _of_stored if is_stored else in_batch
        return {what.name: estimate(what, batch_of(own, features)) for what in denominators}

    if together is None:
        loss = _sum(objective, batch_of(anchors, features), estimates(anchors))
        return loss * ((last - first) / samples)
    # Without a ceiling what is known of an anchor does not depend on who stands with it, unless the anchor itself does.
    varies = closing.ceiling is not None or any(what.anchors != "x" for what in denominators)
    alone = {} if varies else estimates(anchors)
    known = {
        what.name: _known(what, alone[what.name], together, len(anchors)) for what in (denominators if alone else ())
    }
    each, losses = anchors.unbind(), []  # apart, for the gradient of a slice is as large as the whole
    for views in combinations(range(len(anchors)), together):
        stand = torch.stack([each[view] for view in views])
        some = {name: _as_estimate(column[list(views)].flatten(), samples - 1) for name, column in known.items()}
        losses.append(_sum(objective, batch_of(stand, stand), some or estimates(stand)))
    return torch.stack(losses).mean() * ((last - first) / samples)


def _known(what: Denominator, estimate: Estimate, together: int, anchors: int) -> Tensor:
    """[U, n]: what a formula reads, with gradient: the mean, or log Z as of `together` views instead of U."""
    if what.values is not None:
        return estimate.mean.unflatten(0, (anchors, -1))
    of_fewer = log_ratio(together, anchors) if what.views == "all" else 0.0
    return estimate.log_z.unflatten(0, (anchors, -1)) + of_fewer


def _of_stored(what: Denominator, batch: Batch) -> Estimate:
    """The estimate over stored views: of a slot of its own, any view of a sample stands there as often as another."""
    if what.views == "all":
        return in_batch(what, batch)
    stored = batch.sides[what.keys].all
    scores = torch.cat([what.scores(batch, view, batch.index) for view in stored.unsqueeze(1)], 1)
    index = batch.index.repeat(len(stored))
    none = torch.zeros_like(index, dtype=torch.bool)
    return among(what, batch, scores + log_ratio(1, len(stored)), index, none, len(batch.index) - 1)


def over_all(what: Denominator, batch: Batch, features: Tensor) -> Estimate:
    """The denominator of a batch's anchors over all samples, of which `features` [R, N, D] are R stored views."""
    others = torch.ones(batch.samples, dtype=torch.bool, device=batch.index.device).index_fill(0, batch.index, False)
    index = torch.cat([batch.index, others.nonzero().squeeze(1)])
    side = Side(own=batch.sides[what.keys].own, all=features[:, index])
    return _of_stored(what, replace(batch, index=index, sides={**batch.sides, what.keys: side}, host_index=None))


def _sum(objective: Objective, batch: Batch, estimates: dict[str, Estimate]) -> Tensor:
    return torch.stack(list(objective.terms(batch, estimates).values())).sum()


def _as_estimate(known: Tensor, count: int) -> Estimate:
    """What is known [A] over so many samples, with gradient, as the `log_z` and the `mean` of an estimate."""
    column = known.unsqueeze(1)
    none = torch.zeros(1, 1, dtype=torch.int64, device=known.device)
    one = torch.ones_like(column)
    return Estimate(known, column, one, none, none.bool(), none.bool(), values=lambda scores: scores, count=count)
