"""SupReMix (Wu et al., "Mixup Your Own Pairs", 2023): SupCon for labels that are numbers.

    l(a) = -mean_{p in P(a)} s(a, p) + log( sum_v exp s(a, a_v) + Z(a) + sum_m w(a, m) exp s(a, m) )

Labels are numbers t, the column `target`. Candidates weigh w(a, c) = |t_a - t_c| + 1, in the denominator and so in what
chains accept: who is far off pushes harder. Beside the batch there are mixtures m of its features, not brought to unit
length, constants:

    negatives    x z_a + (1 - x) z_k for every view k with another label, x drawn from a beta distribution, its label
                 mixed alike
    positives    x z_j + (1 - x) z_k for all views j below and k above t_a, both nearer than `window`, x such that its
                 label is t_a; they count in P(a), beside SupCon's, and in the denominator

As a mixture's score is the mixture of two scores, none is ever made. A sample without a label (-1) is mixed with nobody
and weighs 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from emc2dist.core.batch import Batch
from emc2dist.core.denominator import Denominator, Estimate
from emc2dist.core.objectives.base import Objective
from emc2dist.core.scores import other_view_scores, shared_count, shared_scores
from emc2dist.core.streams import uniforms

_MIXED = 9  # lane of an anchor's random stream; chains use 0 to 7, `emc2dist.core.estimators.gumbel` 8


def farther_weighs_more(batch: Batch, anchor: Tensor, index: Tensor) -> Tensor:
    """log(|t_a - t_c| + 1) [A, C] for samples int64 [A, 1] and [A or 1, C]."""
    return (_gap(batch, anchor, index).abs() + 1).log()


@dataclass(frozen=True)
class SupReMix(Objective):
    """SupCon over ordered labels, with mixtures of the batch's features."""

    window: int = 5
    """Labels between which a positive is mixed are nearer than this; >= 1."""
    beta: tuple[int, int] = (2, 8)
    """Of the anchor's share in a mixed negative; >= 1 each."""

    columns = ("target",)
    denominators = (Denominator(log_weight=farther_weighs_more, valued=True),)
    looks_around = True

    @override
    def terms(self, batch: Batch, estimates: Mapping[str, Estimate]) -> dict[str, Tensor]:
        scores, itself, gap = _scores(batch)
        share = self._shares(batch, scores)
        negatives = share * itself + (1 - share) * scores + ((1 - share) * gap.abs() + 1).log()
        share, between = self._between(gap)
        positives = (share * scores.unsqueeze(2) + (1 - share) * scores.unsqueeze(1)).flatten(1)
        count = shared_count(batch, "x", "target")
        total = count * shared_scores(batch, "x", "target") + (positives * between).sum(1)
        mixed = [negatives.masked_fill(gap == 0, -torch.inf), positives.masked_fill(~between, -torch.inf)]
        pooled = [other_view_scores(batch, "x").T, estimates["negatives"].log_z.unsqueeze(1), *mixed]
        repulsion = torch.cat(pooled, 1).logsumexp(1)
        return {"attraction": -(total / (count + between.sum(1))).mean(), "repulsion": repulsion.mean()}

    def _shares(self, batch: Batch, scores: Tensor) -> Tensor:
        """x [A, K] of the anchor in the mixed negatives: drawn by the anchors' streams, or the mean where none are."""
        first, second = self.beta
        if batch.streams is None:
            return torch.full_like(scores, first / (first + second)).detach()
        # The a-th smallest of a + b - 1 uniforms has the distribution beta(a, b).
        drawn = uniforms(batch.streams, scores.shape[1] * (first + second - 1), lane=_MIXED)
        return drawn.unflatten(1, (scores.shape[1], -1)).kthvalue(first, 2).values.to(scores.dtype)

    def _between(self, gap: Tensor) -> tuple[Tensor, Tensor]:
        """x [A, K, K] of the first view in the mixture of two, and bool [A, K * K], where that is a positive."""
        near = gap.abs() < self.window
        below, above = ((gap < 0) & near).unsqueeze(2), ((gap > 0) & near).unsqueeze(1)
        mixed = below & above
        apart = torch.where(mixed, gap.unsqueeze(1) - gap.unsqueeze(2), 1)
        return gap.unsqueeze(1) / apart, mixed.flatten(1)


def _scores(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """[A, K] of anchors against all K views of the batch and [A, 1] against themselves, as constants; and `_gap`."""
    anchors, keys = batch.anchors("x"), batch.sides["x"].all.detach()
    scores = anchors @ keys.flatten(0, 1).T / batch.temperature
    itself = (anchors * anchors.detach()).sum(1, keepdim=True) / batch.temperature
    gap = _gap(batch, batch.anchor_index("x").unsqueeze(1), batch.index.unsqueeze(0))
    return scores, itself, gap.repeat(1, len(keys))


def _gap(batch: Batch, anchor: Tensor, index: Tensor) -> Tensor:
    """[A, C], of the features' type: t_c - t_a; 0 where one has no label."""
    target = batch.columns["target"]
    here, there = target[anchor], target[index]
    return torch.where((here < 0) | (there < 0), 0, there - here).to(batch.sides["x"].all.dtype)
