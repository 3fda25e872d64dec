"""The folder of a sweep, on disk or on S3: what is swept, what each trial has come to, and the trials' run folders.

SWEEP/sweep.yaml                the resolved sweep
SWEEP/trials/NAME.json          the record of a trial, see `Record`
SWEEP/NAME/                     the run folder of a trial, as `emc2dist train` leaves it
SWEEP/results.csv, .parquet     a row for each trial; with best.yaml and pictures, see `emc2dist.sweep.results`

Records alone say how far a sweep has got, and the driver alone writes them, each whole or not at all. So a driver may
be killed at any time: what its records call running resumes from its own checkpoint, or is found finished.
"""

from collections.abc import Sequence
from dataclasses import field, replace
from typing import Any, Literal, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from emc2dist.config import Sweep, differences, dump, parse_sweep
from emc2dist.errors import RunError
from emc2dist.files import Place
from emc2dist.run.folder import RunFolder, changes, json_of, text_of
from emc2dist.terminal import say

State = Literal["running", "finished", "stopped", "failed", "lost"]
"""`stopped`: by the scheduler. `failed`: it would only fail again. `lost`: the same command tries again."""
STATES: tuple[State, ...] = get_args(State)
ENDED: frozenset[State] = frozenset({"finished", "stopped", "failed"})


@dataclass(frozen=True, config=ConfigDict(extra="forbid", ser_json_inf_nan="constants"))
class Record:
    """A trial's record: which it is, and how far it has come."""

    name: str
    """Of its run, and of its folder in that of the sweep."""
    point: int
    seed: int
    """Which of the seeds of its point, from 0."""
    values: dict[str, Any]
    """The point: keys of a run's spec."""
    state: State = "running"
    history: list[tuple[int, float]] = field(default_factory=list)
    """(epoch, metric) at the ends of epochs."""
    reason: str = ""
    """Why it failed, was stopped or lost."""

    @property
    def epoch(self) -> int:
        """The last epoch that has been judged; 0: none."""
        return self.history[-1][0] if self.history else 0

    @property
    def value(self) -> float | None:
        """The metric there."""
        return self.history[-1][1] if self.history else None

    def reached(self, epoch: int, value: float) -> "Record":
        """With one more value of the metric."""
        return replace(self, history=[*self.history, (epoch, value)])

    def ended(self, state: State, reason: str = "") -> "Record":
        """With how it ended."""
        return replace(self, state=state, reason=reason)


def trial_name(sweep: Sweep, point: int, seed: int) -> str:
    """The name of a trial and of its run."""
    return f"{sweep.name}-{point:03d}-seed{seed}"


