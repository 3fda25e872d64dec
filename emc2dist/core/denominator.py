"""The denominators that an objective declares, and what an estimator makes of one in a step.

    log Z(a) = log sum over samples c, not a's own, of w(a, c) exp s(a, c)

A `Denominator` says what the sum runs over, never how it is estimated. An `Estimate` is a tensor whose gradient is the
estimate's, so a formula reads as in its paper and autograd does the rest.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from emc2dist.core.batch import Batch, locate
from emc2dist.core.closing import OPEN, Closing
from emc2dist.core.scores import Dot, Similarity, cosine, log_ratio, over_views

LogWeight = Callable[[Batch, Tensor, Tensor], Tensor]
"""(batch, samples of the anchors int64 [A, 1], candidates int64 [A or 1, C]) -> log w [A, C]; -inf closes a pair."""


Values = Callable[[Tensor], Tensor]
"""Scores -> what a candidate with that score counts in a mean; of finite scores finite, and differentiable."""


@dataclass(frozen=True)
class Denominator:
    """One sum over candidates for every anchor."""

    name: str = "negatives"
    """Names the table of what is remembered for it."""
    anchors: str = "x"
    """Side of the anchors, see `emc2dist.core.batch`."""
    keys: str = "x"
    """Side of the candidates."""
    pulled_to: str | None = None
    """Side of the anchors' positives; None: that of the candidates."""
    views: Literal["all", "same"] = "all"
    """A candidate counts with all its views (log-sum-exp), or with the anchor's own view slot alone."""
    scale: float | None = None
    """s = scale * cosine; None: cosine / temperature."""
    similarity: Similarity = cosine
    """What stands for the cosine in a score. A ceiling compares cosines all the same."""
    log_weight: LogWeight | None = None
    """Part of the target, and so of what chains accept."""
    closing: Closing = OPEN
    """Which candidates are closed; the spec's negatives say so, no objective does."""
    valued: bool = False
    """Whether the loss needs log Z itself, not its gradient alone."""
    constant: bool = False
    """Whether candidates are constants of the differentiation, whoever they are, and their anchors alone move."""
    ranked: bool = False
    """Whether the loss takes the hardest candidates (`Estimate.hardest`), not their weights."""
    values: Values | None = None
    """Where the loss needs the mean of something over candidates by their weight (`Estimate.mean`): of what."""

    @property
    def positive_side(self) -> str:
        """Side of the anchors' positives."""
        return self.keys if self.pulled_to is None else self.pulled_to

    def scores(self, batch: Batch, keys: Tensor, index: Tensor) -> Tensor:
        """[A, C]: all anchors against the same C candidates; -inf on the anchor's own sample and on what is closed.

        Args:
            batch: whose anchors.
            keys: [R, C, D], R views of each candidate, which stand for V; for views `same` R is V, or 1 for any.
            index: int64 [C], their samples.
        """
        keys = keys.detach() if self.constant else keys
        if self.views == "same":
            scores = self._scores(batch, keys.expand(batch.views, -1, -1), index, _within_slots)
        else:
            scores = self._scores(batch, keys, index, _with_all)
            scores = scores.logsumexp(0) if self.closing.ceiling is None else over_views(scores)
            scores = scores + log_ratio(batch.views, len(keys))
        return self._weighed(batch, scores, index.unsqueeze(0))

    def positives(self, batch: Batch) -> Tensor:
        """[V, A, B]: each anchor against every view of the gathered batch, as the one that it is pulled to.

        Such a view gets the share `batch.pull` of its gradient, on the worker that encoded it.
        """
        keys = batch.sides[self.keys].all
        index = batch.index_of(self.keys)
        if batch.pull is None:
            return self._scores(batch, keys, index, _with_all, OPEN)
        to_key = self._scores(batch.standing(self.anchors), keys, index, _with_all, OPEN)
        to_anchor = self._scores(batch, keys.detach(), index, _with_all, OPEN)
        return to_anchor + batch.pull.view(1, -1, 1) * (to_key - to_key.detach())

    def _scores(self, batch: Batch, keys: Tensor, index: Tensor, dot: Dot, closing: Closing | None = None) -> Tensor:
        """Scores of single views in the shape that `dot` gives; -inf where one is above the ceiling."""
        own = batch.sides[self.anchors].own
        scores = self.similarity(batch, own, keys, index, dot) / self._temperature(batch)
        highest = (closing or self.closing).highest(batch, self.anchors, self.positive_side)
        if highest is None:
            return scores
        return scores.masked_fill(dot(own, keys).detach() > highest.unsqueeze(1), -torch.inf)

    def candidates(self, batch: Batch) -> "Candidates":
        """The batch's samples and then its draws; of a draw that is in the batch, too, the column holds -inf.

        So do all of the batch's where they are no candidates (`Side.proposes`).
        """
        side, index = batch.sides[self.keys], batch.index_of(self.keys)
        scores = self.scores(batch, side.all, index)
        mutual = torch.full_like(index, side.keys is not None, dtype=torch.bool)
        count = torch.full((), len(index) - 1, dtype=scores.dtype, device=scores.device)
        if not side.proposes:
            scores, count = torch.full_like(scores, -torch.inf), torch.zeros_like(count)
        elif side.repeats is not None:
            scores, count = scores.masked_fill(side.repeats, -torch.inf), count - side.repeats.sum()
        if side.drawn is None or side.drawn_index is None:
            return Candidates(scores, index, mutual, count)
        _, here = locate(side.drawn_index, index)
        here = (here & side.proposes) | (side.drawn_index < 0)
        drawn = self.scores(batch, side.drawn, side.drawn_index).masked_fill(here, -torch.inf)
        one_sided = torch.cat([mutual, torch.full_like(here, not (self.constant or side.drawn_learn))])
        index = torch.cat([index, side.drawn_index])
        return Candidates(torch.cat([scores, drawn], 1), index, one_sided, count + (~here).sum())

    def score_each(self, batch: Batch, keys: Tensor, index: Tensor) -> Tensor:
        """[A]: each anchor against one candidate of its own.

        Args:
            batch: whose anchors.
            keys: [V, A, D], or [1, A, D]: one view that stands for all.
            index: int64 [A], their samples.
        """
        scores = over_views(self.view_scores(batch, keys.expand(batch.views, -1, -1), index))
        return self._weighed(batch, scores.unsqueeze(1), index.unsqueeze(1)).squeeze(1)

    def judged_by(self, batch: Batch) -> tuple[slice, Tensor]:
        """The columns of `candidates` that are a uniform draw, the batch's or else the draws', and their entities."""
        side, index = batch.sides[self.keys], batch.index_of(self.keys)
        if side.proposes or side.drawn_index is None:
            return slice(len(index)), index
        return slice(len(index), len(index) + len(side.drawn_index)), side.drawn_index

    def closed(self, batch: Batch, scores: Tensor) -> Tensor:
        """bool [A, n]: which of `judged_by` are closed, by the scores of all candidates [A, P]."""
        columns, index = self.judged_by(batch)
        none = scores[:, columns] == -torch.inf
        repeats = batch.sides[self.keys].repeats
        if repeats is not None and batch.sides[self.keys].proposes:
            none = none & ~repeats
        return none & ~batch.is_own(self.anchors, self.keys, index.unsqueeze(0))

    def view_scores(self, batch: Batch, keys: Tensor, index: Tensor) -> Tensor:
        """[V, A]: each anchor against the views [V, A, D] of its own candidate [A]; -inf where it has no part."""
        keys = keys.detach() if self.constant else keys
        scores = self._scores(batch, keys, index, _one_by_one).squeeze(-1)
        if self.views == "all":
            return scores
        slot = torch.arange(batch.views, device=scores.device)
        same = slot.unsqueeze(1) == slot.repeat_interleave(batch.sides[self.anchors].own.shape[1])
        return scores.masked_fill(~same, -torch.inf)

    def _temperature(self, batch: Batch) -> float | Tensor:
        """Of all anchors, or [A, 1]."""
        if self.scale is not None:
            return 1 / self.scale
        return batch.temperature.unsqueeze(1) if isinstance(batch.temperature, Tensor) else batch.temperature

    def _weighed(self, batch: Batch, scores: Tensor, index: Tensor) -> Tensor:
        anchor = batch.anchor_index(self.anchors).unsqueeze(1)
        closed = batch.is_own(self.anchors, self.keys, index) | self.closing.closes(
            batch, self.anchors, self.positive_side, index
        )
        scores = scores.masked_fill(closed, -torch.inf)
        return scores if self.log_weight is None else scores + self.log_weight(batch, anchor, index)


