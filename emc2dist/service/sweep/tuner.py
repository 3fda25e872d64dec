"""Ray Tune at work: hands out trials, judges them, keeps their records, and shows how far it is.

    Handout     the next trial, or none: a Searcher
    Gentle      a scheduler of Tune's, whose "stop" becomes a word to the trial
    Watch       what Tune reports becomes records, a table on stderr and Prometheus' gauges

Tune's own experiment state is not used: it is pickled, lags behind, and knows less than the records and run folders. A
sweep that goes on replays the records of ended trials to the scheduler, and hands out the others.
"""

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, NamedTuple

import emc2dist.service.cluster as cluster  # before ray: sets its defaults

from ray import tune  # isort: skip
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher
from ray.util.metrics import Gauge

from emc2dist.config import Sweep, dump
from emc2dist.service.sweep.folder import ENDED, Record, State, SweepFolder, scores, trial_name
from emc2dist.service.sweep.results import leader, table
from emc2dist.service.sweep.space import Points, trial_spec
from emc2dist.service.sweep.trial import HaltHandle, Trial

_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the run folders have it all
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C asks the trials to stop, and Tune would end them
    "RAY_AIR_NEW_OUTPUT": "0",  # the old output can be turned off whole
}
_TABLE_S = 15.0
_DRIVER_NEEDS = {"CPU": 0, "memory": 2**20}  # Tune asks for something; the workers shall have all CPUs


STATES: tuple[State, ...] = ("running", "finished", "stopped", "failed", "lost")


class Ledger:
    """All records of a sweep, the newest of each, and their file."""

    def __init__(self, sweep: Sweep, folder: SweepFolder) -> None:
        self.sweep, self._folder = sweep, folder
        self._records = {record.name: record for record in folder.records()}
        self.changed = True
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


class Handout(Searcher):
    """Hands out every trial that has not ended, in order."""

    def __init__(self, ledger: Ledger, points: Points, run_dir: str) -> None:
        super().__init__()
        self._ledger, self._points, self._run_dir = ledger, points, run_dir
        self._trials = self._remaining()
        self.over = threading.Event()
        """Set: no more."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """See `Searcher`: the configuration of the next trial."""
        record = None if self.over.is_set() else next(self._trials, None)
        if record is None:
            return Searcher.FINISHED
        sweep = self._ledger.sweep
        spec = trial_spec(sweep, record.name, record.values, record.seed, self._run_dir)
        return {"name": record.name, "spec": dump(spec), "metric": sweep.metric}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """See `Searcher`; `Watch` tells the points."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """See `Searcher`; the records say it all."""

    def _remaining(self) -> Iterator[Record]:
        for point in range(len(self._points)):
            values = dict(self._points.next())
            for seed in range(self._ledger.sweep.seeds):
                record = self._ledger.begin(point, seed, values)
                if record.state not in ENDED:
                    yield record


class _Past(NamedTuple):
    """As much of a trial of Tune as a scheduler asks for."""

    trial_id: str
    status: str = "TERMINATED"


class Gentle(FIFOScheduler):
    """A scheduler's judgements, but a trial that is to stop is only asked to: it ends by itself and gives all back."""

    def __init__(self, judge: TrialScheduler, halt: Callable[[str, int], None]) -> None:
        super().__init__()
        self._judge, self._halt = judge, halt
        self._halted: set[str] = set()

    def replay(self, record: Record, metric: str) -> None:
        """Show the judge an ended trial of an earlier start."""
        trial = _Past(record.name)
        self._judge.on_trial_add(None, trial)
        for epoch, value in record.history:
            self._judge.on_trial_result(None, trial, {"epoch": epoch, metric: value})

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """See `TrialScheduler`."""
        self._judge.on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """See `TrialScheduler`: always to go on."""
        name = trial.config["name"]
        if name in self._halted:
            return TrialScheduler.CONTINUE
        if self._judge.on_trial_result(tune_controller, trial, result) != TrialScheduler.CONTINUE:
            self._halted.add(name)
            self._halt(name, result["epoch"])
        return TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """See `TrialScheduler`."""
        if result["epoch"]:
            self._judge.on_trial_complete(tune_controller, trial, result)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """See `TrialScheduler`."""
        self._judge.on_trial_error(tune_controller, trial)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """See `TrialScheduler`."""
        self._judge.on_trial_remove(tune_controller, trial)


def judge_of(sweep: Sweep) -> TrialScheduler:
    """The scheduler of Tune that `scheduler.name` names."""
    asked, common = sweep.scheduler, {"time_attr": "epoch", "metric": sweep.metric, "mode": sweep.goal}
    if asked.name == "asha":
        return ASHAScheduler(
            **common, max_t=max(sweep.base.epochs, asked.grace), grace_period=asked.grace,
            reduction_factor=asked.reduction, stop_last_trials=False,
        )  # fmt: skip
    if asked.name == "median":
        # It would pause a trial that it cannot judge yet, and ours cannot be paused.
        return MedianStoppingRule(**common, grace_period=asked.grace, min_time_slice=float("inf"))
    return FIFOScheduler()


