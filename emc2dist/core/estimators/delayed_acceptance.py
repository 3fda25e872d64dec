"""Cache proposals: every sample of the dataset a possible move, at the price of one or two more encodings.

Before its sweep a chain may move to one of K rows drawn uniformly from the feature cache, by delayed acceptance
(Christen & Fox 2005): stale scores choose, fresh scores decide.

1. Stage one (`propose`). From the set of the K rows and the carried state e one member c is drawn by the softmax of the
   *stale* scores s~, those with the cached features. Where c = e nothing happens.
2. Stage two (`accept`). e and c are scored afresh, and c is taken with probability

       min(1, exp(s(c) - s(e)) / exp(s~(c) - s~(e)))

The target pi ~ exp s stays invariant whatever the age of the cache. Given the set {rows, e}, stage one is reversible
for exp s~ (both directions share the normaliser), the set is as likely drawn around c as around e, and the second
ratio corrects exp s~ to exp s. So mixing improves with K, and age costs acceptance, never bias.

This is not algorithm.md's isir rule, by which c would join the sweep with score log sum_k exp s~_k - s~_c + s(c) and
stand for all K. That weight is unbiased for the sum, but with it the chain's kernel does not leave pi invariant unless
s~ = s: the carried state enters with its plain weight where c entered with an inflated one, so the two directions of a
move do not balance. tests/core/test_estimators.py runs both rules on a cache that is wrong.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from emc2dist.core.streams import gumbels, uniforms

_CHOICE, _DECISION = 3, 4  # lanes of a chain's random stream; `emc2dist.core.sweep` uses 0 to 2


class Proposal(NamedTuple):
    """Stage one's outcome for A chains."""

    row: Tensor
    """int64 [A]: the row drawn; any where not `moves`."""
    moves: Tensor
    """bool [A]: a row was drawn, not the carried state."""
    stale_ratio: Tensor
    """[A]: s~(c) - s~(e), what stage two corrects for."""


def propose(stale_rows: Tensor, stale_carried: Tensor, streams: Tensor) -> Proposal:
    """Draw from the softmax of stale scores over K rows [A, K] and the carried state [A].

    -inf marks a row that is no proposal (own sample, carried sample, no feature), and a chain not yet visited.
    """
    scores = torch.cat([stale_rows, stale_carried.unsqueeze(1)], 1)
    # Gumbel-max: exact, and no partial sums to round.
    drawn = (scores.double() + gumbels(streams, scores.shape[1], lane=_CHOICE)).argmax(1)
    drawn_score = scores.gather(1, drawn.unsqueeze(1)).squeeze(1)
    moves = (drawn < stale_rows.shape[1]) & (drawn_score > -torch.inf)
    return Proposal(drawn.clamp(max=stale_rows.shape[1] - 1), moves, drawn_score - stale_carried)


def accept(proposal: Proposal, fresh_row: Tensor, fresh_carried: Tensor, streams: Tensor) -> Tensor:
    """bool [A]: which chains move, given fresh scores [A] of row and carried state; -inf carried: not yet visited.

    A row whose score is -inf, being closed after all, is taken by no chain.
    """
    log_u = uniforms(streams, 1, lane=_DECISION).squeeze(1).log()
    unvisited = (fresh_carried == -torch.inf) & (fresh_row > -torch.inf)
    # A NaN compares false: a rejection.
    return proposal.moves & (unvisited | (log_u < fresh_row - fresh_carried - proposal.stale_ratio))