def _with_all(anchors: Tensor, keys: Tensor) -> Tensor:
    """[R, A, C]: with keys [R, C, D]."""
    return torch.einsum("ad,vcd->vac", anchors.flatten(0, 1), keys)


def _within_slots(anchors: Tensor, keys: Tensor) -> Tensor:
    """[A, C]: with keys [V, C, D], those of the anchor's slot."""
    return torch.einsum("vnd,vcd->vnc", anchors, keys).flatten(0, 1)


def _one_by_one(anchors: Tensor, keys: Tensor) -> Tensor:
    """[R, A, 1]: with keys [R, A, D], each with its own."""
    return torch.einsum("ad,vad->va", anchors.flatten(0, 1), keys).unsqueeze(-1)


class Candidates(NamedTuple):
    """What a step brings along as candidates for every anchor: P = B + M of them."""

    scores: Tensor
    """[A, P]; -inf where one is none."""
    samples: Tensor
    """int64 [P]."""
    one_sided: Tensor
    """bool [P]: its feature carries no gradient, and should."""
    number: Tensor
    """Scalar: how many there are for an anchor, closed ones included."""


@dataclass(frozen=True)
class Estimate:
    """One denominator in one step, as an estimator has it."""

    value: Tensor
    """[A], log Z as far as the estimator knows it; a constant of the differentiation."""
    scores: Tensor
    """[A, C], with gradient; -inf where there is no candidate. The first B columns are the gathered batch's, the next
    M its draws."""
    weights: Tensor
    """[A, C], the share of each candidate, 0 where there is none; constants of the differentiation."""
    index: Tensor
    """int64 [A or 1, C], the candidates' samples; any where there is no candidate."""
    one_sided: Tensor
    """bool [A or 1, C]: the candidate's feature carries no gradient, and should."""
    closed: Tensor
    """bool [A, n]: which of the gathered batch's candidates are closed (`emc2dist.core.closing`); of the draws where
    those of the batch are none."""
    values: Values | None = None
    """The denominator's."""
    remembered: Tensor | None = None
    """[A], what `mean` was at earlier visits; NaN where there were none. None: nothing is remembered."""
    count: Tensor | float = 1.0
    """How many samples `value` sums over, those that are closed included."""

    @property
    def log_z(self) -> Tensor:
        """[A]: `value`, with the gradient sum_c weights_c grad scores_c; -inf where all candidates are closed."""
        return self.value.detach() + self._pull

    @property
    def mean_log_z(self) -> Tensor:
        """Scalar: mean of `log_z` over the anchors; one whose candidates are all closed counts as 0."""
        return self.open_log_z.mean()

    @property
    def open_log_z(self) -> Tensor:
        """[A]: `log_z`; 0 where all candidates are closed."""
        value = self.value.detach()
        return value.masked_fill(value == -torch.inf, 0) + self._pull

    @property
    def mean(self) -> Tensor:
        """[A]: sum_c weights_c values(scores_c), with the gradient of the softmax's mean; 0 where all are closed.

        That is E[grad f] + E[(f - m) grad s], m being what is remembered of the mean. Around the candidates' own mean
        the second part would be biased (docs/algorithm.md); that is taken where nothing is remembered.
        """
        assert self.values is not None, "the denominator names no values"
        weights = self.weights.detach()
        scores = torch.where(weights > 0, self.scores, 0)
        values = self.values(scores)
        mean = (weights * values).sum(1)
        around = mean.detach()
        if self.remembered is not None:
            around = torch.where(self.remembered.isnan(), around, self.remembered.to(around.dtype))
        push = (weights * (values.detach() - around.unsqueeze(1)) * scores).sum(1)
        return mean + push - push.detach()

    def hardest(self, count: int) -> Tensor:
        """[A, count]: the highest scores, falling, with gradient; -inf where candidates are fewer."""
        scores = torch.nn.functional.pad(self.scores, (0, max(0, count - self.scores.shape[1])), value=-torch.inf)
        return scores.topk(count, 1).values

    @property
    def _pull(self) -> Tensor:
        """[A]: 0, with the gradient."""
        return only_gradient(self.weights, self.scores)


def only_gradient(weights: Tensor, scores: Tensor) -> Tensor:
    """[A]: 0, with the gradient sum_c weights_c grad scores_c; both [A, C], the weights constants."""
    # Where the weight is 0 the score may be -inf; 0 * -inf is NaN, in the gradient too.
    scores = torch.where(weights > 0, scores, 0)
    pull = (weights.detach() * scores).sum(1)
    return pull - pull.detach()
