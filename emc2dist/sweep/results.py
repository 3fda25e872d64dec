"""The results of a sweep: the table, the best point, how much each key matters, and the files that say so.

Trials that were stopped early are compared with others at the epoch that all of them reached, and never called best.
"""

import io
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from emc2dist.config import Spec, Sweep, changed, dump
from emc2dist.sweep.folder import Record, SweepFolder
from emc2dist.terminal import columns

_SHOWN = 20
_FEWEST_POINTS = 6  # that a forest is asked about


class Best(NamedTuple):
    """The best point."""

    values: dict[str, Any]
    mean: float
    """Of the metric at the last epoch, over the seeds that finished."""
    spread: float
    """Their standard deviation; 0 for one."""
    seeds: int
    """How many finished."""
    first: int
    """The first of them, counted from that of the base."""


def best_point(sweep: Sweep, records: Sequence[Record]) -> Best | None:
    """The point with the best mean among those of which most seeds finished; None where no trial did."""
    finished: dict[int, list[Record]] = {}
    for record in records:
        if record.state == "finished" and record.value is not None:
            finished.setdefault(record.point, []).append(record)
    if not finished:
        return None
    most = max(len(own) for own in finished.values())
    bests = [_best(own) for own in finished.values() if len(own) == most]
    return max(bests, key=lambda best: _sign(sweep) * best.mean)


def best_spec(sweep: Sweep, best: Best) -> Spec:
    """The best point with the first seed that finished: a run of its own, beside the sweep's folder."""
    own = {"name": f"{sweep.name}-best", "seed": sweep.base.seed + best.first}
    return changed(sweep.base, {**best.values, **own}, source=f"{sweep.name}: the best spec")


def leader(sweep: Sweep, records: Sequence[Record]) -> Record | None:
    """The trial with the best value so far, finished or not; None where there is no value yet."""
    valued = [record for record in records if _good(record)]
    return max(valued, key=lambda record: _sign(sweep) * _value(record)) if valued else None


def table(sweep: Sweep, records: Sequence[Record]) -> str:
    """A line for each trial below a heading, the best first, and the best so far; at most so many lines."""
    ordered = sorted(records, key=lambda record: _rank(sweep, record))
    rows = [["TRIAL", "STATE", "EPOCH", sweep.metric.upper(), *sweep.space, ""]]
    rows += [
        [record.name, record.state, str(record.epoch), _number(record.value), *map(_number, record.values.values()),
         record.reason]
        for record in ordered[:_SHOWN]
    ]  # fmt: skip
    lines = columns(rows).splitlines()
    if len(ordered) > _SHOWN:
        lines.append(f"... and {len(ordered) - _SHOWN} more")
    best = leader(sweep, records)
    if best is not None:
        lines.append(f"best so far: {best.name}, {sweep.metric} {_number(best.value)} at epoch {best.epoch}")
    return "\n".join(lines)


def importance(sweep: Sweep, records: Sequence[Record]) -> dict[str, float]:
    """Each key's share of what the keys explain of the metric; they sum to 1. Empty for too few points.

    A random forest is fitted to the metric over points (means over seeds, at the last epoch that all trials reached),
    then each key in turn is shuffled among the points: the share is the loss of R^2 on the points themselves, 0 at
    least. It tells what mattered among these points, not beyond them, and splits at random between keys that moved
    together; with few points it is a hint.
    """
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    points = _at_common_epoch(records)
    if len(points) < _FEWEST_POINTS:
        return {}
    codes = [_codes([values[key] for values, _ in points]) for key in sweep.space]
    inputs, target = np.array(codes).T, np.array([value for _, value in points])
    forest = RandomForestRegressor(300, random_state=0).fit(inputs, target)
    lost = permutation_importance(forest, inputs, target, n_repeats=30, random_state=0).importances_mean.clip(min=0)
    return dict(zip(sweep.space, (lost / (lost.sum() or 1.0)).tolist(), strict=True))


def write(sweep: Sweep, records: Sequence[Record], folder: SweepFolder) -> dict[str, Any]:
    """Write results.csv, results.parquet, best.yaml and the pictures; returns the summary."""
    from emc2dist.sweep.pictures import pictures

    found = _table(sweep, records)
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(found, buffer)
    folder.write("results.csv", buffer.getvalue())
    buffer = io.BytesIO()
    pq.write_table(found, buffer)
    folder.write("results.parquet", buffer.getvalue())
    best, shares = best_point(sweep, records), importance(sweep, records)
    if best is not None:
        folder.write("best.yaml", dump(best_spec(sweep, best)).encode())
    for name, png in pictures(sweep, records, shares).items():
        folder.write(f"{name}.png", png)
    states = {state: sum(record.state == state for record in records) for state in ("finished", "stopped", "failed")}
    return {
        "sweep_dir": str(folder.place),
        "trials": len(records),
        **states,
        "unfinished": len(records) - sum(states.values()),
        **({f"best_{key}": value for key, value in best.values.items()} if best else {}),
        f"best_{sweep.metric}": best.mean if best else None,
        "spread_over_seeds": best.spread if best else None,
        "best_spec": str(folder.place / "best.yaml") if best else None,
    }


def _table(sweep: Sweep, records: Sequence[Record]) -> pa.Table:
    found: dict[str, list[Any]] = {
        "trial": [record.name for record in records],
        "point": [record.point for record in records],
        "seed": [sweep.base.seed + record.seed for record in records],
        "state": [record.state for record in records],
        "epoch": [record.epoch for record in records],
        sweep.metric: [record.value for record in records],
        "reason": [record.reason for record in records],
    }
    found |= {key: _column([record.values[key] for record in records]) for key in sweep.space}
    return pa.table(found)


def _column(values: list[Any]) -> list[Any]:
    """Numbers as they are, anything else as text."""
    if all(isinstance(value, float | int) and not isinstance(value, bool) for value in values):
        return [float(value) for value in values] if any(isinstance(value, float) for value in values) else values
    return [str(value) for value in values]


def _best(own: list[Record]) -> Best:
    values = [_value(record) for record in own]
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return Best(own[0].values, statistics.fmean(values), spread, len(values), min(record.seed for record in own))


def _at_common_epoch(records: Sequence[Record]) -> list[tuple[dict[str, Any], float]]:
    """Points and their mean metric at the last epoch that every trial with a value reached."""
    good = [record for record in records if _good(record)]
    common = min((record.epoch for record in good), default=0)
    points: dict[int, list[Record]] = {}
    for record in good:
        points.setdefault(record.point, []).append(record)
    return [
        (own[0].values, statistics.fmean(value for r in own for epoch, value in r.history if epoch == common))
        for own in points.values()
        if any(epoch == common for r in own for epoch, _ in r.history)
    ]


def _codes(values: list[Any]) -> list[float]:
    """Numbers as they are, anything else as its place among what there is."""
    column = _column(values)
    if not isinstance(column[0], str):
        return [float(value) for value in column]
    kinds = sorted(set(column))
    return [float(kinds.index(value)) for value in column]


def _good(record: Record) -> bool:
    return record.state != "failed" and record.value is not None


def _value(record: Record) -> float:
    assert record.value is not None
    return record.value


def _sign(sweep: Sweep) -> int:
    return 1 if sweep.goal == "max" else -1


def _rank(sweep: Sweep, record: Record) -> tuple[bool, float]:
    return (not _good(record), -_sign(sweep) * _value(record) if _good(record) else 0.0)


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
