"""Hydra, today SimLAP (arXiv 2410.18200): classes are compared in pairs, each pair by coordinates of its own.

An anchor a of class y is given a partner class y' of the batch. A gate g = g(y, y') in (0, 1)^D, learnt, says how much
of each coordinate counts, and scores are the cosines of gated features:

    s(a, c) = cos(g z_a, g z_c) / temperature
    l(a) = mean_{p in P(a)} -s(a, p) + log(exp s(a, p) + Z(a)),   Z over the samples of classes other than y and y'

P(a) holds the views of the gathered batch that are of class y', without a itself. With y' = y it is SupCon with a gate
and one positive at a time in the denominator. A sample without a label has an open gate (1) and its own other views as
positives, and is a negative of everybody.

    g(y, y') = sigmoid(MLP((E[y] + E[y']) / 2)),   E a table of one row for each class
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize
from typing_extensions import override

from emc2dist.core.batch import Batch
from emc2dist.core.denominator import Denominator, Estimate
from emc2dist.core.estimators.base import Recall
from emc2dist.core.objectives.base import Objective
from emc2dist.core.scores import Dot
from emc2dist.core.streams import uniforms

_PARTNER = 10  # lane of an anchor's random stream; chains, gumbel and supremix use 0 to 9
_SHORTEST = 1e-12  # squared length of a gated feature: where none was encoded zeros stand, and their gradient is 0


class Gates(nn.Module):
    """Gates [n, D] of pairs of classes int64 [n]."""

    def __init__(self, classes: int, embedding: int, hidden: int, features: int) -> None:
        super().__init__()
        self.classes = nn.Embedding(classes, embedding)
        self.gate = nn.Sequential(nn.Linear(embedding, hidden), nn.ReLU(), nn.Linear(hidden, features), nn.Sigmoid())

    @override
    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """The order of a pair does not matter."""
        gates: Tensor = self.gate((self.classes(one) + self.classes(other)) / 2)
        return gates


def gated(batch: Batch, anchors: Tensor, keys: Tensor, index: Tensor, dot: Dot) -> Tensor:
    """Cosines of what the anchors' gates leave of anchors and keys."""
    if batch.gates is None:
        return dot(anchors, keys)
    gates = batch.gates.view_as(anchors)
    towards = normalize(anchors * gates, dim=-1) * gates
    length = dot(gates.square(), keys.square()).clamp(min=_SHORTEST).sqrt()
    return dot(towards, keys) / length


def of_neither(batch: Batch, anchor: Tensor, index: Tensor) -> Tensor:
    """log weight [A, C]: 0 on samples of classes other than the anchor's and its partner, -inf on these."""
    assert batch.partner is not None
    label = batch.columns["label"]
    pair = (label[index] == label[anchor]) | (label[index] == batch.partner.unsqueeze(1))
    weight = torch.zeros(pair.shape, dtype=batch.sides["x"].all.dtype, device=pair.device)
    return weight.masked_fill(pair & (label[index] >= 0), -torch.inf)


@dataclass(frozen=True)
class Hydra(Objective):
    """Cross-entropy of picking a sample of the partner class, by the coordinates that the pair of classes shares."""

    partner: Literal["distinct", "arbitrary", "identical"] = "arbitrary"
    """Drawn among the batch's samples of other classes, among all of its samples, or the own class."""
    classes: int = 1000
    """Rows of the table; labels are below."""
    embedding: int = 512
    """Width of a row."""
    hidden: int = 1024
    """Width of the gate's hidden layer."""

    columns = ("label",)
    denominators = (Denominator(similarity=gated, log_weight=of_neither, valued=True),)
    looks_around = True

    @override
    def unfit(self, columns: Mapping[str, NDArray[np.int64]], width: int) -> str | None:
        count = int(columns["label"].max()) + 1
        if count <= self.classes:
            return None
        return f"objective.classes: {self.classes:,} rows, but there are {count:,} classes; give {count} or more"

    @override
    def learns(self, features: int) -> nn.Module:
        return Gates(self.classes, self.embedding, self.hidden, features)

    @override
    def prepared(self, batch: Batch, recall: Recall) -> Batch:
        own = batch.columns["label"][batch.anchor_index("x")]
        partner = own if self.partner == "identical" else self._drawn(batch, own)
        batch = replace(batch, partner=partner)
        if batch.learnt is None:
            return batch
        gates = batch.learnt(own.clamp(min=0), partner.clamp(min=0))
        return replace(batch, gates=torch.where((own >= 0).unsqueeze(1), gates, 1).to(batch.sides["x"].own.dtype))

    def _drawn(self, batch: Batch, own: Tensor) -> Tensor:
        """int64 [A]: a label of the batch for each anchor, by its stream, or the next one where there are none.

        Each sample is drawn as often; -1 for an anchor without a label, and its own where there is no other.
        """
        ordered = batch.columns["label"][batch.index].sort().values
        without = (ordered < 0).sum()
        count = len(ordered) - without
        first, last = (torch.searchsorted(ordered, own, right=right) for right in (False, True))
        others = count - (last - first) if self.partner == "distinct" else count.expand_as(own)
        share = 0 if batch.streams is None else uniforms(batch.streams, 1, lane=_PARTNER).squeeze(1)
        place = last + (share * others).long()
        place = torch.where(place < len(ordered), place, place - count)  # around, past those without a label
        alone = (own < 0) | (others == 0)
        return torch.where(alone, own, ordered[place.clamp(max=len(ordered) - 1)])

    @override
    def terms(self, batch: Batch, estimates: Mapping[str, Estimate]) -> dict[str, Tensor]:
        positives, is_one = self.denominators[0].positives(batch), self._positives(batch)
        log_z = estimates["negatives"].log_z.unsqueeze(1)
        count = is_one.sum((0, 2))
        attraction = (positives * is_one).sum((0, 2)) / count
        repulsion = (torch.logaddexp(positives, log_z) * is_one).sum((0, 2)) / count
        return {"attraction": -attraction.mean(), "repulsion": repulsion.mean()}

    def _positives(self, batch: Batch) -> Tensor:
        """bool [V, A, B]: which views of the batch an anchor is pulled to."""
        assert batch.partner is not None
        label, partner = batch.columns["label"], batch.partner.unsqueeze(1)
        anchor, views = batch.anchor_index("x").unsqueeze(1), batch.views
        shared = (label[batch.index] == partner) & (partner >= 0)
        own = anchor == batch.index
        its_own = own & (label[anchor] == partner)
        slot = torch.arange(views, device=own.device)
        itself = slot.view(-1, 1, 1) == slot.repeat_interleave(len(anchor) // views).unsqueeze(1)
        return torch.where(own, its_own & ~itself, shared)
