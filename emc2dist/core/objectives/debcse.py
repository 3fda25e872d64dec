"""DebCSE (Miao et al., CIKM 2023, arXiv 2309.07396): pairs weigh by how unlikely their surface makes them.

Texts that share words, or are as long as each other, are near for that alone, and are taken for positives and for hard
negatives more often than others: by inverse propensity weights they count less. With o(a, c) in [0, 1] how alike two
texts look, and weights w = exp(-strength o),

    l(a) = v(a) (-s(a, a+) + log(exp s(a, a+) + Z(a))),   Z(a) = sum over c of w(a, c) exp s(a, c)

w is part of the target, so of what chains accept; v is w(a, a+) over its mean in the gathered batch, a constant of the
differentiation, and 1 where positives are views of one text. With strength 0 it is InfoNCE.

That pairs are weighed by inverse propensities of surface, and candidates by their nearness besides, is the paper's. It
draws them so from a corpus, once; the exponential is ours, and so is

    o = (J + shorter / longer) / 2,   J the words that both have, of those that one has; lengths in words

J is estimated by 32 minima of hashes, a byte of each kept (b-bit minwise hashing, Li & König, WWW 2010).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from emc2dist.core.batch import Batch
from emc2dist.core.denominator import Denominator, Estimate
from emc2dist.core.objectives.base import Directions, Objective, directed, in_one
from emc2dist.core.objectives.infonce import scored

LENGTH = "length"
"""The column of lengths in words; -1 without any."""
WORDS = tuple(f"words_{number}" for number in range(4))
"""The columns of minima of hashes of a text's words, 8 bytes in each."""
_CHANCE = 1 / 256  # that bytes of different hashes are equal


@dataclass(frozen=True)
class DebCse(Objective):
    """InfoNCE whose pairs weigh less where they look alike."""

    strength: float = 1.0
    """>= 0: e to it is how much more a pair weighs that looks unlike than one that looks the same."""
    directions: Directions | None = None
    """Of pairs; None: there is one side."""

    columns = (LENGTH, *WORDS)

    @property
    @override
    def denominators(self) -> Sequence[Denominator]:
        return directed(Denominator(log_weight=self._log_weight, valued=True), self.directions)

    @override
    def terms(self, batch: Batch, estimates: Mapping[str, Estimate]) -> dict[str, Tensor]:
        positive, log_sum = scored(batch, estimates, self.denominators, in_one(self.directions))
        return {"contrast": (self._share(batch) * (log_sum - positive)).mean()}

    def _share(self, batch: Batch) -> Tensor:
        """v [A], of a pair whichever way it is taken."""
        what = self.denominators[0]
        pairs = (batch.index_of(side) for side in (what.anchors, what.positive_side))
        weights = (-self.strength * alike(batch, *pairs)).exp()
        views, samples, _ = batch.sides[what.anchors].own.shape
        return (weights / weights.mean())[batch.first : batch.first + samples].repeat(views)

    def _log_weight(self, batch: Batch, anchor: Tensor, index: Tensor) -> Tensor:
        """log w [A, C] for samples int64 [A, 1] and [A or 1, C]."""
        return -self.strength * alike(batch, anchor, index)


def alike(batch: Batch, one: Tensor, other: Tensor) -> Tensor:
    """o of samples int64, broadcast, of the features' type; 0 where one has no words."""
    lengths = [batch.columns[LENGTH][index] for index in (one, other)]
    known = (lengths[0] > 0) & (lengths[1] > 0)
    shorter, longer = torch.minimum(*lengths), torch.maximum(*lengths)
    dtype = next(iter(batch.sides.values())).all.dtype
    equal = [_bytes(batch, name, one) == _bytes(batch, name, other) for name in WORDS]
    shared = (torch.cat(equal, -1).to(dtype).mean(-1) - _CHANCE) / (1 - _CHANCE)
    return (shared.clamp(min=0) + shorter.to(dtype) / longer.clamp(min=1)).masked_fill(~known, 0) / 2


def _bytes(batch: Batch, name: str, index: Tensor) -> Tensor:
    """uint8 [..., 8] of samples int64 [...]."""
    return batch.columns[name][index].unsqueeze(-1).contiguous().view(torch.uint8)
