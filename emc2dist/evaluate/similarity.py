"""Similarity of texts: is the order of pairs by cosine the order that people give them?

As SimCSE measures SemEval's tasks (Gao, Yao and Chen 2021, appendix B: Spearman, all sets of a task together). Scores
of different tasks are on different scales, so each has its own figure.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional


def cosines(one: Tensor, other: Tensor) -> NDArray[np.float64]:
    """Cosines [n] of rows [n, D] of two tensors, each with its own; 0 where a row is zero."""
    return functional.cosine_similarity(one.double(), other.double(), dim=1).cpu().numpy()


def spearman(scores: NDArray[np.floating], gold: NDArray[np.floating], tasks: Sequence[str]) -> dict[str, float]:
    """Spearman's rank correlation of `scores` [n] with `gold` [n] for each task of `tasks` [n], in order of name.

    In [-1, 1]; equal values share their mean rank. nan of a task with one value of either alone.
    """
    from scipy.stats import spearmanr  # type: ignore[import-untyped]  # here, for its import takes a second

    found, of = {}, np.array(tasks)
    for task in np.unique(of):
        pairs = scores[of == task], gold[of == task]
        varied = all(np.ptp(values) > 0 for values in pairs)
        found[str(task)] = float(spearmanr(*pairs).statistic) if varied else float("nan")
    return found