class SweepFolder:
    """One sweep's folder."""

    def __init__(self, place: Place) -> None:
        self.place = place

    @classmethod
    def prepare(cls, sweep: Sweep) -> "SweepFolder":
        """The folder of `sweep`, new or of an earlier start of it, as of one that never began a trial.

        Its sweep.yaml says `sweep` from here on, so whatever may refuse the sweep comes first.

        Raises:
            RunError: see `refuse_other_sweep`.
        """
        folder = cls.of(sweep)
        other = folder.refuse_other_sweep(sweep)
        if other:
            say(f"{folder.place}: an earlier sweep of this name was another one ({other}) and began no trial")
        folder.write("sweep.yaml", dump(sweep).encode())
        return folder

    @classmethod
    def of(cls, sweep: Sweep) -> "SweepFolder":
        """The folder of `sweep`, whether it is there or not."""
        return cls(RunFolder.of(sweep.base.model_copy(update={"name": sweep.name})).place)

    def refuse_other_sweep(self, sweep: Sweep) -> str:
        """What differs in an earlier sweep of this name that began no trial; empty where nothing does.

        `budget` and `scheduler` may always differ, and what only moves work around.

        Raises:
            RunError: the name is taken by another sweep that began, or by a run.
        """
        if (self.place / "spec.yaml").entry() is not None:
            raise RunError(f"{self.place}: is the folder of a run; give the sweep a name of its own")
        earlier = self.sweep()
        other = "; ".join(_changes(earlier, sweep)) if earlier else ""
        if other and (self.place.remote or self.records()):  # see `RunFolder.prepare`
            raise RunError(
                f"{self.place}: an earlier sweep of this name was another one ({other}); give this one a new "
                "name, or go back to the old values to go on"
            )
        return other

    def sweep(self) -> Sweep | None:
        """The resolved sweep, if there is one. Raises RunError or SpecError where its file is damaged."""
        place = self.place / "sweep.yaml"
        return parse_sweep(text_of(place), source=str(place)) if place.entry() else None

    def write(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all."""
        (self.place / name).write(data)

    def records(self) -> list[Record]:
        """All records, by point and seed. Raises RunError where one is damaged."""
        trials = self.place / "trials"
        names = [entry.name for entry in trials.entries() if entry.name.endswith(".json")]  # not what was cut short
        found = [_record(trials / name) for name in names]
        return sorted(found, key=lambda record: (record.point, record.seed))

    def save(self, record: Record) -> None:
        """Write a record."""
        self.write(f"trials/{record.name}.json", _RECORD.dump_json(record, indent=1))


_RECORD = TypeAdapter(Record)


def _record(place: Place) -> Record:
    try:
        return _RECORD.validate_python(json_of(place))
    except ValidationError as error:
        faults = (([str(key) for key in fault["loc"]], fault["msg"]) for fault in error.errors())
        wrong = "; ".join(f"{'.'.join(keys)}: {message}" for keys, message in faults)
        raise RunError(f"{place}: is no record of a trial ({wrong}); remove it, and the trial begins anew") from error


class Ledger:
    """The newest record of every trial of a sweep, here and in its folder. Lost trials begin anew."""

    def __init__(self, sweep: Sweep, folder: SweepFolder) -> None:
        self.sweep, self._folder = sweep, folder
        self._records = {record.name: record for record in folder.records()}
        self.changed = True
        """Since whoever shows the records last set it to False."""
        for record in self.all():
            if record.state == "lost":
                self.put(record.ended("running"))

    def all(self) -> list[Record]:
        """Every trial that has begun, by point and seed."""
        return sorted(self._records.values(), key=lambda record: (record.point, record.seed))

    def get(self, name: str) -> Record:
        """The record of a trial."""
        return self._records[name]

    def put(self, record: Record) -> None:
        """Keep a record."""
        self._folder.save(record)
        self._records[record.name] = record
        self.changed = True

    def begin(self, point: int, seed: int, values: dict[str, Any]) -> Record:
        """The record of a trial, a new one where there is none."""
        name = trial_name(self.sweep, point, seed)
        if name not in self._records:
            self.put(Record(name, point, seed, values))
        return self._records[name]


def scores(sweep: Sweep, records: Sequence[Record]) -> dict[int, float | None]:
    """The score of each point whose trials have all ended: the mean over seeds, None where none has a value."""
    found: dict[int, float | None] = {}
    for point in {record.point for record in records}:
        own = [record for record in records if record.point == point]
        if len(own) == sweep.seeds and all(record.state != "running" for record in own):
            values = [record.value for record in own if record.value is not None and record.state in ENDED - {"failed"}]
            found[point] = sum(values) / len(values) if values else None
    return found


def _changes(old: Sweep, new: Sweep) -> list[str]:
    """The differences that decide which trials there are and what they come to."""
    before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
    keys = ("space", "seeds", "metric", "goal", "search")
    # Within one run an evaluation is a row among others; here the rows of many runs are compared.
    evaluations = [f"base.eval.{line}" for line in changes(old.base.eval, new.base.eval)]
    return [f"{key}: {before[key]} -> {after[key]}" for key in keys if before[key] != after[key]] + [
        *(f"base.{line}" for line in differences(old.base, new.base)),
        *evaluations,
    ]
