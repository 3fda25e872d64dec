"""Scores: cosine similarities divided by the temperature, for samples taken with all their views.

The *unit* of every chain is a sample with all its V views: its score is u(a, c) = log sum_v exp s(a, c_v), so the
target over units is the target over views, summed. The gradient of that log-sum-exp shares a unit's weight among its
views by their softmax, which is how a weight on a unit becomes weights on its views: nothing else does it. A sample
of which only R of its V views are at hand stands for all of them with log-mean-exp over the R, plus log V.

Anchors are laid out view by view: anchor v * n + i is view v of the i-th of n samples.
"""

import math

import torch
from torch import Tensor


def positive_scores(features: Tensor, temperature: float) -> Tensor:
    """[V * n]: each anchor's mean score against the other views of its own sample; `features` [V, n, D], V >= 2."""
    views = features.shape[0]
    others = features.sum(0) - features
    return (features * others).sum(-1).flatten() / ((views - 1) * temperature)


def unit_scores(anchors: Tensor, units: Tensor, temperature: float) -> Tensor:
    """[A, P]: scores of `anchors` [A, D] against P samples with all their views, `units` [V, P, D]."""
    return (torch.einsum("ad,vpd->vap", anchors, units) / temperature).logsumexp(0)


def standing_scores(anchors: Tensor, features: Tensor, temperature: float, views: int) -> Tensor:
    """[A]: each anchor against a sample of its own, R of whose V `views` are at hand.

    `anchors` [A, D], `features` [A, R, D]. With R = V this is the unit's own score.
    """
    scores = torch.einsum("ad,ard->ar", anchors, features) / temperature
    return scores.logsumexp(1) + math.log(views / features.shape[1])


def view_shares(anchors: Tensor, units: Tensor, temperature: float) -> Tensor:
    """[V, A, P]: how a unit's weight is shared among its views, their softmax. Sums to 1 over views."""
    return (torch.einsum("ad,vpd->vap", anchors, units) / temperature).softmax(0)
