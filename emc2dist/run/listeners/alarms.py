"""Warnings in plain words, where a run's rows tell that it goes wrong: what Prometheus' alerts see, without Prometheus.

Each is an alert of cluster/rules.yml under the same name and bound. It is told once it has held for three rows, and for
an epoch or ten minutes, whichever is shorter; and again if it comes back. What only Prometheus can see, such as rows
that do not come at all, is not here.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import mean
from time import monotonic
from typing import NamedTuple

from typing_extensions import override

from emc2dist.metrics import Recorder, Row

_ROWS, _SECONDS = 3, 600.0
_REMEMBERED = 100  # rows that the newest are compared with
_AFTER_EPOCHS = 5  # before that an encoder's rank falls by learning

Values = Mapping[str, float]
"""Of a row, with `kernel_is_mh` (0 or 1) and `steps_per_epoch`."""


class Alarm(NamedTuple):
    """What is watched, and what to say of it."""

    name: str
    """The alert's, of cluster/rules.yml."""
    metric: str
    """Rows without it tell nothing."""
    bound: float
    is_beyond: Callable[[Values, float, "deque[float]"], bool]
    """Of a row, the bound, and the metric's values in earlier rows that were well."""
    words: str
    """What is wrong, with {value}; and what would help."""


def _share_of_epoch(row: Values) -> float:
    return row["feature_age_steps"] / row["steps_per_epoch"]


def _waited(row: Values) -> float:
    return row["data_wait_slowest_seconds"] / row["step_seconds"]


ALARMS = (
    Alarm(
        "Emc2AcceptanceCollapsed", "acceptance_rate", 0.01,
        lambda row, bound, _: row["acceptance_rate"] < bound,
        "chains accept {value:.2%} of their proposals and no longer move: raise temperature or lower lr, under a new "
        "name",
    ),
    Alarm(
        "Emc2AcceptanceStuck", "acceptance_rate", 0.98,
        lambda row, bound, _: bool(row["kernel_is_mh"]) and row["acceptance_rate"] > bound,
        "chains accept everything, as all negatives score alike: if effective_rank and uniformity fall features have "
        "collapsed: lower lr, lengthen optimiser.warmup_epochs or lower temperature, under a new name",
    ),
    Alarm(
        "Emc2ChainsNotVisited", "visited_ratio", 0.9,
        lambda row, bound, _: row["visited_ratio"] < bound and row["epoch"] > 4,
        "only {value:.1%} of the chains had been visited, after four epochs: chains were lost; stop the run, the same "
        "command resumes",
    ),
    Alarm(
        "Emc2CacheOld", "feature_age_steps", 1.0,
        lambda row, bound, _: _share_of_epoch(row) > bound,
        "cached features are {value:,.0f} steps old on average, more than an epoch: writes do not reach the store; "
        "with negatives.cache_proposals use negatives.carried: reencode",
    ),
    Alarm(
        "Emc2EffectiveRankFalling", "effective_rank", 2.0,
        lambda row, bound, before: row["effective_rank"] < bound
        or (row["epoch"] > _AFTER_EPOCHS and bool(before) and row["effective_rank"] < 0.5 * mean(before)),
        "the features fill {value:.1f} dimensions, under 2 or half of what they did, and collapse; that does "
        "not pass: lower lr, lengthen optimiser.warmup_epochs or set optimiser.clip_norm, under a new name",
    ),
    Alarm(
        "Emc2UniformityLost", "uniformity", -0.05,
        lambda row, bound, _: row["uniformity"] > bound,
        "all features point the same way (uniformity {value:.3f}; 0 is collapse): raise batch_size or lower "
        "temperature, under a new name",
    ),
    Alarm(
        "Emc2AnchorsClosed", "closed_anchors_ratio", 0.1,
        lambda row, bound, _: row["closed_anchors_ratio"] > bound,
        "{value:.1%} of the anchors have no open candidate, so nothing is repelled from them: give a higher "
        "negatives.ceiling_after or no ceiling, under a new name; with negatives.close: [label] a larger batch_size",
    ),
    Alarm(
        "Emc2ThroughputDown", "images_per_second", 0.5,
        lambda row, bound, before: bool(before) and row["images_per_second"] < bound * max(before),
        "{value:,.0f} images/s, less than half of the best of the last hundred rows: `emc2dist watch` tells which "
        "part of a step grew",
    ),
    Alarm(
        "Emc2DataStarved", "data_wait_slowest_seconds", 0.3,
        lambda row, bound, _: _waited(row) > bound,
        "the slowest worker waits {value:.2f} s of a step for data, more than 30%: raise data.loaders and "
        "data.prefetch, give workers more CPUs, or ingest smaller images",
    ),
)  # fmt: skip
"""All that is watched."""


@dataclass
class _Watch:
    """An alarm, and what it has seen."""

    alarm: Alarm
    before: "deque[float]" = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    rows: int = 0
    """For which it has held by now."""
    since: tuple[float, float] = (0.0, 0.0)
    """Epoch and clock when it began to."""
    is_told: bool = False


class Alarms(Recorder):
    """Tells `say` of what it sees in rows, and keeps it in `heard`."""

    def __init__(
        self,
        steps_per_epoch: int,
        kernel: str | None,
        say: Callable[[str], None],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Begin; `kernel` is the chains', None where there are none. `clock` gives seconds."""
        self.heard = list[str]()
        self._fixed = {"steps_per_epoch": float(steps_per_epoch), "kernel_is_mh": float(kernel == "mh")}
        self._say, self._clock = say, clock
        self._watched = [_Watch(alarm) for alarm in ALARMS]

    @override
    def record(self, row: Row) -> None:
        values = self._fixed | {name: float(value) for name, value in row.items() if not isinstance(value, str)}
        for watch in self._watched:
            if watch.alarm.metric in values:
                self._look(watch, values)

    def _look(self, watch: _Watch, values: Values) -> None:
        alarm, now = watch.alarm, (values["epoch"], self._clock())
        if not alarm.is_beyond(values, alarm.bound, watch.before):
            watch.before.append(values[alarm.metric])
            watch.rows, watch.is_told = 0, False
            return
        if not watch.rows:
            watch.since = now
        watch.rows += 1
        epochs, seconds = (end - begin for end, begin in zip(now, watch.since, strict=True))
        if watch.is_told or watch.rows < _ROWS or (epochs < 1 and seconds < _SECONDS):
            return
        watch.is_told = True
        told = f"step {values['step']:.0f}: {alarm.words.format(value=values[alarm.metric])} ({alarm.name})"
        self.heard.append(told)
        self._say(f"warning: {told}")
