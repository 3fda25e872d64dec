"""Few-shot accuracy: classes told by a few images of each, in episodes.

An episode draws some classes and some images of each. The nearest mean of a class, by cosine, is the answer
(prototypes: Snell et al. 2017; on a frozen representation: Chen et al. 2021, "Meta-Baseline").
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

WAYS = 5
"""Classes of an episode."""
EPISODES = 600
_QUESTIONS = 15
"""Most images of a class that an episode asks about."""


class FewShot(NamedTuple):
    """The accuracy over episodes."""

    accuracy: float
    error: float
    """Half of the 95 % interval of that mean."""


def few_shot(
    points: Tensor, labels: NDArray[np.int64], shots: int, *, ways: int = WAYS, episodes: int = EPISODES, seed: int = 0
) -> FewShot | None:
    """The accuracy on rows [n, R] of labels [n], `shots` of a class being known; a function of the seed.

    Of classes with more rows than `shots`. None where these are fewer than `ways`.
    """
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    members = [rows for rows in members if len(rows) > shots]
    if len(members) < ways:
        return None
    questions = min(_QUESTIONS, min(map(len, members)) - shots)
    draw, unit = np.random.default_rng(seed), functional.normalize(points, dim=1)
    right = [_episode(unit, members, shots, questions, ways, draw) for _ in range(episodes)]
    return FewShot(float(np.mean(right)), 1.96 * float(np.std(right, ddof=1)) / math.sqrt(episodes))


def _episode(
    unit: Tensor, members: list[NDArray[np.int64]], shots: int, questions: int, ways: int, draw: np.random.Generator
) -> float:
    """The share of right answers."""
    chosen = draw.choice(len(members), ways, replace=False)
    rows = np.stack([draw.choice(members[one], shots + questions, replace=False) for one in chosen])
    known, asked = unit[torch.from_numpy(rows).to(unit.device)].split([shots, questions], 1)  # [ways, ..., R]
    prototypes = functional.normalize(known.mean(1), dim=1)
    answers = (asked @ prototypes.T).argmax(-1)
    return float((answers == torch.arange(ways, device=unit.device).unsqueeze(1)).double().mean())
