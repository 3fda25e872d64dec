"""Input-label contrast (the second kind that Rethmeier & Augenstein tell apart, ACM CSUR 2023): keys are label vectors.

    l(a) = -s(a, t_y) + log( sum over labels y' of exp s(a, t_y') ),    y the label of a

Vectors t are given and stand still: attributes, an embedding of the classes' names, or by default the axes, which makes
it softmax regression on the feature. Candidates are samples, by their labels' vectors, and one counts 1 / how many of
its label there are, so that each label counts once: over the batch's samples these are sampled labels, over the whole
dataset all labels. A feature learns to lie near what its label is described by, so that a label nobody trained on
(`held_out`) can be told by its description.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize
from typing_extensions import override

from emc2dist.core.batch import Batch, Side
from emc2dist.core.denominator import Denominator, Estimate
from emc2dist.core.estimators.base import Recall
from emc2dist.core.objectives.base import Objective
from emc2dist.core.scores import positive_scores

LABEL = "label"
"""The side of the label vectors."""
Vectors = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class InputLabel(Objective):
    """Cross-entropy of picking the label of a sample by its vector."""

    vectors: Vectors | None = None
    """A row for each label, as wide as a feature; the length of a row does not matter. None: the axes."""
    held_out: tuple[int, ...] = ()
    """Labels that nothing is trained on."""

    columns = ("label",)

    @property
    @override
    def denominators(self) -> tuple[Denominator, ...]:
        return (Denominator(keys=LABEL, views="same", log_weight=self._each_label_once, valued=True),)

    @override
    def unfit(self, columns: Mapping[str, NDArray[np.int64]], width: int) -> str | None:
        labels = np.unique(columns["label"])
        count, rows = int(labels.max()) + 1, width if self.vectors is None else len(self.vectors)
        if count > rows and self.vectors is None:
            return f"encoder.features: {width} axes are too few for {count:,} labels; give more, or objective.vectors"
        if count > rows:
            return f"objective.vectors: {rows:,} rows, but there are {count:,} labels; give one for each"
        if len(np.setdiff1d(labels[labels >= 0], self.held_out)) < 2:
            return "objective.held_out: leaves fewer than two labels to train on; hold out fewer"
        return None

    def label_vectors(self, width: int) -> Tensor:
        """float64 [K, width], of unit length."""
        return torch.eye(width, dtype=torch.float64) if self.vectors is None else _unit(self.vectors)

    @override
    def prepared(self, batch: Batch, recall: Recall) -> Batch:
        side, labels = batch.sides["x"], self._labels(batch, batch.index)
        vectors = self.label_vectors(side.all.shape[-1]).to(side.all)
        keys = vectors[labels.clamp(min=0)] * (labels >= 0).unsqueeze(1)
        own = keys[batch.first : batch.first + side.own.shape[1]]
        of_label = Side(own.expand_as(side.own), keys.expand(len(side.all), -1, -1))
        return replace(batch, sides={**batch.sides, LABEL: of_label})

    @override
    def terms(self, batch: Batch, estimates: Mapping[str, Estimate]) -> dict[str, Tensor]:
        positive = positive_scores(batch, "x", LABEL)
        log_sum = torch.logaddexp(positive, estimates["negatives"].log_z)
        has_label = self._labels(batch, batch.anchor_index("x")) >= 0
        return {"attraction": -(positive * has_label).mean(), "repulsion": (log_sum * has_label).mean()}

    def _labels(self, batch: Batch, index: Tensor) -> Tensor:
        """int64: labels of samples int64; -1 without one, or where it is held out."""
        labels = batch.columns["label"][index]
        held_out = torch.tensor(self.held_out, dtype=labels.dtype, device=labels.device)
        return labels.masked_fill(torch.isin(labels, held_out), -1)

    def _each_label_once(self, batch: Batch, anchor: Tensor, index: Tensor) -> Tensor:
        """log weight [A, C]: -log of how many of the batch have a candidate's label; -inf on the anchor's own."""
        label, among = self._labels(batch, index), self._labels(batch, batch.index)
        count = (label.unsqueeze(-1) == among).sum(-1).clamp(min=1)
        none = (label < 0) | (label == self._labels(batch, anchor))
        weight = -count.to(batch.sides["x"].all.dtype).log()
        return weight.expand_as(none).masked_fill(none, -torch.inf)


@lru_cache(4)
def _unit(vectors: Vectors) -> Tensor:
    return normalize(torch.tensor(vectors, dtype=torch.float64), dim=1)
