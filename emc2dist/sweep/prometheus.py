"""A sweep's gauges for Prometheus, on the metrics endpoint of the driver's node, with the prefix `ray_`."""

import emc2dist.run.cluster  # noqa: F401  before ray: sets its defaults

from ray.util.metrics import Gauge  # isort: skip

from emc2dist.config import Sweep
from emc2dist.sweep.folder import STATES, Record
from emc2dist.sweep.results import leader


class Gauges:
    """Two series for each trial, and six for the sweep."""

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
