"""The nearest rows by cosine, and whether they are of the right class; on the device where the rows are."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

_MOST_SCORES = 2**26
"""Of queries with voters that are compared at once; in float32 a quarter of a GiB."""


def votes(bank: Tensor, voters: NDArray[np.int64], queries: Tensor, *, neighbours: int) -> NDArray[np.int64]:
    """Labels [m] for which the nearest rows of `bank` [n, R] of `queries` [m, R] vote: kNN.

    `voters` [n] are the bank's labels; `neighbours` is at most n. Of labels with as many votes the least one wins.
    """
    classes, numbers = np.unique(voters, return_inverse=True)
    number, found = torch.from_numpy(numbers).to(bank.device), []
    for near in nearest(bank, queries, neighbours).split(max(1, _MOST_SCORES // len(classes))):
        count = torch.zeros(len(near), len(classes), dtype=torch.int64, device=bank.device)
        found.append(count.scatter_add_(1, number[near], torch.ones_like(near)).argmax(1))
    return classes[torch.cat(found).cpu().numpy()]


def recall(
    bank: Tensor, voters: NDArray[np.int64], queries: Tensor, asked: NDArray[np.int64], among: Sequence[int]
) -> list[float]:
    """Recall@k for each k of `among`, at most n: the share of queries [m, R] of labels `asked` [m] that have a row
    of their own class among the k nearest of `bank` [n, R]; m >= 1.
    """
    same = voters[nearest(bank, queries, max(among)).cpu().numpy()] == asked[:, None]
    return [float(same[:, :count].any(1).mean()) for count in among]


def recall_among(points: Tensor, labels: NDArray[np.int64], among: Sequence[int]) -> list[float]:
    """Recall@k of rows [n, R] among each other, as metric learning has it: a row is not its own neighbour.

    Each k is below n. Of rows of whose class there is another; nan where there is none.
    """
    classes, counts = np.unique(labels, return_counts=True)
    (asked,) = np.isin(labels, classes[counts > 1]).nonzero()
    if not len(asked):
        return [float("nan") for _ in among]
    rows = torch.from_numpy(asked).to(points.device)
    same = labels[nearest(points, points[rows], max(among), own=rows).cpu().numpy()] == labels[asked, None]
    return [float(same[:, :count].any(1).mean()) for count in among]


def nearest(bank: Tensor, queries: Tensor, count: int, own: Tensor | None = None) -> Tensor:
    """int64 [m, count]: the rows nearest to queries [m, R], the nearest first, but not those at `own` [m]."""
    unit, chunk = functional.normalize(bank, dim=1), max(1, _MOST_SCORES // len(bank))
    found = [torch.zeros(0, count, dtype=torch.int64, device=bank.device)]
    for first, part in enumerate(functional.normalize(queries, dim=1).split(chunk)):
        scores = part @ unit.T
        if own is not None:
            scores.scatter_(1, own[first * chunk : (first + 1) * chunk].unsqueeze(1), -torch.inf)
        found.append(scores.topk(count).indices)
    return torch.cat(found)
