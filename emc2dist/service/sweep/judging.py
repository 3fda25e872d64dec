"""Which trials are to stop early: Tune's schedulers judge, and what they say becomes a word to the trial."""

from collections.abc import Callable
from typing import Any, NamedTuple

import emc2dist.service.cluster  # noqa: F401  before ray: sets its defaults

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler  # isort: skip

from emc2dist.config import Sweep
from emc2dist.service.sweep.folder import Record


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
        self._judged: dict[str, int] = {}
        """The last epoch of each trial that the judge was shown."""

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
        """See `TrialScheduler`: always to go on. One that starts again tells its epochs again; each is judged once."""
        name, epoch = trial.config["name"], result["epoch"]
        if name in self._halted or epoch <= self._judged.get(name, 0):
            return TrialScheduler.CONTINUE
        self._judged[name] = epoch
        if self._judge.on_trial_result(tune_controller, trial, result) != TrialScheduler.CONTINUE:
            self._halted.add(name)
            self._halt(name, epoch)
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
