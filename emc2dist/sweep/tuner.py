"""Ray Tune at work: it starts trials, stops some early, and keeps their records; and how far it is, for people.

    TrialSearcher     which trial is next: a Searcher
    Watch       what Tune reports becomes records, a table on stderr and Prometheus' gauges: a Callback

Tune's own experiment state is not used: it is pickled, lags behind, and knows less than the records and run folders. A
sweep that goes on replays the records of ended trials to the scheduler, and hands out the others. A trial whose driver
dies is started again by Tune, in its place, as often as a run's workers may be; its run resumes by itself.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import emc2dist.run.cluster as cluster  # before ray: sets its defaults

from ray import tune  # isort: skip
from ray.tune.search import Searcher
from typing_extensions import override

from emc2dist.config import Spec, dump
from emc2dist.errors import SpecError
from emc2dist.run import failures
from emc2dist.sweep.folder import ENDED, Ledger, Record, State, SweepFolder, scores
from emc2dist.sweep.prometheus import Gauges
from emc2dist.sweep.results import table
from emc2dist.sweep.schedulers import CooperativeScheduler, scheduler_of
from emc2dist.sweep.space import Points, trial_spec
from emc2dist.sweep.trial import StopRequestsHandle, Trial
from emc2dist.terminal import say

_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the run folders have it all
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C asks the trials to stop, and Tune would end them
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # `SweepCallback` says what matters of them
    "RAY_AIR_NEW_OUTPUT": "0",  # the old output can be turned off whole
}
_TABLE_S = 15.0
_DRIVER_NEEDS = {"CPU": 0, "memory": 2**20}  # Tune asks for something; the workers shall have all CPUs


class TrialSearcher(Searcher):
    """Every trial that has not ended, in order, for Tune to start."""

    def __init__(self, ledger: Ledger, points: Points, common: dict[str, Any]) -> None:
        super().__init__()
        self._ledger, self._points, self._common = ledger, points, common
        self._trials = self._remaining()
        self.over = False
        """No more trials are to begin."""

    @override
    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The configuration of the next trial."""
        while not self.over:
            record = next(self._trials, None)
            if record is None:
                break
            try:
                return self._configuration(record)
            except SpecError as error:  # Optuna combined what does not go together
                self.close(record, "failed", str(error))
        return Searcher.FINISHED

    def close(self, record: Record, state: State, reason: str) -> None:
        """Keep a trial's end; where it was the last one of its point, what the point has come to."""
        self._ledger.put(record.ended(state, " ".join(reason.split())))
        own = [other for other in self._ledger.all() if other.point == record.point]
        for point, score in scores(self._ledger.sweep, own).items():
            self._points.tell(point, score)

    @override
    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """`close` does it."""

    @override
    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """The records say it all."""

    def _configuration(self, record: Record) -> dict[str, Any]:
        sweep = self._ledger.sweep
        spec = trial_spec(sweep, record.name, record.values, record.seed, self._common)
        return {"name": record.name, "spec": dump(spec), "metric": sweep.metric}

    def _remaining(self) -> Iterator[Record]:
        for point in range(len(self._points)):
            values = dict(self._points.next())
            for seed in range(self._ledger.sweep.seeds):
                record = self._ledger.begin(point, seed, values)
                if record.state not in ENDED:
                    yield record


