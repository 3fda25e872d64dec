"""SyCL (arXiv 2503.23239): lists with several grades of relevance, and the distance of two Gaussians over the batch.

Each anchor has a row of scores of its candidates and a row of their grades, and so two distributions, P and T:

    P = softmax(s / temperature),   T = softmax(grades)
    l = |m_P - m_T|^2 + tr(S_P + S_T - 2 (S_P^(1/2) S_T S_P^(1/2))^(1/2))

with m and S the mean and the covariance of the rows over the batch, divided by its anchors less one: the squared
2-Wasserstein distance of the Gaussians of that mean and covariance (Dowson & Landau 1982). It is 0 where P = T. With C
the centred rows, S = C'C / (A - 1), the last trace is the sum of the singular values of C_P C_T' / (A - 1), whose
gradient is finite where an eigenvalue of the published form is 0.

Over pairs the anchors are queries, the candidates the documents of the gathered batch and its draws, and a document
that is not judged has grade 0. Of images, or texts by themselves with labels, candidates are all views of other images
and the other views of the own, which have grade 2; those of the own label have 1, others 0. No denominator is read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from emc2dist.core.batch import Batch, locate
from emc2dist.core.denominator import Denominator, Estimate
from emc2dist.core.objectives.base import Directions, Objective, directed

_OWN, _SAME = 2.0, 1.0  # grades of images


@dataclass(frozen=True)
class SyCl(Objective):
    """How far the batch's distributions over candidates are from those of the grades."""

    directions: Directions | None = None
    """Of pairs `forward`; None: there is one side."""

    looks_around = True

    @property
    def columns(self) -> Sequence[str]:  # type: ignore[override]  # by the sides
        """Labels, where no pairs are graded."""
        return ("label",) if self.directions is None else ()

    @property
    @override
    def denominators(self) -> Sequence[Denominator]:
        return directed(Denominator(), self.directions)

    @override
    def terms(self, batch: Batch, estimates: Mapping[str, Estimate]) -> dict[str, Tensor]:
        cosines, grades, none = _of_images(batch) if self.directions is None else _of_pairs(batch)
        rows = (cosines.double() / batch.temperature, grades.double())
        distance = wasserstein(*(values.masked_fill(none, -torch.inf).softmax(1) for values in rows))
        return {"lists": distance.to(cosines.dtype)}


def wasserstein(one: Tensor, other: Tensor) -> Tensor:
    """Scalar: the squared 2-Wasserstein distance of the Gaussians of rows [A >= 2, C] and [A, C]."""
    means, rows = zip(*((of.mean(0), (of - of.mean(0)) / (len(of) - 1) ** 0.5) for of in (one, other)), strict=True)
    apart = (means[0] - means[1]).square().sum() + sum(of.square().sum() for of in rows)
    return apart - 2 * torch.linalg.svdvals(rows[0] @ rows[1].T).sum()


def _of_images(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines [V B, V B] of all views with all, grades, and bool, which is none: a view itself."""
    views = batch.sides["x"].all
    every, index = views.flatten(0, 1), batch.index.repeat(len(views))
    one, other = index.unsqueeze(1), index.unsqueeze(0)
    grades = torch.where(one == other, _OWN, _SAME * batch.same("label", one, other))
    itself = torch.eye(len(index), dtype=torch.bool, device=index.device)
    return every @ every.T, grades, itself


def _of_pairs(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines [B, B + M] of queries with documents and draws, grades, and bool, which is none, or stands twice."""
    side, index = batch.sides["document"], batch.index_of("document")
    none = torch.zeros_like(index, dtype=torch.bool) if side.repeats is None else side.repeats
    keys = side.all[0]
    if side.drawn is not None and side.drawn_index is not None:
        _, here = locate(side.drawn_index, index)
        none = torch.cat([none, here | (side.drawn_index < 0)])
        index, keys = torch.cat([index, side.drawn_index.clamp(min=0)]), torch.cat([keys, side.drawn[0]])
    queries = batch.sides["query"].all[0]
    grades = batch.grade(batch.index_of("query").unsqueeze(1), index.unsqueeze(0))
    return queries @ keys.T, grades, none.expand(len(queries), -1)
