"""Early stopping: Tune's schedulers decide, and a decision to stop becomes a stop request to the trial."""

from collections.abc import Callable
from time import monotonic
from typing import Any, NamedTuple

import emc2dist.run.cluster  # noqa: F401  before ray: sets its defaults

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler  # isort: skip

from typing_extensions import override

from emc2dist.config import Sweep
from emc2dist.sweep.folder import Record


class _Past(NamedTuple):
    """As much of a trial of Tune as a scheduler asks for."""

    trial_id: str
    status: str = "TERMINATED"


class CooperativeScheduler(FIFOScheduler):
    """A scheduler that only asks a trial to stop where another one decides so: the trial ends by itself.

    Tune waits for ever for a driver that does not come up, so one that has not after `start_s` is told to `lose`.
    """

    def __init__(
        self, decider: TrialScheduler, stop: Callable[[str, int], None], lose: Callable[[str], None], start_s: float
    ) -> None:
        super().__init__()
        self._decider, self._stop, self._lose, self._start_s = decider, stop, lose, start_s
        self._pending: dict[str, float] = {}
        """When trials were first seen to wait for their drivers."""
        self._stopped: set[str] = set()
        self._shown: dict[str, int] = {}
        """The last epoch of each trial that the decider was shown."""

    def replay(self, record: Record, metric: str) -> None:
        """Show the decider an ended trial of an earlier start."""
        trial = _Past(record.name)
        self._decider.on_trial_add(None, trial)
        for epoch, value in record.history:
            self._decider.on_trial_result(None, trial, {"epoch": epoch, metric: value})

    @override
    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._decider.on_trial_add(tune_controller, trial)

    @override
    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Always to go on. One that starts again tells its epochs again; each is judged once."""
        name, epoch = trial.config["name"], result["epoch"]
        if name in self._stopped or epoch <= self._shown.get(name, 0):
            return TrialScheduler.CONTINUE
        self._shown[name] = epoch
        if self._decider.on_trial_result(tune_controller, trial, result) != TrialScheduler.CONTINUE:
            self._stopped.add(name)
            self._stop(name, epoch)
        return TrialScheduler.CONTINUE

    @override
    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Tune asks at each of its steps."""
        for trial in list(tune_controller.get_live_trials()):
            name = trial.config["name"]
            if trial.status != "PENDING":
                self._pending.pop(name, None)
            elif monotonic() - self._pending.setdefault(name, monotonic()) > self._start_s:
                tune_controller.stop_trial(trial)
                self._lose(name)
        return super().choose_trial_to_run(tune_controller)

    @override
    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if result["epoch"]:
            self._decider.on_trial_complete(tune_controller, trial, result)

    @override
    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self._decider.on_trial_error(tune_controller, trial)

    @override
    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self._decider.on_trial_remove(tune_controller, trial)


def scheduler_of(sweep: Sweep) -> TrialScheduler:
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
