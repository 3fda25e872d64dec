"""What is remembered of each sample: named columns of named tables, one row per sample.

An estimator declares its columns; the store keeps them and knows nothing of what they mean.
"""

from typing import NamedTuple


class Column(NamedTuple):
    """One value per sample: a numpy dtype by name, and the shape of the value ([] is a scalar)."""

    dtype: str
    shape: tuple[int, ...] = ()


Schema = dict[str, dict[str, Column]]
"""The columns of each table."""
