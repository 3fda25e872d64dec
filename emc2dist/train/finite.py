"""Features that are not finite: found on the device, read once the host needs what else their step has found."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from emc2dist.errors import NonFiniteError

Owner = Callable[[int], tuple[int, str]]
"""The rank that a row is of, and what it is, as in `sample 7`."""


@dataclass(frozen=True)
class Finite:
    """Which features of one step are finite, and whose they are."""

    rows: Tensor
    """bool [n], on the device."""
    owner: Owner

    @classmethod
    def of(cls, features: Tensor, owner: Owner) -> "Finite":
        """Those of n rows of features [n, D], or [V, n, D]."""
        finite = features.detach().isfinite().all(-1)
        return cls(finite.all(0) if finite.ndim == 2 else finite, owner)

    def check(self, step: int, rows: NDArray[np.bool_]) -> None:
        """Raise NonFiniteError for the first of `rows`, as the host has them, that is not finite."""
        if rows.all():
            return
        rank, what = self.owner(int(rows.argmin()))
        raise NonFiniteError(
            f"rank {rank}, step {step}, {what}: the feature is not finite; the run has diverged: "
            "lower lr, raise optimiser.warmup_epochs or set optimiser.clip_norm"
        )
