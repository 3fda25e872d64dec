"""Pictures of a sweep: parallel coordinates, the metric against each key, and how much each key matters."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from emc2dist.config import Range, Sweep
from emc2dist.plotting import COLOURS, GREY, WARNING, frame, new_axes, new_figure, render
from emc2dist.sweep.folder import Record

_SHADES = colormaps["viridis"]
_BEHIND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1}


def pictures(sweep: Sweep, records: Sequence[Record], shares: dict[str, float]) -> dict[str, bytes]:
    """PNGs by name: `parallel` and `keys` where any trial has a value, `importance` where there are shares."""
    valued = [record for record in records if record.state != "failed" and record.value is not None]
    drawn = {"parallel": _parallel(sweep, valued), "keys": _keys(sweep, valued)} if valued else {}
    if shares:
        drawn["importance"] = _importance(sweep, shares)
    return {name: render(figure) for name, figure in drawn.items()}


def _parallel(sweep: Sweep, records: Sequence[Record]) -> Figure:
    """A line for each trial through its values, coloured by what it came to; stopped ones dashed."""
    figure = new_figure(1.6 * (len(sweep.space) + 1) + 1.2, 3.4)
    axes = figure.add_subplot()
    scales = [_scale(sweep, key, records) for key in sweep.space]
    values = [_value(record) for record in records]
    low, high = min(values), max(values)
    shade = Normalize(low, high if high > low else low + 1e-9)
    for record in sorted(records, key=_value, reverse=sweep.goal == "min"):  # the best one on top
        heights = [place(record.values[key]) for key, (place, _) in zip(sweep.space, scales, strict=True)]
        heights.append((_value(record) - low) / (high - low or 1.0))
        style = "-" if record.state == "finished" else "--"
        colour = _SHADES(shade(_value(record)))
        axes.plot(heights, style, color=colour, linewidth=1.6, alpha=0.85)
    ticks = [marks for _, marks in scales]
    ticks.append(_ends(low, high))
    for position, marks in enumerate(ticks):
        axes.axvline(position, color="#9ca3af", linewidth=0.8, zorder=0)
        for height, text in marks:
            axes.text(position + 0.03, height, text, fontsize=7, color="#374151", va="center", bbox=_BEHIND)
    axes.set_xticks(range(len(ticks)), [*sweep.space, sweep.metric], fontsize=9)
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(ticks) - 0.7)
    axes.set_ylim(-0.05, 1.05)  # also where all lines are at one end: what is written at the other is no margin
    axes.spines[:].set_visible(False)
    axes.set_title("dashed: stopped early, at its last value", fontsize=8, color=GREY)
    if high > low:  # else there is but one colour
        figure.colorbar(ScalarMappable(shade, _SHADES), ax=axes, pad=0.01).set_label(sweep.metric, fontsize=8)
    return figure


def _keys(sweep: Sweep, records: Sequence[Record]) -> Figure:
    """A panel for each key: every trial, and mean and standard deviation over the seeds of a point that finished."""
    figure = new_figure(3.1 * len(sweep.space) + 0.4, 3.0)
    panels = figure.subplots(1, len(sweep.space), sharey=True, squeeze=False)[0]
    for key, axes in zip(sweep.space, panels, strict=True):
        _panel(sweep, key, axes, records)
    panels[0].set_ylabel(sweep.metric, fontsize=9)
    panels[-1].legend(fontsize=7, frameon=False, loc="best")
    return figure


def _panel(sweep: Sweep, key: str, axes: Axes, records: Sequence[Record]) -> None:
    place, names = _axis(sweep, key, records)
    looks = ((True, "finished", COLOURS[0], COLOURS[0]), (False, "stopped or unfinished", "none", GREY))
    for finished, label, face, edge in looks:
        own = [record for record in records if (record.state == "finished") == finished]
        places, values = [place(record.values[key]) for record in own], [_value(record) for record in own]
        axes.scatter(places, values, s=16, facecolors=face, edgecolors=edge, label=label if own else None, zorder=2)
    for point in {record.point for record in records} if sweep.seeds > 1 else ():
        own = [record for record in records if record.point == point and record.state == "finished"]
        if len(own) > 1:
            values = [_value(record) for record in own]
            where = place(own[0].values[key])
            axes.errorbar(
                where, np.mean(values), np.std(values, ddof=1), color=WARNING, capsize=3, marker="_", zorder=3
            )
    if names:
        axes.set_xticks(range(len(names)), names)
        axes.set_xlim(-0.5, len(names) - 0.5)
    elif _logarithmic(sweep, key):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(key, fontsize=9)
    frame(axes)


def _importance(sweep: Sweep, shares: dict[str, float]) -> Figure:
    ordered = sorted(shares.items(), key=lambda item: item[1])
    figure = new_figure(4.6, 0.35 * len(ordered) + 0.9)
    axes = new_axes(figure)
    axes.barh([key for key, _ in ordered], [share for _, share in ordered], color=COLOURS[0], height=0.6)
    axes.set_xlabel(f"share of what the keys explain of {sweep.metric}", fontsize=8)
    axes.set_xlim(0, 1)
    return figure


def _value(record: Record) -> float:
    assert record.value is not None, "only trials that have one are drawn"
    return record.value


def _scale(sweep: Sweep, key: str, records: Sequence[Record]) -> tuple[Callable[[Any], float], list[tuple[float, str]]]:
    """The place of a value of the key between 0 and 1, and what is written there."""
    place, names = _axis(sweep, key, records)
    if names:
        top = max(1, len(names) - 1)
        return lambda value: place(value) / top, [(at / top, name) for at, name in enumerate(names)]
    known = sweep.distributions()[key]
    own = [float(record.values[key]) for record in records]
    low, high = known[1:] if isinstance(known, Range) else (min(own), max(own))
    bend = math.log if _logarithmic(sweep, key) else float
    width = bend(high) - bend(low) or 1.0
    return lambda value: (bend(value) - bend(low)) / width, _ends(low, high)


def _ends(low: float, high: float) -> list[tuple[float, str]]:
    """What is written at the ends of a scale, which are one where there is one value."""
    return [(0.0, f"{low:.3g}"), (1.0, f"{high:.3g}")][: 1 + (high > low)]


def _axis(sweep: Sweep, key: str, records: Sequence[Record]) -> tuple[Callable[[Any], float], list[str]]:
    """The place of a value of the key on an axis, and the names along it where values are no numbers."""
    values = [record.values[key] for record in records]
    if all(isinstance(value, float | int) and not isinstance(value, bool) for value in values):
        return float, []
    names = sorted({str(value) for value in values})
    return lambda value: float(names.index(str(value))), names


def _logarithmic(sweep: Sweep, key: str) -> bool:
    """Drawn so, or choices of which the largest is ten times the smallest."""
    known = sweep.distributions()[key]
    if isinstance(known, Range):
        return known.kind == "loguniform"
    return min(known) > 0 and max(known) >= 10 * min(known)
