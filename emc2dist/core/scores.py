"""Scores: cosine similarities divided by the temperature, log-densities up to a constant.

A sample is taken with all its V views: its score is u(a, c) = log sum_v exp s(a, c_v), so a distribution over samples
is the one over views, summed. The gradient of that log-sum-exp shares a sample's weight among its views by their
softmax; nothing else does it. A sample of which only R of its V views are at hand stands for all of them with
log-mean-exp over the R, plus log V.
"""

import math

import torch
from torch import Tensor

from emc2dist.core.batch import Batch


def positive_scores(batch: Batch, anchors: str, keys: str) -> Tensor:
    """[A]: each anchor against its positive, see `positive_cosines`.

    The positive gets the share `batch.pull` of its gradient as key; the anchor gets all of its own.
    """
    own, positive = batch.sides[anchors].own, _positives(batch, anchors, keys)
    if batch.pull is not None:
        share = batch.pull.view(*positive.shape[:-1], 1)
        positive = positive.detach() + share * (positive - positive.detach())
    return (own * positive).sum(-1).flatten() / batch.temperature


def positive_cosines(batch: Batch, anchors: str, keys: str) -> Tensor:
    """[A]: each anchor with its positive: the mean over its sample's other views, or its pair on the other side."""
    return (batch.sides[anchors].own * _positives(batch, anchors, keys)).sum(-1).flatten()


def _positives(batch: Batch, anchors: str, keys: str) -> Tensor:
    """[V, b, D]: what each anchor is pulled to."""
    side = batch.sides[keys]
    own = side.own if side.keys is None else side.keys
    return own if anchors != keys else (own.sum(0) - own) / (len(own) - 1)


def view_scores(cosines: Tensor, temperature: float | Tensor, highest: Tensor | None = None) -> Tensor:
    """[..., A, C]: scores of single views by their cosines; -inf where these are above `highest` [A].

    `temperature` is of all anchors, or [A, 1].
    """
    scores = cosines / temperature
    return scores if highest is None else scores.masked_fill(cosines.detach() > highest.unsqueeze(1), -torch.inf)


def sample_scores(anchors: Tensor, keys: Tensor, temperature: float | Tensor, highest: Tensor | None = None) -> Tensor:
    """[A, C]: scores of `anchors` [A, D] against C samples with all their views, `keys` [V, C, D].

    Views whose cosine is above `highest` [A] are left out; -inf where that leaves none.
    """
    scores = view_scores(torch.einsum("ad,vcd->vac", anchors, keys), temperature, highest)
    return scores.logsumexp(0) if highest is None else over_views(scores)


def over_views(scores: Tensor) -> Tensor:
    """log-sum-exp of `scores` [V, ...] over the views; -inf, without gradient, where all of them are."""
    none = (scores == -torch.inf).all(0)
    # Not over -inf alone, whose gradient is NaN.
    return scores.masked_fill(none, 0).logsumexp(0).masked_fill(none, -torch.inf)


def view_shares(anchors: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """[V, A, C]: how a sample's weight is shared among its views, their softmax. Sums to 1 over views."""
    return (torch.einsum("ad,vcd->vac", anchors, keys) / temperature).softmax(0)


def log_ratio(views: int, at_hand: int) -> float:
    """log V / R, by which `at_hand` of a sample's `views` stand for all of them."""
    return math.log(views / at_hand)
