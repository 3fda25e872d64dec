"""From a search space to points: combinations of lists, draws, or what Optuna proposes.

Points are numbered, and the number alone (with the seed) decides a grid's point and a draw. Optuna's depend on what
has ended, so a sweep that goes on gives it the points that were recorded, and it proposes the others.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from emc2dist.config import MOST_TRIALS, Range, Spec, Sweep, changed
from emc2dist.errors import SpecError

Point = Mapping[str, Any]
"""Keys of a run's spec and their values."""

_TRIALS = 16
_DIGITS = 4  # of a drawn number: the table then shows what was run


class Points(Protocol):
    """Where the points of a sweep come from."""

    def __len__(self) -> int:
        """How many there are to be."""

    def next(self) -> Point:
        """The next one; as many times as there are."""

    def tell(self, index: int, score: float | None) -> None:
        """What a point came to, None where no trial of it has a value."""


def points_of(sweep: Sweep, recorded: Sequence[Point], scores: Mapping[int, float | None]) -> Points:
    """The points of a sweep; `recorded` are the first ones, if it goes on, and `scores` what some have come to.

    Raises:
        SpecError: a point is no valid spec, or Optuna is not installed.
    """
    count = (sweep.budget.trials or _TRIALS * sweep.seeds) // sweep.seeds
    if sweep.search.name == "optuna":
        return Proposed(sweep, count, recorded, scores)
    if sweep.search.name == "grid":
        return Listed(sweep, grid(sweep, count if sweep.budget.trials else None))
    return Listed(sweep, [draw(sweep, index) for index in range(count)])


class Listed:
    """Points that are known beforehand, and have been checked."""

    def __init__(self, sweep: Sweep, points: Sequence[Point]) -> None:
        for number, point in enumerate(points):
            changed(sweep.base, point, source=f"{sweep.name}: point {number}")
        self._points, self._next = points, iter(points)

    def __len__(self) -> int:
        return len(self._points)

    def next(self) -> Point:
        """See `Points`."""
        return next(self._next)

    def tell(self, index: int, score: float | None) -> None:
        """See `Points`; nothing is learnt."""


class Proposed:
    """Points that Optuna's TPE sampler proposes one by one."""

    def __init__(self, sweep: Sweep, count: int, recorded: Sequence[Point], scores: Mapping[int, float | None]) -> None:
        optuna = _optuna()
        # A sampler of the same seed would draw the recorded points once more.
        sampler = optuna.samplers.TPESampler(seed=sweep.search.seed + len(recorded))
        direction = f"{sweep.goal}imize"
        self._study = optuna.create_study(sampler=sampler, direction=direction)
        self._failed = optuna.trial.TrialState.FAIL
        self._space, self._count = sweep.distributions(), count
        self._distributions = {key: _distribution(optuna, value) for key, value in self._space.items()}
        self._asked: list[Any] = []
        self._recorded, self._scores = recorded, scores

    def __len__(self) -> int:
        return self._count

    def next(self) -> Point:
        """See `Points`."""
        index = len(self._asked)
        if index < len(self._recorded):
            self._study.enqueue_trial(self._parameters(self._recorded[index]))
        trial = self._study.ask(self._distributions)
        self._asked.append(trial)
        if index < len(self._recorded):
            if index in self._scores:
                self.tell(index, self._scores[index])
            return self._recorded[index]
        return {key: self._value(key, trial.params[key]) for key in self._space}

    def tell(self, index: int, score: float | None) -> None:
        """See `Points`."""
        if score is None:
            self._study.tell(self._asked[index], state=self._failed)
        else:
            self._study.tell(self._asked[index], score)

    def _value(self, key: str, parameter: Any) -> Any:
        known = self._space[key]
        return _rounded(known, parameter) if isinstance(known, Range) else known[parameter]

    def _parameters(self, point: Point) -> dict[str, Any]:
        """What `_value` made a point of."""
        return {
            key: point[key] if isinstance(known, Range) else [_plain(choice) for choice in known].index(point[key])
            for key, known in self._space.items()
        }


def grid(sweep: Sweep, count: int | None = None) -> list[Point]:
    """Every combination of the lists, the last key changing fastest, or the first `count`.

    Raises:
        SpecError: they are more than a sweep can try.
    """
    lists = sweep.distributions()
    points = math.prod(map(len, lists.values()))
    if min(points, count or points) > MOST_TRIALS:
        raise SpecError(
            f"space: a grid of {points:,} points is more than {MOST_TRIALS:,}; give fewer values, or budget.trials"
        )
    combinations = itertools.islice(itertools.product(*lists.values()), count)
    return [dict(zip(lists, values, strict=True)) for values in combinations]


def draw(sweep: Sweep, index: int) -> Point:
    """The point with this number."""
    generator = np.random.default_rng([sweep.search.seed, index])
    return {key: _drawn(known, generator) for key, known in sweep.distributions().items()}


def trial_spec(sweep: Sweep, name: str, point: Point, seed: int, common: Mapping[str, Any]) -> Spec:
    """The spec of a trial, a run of its own; `common` are keys that all trials share beside the base's.

    Raises:
        SpecError: the point is no valid one.
    """
    return changed(sweep.base, {**common, **point, "name": name, "seed": sweep.base.seed + seed}, source=name)


def _drawn(known: Range | tuple[Any, ...], generator: np.random.Generator) -> Any:
    if not isinstance(known, Range):
        return known[generator.integers(len(known))]
    if known.kind == "randint":
        return int(generator.integers(int(known.low), int(known.high), endpoint=True))
    if known.kind == "uniform":
        return _rounded(known, generator.uniform(known.low, known.high))
    return _rounded(known, math.exp(generator.uniform(math.log(known.low), math.log(known.high))))


def _rounded(known: Range, value: float) -> float:
    if known.kind == "randint":
        return int(value)
    return min(max(float(f"{value:.{_DIGITS}g}"), known.low), known.high)


def _plain(value: Any) -> Any:
    """A choice as a record gives it back: JSON has no tuples."""
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise SpecError("search.name: optuna is not installed; pip install 'emc2dist[optuna]', or use random") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _distribution(optuna: Any, known: Range | tuple[Any, ...]) -> Any:
    kinds = optuna.distributions
    if not isinstance(known, Range):
        return kinds.CategoricalDistribution(range(len(known)))  # of places in the list: choices may be lists
    if known.kind == "randint":
        return kinds.IntDistribution(known.low, known.high)
    return kinds.FloatDistribution(known.low, known.high, log=known.kind == "loguniform")
