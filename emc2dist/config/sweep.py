"""The spec of a sweep: a base run, the keys that vary and how, and how much may be spent.

A value of `space` is a list of choices, or one of `uniform(a, b)`, `loguniform(a, b)` and `randint(a, b)` (whole
numbers from a to b, both included). Whatever a key can become is checked against the training spec before anything
starts, by `emc2dist.config.load_sweep`.
"""

import difflib
import math
import re
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from emc2dist.config.sections import PositiveFloat, PositiveInt, Section, SmallPositiveInt
from emc2dist.config.spec import Spec
from emc2dist.metrics import METRICS, ROW

_ALIKE = {"step", "epoch", "knn_pixels", "bm25_ndcg_at_10", "bm25_mrr_at_10", "bm25_recall_at_10"}  # in all trials
_JUDGED = {name for name in ROW if METRICS[name].kind != "event"} - _ALIKE
MOST_TRIALS = 100_000
"""Of a sweep."""

_RANGE = re.compile(r"^(uniform|loguniform|randint)\(([^,()]+),([^,()]+)\)$")
WANTED = (
    "write a list of choices, or uniform(a, b), loguniform(a, b) or randint(a, b), in quotes where it stands in braces"
)
"""Of a value of `space`."""
_OURS = {"name", "run_dir", "seed"}
_FIXED = {"workers", "resources", "launch"}


class Range(NamedTuple):
    """Numbers from `low` to `high`."""

    kind: Literal["uniform", "loguniform", "randint"]
    low: float
    high: float

    @classmethod
    def parse(cls, text: str) -> "Range":
        """From `loguniform(0.05, 0.5)`; raises ValueError where it is none, or has no room."""
        match = _RANGE.match(text.strip())
        if match is None:
            raise ValueError(WANTED)
        kind: Any = match[1]
        low, high = (_number(bound, whole=kind == "randint") for bound in match.groups()[1:])
        if not low < high or not math.isfinite(high - low):
            raise ValueError("give two finite numbers, the smaller one first")
        if kind == "loguniform" and low <= 0:
            raise ValueError("a logarithm needs bounds above 0")
        return cls(kind, low, high)


def _number(text: str, *, whole: bool) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{text.strip()} is no number; {WANTED}") from None
    if whole and not number.is_integer():
        raise ValueError(f"{text.strip()} is no whole number, as randint needs them")
    return int(number) if whole else number


class Search(Section):
    """How points are chosen."""

    name: Literal["random", "grid", "optuna"] = "random"
    """`random` draws; `grid` takes every combination of lists; `optuna` learns from what has ended (its package is
    needed)."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of the draws: the same seed gives the same points."""


class Scheduler(Section):
    """Which trials are stopped before their last epoch, judged by the metric after each evaluation."""

    name: Literal["asha", "median", "fifo"] = "asha"
    """`asha`: at epochs grace, grace * reduction, ... all but the best share of 1 / reduction so far; `median`: those
    whose best is worse than the median of the others' means so far; `fifo`: none."""
    grace: PositiveInt = 1
    """Epochs before any trial is stopped."""
    reduction: Annotated[int, Field(ge=2)] = 3
    """See `asha`."""

    @field_validator("name", mode="before")
    @classmethod
    def _has_checkpoints(cls, name: Any) -> Any:
        if name in ("pbt", "pb2"):
            raise ValueError(
                f"scheduler.name: {name} would copy the checkpoint of a better trial into a worse one, and the trials' "
                "checkpoints belong to Ray Train, which gives Tune none; use asha, median or fifo"
            )
        return name


class Budget(Section):
    """How much may be spent."""

    trials: Annotated[int, Field(ge=1, le=MOST_TRIALS)] | None = None
    """Runs in all, those of every seed counted; by default 16 points with all their seeds, or the whole grid."""
    hours: PositiveFloat | None = None
    """Wall time of one command; what runs by then writes a checkpoint, and the same command goes on. None: no limit."""
    concurrent: SmallPositiveInt | None = None
    """Most trials at once, if fewer than the cluster has room for."""


def _better(metric: str) -> Literal["max", "min"]:
    """Which values of a metric are better, where the spec does not say."""
    return "min" if metric in ("loss", "alignment", "uniformity") or metric.endswith("_seconds") else "max"


