"""From a search space to points: those that are known beforehand (`emc2dist.config.points`), or what Optuna proposes.

Optuna's depend on what has ended, so a sweep that goes on gives it the points that were recorded, and it proposes the
others.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from typing_extensions import override

from emc2dist.config import Range, Spec, Sweep, changed
from emc2dist.config.points import Point, count_of, known_points, rounded
from emc2dist.errors import SpecError


class Points(Protocol):
    """The points of a sweep, one after the other."""

    def __len__(self) -> int:
        """The number that there are to be."""

    def next(self) -> Point:
        """The next one; as many times as there are."""

    def tell(self, index: int, score: float | None) -> None:
        """Learn a point's score, None where no trial of it has a value."""


def points_of(sweep: Sweep, recorded: Sequence[Point], scores: Mapping[int, float | None]) -> Points:
    """The points of a sweep; `recorded` are the first ones, if it goes on, and `scores` what some have come to.

    Raises:
        SpecError: Optuna is not installed.
    """
    known = known_points(sweep)
    return Proposed(sweep, count_of(sweep), recorded, scores) if known is None else Listed(known)


class Listed(Points):
    """Points that are known beforehand; `emc2dist.config.load_sweep` has checked them."""

    def __init__(self, points: Sequence[Point]) -> None:
        self._points, self._next = points, iter(points)

    def __len__(self) -> int:
        return len(self._points)

    @override
    def next(self) -> Point:
        return next(self._next)

    @override
    def tell(self, index: int, score: float | None) -> None:
        """Nothing is learnt."""


class Proposed(Points):
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

    @override
    def next(self) -> Point:
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

    @override
    def tell(self, index: int, score: float | None) -> None:
        if score is None:
            self._study.tell(self._asked[index], state=self._failed)
        else:
            self._study.tell(self._asked[index], score)

    def _value(self, key: str, parameter: Any) -> Any:
        known = self._space[key]
        return rounded(known, parameter) if isinstance(known, Range) else known[parameter]

    def _parameters(self, point: Point) -> dict[str, Any]:
        """Optuna's parameters of a point, from which `_value` makes it."""
        return {
            key: point[key] if isinstance(known, Range) else [_plain(choice) for choice in known].index(point[key])
            for key, known in self._space.items()
        }


def trial_spec(sweep: Sweep, name: str, point: Point, seed: int, common: Mapping[str, Any]) -> Spec:
    """The spec of a trial, a run of its own; `common` are keys that all trials share beside the base's.

    Raises:
        SpecError: the point is no valid one.
    """
    return changed(sweep.base, {**common, **point, "name": name, "seed": sweep.base.seed + seed}, source=name)


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
