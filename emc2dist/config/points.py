"""The points of a sweep that are known beforehand: combinations of lists, or draws.

Points are numbered, and the number alone (with the seed) decides a grid's point and a draw.
"""

import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from emc2dist.config.sweep import MOST_TRIALS, Range, Sweep
from emc2dist.errors import SpecError

if TYPE_CHECKING:
    import numpy as np

Point = Mapping[str, Any]
"""Keys of a run's spec and their values."""

_TRIALS = 16
_DIGITS = 4  # of a drawn number: the table then shows what was run


def count_of(sweep: Sweep) -> int:
    """How many points a search that goes on for ever is to try."""
    return (sweep.budget.trials or _TRIALS * sweep.seeds) // sweep.seeds


def known_points(sweep: Sweep) -> list[Point] | None:
    """All points; None where each depends on what the earlier ones came to.

    Raises:
        SpecError: a grid holds more than a sweep can try.
    """
    if sweep.search.name == "optuna":
        return None
    if sweep.search.name == "grid":
        return _grid(sweep, count_of(sweep) if sweep.budget.trials else None)
    return [draw(sweep, index) for index in range(count_of(sweep))]


def draw(sweep: Sweep, index: int) -> Point:
    """The point with this number."""
    import numpy as np  # here, for a spec is read without it

    generator = np.random.default_rng([sweep.search.seed, index])
    return {key: _drawn(known, generator) for key, known in sweep.distributions().items()}


def rounded(known: Range, value: float) -> float:
    """A number of a range as it is tried."""
    if known.kind == "randint":
        return int(value)
    return min(max(float(f"{value:.{_DIGITS}g}"), known.low), known.high)


def _grid(sweep: Sweep, count: int | None) -> list[Point]:
    """Every combination of the lists, the last key changing fastest, or the first `count`."""
    lists = sweep.distributions()
    points = math.prod(map(len, lists.values()))
    if min(points, count or points) > MOST_TRIALS:
        raise SpecError(
            f"space: a grid of {points:,} points is more than {MOST_TRIALS:,}; give fewer values, or budget.trials"
        )
    combinations = itertools.islice(itertools.product(*lists.values()), count)
    return [dict(zip(lists, values, strict=True)) for values in combinations]


def _drawn(known: Range | tuple[Any, ...], generator: "np.random.Generator") -> Any:
    if not isinstance(known, Range):
        return known[generator.integers(len(known))]
    if known.kind == "randint":
        return int(generator.integers(int(known.low), int(known.high), endpoint=True))
    if known.kind == "uniform":
        return rounded(known, generator.uniform(known.low, known.high))
    return rounded(known, math.exp(generator.uniform(math.log(known.low), math.log(known.high))))
