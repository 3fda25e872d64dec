"""Curves of metrics.jsonl: one picture per quantity, all runs in the same axes, each in its own colour throughout.

Where a run recorded more rows than can be told apart, the line is the mean of each of 200 equal parts of them, over
the rows themselves, paler. Where the time of a step goes is a bar per run: every `*_seconds` that was recorded, as a
share of `step_seconds`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from emc2dist.metrics import METRICS
from emc2dist.plotting import (
    COLOURS,
    FONT,
    GREY,
    Picture,
    add_legend,
    frame,
    label,
    new_axes,
    new_figure,
    render,
)
from emc2dist.report.runs import ReportedRun

_PARTS = 200
_REST = "rest of the step"
_DASHES = ("solid", (0, (4, 2)), (0, (1, 1.5)))


@dataclass(frozen=True)
class Panel:
    """One picture: one to three metrics of one unit over epochs."""

    name: str
    title: str
    unit: str
    metrics: tuple[str, ...]
    log: bool = False
    """Where the values differ by a factor of 30 or more."""
    from_zero: bool = True
    optional: bool = False
    """Whether nothing is amiss where it was not recorded."""
    instead: str = ""
    """A metric where which was recorded nothing is amiss either."""


PANELS = (
    Panel("loss", "Loss", "nats", ("loss",), from_zero=False),
    Panel("knn", "kNN accuracy", "share of held-out images", ("knn_accuracy",), instead="ndcg_at_10"),
    Panel("probe", "Linear probe", "share of held-out images", ("probe_accuracy",), optional=True),
    Panel("retrieval", "Retrieval", "mean over held-out queries", ("ndcg_at_10",), optional=True),
    Panel("acceptance", "Acceptance", "share of proposals", ("acceptance_rate",)),
    Panel("ages", "Ages", "steps", ("carried_age_steps", "feature_age_steps")),
    Panel("rank", "Effective rank", "dimensions", ("effective_rank",)),
    Panel(
        "shape",
        "Alignment and uniformity",
        "squared distance; log potential",
        ("alignment", "uniformity"),
        from_zero=False,
    ),
    Panel("weights", "Negatives with weight", "samples", ("effective_sample_size", "distinct_negatives")),
    Panel(
        "false-negatives",
        "False negatives",
        "share",
        ("same_label_weight_ratio", "closed_ratio", "same_label_closed_ratio"),
        optional=True,
    ),
    Panel("gradient", "Gradient norm", "norm", ("gradient_norm",), log=True),
    Panel("lr", "Learning rate", "lr", ("lr",)),
    Panel("speed", "Speed", "images/s", ("images_per_second",)),
)


class Series(NamedTuple):
    """A metric of a run over its epochs; NaN and infinite values are left in."""

    epochs: NDArray[np.float64]
    values: NDArray[np.float64]


def series(rows: Sequence[dict[str, Any]], metric: str) -> Series:
    """Every row that holds the metric, in order."""
    points = [(row["epoch"], row[metric]) for row in rows if metric in row]
    return Series(*np.array(points, dtype=np.float64).reshape(-1, 2).T)


def smoothed(raw: Series) -> Series:
    """Means of at most 200 equal parts, without what is not finite."""
    kept = np.isfinite(raw.values)
    parts = [np.array_split(column[kept], min(_PARTS, max(1, int(kept.sum())))) for column in raw]
    return Series(*(np.array([part.mean() for part in column if len(part)]) for column in parts))


def shares(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Share of a step's time that each `*_seconds` takes, over the whole run, and what none of them accounts for.

    Empty where no row has `step_seconds`. Parts that overlap are scaled down to one step.
    """
    timed = [row for row in rows if "step_seconds" in row]
    if not timed:
        return {}
    names = [name for name in dict.fromkeys(key for row in timed for key in row) if name.endswith("_seconds")]
    seconds = {name: sum(row.get(name, 0.0) for row in timed) for name in names}
    step = seconds.pop("step_seconds")
    whole = max(step, sum(seconds.values()))
    parts = {name.removesuffix("_seconds").replace("_", " "): spent / whole for name, spent in seconds.items()}
    return parts | {_REST: 1 - sum(parts.values())}


def draw(runs: Sequence[ReportedRun]) -> Iterator[Picture]:
    """A picture of every panel that some run recorded, and of the shares of time."""
    for panel in PANELS:
        if any(len(series(run.rows, metric).values) for run in runs for metric in panel.metrics):
            yield _draw_panel(panel, runs)
    if any(shares(run.rows) for run in runs):
        yield _draw_shares(runs)


def not_recorded(runs: Sequence[ReportedRun]) -> list[str]:
    """Metrics of the panels that no run recorded, though runs do."""

    def is_there(metric: str) -> bool:
        return any(len(series(run.rows, metric).values) for run in runs)

    wanted = [panel for panel in PANELS if not panel.optional and not is_there(panel.instead)]
    return [metric for panel in wanted for metric in panel.metrics if not is_there(metric)]


