"""A differentiable sorting network: odd-even transposition with soft swaps (Petersen et al., ICML 2022).

Neighbours x, y, which are to ascend, stay with the share a = atan(steepness (y - x)) / pi + 1/2 and change places with
the rest, so that a x + (1 - a) y and (1 - a) x + a y go on. n layers of such pairs, of even and odd places in turn,
sort n numbers. What comes out is a doubly stochastic matrix: how much of which number ends in which place.
"""

import math

import torch
from torch import Tensor


def share_in_last(numbers: Tensor, last: int, steepness: float) -> Tensor:
    """[A, n]: how much of each number ends in one of the `last` places once `numbers` [A, n] are sorted, ascending.

    -inf marks a number that is missing. All of a row's stand at its beginning, and stay there.
    """
    is_missing = numbers == -torch.inf
    count, row = numbers.shape[1], numbers.masked_fill(is_missing, 0)
    layers = []
    for layer in range(count):
        first = layer % 2
        low, high = _pairs(row, first)
        stays = torch.atan(steepness * (high - low)) / math.pi + 0.5
        stays = stays.masked_fill(_pairs(is_missing, first)[0], 1)
        row = _swapped(row, stays, first)
        layers.append((stays, first))
    # The matrix is the product of the layers', each of which is symmetric; of it times a vector no matrix is needed.
    share = (torch.arange(count, device=row.device) >= count - last).to(row.dtype).expand_as(row)
    for stays, first in reversed(layers):
        share = _swapped(share, stays, first)
    return share


def _pairs(row: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """The two of each pair of neighbours, from the place `first` on, [A, p] each."""
    end = first + (row.shape[1] - first) // 2 * 2
    return row[:, first:end:2], row[:, first + 1 : end : 2]


def _swapped(row: Tensor, stays: Tensor, first: int) -> Tensor:
    """The row with pairs swapped, but for the share [A, p] that stays."""
    low, high = _pairs(row, first)
    mixed = torch.stack([stays * low + (1 - stays) * high, (1 - stays) * low + stays * high], 2).flatten(1)
    return torch.cat([row[:, :first], mixed, row[:, first + mixed.shape[1] :]], 1)
