"""The two pictures of concepts.md, drawn from real visits of one chain: `python docs/concepts.py`.

48 samples, unit vectors in three dimensions, all in the half that faces the anchor, which is drawn in the middle: so
what is near the middle has a large cosine. Each visit proposes a batch of 8 of them to `emc2dist.core.sweep.sweep`,
kernel `mh`, at temperature 0.1. Seeds are fixed: the same versions draw the same bytes.
"""

import io
import re
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from emc2dist.core.sweep import sweep
from emc2dist.plotting import COLOURS, GREY, frame, new_figure

SAMPLES, BATCH, VISITS, TEMPERATURE = 48, 8, 3_000, 0.1
SHOWN = (10, 100, VISITS)
"""Visits after which the first picture looks at what the chain's weights are on average."""
STEPS = 12
"""Visits whose moves it draws."""
BLUE, ORANGE, RED = COLOURS[:3]


class Told(NamedTuple):
    """What a chain of so many visits did."""

    points: Tensor
    """[N, 2]: the samples as they are drawn, by falling cosine."""
    target: Tensor
    """[N]: softmax of the scores over all samples."""
    batches: Tensor
    """int64 [T, B]: the samples of each visit's batch."""
    states: Tensor
    """int64 [T]: where the chain stands after each visit."""
    chain: Tensor
    """[T, N]: the weights that each visit gives to the samples."""
    in_batch: Tensor
    """[T, N]: those of the softmax over each batch alone."""


def visits(seed: int = 0) -> Told:
    """Visit one chain `VISITS` times."""
    generator = torch.Generator().manual_seed(seed)
    height = torch.rand(SAMPLES, generator=generator, dtype=torch.float64).sort(descending=True).values
    angle = torch.rand(SAMPLES, generator=generator, dtype=torch.float64) * 2 * torch.pi
    radius = (1 - height**2).sqrt()
    scores = height / TEMPERATURE
    state, carried = -1, torch.tensor([-torch.inf], dtype=torch.float64)
    batches, states = torch.empty(VISITS, BATCH, dtype=torch.int64), torch.empty(VISITS, dtype=torch.int64)
    chain, in_batch = torch.zeros(VISITS, SAMPLES).double(), torch.zeros(VISITS, SAMPLES).double()
    for visit in range(VISITS):
        batch = torch.randperm(SAMPLES, generator=generator)[:BATCH]
        swept = sweep(scores[batch][None], carried, kernel="mh", generator=generator)
        candidates = torch.cat([batch, torch.tensor([max(state, 0)])])  # of a first visit nothing is carried: weight 0
        chain[visit].index_add_(0, candidates, swept.weights[0])
        in_batch[visit, batch] = scores[batch].softmax(0)
        state = int(candidates[swept.state[0]])
        carried = scores[state, None]
        batches[visit], states[visit] = batch, state
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    return Told(points, scores.softmax(0), batches, states, chain, in_batch)


