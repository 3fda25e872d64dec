"""A map of images in the space of features: PCA and t-SNE, and UMAP where it is installed, coloured by label.

At most 1,000 held-out images (training images where the set has no test split), the same for all runs, as the newest
checkpoint's encoder sees their plain views. Neighbours in t-SNE are neighbours in feature space; distances between
far clusters, and the sizes of clusters, mean nothing there.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from emc2dist.errors import DataError, RunError
from emc2dist.plotting import COLOURS, FONT, Picture, label, new_axes, new_figure, render
from emc2dist.report.runs import ReportedRun, names_of
from emc2dist.run.packages import installed

_IMAGES, _FEWEST = 1000, 10
_REST = "#d1d5db"
_MARKERS = "os^DvP<X>p"


@dataclass(frozen=True)
class Atlas:
    """Maps of the same images."""

    maps: dict[str, NDArray[np.floating]]
    """[n, 2] by method."""
    names: list[str]
    """The class of each image; empty without labels."""
    split: str

    @classmethod
    def of(cls, run: ReportedRun) -> "Atlas":
        """Maps of the run's images as its newest checkpoint sees them.

        Raises:
            RunError: the run is over texts; there is no checkpoint, or it gives all images the same feature.
            NonFiniteError: it gives one that is not finite.
            DataError, StorageError: the images are gone, or too few.
        """
        if not run.spec.of_images:
            raise RunError(f"it is of images, and this run is over {run.spec.data.kind}")
        newest, test = run.newest, run.images("test")
        run.remark_on_change()
        images = test or run.images("train")
        assert images is not None, "open_images raises where there are no training images"
        if len(images) < _FEWEST:
            raise DataError(f"{run.spec.data.path}: {len(images)} images are too few for a map, it takes {_FEWEST}")
        index = np.sort(np.random.default_rng(0).permutation(len(images))[:_IMAGES])
        names = [] if images.unlabelled() else names_of(images, index)
        return cls(project(newest.features(images, index)), names, "held-out" if test else "training")


def project(features: NDArray[np.floating]) -> dict[str, NDArray[np.floating]]:
    """Features [n, D] in two dimensions by each method, [n, 2]; the same features give the same maps.

    Raises:
        RunError: all features are the same.
    """
    if np.ptp(features, axis=0).max() < 1e-6:
        raise RunError("all images have the same feature: the run has collapsed, and there is nothing to map")
    with threadpool_limits(1):  # the maps depend on the number of threads, and more are no faster
        pca = PCA(2, random_state=0).fit(features)
        tsne = TSNE(perplexity=min(30.0, (len(features) - 1) / 3), init="pca", random_state=0)
        kept = f"PCA, {pca.explained_variance_ratio_.sum():.0%} of the variance"
        maps = {kept: pca.transform(features), "t-SNE": tsne.fit_transform(features)}
        if installed("umap"):
            from umap import UMAP

            neighbours = min(15, len(features) - 1)
            maps["UMAP"] = UMAP(n_neighbors=neighbours, random_state=0, n_jobs=1).fit_transform(features)
    return maps


def draw(atlas: Atlas, name: str) -> list[Picture]:
    """One picture per method; `name` begins the files' names."""
    caption = f"{len(next(iter(atlas.maps.values()))):,} {atlas.split} images; the axes have no unit"
    if not atlas.names:
        caption += "; the set has no labels to colour them by"
    return [_draw(atlas, method, f"{name}-{_slug(method)}", caption) for method in atlas.maps]


def _slug(method: str) -> str:
    return method.split(",")[0].lower().replace("-", "")


def _draw(atlas: Atlas, method: str, name: str, caption: str) -> Picture:
    points = atlas.maps[method]
    names = np.array(atlas.names or [""] * len(points))
    coloured = _coloured(names)
    figure = new_figure(4.4, 4.3 + 0.2 * -(-len(coloured) // 4))
    axes = new_axes(figure)
    rest = ~np.isin(names, list(coloured))
    if rest.any():
        axes.scatter(points[rest, 0], points[rest, 1], s=6, c=_REST, linewidths=0, label="others" if coloured else None)
    for (text, colour), marker in zip(coloured.items(), _MARKERS, strict=False):
        x, y = points[names == text].T
        axes.scatter(x, y, s=14, c=colour, marker=marker, linewidths=0, alpha=0.85, label=label(text, 16))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color=_REST)
    axes.set_box_aspect(1)
    if coloured:
        figure.legend(loc="outside lower center", ncols=4, fontsize=FONT - 1, frameon=False, markerscale=1.6)
    alt = f"{method} of features, one point per image. Classes: {', '.join(coloured) or 'no labels'}."
    return Picture(name, method, caption, alt, render(figure))


def _coloured(names: NDArray[np.str_]) -> dict[str, str]:
    """A colour for each of the ten most frequent classes, by name."""
    kinds, counts = np.unique(names[names != ""], return_counts=True)
    chosen = sorted(kinds[np.argsort(-counts, kind="stable")[: len(COLOURS)]].tolist())
    return dict(zip(chosen, COLOURS, strict=False))
