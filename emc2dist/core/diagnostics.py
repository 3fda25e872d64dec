"""What tells a healthy representation from a collapsed one, and how far a log Z is off; all on unit-norm features.

A constant embedding scores log(N V - V) on the exact loss whatever the temperature is, so a small loss or gradient
can mean collapse: alignment, uniformity and effective rank are always shown beside it.
"""

import math

import torch
from torch import Tensor

from emc2dist.core.batch import Batch
from emc2dist.core.denominator import Denominator
from emc2dist.core.estimators import CachedRows, Fact


def alignment(features: Tensor) -> Tensor:
    """Mean squared distance between a sample's views; `features` [V, n, D]. 0 is perfect (Wang & Isola 2020, eq. 5)."""
    views = features.shape[0]
    cosine = ((features.sum(0).square().sum(-1) - views) / (views * (views - 1))).mean()
    return 2 - 2 * cosine


def uniformity(features: Tensor) -> Tensor:
    """log mean exp(-2 |x - y|^2) over pairs of `features` [n, D]; 0 is collapse, -4 the least (Wang & Isola 2020)."""
    n = len(features)
    squares = 2 - 2 * features @ features.T
    # Without the first number the diagonal is the last column: no mask, for whose count a GPU would be waited for.
    off_diagonal = squares.flatten()[1:].view(n - 1, n + 1)[:, :-1]
    return (-2 * off_diagonal.flatten()).logsumexp(0) - torch.tensor(n * (n - 1)).log()


def effective_rank(features: Tensor) -> Tensor:
    """exp of the entropy of the normalised singular values of centred `features` [n, D], in [1, D] (Roy & Vetterli)."""
    values = torch.linalg.svdvals((features - features.mean(0)).float())
    shares = values / values.sum().clamp(min=1e-12)
    return torch.special.entr(shares).sum().exp()


def isotropy(features: Tensor) -> Tensor:
    """1 - the mean cosine of pairs of `features` [n, D]; 0 is collapse, 1 is no direction preferred (Su et al. 2022).

    The Gram matrix is not needed: the cosines of all pairs sum to |sum of features|^2.
    """
    n = len(features)
    return 1 - (features.sum(0).square().sum() - n) / (n * (n - 1))


def tolerance(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The cosines of pairs of `features` [n, D] with one label of int64 [n], summed, and how many pairs there are.

    Their mean is how near a class lies together (Wang & Liu 2021, eq. 11, there over all pairs). -1 is nobody's
    label.
    """
    same = ((labels == labels.unsqueeze(1)) & (labels >= 0).unsqueeze(1)).fill_diagonal_(False)
    return (features @ features.T * same).sum(), same.sum()


def log_z_errors(found: Tensor, reference: Tensor) -> dict[str, Fact]:
    """Mean and mean square of `found` - `reference` [A]; without anchors where either is no number."""
    errors = (found - reference).double()
    known = errors.isfinite()
    errors, count = errors.where(known, 0), known.sum()
    return {"log_z_error": (errors.sum(), count), "log_z_rms_error": (errors.square().sum(), count)}


def fact_value(name: str, total: float, weight: float) -> float:
    """What a fact comes to: its mean, and of a mean square the root."""
    mean = total / weight
    return math.sqrt(mean) if name.endswith("_rms_error") else mean


def cached_log_z(what: Denominator, batch: Batch, rows: CachedRows) -> Tensor:
    """log Z [A] by the cached features of the whole dataset; -inf where there are none.

    One view stands for its sample, and the samples that are there for those that are missing. What is closed counts as
    a candidate of weight 0.
    """
    keys = rows.feature.to(batch.anchors(what.anchors).dtype).unsqueeze(0)
    scores = what.scores(batch, keys, rows.index).masked_fill(~rows.present, -torch.inf)
    others = rows.present & ~batch.is_own(what.anchors, what.keys, rows.index.unsqueeze(0))
    return scores.logsumexp(1) + math.log(batch.others(what.keys)) - others.sum(1).to(scores.dtype).log()
