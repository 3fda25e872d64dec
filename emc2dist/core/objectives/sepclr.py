"""SepCLR (Louiset et al., ICLR 2024): what targets have in common with background images, and what they have beside.

A feature is two heads in one: its first coordinates are common to all, c, of unit length, and the others are salient,
s, in units of the common ones' length; of a background image s counts as 0, but where it is pulled there.

    L = common [A(c) + U(c)] + salient [A(s of targets) + U(s)] + empty mean |s|^2 / 2T over background + joint J

    A(u)  mean over samples and pairs of views of |u - u'|^2 / 2T,    T the temperature
    U(u)  sum over view slots of log mean over pairs of the batch's samples of exp(-|u - u'|^2 / 2T)
    J     mean over anchors of log Z, candidates in the anchor's own slot by exp(-|c - c'|^2 / 2T - |s - s'|^2 / 2T)

A pulls views together, U spreads either head, and J has both heads vary independently of each other. A and U are of the
gathered batch, on every worker alike; J is a denominator, which any estimator may estimate.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize
from typing_extensions import override

from emc2dist.core.batch import Batch
from emc2dist.core.denominator import Denominator, Estimate
from emc2dist.core.objectives.base import Objective
from emc2dist.core.scores import Dot


@dataclass(frozen=True)
class SepClr(Objective):
    """A common and a salient head, each aligned and uniform, and independent of each other."""

    width: int = 2
    """Coordinates of the common head; fewer than a feature has."""
    background: tuple[int, ...] = (0,)
    """Labels of the background; all other samples are targets."""
    common: float = 1e-3
    salient: float = 1.0
    empty: float = 1.0
    joint: float = 1e-2

    columns = ("label",)
    looks_around = True

    @property
    @override
    def denominators(self) -> tuple[Denominator, ...]:
        return (Denominator(views="same", similarity=self._nearness),)

    @override
    def heads(self, features: Tensor) -> dict[str, Tensor]:
        common, salient = features[..., : self.width], features[..., self.width :]
        return {"common": normalize(common, dim=-1), "salient": salient / _length(common)}

    @override
    def terms(self, batch: Batch, estimates: Mapping[str, Estimate]) -> dict[str, Tensor]:
        heads, temperature = self.heads(batch.sides["x"].all), batch.temperature
        common, salient, empty = heads["common"], heads["salient"], self._is_background(batch, batch.index)
        of_all, of_targets = torch.ones_like(empty), ~empty
        counted = salient * of_targets.unsqueeze(-1)
        return {
            "common": self.common * (_apart(common, of_all) / temperature + _spread(common, temperature)),
            "salient": self.salient * (_apart(salient, of_targets) / temperature + _spread(counted, temperature)),
            "empty": self.empty * _mean(salient.square().sum(-1).mean(0) / 2, empty) / temperature,
            "joint": self.joint * estimates["negatives"].mean_log_z,
        }

    def _is_background(self, batch: Batch, index: Tensor) -> Tensor:
        """bool [n] of samples int64 [n]."""
        labels = batch.columns["label"][index]
        return torch.isin(labels, torch.tensor(self.background, dtype=labels.dtype, device=labels.device))

    def _nearness(self, batch: Batch, anchors: Tensor, keys: Tensor, index: Tensor, dot: Dot) -> Tensor:
        """-|c - c'|^2 / 2 - |s - s'|^2 / 2, as one inner product."""
        one, other = self._both(batch, anchors, batch.own_index("x")), self._both(batch, keys, index)
        half, one_half = one.square().sum(-1, keepdim=True) / 2, other.square().sum(-1, keepdim=True) / 2
        unit, of_unit = torch.ones_like(half), torch.ones_like(one_half)
        return dot(torch.cat([one, -half, unit], -1), torch.cat([other, of_unit, -one_half], -1))

    def _both(self, batch: Batch, features: Tensor, index: Tensor) -> Tensor:
        """[..., n, D]: both heads of samples int64 [n], side by side."""
        heads = self.heads(features)
        is_target = ~self._is_background(batch, index).unsqueeze(-1)
        return torch.cat([heads["common"], heads["salient"] * is_target], -1)


def _length(common: Tensor) -> Tensor:
    """[..., 1]; where no feature stands, zeros, it is not 0, and nor is its gradient infinite."""
    return common.square().sum(-1, keepdim=True).clamp(min=1e-12).sqrt()


def _mean(values: Tensor, of: Tensor) -> Tensor:
    """Mean of `values` [B] over the samples `of` bool [B]; 0 without any."""
    return (values * of).sum() / of.sum().clamp(min=1)


def _apart(head: Tensor, of: Tensor) -> Tensor:
    """Mean of half the squared distance of two views of a sample, [V, B, E]."""
    views = len(head)
    around = (head - head.mean(0)).square().sum(-1).sum(0) / (views - 1)  # half the mean over pairs
    return _mean(around, of)


def _spread(head: Tensor, temperature: float | Tensor) -> Tensor:
    """Sum over view slots of log mean over pairs of samples of exp(-|u - u'|^2 / 2T), [V, B, E]."""
    first, second = torch.triu_indices(head.shape[1], head.shape[1], 1, device=head.device)
    squares = (head[:, first] - head[:, second]).square().sum(-1)
    return ((-squares / (2 * temperature)).logsumexp(1) - math.log(len(first))).sum()