def _draw_panel(panel: Panel, runs: Sequence[ReportedRun]) -> Picture:
    figure = new_figure(4.4, 3.0)
    axes = new_axes(figure)
    for run, colour in zip(runs, COLOURS, strict=False):
        for metric, dashes in zip(panel.metrics, _DASHES, strict=False):
            _draw_line(axes, series(run.rows, metric), color=colour, linestyle=dashes)
    if panel.name in _BASELINES:
        _draw_baseline(axes, runs, *_BASELINES[panel.name])
    axes.set_xlabel("epoch", fontsize=FONT)
    axes.set_ylabel(panel.unit, fontsize=FONT)
    axes.set_xlim(left=0)
    if panel.log and _is_wide(panel, runs):
        axes.set_yscale("log")
    elif panel.from_zero:
        axes.set_ylim(bottom=0)
    _explain(axes, panel, runs)
    caption = "; ".join(f"{metric}: {METRICS[metric].help}" for metric in panel.metrics)
    return Picture(panel.name, panel.title, caption, _alt(panel, runs), render(figure))


def _draw_line(axes: Axes, raw: Series, **style: Any) -> None:
    if len(raw.values) > _PARTS:
        axes.plot(*raw, linewidth=0.6, alpha=0.25, **style)
    axes.plot(*smoothed(raw), linewidth=1.6, marker="." if len(raw.values) < 30 else "", **style)


_BASELINES = {"knn": ("knn_pixels", "raw pixels"), "retrieval": ("bm25_ndcg_at_10", "BM25")}
"""Of panels, what an encoder has to beat: a metric, and what it is of."""


def _draw_baseline(axes: Axes, runs: Sequence[ReportedRun], metric: str, what: str) -> None:
    for value in sorted({value for run in runs for value in series(run.rows, metric).values.tolist()}):
        axes.axhline(value, color=GREY, linestyle=(0, (1, 1.5)), linewidth=1.2)
        axes.annotate(what, (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                      color=GREY, fontsize=FONT - 1)  # fmt: skip


def _is_wide(panel: Panel, runs: Sequence[ReportedRun]) -> bool:
    values = np.concatenate([series(run.rows, metric).values for run in runs for metric in panel.metrics])
    values = values[np.isfinite(values) & (values > 0)]
    return len(values) > 0 and values.max() > 30 * values.min()


def _explain(axes: Axes, panel: Panel, runs: Sequence[ReportedRun]) -> None:
    """A legend: colours where there are several runs, dashes where there are several metrics."""
    if len(runs) > 1:
        for run, colour in zip(runs, COLOURS, strict=False):
            if any(len(series(run.rows, metric).values) for metric in panel.metrics):
                axes.plot([], [], color=colour, label=label(run.label))
    if len(panel.metrics) > 1:
        for metric, dashes in zip(panel.metrics, _DASHES, strict=False):
            axes.plot([], [], color=GREY, linestyle=dashes, label=metric.removesuffix("_steps").replace("_", " "))
    if len(runs) > 1 or len(panel.metrics) > 1:
        add_legend(axes)


def _alt(panel: Panel, runs: Sequence[ReportedRun]) -> str:
    ends = [
        f"{run.label}: {metric} from {points.values[0]:.4g} to {points.values[-1]:.4g}"
        for run in runs
        for metric in panel.metrics
        if len((points := series(run.rows, metric)).values)
    ]
    return f"{panel.title} over epochs. {'; '.join(ends)}."


def _draw_shares(runs: Sequence[ReportedRun]) -> Picture:
    timed = [(run, parts) for run in runs if (parts := shares(run.rows))]
    names = [name for name in dict.fromkeys(name for _, parts in timed for name in parts) if name != _REST]
    colours = {**dict(zip(names, COLOURS * 2, strict=False)), _REST: "#d1d5db"}
    figure = new_figure(4.4, max(2.2, 1.3 + 0.42 * len(timed)))
    axes = new_axes(figure)
    for name, colour in colours.items():
        widths = [100 * parts.get(name, 0.0) for _, parts in timed]
        lefts = [100 * sum(_before(name, list(colours), parts)) for _, parts in timed]
        axes.barh(range(len(timed)), widths, left=lefts, color=colour, height=0.5, label=name)
    axes.set_yticks(range(len(timed)), [_step_of(run) for run, _ in timed])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of a step's time", fontsize=FONT)
    figure.legend(loc="outside lower center", ncols=3, fontsize=FONT - 1, frameon=False)
    frame(axes)
    caption = "Mean over the run; evaluation and checkpoints lie between steps and are not counted."
    alt = f"Shares of a step. {'; '.join(_in_words(run, parts) for run, parts in timed)}."
    return Picture("time", "Where the time goes", caption, alt, render(figure))


def _in_words(run: ReportedRun, parts: dict[str, float]) -> str:
    shown = ", ".join(f"{name} {part:.0%}" for name, part in parts.items())
    return f"{run.label}: {shown}"


def _before(name: str, order: list[str], parts: dict[str, float]) -> list[float]:
    return [parts.get(other, 0.0) for other in order[: order.index(name)]]


def _step_of(run: ReportedRun) -> str:
    return f"{label(run.label, 18)}\n{1000 * np.mean(series(run.rows, 'step_seconds').values):.0f} ms"
