"""The negatives that a run's chains carry: are they hard, and are they false?

One sample of 256 anchors, the same for all runs on the same data, is encoded with its chains' states by the newest
checkpoint's encoder (plain views, features as the loss compares them). The first 12 are shown; all of them give the
similarities. A false negative is a state with its anchor's label; their share is taken over all visited chains.
"""

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from emc2dist.core.contrast import contrast_for
from emc2dist.data.images import Images
from emc2dist.errors import RunError
from emc2dist.plotting import FONT, GREY, WARNING, Picture, add_legend, label, new_axes, new_figure, render
from emc2dist.report.runs import ReportedRun, names_of

_SAMPLED, _SHOWN, _PER_PICTURE = 256, 12, 6


@dataclass(frozen=True)
class Chains:
    """The chains of a checkpoint, and a sample of anchors with the similarities of their states."""

    images: Images
    labels: NDArray[np.int64] | None
    """[N]; None where the images have none."""
    state: NDArray[np.int64]
    """[N, V]: the sample each chain sits on; any where not visited."""
    visited: NDArray[np.bool_]
    """[N, V]"""
    anchors: NDArray[np.int64]
    """[A]: samples with a visited chain."""
    cosines: NDArray[np.floating]
    """[A, V]: of each anchor with its chains' states; NaN where not visited."""
    between: NDArray[np.floating]
    """[A * (A - 1) / 2]: of the anchors with each other, which is what uniform negatives would have."""

    @classmethod
    def of(cls, run: ReportedRun) -> "Chains":
        """The chains of the run's newest checkpoint.

        Raises:
            RunError: there is no checkpoint, or it has no chains. NonFiniteError: its encoder has diverged.
            DataError, StorageError: the images are gone or have changed.
        """
        denominator, *_ = contrast_for(run.spec).objective.denominators
        table = run.newest.table(denominator.name)
        if "state" not in table:
            raise RunError(f"{run.spec.method} keeps no chains, so it has no carried negatives")
        images = run.trained_on()
        labels = None if images.unlabelled() else _labels(images)
        state, visited = table["state"], table["visited"]
        anchors = sample(visited)
        cosines, between = _similarities(run, images, state, visited, anchors)
        return cls(images, labels, state, visited, anchors, cosines, between)

    @property
    def hardness(self) -> float:
        """Mean cosine of the sampled anchors with what their chains sit on."""
        return float(np.nanmean(self.cosines))

    @property
    def hardness_of_chance(self) -> float:
        """Mean cosine of the sampled anchors with each other."""
        return float(self.between.mean())

    @property
    def false_negatives(self) -> float | None:
        """Share of visited chains that sit on a sample of their anchor's label; None without labels."""
        if self.labels is None:
            return None
        return float((self.labels[self.state] == self.labels[:, None])[self.visited].mean())

    @property
    def false_negatives_of_chance(self) -> float | None:
        """That share, were every visited chain on a uniform other sample; None without labels."""
        if self.labels is None:
            return None
        _, kind, count = np.unique(self.labels, return_inverse=True, return_counts=True)
        share = (count[kind] - 1) / (len(self.labels) - 1)
        return float((share[:, None] * self.visited).sum() / self.visited.sum())

    def numbers(self) -> dict[str, float | None]:
        """A run's chains in the table on top of the page."""
        return {
            "false negatives, share of visited chains": self.false_negatives,
            "the same of uniform negatives": self.false_negatives_of_chance,
            "cosine of anchors and carried negatives, mean": self.hardness,
            "the same of uniform pairs": self.hardness_of_chance,
        }

    def told(self, step: int) -> str:
        """The numbers of a checkpoint after `step` steps, in words."""
        words = (
            f"At step {step:,}, {self.visited.mean():.1%} of the chains have been visited. The cosine of an anchor and "
            f"its carried negative is {self.hardness:.2f} on average, of uniform pairs {self.hardness_of_chance:.2f}. "
        )
        if self.false_negatives is None:
            return words + "The training images have no labels, so false negatives cannot be told."
        return words + (
            f"{self.false_negatives:.1%} of the carried negatives have their anchor's label; of uniform ones, "
            f"{self.false_negatives_of_chance:.1%} would."
        )

    def draw(self, name: str, colour: str) -> list[Picture]:
        """The similarities, in the run's colour, and the first anchors with what their chains sit on.

        `name` begins the files' names.
        """
        shown = range(0, min(_SHOWN, len(self.anchors)), _PER_PICTURE)
        grids = [_draw_grid(self, first, f"{name}-{number}") for number, first in enumerate(shown, 1)]
        carried = self.cosines[~np.isnan(self.cosines)]
        return [draw_similarities(carried, self.between, len(self.anchors), f"{name}-similarity", colour), *grids]


def sample(visited: NDArray[np.bool_]) -> NDArray[np.int64]:
    """At most 256 samples with a visited chain [A]: in a fixed random order, whatever has been visited.

    Raises:
        RunError: no chain has been visited.
    """
    order = np.random.default_rng(0).permutation(len(visited))
    anchors = order[visited[order].any(1)][:_SAMPLED]
    if not len(anchors):
        raise RunError("no chain has been visited yet")
    return anchors