class SweepCallback(tune.Callback):
    """The keeping of records, the table that is shown of them, and the end of a sweep before its last trial."""

    def __init__(
        self, ledger: Ledger, searcher: TrialSearcher, stops: StopRequestsHandle, ends: Callable[[], str | None]
    ) -> None:
        self._ledger, self._searcher, self._stops, self._ends = ledger, searcher, stops, ends
        self._stopped_at: dict[str, int] = {}
        self._gauges = Gauges(ledger.sweep)
        self._shown = self._repeated = monotonic()

    def stop(self, name: str, epoch: int) -> None:
        """Ask a trial to stop, for what it had come to at the end of an epoch."""
        self._stopped_at[name] = epoch
        self._stops.add([name])

    def lose(self, name: str) -> None:
        """Give up a trial whose driver does not start."""
        limit = f"{self._ledger.sweep.base.resources.start_s:g} s (resources.start_s)"
        self._searcher.close(self._ledger.get(name), "lost", f"its driver did not start in {limit}")

    @override
    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Where the sweep is to end, all trials write a checkpoint and end, and no more begin."""
        why = None if self._searcher.over else self._ends()
        if why is not None:
            say(f"{why}: every trial writes a checkpoint first")
            self._searcher.over = True
            self._stops.add([record.name for record in self._ledger.all() if record.state == "running"])

    @override
    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        record = self._ledger.get(trial.config["name"])
        if "state" in result:
            self._searcher.close(record, *self._verdict(record.name, result["state"], result["reason"]))
        elif result["epoch"] > record.epoch:
            self._ledger.put(record.reached(result["epoch"], result[self._ledger.sweep.metric]))

    @override
    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The actor itself has died, and Tune starts another one."""
        spent = f"{trial.num_failures} of {self._ledger.sweep.base.restarts} restarts spent"
        say(f"{_name_of(trial)}: its driver was lost and is started again, {spent}")

    @override
    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The actor itself has died, and was started again as often as it may be."""
        reason = failures.gist(str(trial.get_error()))
        self._searcher.close(self._ledger.get(trial.config["name"]), "lost", f"its driver died: {reason}")

    @override
    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if monotonic() - self._repeated > _TABLE_S:
            self._repeated = monotonic()
            self._stops.repeat()
        if self._ledger.changed and monotonic() - self._shown > _TABLE_S:
            self.show()

    def show(self) -> None:
        """Print the table, and set the gauges."""
        self._shown, self._ledger.changed = monotonic(), False
        records = self._ledger.all()
        say(table(self._ledger.sweep, records))
        self._gauges.set(records)

    def _verdict(self, name: str, state: State, reason: str) -> tuple[State, str]:
        """A trial's end, where one that ends unfinished may have been asked to."""
        if state == "running" and name in self._stopped_at:
            return "stopped", f"{self._ledger.sweep.scheduler.name}, epoch {self._stopped_at[name]}"
        return state, reason


def run(ledger: Ledger, folder: SweepFolder, points: Points, ends: Callable[[], str | None]) -> None:
    """Run all trials that have not ended; `ends` says why the sweep is to end before, as long as it is not None."""
    os.environ.update(_SETTINGS)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    sweep, stops = ledger.sweep, StopRequestsHandle.create()
    searcher = TrialSearcher(ledger, points, {"run_dir": str(folder.place), "threads": _threads(sweep.base)})
    callback = SweepCallback(ledger, searcher, stops, ends)
    scheduler = CooperativeScheduler(scheduler_of(sweep), callback.stop, callback.lose, sweep.base.resources.start_s)
    for record in ledger.all():
        if record.state in ENDED:
            scheduler.replay(record, sweep.metric)
    scratch = folder.place / "tune"
    scratch.remove()
    filesystem, path = scratch.arrow()
    cluster.leave_jobs_folder()  # Tune asks where it is
    # Not a Tuner, which pickles what it is given so as to restore it.
    tune.run(
        tune.with_parameters(Trial, stops=stops),
        name=scratch.name,
        storage_path=path.removesuffix(f"/{scratch.name}"),
        storage_filesystem=filesystem,
        resources_per_trial=_DRIVER_NEEDS,
        search_alg=searcher,
        scheduler=scheduler,
        num_samples=len(points) * sweep.seeds,
        max_failures=sweep.base.restarts,
        max_concurrent_trials=min(cluster.room(sweep.base), sweep.budget.concurrent or sys.maxsize),
        trial_name_creator=_name_of,
        trial_dirname_creator=_name_of,
        callbacks=[callback],
        verbose=0,
        raise_on_failed_trial=False,
    )
    callback.show()
    stops.close()
    scratch.remove()


def _threads(base: Spec) -> int:
    """Of a worker: as many as the CPUs that are set aside for it, for there may be other trials on its machine."""
    return base.threads or (0 if cluster.use_gpu(base) else max(1, int(cluster.worker_needs(base)["CPU"])))


def _name_of(trial: Any) -> str:
    return trial.config["name"]
