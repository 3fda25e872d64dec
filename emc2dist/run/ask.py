"""Similarity queries: which two of three images are alike? A person says so, and every answer is kept at once.

The answers are a set of images that `objective: sirl` trains on: a Parquet file for each answer, of three rows, whose
label is the number of the query; the two that are alike come first, the odd one out last. A file has its name only when
it is whole, so what was answered is there however the command ends, and asking goes on where it was left.
"""

import base64
import io
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from emc2dist import files
from emc2dist.config import BUILT_IN, S3, Data
from emc2dist.data.images import Images, open_images
from emc2dist.data.ingest.pixels import png
from emc2dist.errors import DataError
from emc2dist.files import Place
from emc2dist.run.folder import RunFolder
from emc2dist.run.loaded import LoadedCheckpoint

_NEAR = 10  # nearest images among which a run's queries look for near ties
_COMPARED = 2_000  # images of which features are compared


class Asked(NamedTuple):
    """What one session of asking did."""

    answered: int
    skipped: int
    kept: int
    """Answers of the split that there are now."""


Answer = Callable[[list[bytes]], int | None]
"""(three images, PNG) -> which is the odd one out, 0 to 2; None: it cannot be said. EOFError ends the session."""


def ask(
    subject: str,
    queries: str,
    answer: Answer | None,
    *,
    split: str = "train",
    count: int | None = None,
    seed: int = 0,
    s3: S3 | None = None,
) -> Asked:
    """Ask about images of a set, or of a run, until so many answers are given or `answer` raises EOFError.

    Args:
        subject: what `data.path` may be, or a run folder: then of its data, three that lie near each other for its
            newest checkpoint.
        queries: the folder of the answers, made where it is not there.
        answer: who answers; None: the labels of the set do, as a person would who sees nothing else.
        split: of the images, and of the answers.
        count: how many answers; None: as many as are given.
        seed: which queries.
        s3: how S3 is reached.

    Raises:
        DataError: there are no such images, fewer than three, or no labels that are to answer.
    """
    place = files.at(queries, s3)
    images, features = _subject(subject, split, s3)
    labels = images.labels(np.arange(len(images))) if answer is None else None
    if len(images) < 3:
        raise DataError(f"{subject}: {len(images)} images are too few to ask about; give a set of three or more")
    if labels is not None and not _can_tell(labels):
        raise DataError(
            f"{subject}: labels tell no odd one out, for no two images have one that a third has not; answer yourself, "
            "without --by-labels"
        )
    before, answered, skipped = _kept(place, split), 0, 0
    while count is None or answered < count:
        rng = np.random.default_rng([seed, before + answered, skipped])
        rows = rng.permutation(_of_labels(rng, labels) if labels is not None else _near_or_not(rng, images, features))
        pictures = [png(image.permute(1, 2, 0).numpy()) for image in images.get(rows)]
        try:
            odd = answer(pictures) if answer is not None else _told_by(labels, rows)
        except EOFError:
            break
        if odd is None:
            skipped += 1
            continue
        order = [*(position for position in range(3) if position != odd), odd]
        _keep(place, split, before + answered, [pictures[position] for position in order])
        answered += 1
    return Asked(answered, skipped, before + answered)


def page(pictures: list[bytes], number: int) -> str:
    """A page of HTML that shows three pictures, and looks for the next ones every second."""
    shown = "".join(
        f'<figure><img src="data:image/png;base64,{base64.b64encode(one).decode()}"><figcaption>{place}</figcaption>'
        "</figure>"
        for place, one in enumerate(pictures, 1)
    )
    style = (
        "body{font:2em sans-serif;text-align:center} figure{display:inline-block} "
        "img{height:35vh;image-rendering:pixelated}"
    )
    return (
        f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="1"><title>Query {number}</title>'
        f"<style>{style}</style><p>Which is the odd one out?</p>{shown}"
    )


def _subject(subject: str, split: str, s3: S3 | None) -> tuple[Images, NDArray[np.floating] | None]:
    """The images, and features of the first few where there is a run."""
    folder = None if subject in BUILT_IN else RunFolder(files.at(subject, s3))
    newest = LoadedCheckpoint.newest(folder) if folder is not None and folder.exists() else None
    if newest is not None and newest.spec.data.kind == "pairs":
        raise DataError(f"{subject}: is a run over pairs of texts, and images are asked about; give a run over images")
    data = Data(path=subject) if newest is None else newest.spec.data
    images = open_images(data, split, s3)
    if images is None:
        raise DataError(f"{data.path}: has no split {split}; give --split one that it has")
    few = np.arange(min(len(images), _COMPARED))
    return images, None if newest is None else newest.features(images, few)


def _near_or_not(rng: np.random.Generator, images: Images, features: NDArray[np.floating] | None) -> NDArray[np.int64]:
    """Three images: any, or where features are known one and two of its nearest, which are hard to tell apart."""
    if features is None or len(features) <= _NEAR:
        return rng.choice(len(images), 3, replace=False)
    first = rng.integers(len(features))
    nearest = np.argsort(-features @ features[first])
    return np.array([first, *rng.choice(nearest[nearest != first][:_NEAR], 2, replace=False)])


def _can_tell(labels: NDArray[np.int64]) -> bool:
    """Whether two images have one label, and a third another."""
    counts = np.unique(labels[labels >= 0], return_counts=True)[1]
    return len(counts) > 1 and counts.max() > 1


def _of_labels(rng: np.random.Generator, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Two images of one label, and one of another."""
    classes, counts = np.unique(labels[labels >= 0], return_counts=True)
    label = rng.choice(classes[counts > 1])
    two = rng.choice(np.nonzero(labels == label)[0], 2, replace=False)
    return np.array([*two, rng.choice(np.nonzero((labels != label) & (labels >= 0))[0])])


def _told_by(labels: NDArray[np.int64] | None, rows: NDArray[np.int64]) -> int:
    """Which of three is of a label of its own."""
    assert labels is not None
    first, second, third = labels[rows]
    return 2 if first == second else 1 if first == third else 0


def _kept(place: Place, split: str) -> int:
    """How many answers there are: one more than the last one's number."""
    names = [entry.name for entry in place.entries()] if place.entry() is None else []
    numbers = [int(told[1]) for name in names if (told := re.fullmatch(rf"{split}-(\d+)\.parquet", name))]
    return max(numbers, default=-1) + 1


def _keep(place: Place, split: str, number: int, pictures: list[bytes]) -> None:
    """Write an answer; the odd one comes last."""
    rows = {"image": [{"bytes": one} for one in pictures], "label": [number] * 3}
    schema = pa.schema([("image", pa.struct([("bytes", pa.binary())])), ("label", pa.int64())])
    file = io.BytesIO()
    pq.write_table(pa.table(rows, schema=schema), file)
    (place / f"{split}-{number:06d}.parquet").write(file.getvalue())