class Sweep(Section):
    """One sweep. In a file `base` may be the path of a run's spec, and `set` a mapping of keys that it changes."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
    """Names the sweep and its folder in the base's `run_dir`: the same name goes on."""
    base: Spec
    """What every trial has in common; `seed` is that of the first of the `seeds`."""
    space: dict[str, str | tuple[Any, ...]]
    """Keys of a run's spec, as in `optimiser.weight_decay`, and what they may be."""
    seeds: SmallPositiveInt = 1
    """Trials of each point; each has a seed of its own."""
    metric: str = "knn_accuracy"
    """A metric of a run's rows at the ends of epochs; points are compared by its mean over seeds. By default the kNN
    accuracy, of pairs nDCG@10."""
    goal: Literal["max", "min"] = "max"
    """Which of its values are better; where it is not given, the lower ones of a loss."""
    scheduler: Scheduler = Scheduler()
    search: Search = Search()
    budget: Budget = Budget()

    @model_validator(mode="before")
    @classmethod
    def _follows_what_is_known(cls, given: Any) -> Any:
        """The metric follows from the kind of data, and the goal from the metric, where they are not given."""
        if not isinstance(given, dict):
            return given
        base = given.get("base")
        data = (
            base.get("data") if isinstance(base, dict) else base.data.model_dump() if isinstance(base, Spec) else None
        )
        kind = data.get("kind") if isinstance(data, dict) else None
        given = {"metric": "knn_accuracy" if kind in (None, "images") else "ndcg_at_10", **given}
        return {"goal": _better(str(given["metric"])), **given}

    @field_validator("metric", mode="before")
    @classmethod
    def _stands_alone(cls, metric: Any) -> Any:
        if isinstance(metric, dict):
            raise ValueError(f"metric: got {metric!r}; write its name alone, and beside it goal: max or goal: min")
        return metric

    @field_validator("metric")
    @classmethod
    def _is_one_of_a_run(cls, metric: str) -> str:
        if metric in _ALIKE:
            raise ValueError(f"metric: {metric!r} is the same in all trials; give one that is not, as knn_accuracy")
        if metric not in _JUDGED:
            known = sorted(_JUDGED)
            begun = [name for name in known if name.startswith(metric)]
            nearest = begun or difflib.get_close_matches(metric, known, n=1, cutoff=0.0)
            raise ValueError(f"metric: {metric!r} is none of a run's; the nearest is {nearest[0]}")
        return metric

    @field_validator("space", mode="before")
    @classmethod
    def _holds_lists_and_ranges(cls, space: Any) -> Any:
        if space == {}:
            raise ValueError("space: holds no key, so nothing varies; give it one and its values, as lr: [1e-3, 1e-2]")
        for key, value in space.items() if isinstance(space, dict) else ():
            if not isinstance(value, str | tuple):
                raise ValueError(f"space.{key}: got {value!r}; {WANTED}")
        return space

    def distributions(self) -> dict[str, Range | tuple[Any, ...]]:
        """What each key may be."""
        return {key: Range.parse(value) if isinstance(value, str) else value for key, value in self.space.items()}

    def ends(self) -> dict[str, tuple[Any, ...]]:
        """Values of each key that hold if all do: the choices, or the bounds of a range."""
        return {key: value[1:] if isinstance(value, Range) else value for key, value in self.distributions().items()}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for key, value in self.space.items():
            self._check(key, value)
        if self.budget.trials is not None and self.budget.trials < self.seeds:
            raise ValueError(f"budget.trials: {self.budget.trials} is less than the {self.seeds} seeds of one point")
        if self.scheduler.name != "fifo" and not self.base.eval.every and self.metric.startswith("knn"):
            raise ValueError(
                f"scheduler.name: {self.scheduler.name} judges evaluations; give set.eval.every a value of 1 or more"
            )
        return self

    def _check(self, key: str, value: str | tuple[Any, ...]) -> None:
        section = key.split(".")[0]
        if section in _OURS:
            raise ValueError(f"space.{key}: the sweep itself gives every trial its own; leave it out (see `seeds`)")
        if section in _FIXED:
            raise ValueError(f"space.{key}: trials at once are counted by what each takes; give all the same, in `set`")
        if value == ():
            raise ValueError(f"space.{key}: an empty list; give it choices")
        if not isinstance(value, str):
            return
        try:
            Range.parse(value)
        except ValueError as error:
            raise ValueError(f"space.{key}: got {value!r}; {error}") from None
        if self.search.name == "grid":
            raise ValueError(f"space.{key}: a grid has no ranges; list the values, or set search.name to random")


def base_of(job: Spec | Sweep) -> Spec:
    """The run, or what the sweep's trials have in common: what has to find room, and where it is sent."""
    return job.base if isinstance(job, Sweep) else job