class Watch(tune.Callback):
    """Keeps the records, shows them, and has the trials stop when the sweep is to end."""

    def __init__(self, ledger: Ledger, points: Points, handout: Handout, halts: HaltHandle) -> None:
        self._ledger, self._points, self._handout, self._halts = ledger, points, handout, halts
        self._judged: dict[str, int] = {}
        self._gauges = Gauges(ledger.sweep)
        self._shown = monotonic()

    def halt(self, name: str, epoch: int) -> None:
        """Ask a trial to stop, for what it had come to at the end of an epoch."""
        self._judged[name] = epoch
        self._halts.halt([name])

    def end(self, why: str) -> None:
        """Have all trials write a checkpoint and end, and begin no more."""
        if not self._handout.over.is_set():
            self._handout.over.set()
            print(f"{why}: every trial writes a checkpoint first", file=sys.stderr, flush=True)
            self._halts.halt([record.name for record in self._ledger.all() if record.state == "running"])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """See `tune.Callback`."""
        record = self._ledger.get(trial.config["name"])
        if "state" in result:
            self._close(record, result["state"], result["reason"])
        elif result["epoch"] > record.epoch:
            self._ledger.put(record.reached(result["epoch"], result[self._ledger.sweep.metric]))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """See `tune.Callback`: the actor itself has died."""
        self._close(self._ledger.get(trial.config["name"]), "lost", f"its driver died: {trial.get_error()}")

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """See `tune.Callback`."""
        if self._ledger.changed and monotonic() - self._shown > _TABLE_S:
            self.show()

    def show(self) -> None:
        """Print the table, and set the gauges."""
        self._shown, self._ledger.changed = monotonic(), False
        records = self._ledger.all()
        print(table(self._ledger.sweep, records), file=sys.stderr, flush=True)
        self._gauges.set(records)

    def _close(self, record: Record, state: State, reason: str) -> None:
        if state == "running" and record.name in self._judged:
            state, reason = "stopped", f"{self._ledger.sweep.scheduler.name}, epoch {self._judged[record.name]}"
        self._ledger.put(record.ended(state, " ".join(reason.split())))
        own = [other for other in self._ledger.all() if other.point == record.point]
        for point, score in scores(self._ledger.sweep, own).items():
            self._points.tell(point, score)


class Gauges:
    """What Prometheus sees of a sweep: two series for each trial, and seven for the sweep."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._metric = Gauge("emc2_sweep_trial_metric", f"{sweep.metric} of a trial, newest", ("sweep", "trial"))
        self._epoch = Gauge("emc2_sweep_trial_epoch", "epochs that a trial has been judged at", ("sweep", "trial"))
        self._trials = Gauge("emc2_sweep_trials", "trials that have begun, by state", ("sweep", "state"))
        self._best = Gauge("emc2_sweep_best_metric", f"best {sweep.metric} of any trial so far", ("sweep",))

    def set(self, records: list[Record]) -> None:
        """Set all to what the records say."""
        own = {"sweep": self._sweep.name}
        for record in records:
            if record.value is not None:
                self._metric.set(record.value, own | {"trial": record.name})
                self._epoch.set(record.epoch, own | {"trial": record.name})
        for state in STATES:
            self._trials.set(sum(record.state == state for record in records), own | {"state": state})
        best = leader(self._sweep, records)
        if best is not None and best.value is not None:
            self._best.set(best.value, own)


def run(ledger: Ledger, folder: SweepFolder, points: Points, ends: Callable[[], str | None]) -> None:
    """Run all trials that have not ended; `ends` says why the sweep is to end before, as long as it is not None."""
    os.environ.update(_SETTINGS)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    sweep, halts = ledger.sweep, HaltHandle.create()
    handout = Handout(ledger, points, str(folder.place))
    watch = Watch(ledger, points, handout, halts)
    gentle = Gentle(judge_of(sweep), watch.halt)
    for record in ledger.all():
        if record.state in ENDED:
            gentle.replay(record, sweep.metric)
    scratch = folder.place / "tune"
    scratch.remove()
    filesystem, path = scratch.arrow()
    # Not a Tuner, which pickles what it is given so as to restore it.
    tune.run(
        tune.with_parameters(Trial, halts=halts),
        name=scratch.name,
        storage_path=path.removesuffix(f"/{scratch.name}"),
        storage_filesystem=filesystem,
        resources_per_trial=_DRIVER_NEEDS,
        search_alg=handout,
        scheduler=gentle,
        num_samples=len(points) * sweep.seeds,
        max_concurrent_trials=min(cluster.room(sweep.base), sweep.budget.concurrent or sys.maxsize),
        trial_name_creator=_name_of,
        trial_dirname_creator=_name_of,
        callbacks=[watch, _Ending(watch, ends)],
        verbose=0,
        raise_on_failed_trial=False,
    )
    watch.show()
    scratch.remove()


class _Ending(tune.Callback):
    """Looks between Tune's steps whether the sweep is to end."""

    def __init__(self, watch: Watch, ends: Callable[[], str | None]) -> None:
        self._watch, self._ends = watch, ends

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """See `tune.Callback`."""
        why = self._ends()
        if why is not None:
            self._watch.end(why)


def _name_of(trial: Any) -> str:
    return trial.config["name"]
