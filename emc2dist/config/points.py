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


def remarks(sweep: Sweep) -> list[str]:
    """What a person should know of which points are tried: those of a grid that are not, and draws that come twice."""
    told = []
    trials, points = sweep.budget.trials, known_points(sweep) or []
    if trials and (over := trials % sweep.seeds):
        told.append(f"budget.trials: {over} of {trials} are left over, for every point takes {sweep.seeds}, one a seed")
    if sweep.search.name == "grid":
        whole = _size(sweep)
        if len(points) < whole:
            told.append(
                f"budget.trials: {trials} are for {len(points):,} of the grid's {whole:,} points, the first; "
                f"{whole * sweep.seeds:,} trials would be all of them"
            )
        return told
    different = len({repr(point) for point in points})
    if different < len(points):
        told.append(f"{different} of {len(points)} points differ; search.name=grid tries each of a few values once")
    return told


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
    lists, points = sweep.distributions(), _size(sweep)
    if min(points, count or points) > MOST_TRIALS:
        raise SpecError(
            f"space: a grid of {points:,} points is more than {MOST_TRIALS:,}; give fewer values, or budget.trials"
        )
    combinations = itertools.islice(itertools.product(*lists.values()), count)
    return [dict(zip(lists, values, strict=True)) for values in combinations]


def _size(sweep: Sweep) -> int:
    """Points of the whole grid."""
    return math.prod(map(len, sweep.distributions().values()))


def _drawn(known: Range | tuple[Any, ...], generator: "np.random.Generator") -> Any:
    if not isinstance(known, Range):
        return known[generator.integers(len(known))]
    if known.kind == "randint":
        return int(generator.integers(int(known.low), int(known.high), endpoint=True))
    if known.kind == "uniform":
        return rounded(known, generator.uniform(known.low, known.high))
    return rounded(known, math.exp(generator.uniform(math.log(known.low), math.log(known.high))))