def _labels(images: Images) -> NDArray[np.int64]:
    """Of all images; one without a label is of a class of its own."""
    everything = np.arange(len(images))
    labels = images.labels(everything)
    return np.where(labels < 0, -1 - everything, labels)


def _similarities(
    run: ReportedRun, images: Images, state: NDArray[np.int64], visited: NDArray[np.bool_], anchors: NDArray[np.int64]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """`Chains.cosines` and `Chains.between`; each image is encoded once."""
    exists = visited[anchors]
    states = np.where(exists, state[anchors], anchors[:, None])
    index, place = np.unique(np.concatenate([anchors[:, None], states], 1), return_inverse=True)
    feature = run.newest.features(images, index)[place.reshape(len(anchors), -1)]  # [A, 1 + V, D]
    own = feature[:, 0]
    cosines = np.where(exists, np.einsum("ad,avd->av", own, feature[:, 1:]), np.nan)
    return cosines, (own @ own.T)[np.triu_indices(len(own), 1)]


def draw_similarities(
    carried: NDArray[np.floating], between: NDArray[np.floating], anchors: int, name: str, run_colour: str
) -> Picture:
    """The cosines of so many anchors with what their chains hold, and those of uniform negatives, as histograms."""
    figure = new_figure(4.4, 3.0)
    axes = new_axes(figure)
    groups = (("uniform negatives", between, GREY), ("carried negatives", carried, run_colour))
    lowest, highest = (edge(edge(values) for _, values, _ in groups) for edge in (min, max))
    bins = np.linspace(lowest - 0.01, highest + 0.01, 41).tolist()
    for text, values, colour in groups:
        axes.hist(values, bins, weights=np.full(len(values), 100 / len(values)), color=colour, alpha=0.45)
        axes.axvline(values.mean(), color=colour, linewidth=1.6, label=f"{text}, mean {values.mean():.2f}")
    axes.set_xlabel("cosine similarity with the anchor", fontsize=FONT)
    axes.set_ylabel("% of pairs", fontsize=FONT)
    add_legend(axes, loc="lower left", bbox_to_anchor=(0, 1))
    alt = f"Two histograms of cosines: {', '.join(f'{text}, mean {values.mean():.3f}' for text, values, _ in groups)}."
    caption = (
        f"{len(carried):,} carried negatives of {anchors:,} anchors, against {len(between):,} uniform pairs. "
        "The further right, the harder."
    )
    return Picture(name, "Hardness", caption, alt, render(figure))


def _draw_grid(chains: Chains, first: int, name: str) -> Picture:
    anchors = chains.anchors[first : first + _PER_PICTURE]
    views = chains.state.shape[1]
    figure = new_figure(1.25 * (1 + views), 1.5 * len(anchors))
    grid = figure.subplots(len(anchors), 1 + views, squeeze=False)
    told = []
    for anchor, row, cosines in zip(anchors.tolist(), grid, chains.cosines[first:], strict=False):
        kind = _show(row[0], chains, anchor, f"anchor {anchor}")
        shown = [_draw_state(axes, chains, anchor, view, cosines[view]) for view, axes in enumerate(row[1:])]
        told.append(f"{anchor} {kind}: {', '.join(shown)}")
    caption = "Left an anchor, beside it the sample that the chain of each of its views sits on, with their cosine."
    if chains.labels is not None:
        caption += " Framed in red: same label, a false negative."
    alt = f"Anchors and their carried negatives. {'; '.join(told)}."
    return Picture(name, f"Anchors {first + 1} to {first + len(anchors)}", caption, alt, render(figure))


def _draw_state(axes: Axes, chains: Chains, anchor: int, view: int, cosine: float) -> str:
    """Show what one chain sits on; returns it in words."""
    if not chains.visited[anchor, view]:
        axes.axis("off")
        axes.text(0.5, 0.5, f"view {view}\nnot visited yet", fontsize=FONT - 2, color=GREY, ha="center", va="center")
        return "not visited"
    state = int(chains.state[anchor, view])
    kind = _show(axes, chains, state, f"view {view}: {cosine:.2f}")
    if chains.labels is None or chains.labels[anchor] != chains.labels[state]:
        return f"{kind} {cosine:.2f}".lstrip()
    axes.spines[:].set(visible=True, color=WARNING, linewidth=3)
    axes.set_xlabel(f"{label(kind, 14)} (same label)", fontsize=FONT - 2, color=WARNING, labelpad=2)
    return f"{kind} {cosine:.2f} (same label)"


def _show(axes: Axes, chains: Chains, index: int, title: str) -> str:
    """An image at its own size, with its class under it; a tiny one keeps its pixels. Returns the class, or ''."""
    (image,) = chains.images.get(np.array([index]))
    kind = "" if chains.labels is None else names_of(chains.images, np.array([index]))[0]
    axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest" if max(image.shape) < 200 else "antialiased")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=FONT - 2, pad=3)
    axes.set_xlabel(label(kind, 20), fontsize=FONT - 2, labelpad=2)
    return kind
