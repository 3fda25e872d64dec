"""A sweep from its spec to its summary: what to try, trials until all have ended, results."""

import signal
from contextlib import ExitStack
from time import monotonic
from typing import Any

import emc2dist.run.cluster as cluster
from emc2dist.config import Sweep
from emc2dist.config.points import remarks as remarks_on_points
from emc2dist.errors import RunError, RunStopped
from emc2dist.run import checkpoints
from emc2dist.run.driver import ENDING, check, on_device, resolved, set_on
from emc2dist.run.folder import RunFolder, changes
from emc2dist.sweep import results, tuner
from emc2dist.sweep.folder import ENDED, Ledger, SweepFolder, scores
from emc2dist.sweep.space import Points, points_of
from emc2dist.terminal import say
from emc2dist.train import checkpoint
from emc2dist.train.sets import TrainingSet


def sweep(spec: Sweep) -> dict[str, Any]:
    """Run the trials of `spec` that have not ended, and write what they have come to; returns the summary.

    Raises:
        SpecError, DataError, RunError: before anything starts, where it can be known; RunError also where no trial
            finished.
        KeyboardInterrupt, RunStopped: SIGINT, or a signal of `ENDING`, came; every trial wrote a checkpoint, and the
            results so far.
    """
    spec = spec.model_copy(update={"base": resolved(spec.base)})
    images, remarks, _ = check(spec.base)
    folder = SweepFolder.of(spec)
    folder.refuse_other_sweep(spec)
    _refuse_other_data(folder, spec, images)
    ledger = Ledger(spec, folder)
    begun = ledger.all()
    known = {record.point: record.values for record in begun}
    points = points_of(spec, [known[point] for point in sorted(known)], scores(spec, begun))
    signalled = None
    if len(begun) < len(points) * spec.seeds or any(record.state not in ENDED for record in begun):
        for remark in remarks:
            say(remark)
        signalled = _run(ledger, folder, points, remarks)
    elif ended := folder.sweep():
        remarks += _not_heeded(ended, spec, folder)
        here = {"run_dir": spec.base.run_dir}
        spec = ended.model_copy(update={"base": ended.base.model_copy(update=here)})
    records = ledger.all()
    summary = results.write(spec, records, folder) | {"remarks": [*remarks, *remarks_on_points(spec)]}
    if signalled == signal.SIGINT:
        raise KeyboardInterrupt
    if signalled:
        raise RunStopped(f"{folder.place}: stopped with {summary['unfinished']} trials begun and not ended")
    if records and all(record.state in ENDED for record in records) and summary["best_spec"] is None:
        raise RunError(f"{folder.place}: no trial finished; results.csv tells why, as in: {records[0].reason}")
    return summary


def _refuse_other_data(folder: SweepFolder, spec: Sweep, train: TrainingSet) -> None:
    """Raise RunError where trials were trained on another set than the others would be."""
    if any(key.split(".")[0] == "data" for key in spec.space):
        return  # to each its own, and each looks after them
    for record in folder.records():
        trial = RunFolder(folder.place / record.name)
        newest = checkpoints.newest(trial)
        if newest:
            checkpoint.refuse_other_data(trial.place, newest, train)


def _not_heeded(ended: Sweep, asked: Sweep, folder: SweepFolder) -> list[str]:
    """A remark on what an ended sweep cannot heed of what it is asked for with; said here."""
    new = changes(ended, asked)
    if not new:
        return []
    remark = f"{folder.place}: all trials have ended, so their values stand, not those given now ({'; '.join(new)})"
    say(remark)
    return [remark]


def _run(ledger: Ledger, folder: SweepFolder, points: Points, remarks: list[str]) -> int | None:
    """Run what has not ended; returns the number of the first signal that ended it before, if one did. Adds remarks."""
    spec = ledger.sweep
    deadline = monotonic() + spec.budget.hours * 3600 if spec.budget.hours else None
    with ExitStack() as stack:
        asked = stack.enter_context(set_on(signal.SIGINT, *ENDING))  # before Ray: interrupted, it may crash
        stack.enter_context(cluster.connected(spec.base, runs=spec.budget.concurrent or 1, dashboard=True))
        SweepFolder.prepare(spec)
        remarks += on_device(spec.base, "cuda" if cluster.use_gpu(spec.base) else "cpu", say)

        def ends() -> str | None:
            if asked.number is not None:
                return f"{signal.Signals(asked.number).name}; a second one ends at once"
            return "budget.hours are spent" if deadline and monotonic() > deadline else None

        tuner.run(ledger, folder, points, ends)
        return asked.number
