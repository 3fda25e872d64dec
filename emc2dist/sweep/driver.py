"""A sweep from its spec to its summary: what to try, trials until all have ended, results."""

import difflib
import signal
from contextlib import ExitStack
from time import monotonic
from typing import Any

import emc2dist.run.cluster as cluster
from emc2dist.config import Sweep
from emc2dist.errors import RunError, RunStopped, SpecError
from emc2dist.metrics import ROW
from emc2dist.run.driver import check, resolved, set_on
from emc2dist.sweep import results, tuner
from emc2dist.sweep.folder import ENDED, Ledger, SweepFolder, scores
from emc2dist.sweep.space import Points, points_of


def sweep(spec: Sweep) -> dict[str, Any]:
    """Run the trials of `spec` that have not ended, and write what they have come to; returns the summary.

    Raises:
        SpecError, DataError, RunError: before anything starts, where it can be known; RunError also where no trial
            finished.
        KeyboardInterrupt, RunStopped: SIGINT or SIGTERM came; every trial wrote a checkpoint, and the results so far.
    """
    if spec.metric not in ROW:
        nearest = difflib.get_close_matches(spec.metric, sorted(ROW), n=1, cutoff=0.0)
        raise SpecError(f"metric: {spec.metric!r} is none of a run's; the nearest is {nearest[0]}")
    spec = spec.model_copy(update={"base": resolved(spec.base)})
    check(spec.base)
    folder = SweepFolder.prepare(spec)
    ledger = Ledger(spec, folder)
    begun = ledger.all()
    known = {record.point: record.values for record in begun}
    points = points_of(spec, [known[point] for point in sorted(known)], scores(spec, begun))
    signalled = None
    if len(begun) < len(points) * spec.seeds or any(record.state not in ENDED for record in begun):
        signalled = _run(ledger, folder, points)
    records = ledger.all()
    summary = results.write(spec, records, folder)
    if signalled == signal.SIGINT:
        raise KeyboardInterrupt
    if signalled == signal.SIGTERM:
        raise RunStopped(f"{folder.place}: stopped with {summary['unfinished']} trials begun and not ended")
    if records and all(record.state in ENDED for record in records) and summary["best_spec"] is None:
        raise RunError(f"{folder.place}: no trial finished; results.csv tells why, as in: {records[0].reason}")
    return summary


def _run(ledger: Ledger, folder: SweepFolder, points: Points) -> signal.Signals | None:
    """Run what has not ended; returns the signal that ended it before, if one did."""
    spec = ledger.sweep
    deadline = monotonic() + spec.budget.hours * 3600 if spec.budget.hours else None
    with ExitStack() as stack:
        stack.enter_context(cluster.connected(spec.base, runs=spec.budget.concurrent or 1, dashboard=True))
        signals = {number: stack.enter_context(set_on(number)) for number in (signal.SIGINT, signal.SIGTERM)}

        def ends() -> str | None:
            came = [number.name for number, event in signals.items() if event.is_set()]
            if came:
                return f"{came[0]}; a second one ends at once"
            return "budget.hours are spent" if deadline and monotonic() > deadline else None

        tuner.run(ledger, folder, points, ends)
        return next((number for number, event in signals.items() if event.is_set()), None)
