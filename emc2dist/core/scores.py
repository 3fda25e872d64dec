"""Scores: cosine similarities divided by the temperature, log-densities up to a constant.

A sample is taken with all its V views: its score is u(a, c) = log sum_v exp s(a, c_v), so a distribution over samples
is the one over views, summed. The gradient of that log-sum-exp shares a sample's weight among its views by their
softmax; nothing else does it. A sample of which only R of its V views are at hand stands for all of them with
log-mean-exp over the R, plus log V.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from emc2dist.core.batch import Batch

Dot = Callable[[Tensor, Tensor], Tensor]
"""Inner products of anchors [V, b, E] with whatever keys they are scored against, in any number of dimensions E."""

Similarity = Callable[[Batch, Tensor, Tensor, Tensor, Dot], Tensor]
"""(batch, anchors [V, b, D], keys [R, n, D], their samples int64 [n], dot) -> what stands in the scores instead of
`dot(anchors, keys)`."""


def cosine(batch: Batch, anchors: Tensor, keys: Tensor, index: Tensor, dot: Dot) -> Tensor:
    """Of features of unit length."""
    return dot(anchors, keys)


def positive_scores(batch: Batch, anchors: str, keys: str, similarity: Similarity = cosine) -> Tensor:
    """[A]: each anchor against its positive, see `positive_cosines`.

    The positive gets the share `batch.pull` of its gradient as key; the anchor gets all of its own.
    """
    return _pulled(batch, anchors, _positives(batch, anchors, keys), similarity)


def other_view_scores(batch: Batch, side: str) -> Tensor:
    """[V - 1, A]: each anchor against each of its sample's other views; gradient as of `positive_scores`."""
    own = batch.sides[side].own
    return torch.stack([_pulled(batch, side, own.roll(turn, 0)) for turn in range(1, len(own))])


def shared_scores(batch: Batch, side: str, column: str) -> Tensor:
    """[A]: each anchor's mean score over all views of the gathered batch's samples that share its value in a column.

    Its own sample's other views count among them, and are alone where the value is -1. Gradient as `positive_scores`
    has it; that of a key goes to the worker that encoded it.
    """
    own, every = batch.sides[side].own, batch.sides[side].all
    mates = _mates(batch, side, column).to(own.dtype)
    total = own.sum(0) - own + len(own) * mates @ every.mean(0)
    return _pulled(batch, side, total / shared_count(batch, side, column).view(*own.shape[:2], 1))


def shared_count(batch: Batch, side: str, column: str) -> Tensor:
    """int64 [A]: the views over which `shared_scores` is a mean."""
    views = batch.views
    return (views - 1 + views * _mates(batch, side, column).sum(1)).repeat(views)


def _mates(batch: Batch, side: str, column: str) -> Tensor:
    """bool [b, B]: which of the gathered batch's other samples share the value of a worker's in a column."""
    anchor = batch.own_index(side).unsqueeze(1)
    return batch.same(column, anchor, batch.index) & (batch.index != anchor)


def pair_scores(batch: Batch, side: str) -> Tensor:
    """[V, V - 1, b]: each view of a sample, as anchor, against each of its sample's other views.

    As keys these get the share `batch.pull` of their gradient; the anchor gets all of its own.
    """
    own = batch.sides[side].own
    views = torch.arange(len(own), device=own.device).unsqueeze(1)
    others = (views + views[1:].T) % len(own)
    constant = own.detach()
    if batch.pull is None:
        pairs = torch.einsum("vnd,wnd->vwn", own, own)
    else:
        to_key = torch.einsum("vnd,wnd->vwn", constant, own)
        share = batch.pull.view(len(own), 1, -1)
        pairs = torch.einsum("vnd,wnd->vwn", own, constant) + share * (to_key - to_key.detach())
    return pairs[views, others] / batch.temperature


def positive_cosines(batch: Batch, anchors: str, keys: str) -> Tensor:
    """[A]: each anchor with its positive: the mean over its sample's other views, or its pair on the other side."""
    return (batch.sides[anchors].own * _positives(batch, anchors, keys)).sum(-1).flatten()


def _pulled(batch: Batch, anchors: str, positive: Tensor, similarity: Similarity = cosine) -> Tensor:
    """[A]: each anchor against what [V, b, D] pulls it, which gets the share `batch.pull` of its gradient."""
    if batch.pull is not None:
        share = batch.pull.view(*positive.shape[:-1], 1)
        positive = positive.detach() + share * (positive - positive.detach())
    index = batch.own_index(anchors)
    return similarity(batch, batch.sides[anchors].own, positive, index, _each).flatten() / batch.temperature


def _each(anchors: Tensor, keys: Tensor) -> Tensor:
    """[V, b]: with keys [V, b, D], each with its own."""
    return (anchors * keys).sum(-1)


def _positives(batch: Batch, anchors: str, keys: str) -> Tensor:
    """[V, b, D]: what each anchor is pulled to."""
    side = batch.sides[keys]
    own = side.own if side.keys is None else side.keys
    return own if anchors != keys else (own.sum(0) - own) / (len(own) - 1)


def over_views(scores: Tensor) -> Tensor:
    """log-sum-exp of `scores` [V, ...] over views, or whatever comes first; -inf, without gradient, where all are."""
    none = (scores == -torch.inf).all(0)
    # Not over -inf alone, whose gradient is NaN.
    return scores.masked_fill(none, 0).logsumexp(0).masked_fill(none, -torch.inf)


def view_shares(anchors: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """[V, A, C]: how a sample's weight is shared among its views, their softmax. Sums to 1 over views."""
    return (torch.einsum("ad,vcd->vac", anchors, keys) / temperature).softmax(0)


def log_ratio(views: int, at_hand: int) -> float:
    """log V / R, by which `at_hand` of a sample's `views` stand for all of them."""
    return math.log(views / at_hand)
