"""NNCLR (Dwibedi et al., With a Little Help from My Friends, ICCV 2021): the neighbour of one view tells the other.

    l = -s(n, a) + log(exp s(n, a) + sum over samples c of exp s(n, c)),    n = the nearest of K cached rows to a+

a is a view of a sample, a+ its next view (of two, the other), and c counts with its view of a's slot: swapped
prediction. The neighbour n is a constant of the differentiation, so the gradient goes to a and the candidates, which
are n's keys. It is another sample's: in a support set that is the whole cache the nearest would be an older feature of
a+ itself. Nor is that other sample a candidate; it would be the hardest of all. Until a row is cached a+ itself is n,
and so it is before `after` epochs: of an untrained encoder all cosines are near 1, and neighbours tell nothing.

`decoupled` leaves the positive out of the denominator (NNCLR + DCL; Yeh et al., ECCV 2022). With `predictor` a and c
are features and what an MLP, learnt with the encoder, adds to them, again of unit length. The paper's predictor stands
in their place; its batch normalisation, by which a candidate would depend on what is scored beside it, keeps features
apart. Without that all of them stay alike, so ours adds, and begins with nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from typing_extensions import override

from emc2dist.core.batch import Batch, Side
from emc2dist.core.denominator import Denominator, Estimate
from emc2dist.core.estimators.base import Fact, Recall
from emc2dist.core.objectives.base import Objective
from emc2dist.core.scores import Dot, positive_scores

NEIGHBOUR = "neighbour"
"""The side of the neighbours, whose features stand where their anchors' would."""


class Predictor(nn.Module):
    """Features [..., D] with what an MLP of one hidden layer adds to them, at first nothing."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        last = nn.Linear(hidden, features)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.added = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), last)

    @override
    def forward(self, features: Tensor) -> Tensor:
        added: Tensor = self.added(features)
        return features + added


def predicted(batch: Batch, anchors: Tensor, keys: Tensor, index: Tensor, dot: Dot) -> Tensor:
    """Cosines of the anchors with what the predictor makes of the keys."""
    return dot(anchors, keys if batch.learnt is None else normalize(batch.learnt(keys), dim=-1))


@dataclass(frozen=True)
class NnClr(Objective):
    """Cross-entropy of picking a view by the cached neighbour of the sample's next view."""

    support: int = 16384
    """Cached rows among which neighbours are looked for; > 0."""
    after: float = 3.0
    """Epochs before neighbours stand in, >= 0."""
    decoupled: bool = False
    """Whether the positive is left out of the denominator."""
    predictor: int = 0
    """Width of the predictor's hidden layer; 0: there is none."""

    bends = True  # the neighbour is another view's

    @property
    @override
    def denominators(self) -> Sequence[Denominator]:
        return (Denominator(anchors=NEIGHBOUR, views="same", similarity=predicted, valued=not self.decoupled),)

    @override
    def learns(self, features: int) -> nn.Module | None:
        if not self.predictor:
            return None
        return Predictor(features, self.predictor)

    @override
    def prepared(self, batch: Batch, recall: Recall) -> Batch:
        own = batch.sides["x"].own.detach().roll(-1, 0)
        samples = batch.own_index("x").expand(len(own), -1)
        if recall.proposed is not None and batch.epoch >= self.after:
            own, samples = _nearest(own, samples, recall)
        return replace(batch, sides={**batch.sides, NEIGHBOUR: Side(own, own, samples=samples)})

    @override
    def terms(self, batch: Batch, estimates: Mapping[str, Estimate]) -> dict[str, Tensor]:
        positive, estimate = positive_scores(batch, NEIGHBOUR, "x", predicted), estimates["negatives"]
        if self.decoupled:
            return {"attraction": -positive.mean(), "repulsion": estimate.mean_log_z}
        log_sum = torch.logaddexp(positive, estimate.log_z)
        return {"attraction": -positive.mean(), "repulsion": log_sum.mean()}

    @override
    def facts(self, batch: Batch) -> dict[str, Fact]:
        samples, own = batch.sides[NEIGHBOUR].samples, batch.own_index("x")
        assert samples is not None
        found = samples != own
        if "label" not in batch.columns:
            return {}
        same = batch.same("label", own.unsqueeze(0), samples)
        return {"neighbour_label_ratio": ((same & found).sum(), found.sum())}


def _nearest(features: Tensor, samples: Tensor, recall: Recall) -> tuple[Tensor, Tensor]:
    """The nearest cached row of another sample to each of `features` [V, b, D], and its sample; itself without any."""
    rows = recall.proposed
    assert rows is not None
    cached = rows.feature.to(features.dtype)
    no_support = ~rows.present | (rows.index == samples.unsqueeze(-1))
    cosines, row = (features @ cached.T).masked_fill(no_support, -torch.inf).max(-1)
    found = cosines > -torch.inf
    return torch.where(found.unsqueeze(-1), cached[row], features), torch.where(found, rows.index[row], samples)
