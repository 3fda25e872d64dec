"""What is remembered of each sample: named columns of named tables, one row per sample.

An estimator declares its columns; the store keeps them and knows nothing of what they mean.
"""

from collections.abc import Mapping
from typing import NamedTuple

from numpy.typing import NDArray

STEPS = ("visited_at", "written_at")
"""Columns that hold numbers of steps."""
VIEWS = ("view",)
"""Columns that hold numbers of views, 2V a step (`emc2dist.core.batch.view_number`)."""


class Column(NamedTuple):
    """One value per sample: a numpy dtype by name, and the shape of the value ([] is a scalar)."""

    dtype: str
    shape: tuple[int, ...] = ()


Schema = dict[str, dict[str, Column]]
"""The columns of each table."""


def as_of_step_0(columns: Mapping[str, NDArray], step: int, views: int) -> dict[str, NDArray]:
    """Columns of a table after `step` steps, for a run that begins with them: what they tell of lies before its step 0.

    So ages go on. A carried view has another number there, and so is drawn anew from its sample.
    """
    shift = dict.fromkeys(STEPS, step) | dict.fromkeys(VIEWS, 2 * views * step)
    return {
        name: values - values.dtype.type(shift[name]) if name in shift else values for name, values in columns.items()
    }
