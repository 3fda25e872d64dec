"""The vote of the nearest neighbours, on the device where the representations are."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

_MOST_SCORES = 2**26
"""Of queries with voters that are compared at once; in float32 a quarter of a GiB."""


def right(
    bank: Tensor, voters: NDArray[np.int64], queries: Tensor, asked: NDArray[np.int64], *, neighbours: int
) -> int:
    """How many of `queries` [m, R] of labels `asked` [m] their nearest rows of `bank` [n, R], by cosine, vote for.

    `voters` [n] are the bank's labels; `neighbours` is at most n. Of labels with as many votes the least one wins.
    """
    classes, numbers = np.unique(voters, return_inverse=True)
    number = torch.from_numpy(numbers).to(bank.device)
    unit, found = functional.normalize(bank, dim=1), []
    for chunk in functional.normalize(queries, dim=1).split(max(1, _MOST_SCORES // len(bank))):
        nearest = (chunk @ unit.T).topk(neighbours, sorted=False).indices
        votes = torch.zeros(len(chunk), len(classes), dtype=torch.int64, device=bank.device)
        found.append(votes.scatter_add_(1, number[nearest], torch.ones_like(nearest)).argmax(1))
    return int((classes[torch.cat(found).cpu().numpy()] == asked).sum()) if found else 0