def shown(told: Told) -> int:
    """The visit that is drawn: the first of some later ones with weight on what is carried and on the batch."""
    for visit in range(STEPS // 2, STEPS):
        on = told.chain[visit] > 0
        if on[told.states[visit - 1]] and on.sum() > 1:
            return visit
    raise ValueError("no such visit among those that are drawn; take another seed")


def distance(weights: Tensor, target: Tensor) -> float:
    """Total variation of mean weights from the target, from 0 (the same) to 1."""
    return float((weights.mean(0) - target).abs().sum() / 2)


def of_the_chain(told: Told) -> Figure:
    """A visit, the moves of the first visits, and the mean weights as visits go by."""
    figure = new_figure(9.6, 3.3)
    visit, moves, weights = figure.subplots(1, 3, width_ratios=[1, 1, 1.3])
    at = shown(told)
    _scene(visit, told, f"One visit: {BATCH} proposals and what is carried")
    _ring(visit, told.points[told.batches[at]], BLUE, "the batch")
    _ring(visit, told.points[told.states[at - 1], None], ORANGE, "carried in")
    _ring(visit, told.points[told.states[at], None], RED, "carried out", size=30)
    _legend(visit)

    _scene(moves, told, f"Where it stands after visits 1 to {STEPS}")
    path = told.points[told.states[:STEPS]]
    moves.plot(*path.T.numpy(), color=ORANGE, linewidth=1, zorder=1)
    stays: dict[int, list[int]] = {}
    for number, state in enumerate(told.states[:STEPS].tolist(), 1):
        stays.setdefault(state, []).append(number)
    for state, numbers in stays.items():
        x, y = told.points[state].tolist()
        moves.annotate(", ".join(map(str, numbers)), (x, y), (3, 3), textcoords="offset points", fontsize=7, color=RED)

    frame(weights)
    rank = range(1, SAMPLES + 1)
    weights.bar(rank, told.target.numpy(), color="#d5d9e0", width=1.0, label="the target: softmax over all")
    for count, colour in zip(SHOWN, (COLOURS[7], BLUE, RED), strict=True):
        mean = told.chain[:count].mean(0).numpy()
        off = distance(told.chain[:count], told.target)
        weights.step(rank, mean, where="mid", color=colour, linewidth=1, label=f"after {count:,} visits: {off:.2f} off")
    weights.set_title("Its mean weights come to the target", fontsize=8)
    weights.set_xlabel("samples, by falling cosine", fontsize=8)
    weights.legend(fontsize=7, frameon=False)
    return figure


def of_the_negatives(told: Told) -> Figure:
    """What an anchor is compared with in one step, and what that comes to on average: the batch alone, and a chain."""
    figure = new_figure(9.6, 3.3)
    alone, chain, weights = figure.subplots(1, 3, width_ratios=[1, 1, 1.3])
    at = shown(told)
    for axes, title, shares in (
        (alone, "In-batch: this step's batch", told.in_batch),
        (chain, "A chain: the batch, and what earlier ones left", told.chain),
    ):
        _scene(axes, told, title)
        _ring(axes, told.points[told.batches[at]], BLUE, "the batch")
        if shares is told.chain:
            _ring(axes, told.points[told.states[at - 1], None], ORANGE, "carried")
        on = shares[at] > 0
        axes.scatter(
            told.points[on][:, 0].numpy(),
            told.points[on][:, 1].numpy(),
            s=160 * shares[at][on].numpy(),
            color=RED,
            alpha=0.8,
            linewidths=0,
        )
        axes.scatter([], [], s=40, color=RED, alpha=0.8, linewidths=0, label="weight")
        _legend(axes)

    frame(weights)
    rank = range(1, SAMPLES + 1)
    weights.bar(rank, told.target.numpy(), color="#d5d9e0", width=1.0, label="the target: softmax over all")
    for name, shares, colour in (("in-batch", told.in_batch, BLUE), ("a chain", told.chain, RED)):
        off = distance(shares, told.target)
        weights.step(
            rank, shares.mean(0).numpy(), where="mid", color=colour, linewidth=1, label=f"{name}: {off:.2f} off"
        )
    weights.set_title(f"Mean weights of {VISITS:,} visits", fontsize=8)
    weights.set_xlabel("samples, by falling cosine", fontsize=8)
    weights.legend(fontsize=7, frameon=False)
    return figure


def svg(figure: Figure) -> bytes:
    """The figure as a file, the same each time."""
    out = io.BytesIO()
    with rc_context({"svg.hashsalt": "emc2dist"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return re.sub(rb"[ \t]+\n", b"\n", out.getvalue())


def _scene(axes: Axes, told: Told, title: str) -> None:
    axes.set_title(title, fontsize=8)
    axes.set_aspect("equal")
    axes.set_axis_off()
    axes.scatter(told.points[:, 0].numpy(), told.points[:, 1].numpy(), s=8, color=GREY, linewidths=0)
    axes.scatter(0, 0, s=70, marker="*", color="black", label="the anchor")


def _ring(axes: Axes, points: Tensor, colour: str, label: str, size: float = 60) -> None:
    axes.scatter(
        points[:, 0].numpy(),
        points[:, 1].numpy(),
        s=size,
        facecolors="none",
        edgecolors=colour,
        linewidths=1.3,
        label=label,
    )


def _legend(axes: Axes) -> None:
    axes.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=2, handletextpad=0.2)


if __name__ == "__main__":
    told = visits()
    for name, draw in {"chain.svg": of_the_chain, "negatives.svg": of_the_negatives}.items():
        (Path(__file__).parent / name).write_bytes(svg(draw(told)))
