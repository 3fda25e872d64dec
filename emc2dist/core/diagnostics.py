"""What tells a healthy representation from a collapsed one; all on unit-norm features.

A constant embedding scores log(N V - V) on the exact loss whatever the temperature is, so a small loss or gradient
can mean collapse: these three are always shown beside it.
"""

import torch
from torch import Tensor


def alignment(features: Tensor) -> Tensor:
    """Mean squared distance between a sample's views; `features` [V, n, D]. 0 is perfect (Wang & Isola 2020, eq. 5)."""
    views = features.shape[0]
    cosine = ((features.sum(0).square().sum(-1) - views) / (views * (views - 1))).mean()
    return 2 - 2 * cosine


def uniformity(features: Tensor) -> Tensor:
    """log mean exp(-2 |x - y|^2) over pairs of `features` [n, D]; 0 is collapse, -4 the least (Wang & Isola 2020)."""
    n = len(features)
    squares = 2 - 2 * features @ features.T
    off_diagonal = ~torch.eye(n, dtype=torch.bool, device=features.device)
    return (-2 * squares[off_diagonal]).logsumexp(0) - torch.tensor(n * (n - 1)).log()


def effective_rank(features: Tensor) -> Tensor:
    """exp of the entropy of the normalised singular values of centred `features` [n, D], in [1, D] (Roy & Vetterli)."""
    values = torch.linalg.svdvals((features - features.mean(0)).float())
    shares = values / values.sum().clamp(min=1e-12)
    return torch.special.entr(shares).sum().exp()
