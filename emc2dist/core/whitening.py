"""Shuffled group whitening: features whose channels are uncorrelated over the batch, group by group.

    [n, D] -> shuffle channels -> G groups of D / G -> centre each, make its covariance the identity -> unshuffle

Whitening is by the symmetric root (ZCA), which of all transforms to the identity changes features least. Another
shuffle groups other channels, so a few of them make of one feature several that are alike and not the same: the
positives of WhitenedCSE (Zhuo et al. 2023; its code has 3 shuffles and 128 groups of 6 channels). Unlike in that code
a shuffle is fixed, small eigenvalues have a floor, and the gradient goes through the transform too.

A feature then depends on the others that it is whitened with. On a GPU the eigenvalues are waited for.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from typing_extensions import override

from emc2dist.errors import SpecError

_LEAST = 1e-12  # variance that counts, where no channel has any


class ShuffledGroupWhitening(nn.Module):
    """A head that whitens `groups` groups of `width` channels, shuffled by `seed`.

    Args:
        width: D.
        groups: G, which divides D. A batch of n <= D / G rows has no covariance of full rank: what does not vary is 0.
        seed: of the shuffle, which is kept in the state dict as `order`.
        floor: least eigenvalue, in units of the mean variance of a channel; what varies less is not blown up to 1.

    Raises:
        SpecError: `groups` does not divide `width`.
    """

    order: Tensor
    """int64 [D]: the channel at each place; the first D / G places are the first group."""

    def __init__(self, width: int, groups: int, seed: int, floor: float = 1e-5) -> None:
        super().__init__()
        if groups < 1 or width % groups:
            raise SpecError(f"groups: {groups} groups do not divide {width} channels evenly; take a divisor")
        self.groups, self.floor = groups, floor
        self.register_buffer("order", torch.randperm(width, generator=torch.Generator().manual_seed(seed)))

    @override
    def forward(self, features: Tensor) -> Tensor:
        """Whitened features [n, D] of features [n, D], of any norm; float32 or wider, float64 within."""
        shuffled = features.double()[:, self.order].unflatten(1, (self.groups, -1)).transpose(0, 1)  # [G, n, D / G]
        centred = shuffled - shuffled.mean(1, keepdim=True)
        covariance = centred.mT @ centred / len(features)
        variance = covariance.detach().diagonal(dim1=1, dim2=2).mean()
        whitened = centred @ _InverseRoot.apply(covariance, (self.floor * variance).clamp(min=_LEAST))
        unshuffled = whitened.transpose(0, 1).flatten(1)[:, self.order.argsort()]
        return unshuffled.to(torch.promote_types(features.dtype, torch.float32))


class _InverseRoot(torch.autograd.Function):
    """S^(-1/2) of symmetric matrices S [G, d, d], whose eigenvalues below a floor count as that.

    autograd's own derivative of eigenvectors divides by differences of eigenvalues, which are 0 where these are equal.
    That of a function f of S does not (Daleckii and Krein 1965; Higham 2008, "Functions of Matrices", theorem 3.11): in
    the basis of eigenvectors it multiplies entry i, j by (f(l_i) - f(l_j)) / (l_i - l_j).
    """

    @staticmethod
    @override
    def forward(ctx: Any, matrices: Tensor, floor: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(matrices)
        ctx.save_for_backward(values, vectors, floor)
        return vectors * values.clamp(min=floor).rsqrt().unsqueeze(1) @ vectors.mT

    @staticmethod
    @override
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        values, vectors, floor = ctx.saved_tensors
        floored = values.clamp(min=floor)
        one, other = floored.sqrt().unsqueeze(2), floored.sqrt().unsqueeze(1)
        slope = -1 / (one * other * (one + other))  # of 1 / sqrt between the two, without a difference
        apart = values.unsqueeze(2) - values.unsqueeze(1)
        moved = floored.unsqueeze(2) - floored.unsqueeze(1)
        above = (values > floor).to(values.dtype).unsqueeze(2)
        share = torch.where(apart == 0, above, moved / apart)  # of eigenvalues' moves, which below the floor are none
        return vectors @ (vectors.mT @ gradient @ vectors * slope * share) @ vectors.mT, None
