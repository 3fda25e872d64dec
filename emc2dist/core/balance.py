"""Balance: what makes up for candidates whose features carry no gradient.

The gradient moves a sample in three roles: as anchor, as positive, and as somebody's negative. A candidate without
gradient (a draw, a cached feature) pushes its anchor and is not pushed itself, while a positive pulls on both sides.
Let q be the share of such candidates in an anchor's weight. Over all anchors a sample is pushed about as much as anchor
as it is as negative, so of a push of 2 there is 2 - q left, against a pull of 2: attraction wins, and representations
suffer. Two ways back, by the same symmetry; both have the exact direction, up to what the symmetry neglects:

    push    weights on candidates without gradient count twice: push 2 (1 - q) + 2 q = 2, pull 2
    pull    a positive gets the share 1 - q of its gradient as key: push 2 - q, pull 2 - q, a shorter step

A follower's keys (`encoder.momentum`) carry no gradient at all, positives no more than negatives: an anchor is pulled
and pushed as the exact loss does it with its keys held still, 1 to 1. There is nothing to balance, and nothing is.

Anchors may carry none instead (the neighbours of `nnclr`). A candidate without gradient then pushes nobody, of a push
of 1 there is 1 - q left, and `pull` alone is right: it leaves 1 - q of a pull of 1.

Where an estimator's weights do not sum to 1 (moving averages), q is still a share: both ways keep the ratio of pull to
push that gradients to both sides would have had. docs/draws.md has the numbers.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from emc2dist.core.denominator import Estimate

Balance = Literal["pull", "push"]
DEFAULT: Balance = "pull"


def one_sided_share(estimate: Estimate) -> Tensor:
    """q [A] in [0, 1]: the share of an anchor's weight on candidates without gradient; 0 where it has no weight."""
    weights = estimate.weights.detach()
    one_sided = (weights * estimate.one_sided).sum(1)
    return one_sided / weights.sum(1).clamp(min=torch.finfo(weights.dtype).tiny)


def pushed(estimate: Estimate) -> Estimate:
    """The estimate with candidates without gradient counted twice: by the gradient of their scores, in any formula."""
    one_sided = torch.where(estimate.one_sided & (estimate.scores > -torch.inf), estimate.scores, 0)
    return replace(estimate, scores=estimate.scores + (one_sided - one_sided.detach()))


def pull(estimates: Collection[Estimate]) -> Tensor:
    """1 - q [A], the mean over denominators: what positives keep of their gradient as keys."""
    return 1 - torch.stack([one_sided_share(estimate) for estimate in estimates]).mean(0)


def length(pull: Tensor, anchors_too: bool = True) -> Tensor:
    """Scalar: the length of a gradient whose positives keep `pull` [A] as keys, in lengths of the whole: 1 - q / 2.

    Where only keys have a gradient, and not the `anchors_too`, 1 - q.
    """
    return (1 + pull).mean() / 2 if anchors_too else pull.mean()
