"""Where a sample lives: pure arithmetic between the dataset-wide index and (shard, row).

Samples are dealt like cards: index i lives on shard i mod S, in row i div S. Every shard then holds N/S rows to within
one, and any batch of random indices loads all shards alike.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from emc2dist.errors import StoreError


class Part(NamedTuple):
    """What one shard holds of a list of indices."""

    shard: int
    positions: NDArray[np.int64]
    """[n] places in the list that was split, ascending: `merged[positions] = reply` puts a reply in the asked order."""
    rows: NDArray[np.int64]
    """[n] rows of the shard, in the same order."""


@dataclass(frozen=True)
class Layout:
    """N samples dealt over S shards; raises StoreError unless 1 <= S <= N."""

    samples: int
    shards: int

    def __post_init__(self) -> None:
        if not 1 <= self.shards <= self.samples:
            raise StoreError(
                f"cannot deal {self.samples} samples over {self.shards} shards: set store.shards between 1 and the "
                "number of samples"
            )

    def rows(self, shard: int) -> int:
        """How many rows the shard holds."""
        self.check_shard(shard)
        return len(range(shard, self.samples, self.shards))

    def indices(self, shard: int, start: int = 0, stop: int | None = None) -> NDArray[np.int64]:
        """The dataset-wide indices that the shard holds in rows `start` to `stop`, by default in all its rows."""
        return self.sample(shard, np.arange(start, self.rows(shard) if stop is None else stop))

    def sample(self, shard: int, row: NDArray[np.int64]) -> NDArray[np.int64]:
        """The dataset-wide indices of rows of the shard."""
        return row * self.shards + shard

    def split(self, index: NDArray[np.integer]) -> list[Part]:
        """Group indices [n] by shard; shards that hold none of them are left out. Repeats are kept, in order."""
        check_index(index, self.samples, "sample")
        shard, row = index % self.shards, index // self.shards
        order = np.argsort(shard, kind="stable")  # stable: among repeats of one sample, the last must stay the last
        bounds = np.searchsorted(shard[order], np.arange(self.shards + 1))
        spans = ((s, order[start:stop]) for s, (start, stop) in enumerate(pairwise(bounds)))
        return [
            Part(s, positions, row[positions].astype(np.int64, copy=False)) for s, positions in spans if len(positions)
        ]

    def check_shard(self, shard: int) -> None:
        """Raise StoreError unless there is such a shard."""
        if not 0 <= shard < self.shards:
            raise StoreError(f"there is no shard {shard}: the store has {self.shards}, counted from 0")


def check_index(index: NDArray[np.integer], size: int, what: str) -> None:
    """Raise StoreError unless `index` is an integer array [n] with every value in [0, size)."""
    if index.ndim != 1 or index.dtype.kind not in "iu":
        raise StoreError(f"a list of {what}s must be integers [n], not {index.dtype} {list(index.shape)}")
    # A negative one would otherwise wrap round to somebody else's row.
    outside = index[(index < 0) | (index >= size)]
    if len(outside):
        raise StoreError(f"{what} {outside[0]} is outside [0, {size})")
