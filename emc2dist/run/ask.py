"""Similarity queries: which two of three images are alike? A person says so, and every answer is kept at once.

The answers are a set of images that `objective: sirl` trains on: a Parquet file for each answer, of three rows, whose
label is the number of the query; the two that are alike come first, the odd one out last. A file has its name only when
it is whole, so what was answered is there however the command ends, and asking goes on where it was left. No three
pictures are asked about twice, and nothing is written into a folder that holds anything else than answers.
"""

import base64
import hashlib
import io
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from emc2dist import files
from emc2dist.config import BUILT_IN, S3, Data
from emc2dist.data.foreign import opened
from emc2dist.data.images import Images, open_images
from emc2dist.data.ingest import within
from emc2dist.data.ingest.pixels import png
from emc2dist.errors import DataError
from emc2dist.files import Entry, Place
from emc2dist.run.folder import RunFolder
from emc2dist.run.loaded import LoadedCheckpoint

_NEAR = 10  # nearest images among which a run's queries look for near ties
_COMPARED = 2_000  # images of which features are compared
_DRAWS = 10_000  # queries drawn in search of one that was not asked
_READERS = 16  # answers read at once
_ANSWER = re.compile(r"(\w+)-(\d{6,})\.parquet")
_NOTES = (".html", ".md", ".txt")  # the page, and what a person writes down beside the answers
_SCHEMA = pa.schema([("image", pa.struct([("bytes", pa.binary())])), ("label", pa.int64())])
_INSTEAD = "name a new folder, or one of answers alone"

Query = tuple[bytes, ...]
"""The SHA-256 of three pictures, sorted."""


class Asked(NamedTuple):
    """What one session of asking did."""

    answered: int
    skipped: int
    kept: int
    """Answers of the split that there are now."""
    remarks: list[str]
    """Why there were fewer than asked for."""


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
        queries: the folder of the answers, made where it is not there; nothing else may lie in it but notes
            (`.html`, `.md`, `.txt`) and what is hidden.
        answer: who answers; None: the labels of the set do, as a person would who sees nothing else.
        split: of the images, and of the answers.
        count: how many answers; None: as many as are given. Fewer where the images give no further query.
        seed: which queries.
        s3: how S3 is reached.

    Raises:
        DataError: there are no such images, fewer than three, or no labels that are to answer; or `queries` holds
            something else than answers, or is or lies in the set that is asked about.
    """
    place = files.at(queries, s3)
    before, given = _given(place, split)
    images, features = _subject(subject, queries, split, s3)
    labels = images.labels(np.arange(len(images))) if answer is None else None
    if len(images) < 3:
        raise DataError(f"{subject}: {len(images)} images are too few to ask about; give a set of three or more")
    if labels is not None and not _can_tell(labels):
        raise DataError(
            f"{subject}: labels tell no odd one out, for no two images have one that a third has not; answer yourself, "
            "without --by-labels"
        )

    def draw(rng: np.random.Generator) -> NDArray[np.int64]:
        return _of_labels(rng, labels) if labels is not None else _near_or_not(rng, images, features)

    seen, remarks, answered, skipped = set[frozenset[int]](), list[str](), 0, 0
    while count is None or answered < count:
        rng = np.random.default_rng([seed, before + answered, skipped])
        query = _new(rng, images, draw, seen, given)
        if query is None:
            remarks.append(
                f"{_DRAWS} draws gave no three of {len(images)} images that were not asked about yet: these give "
                f"{len(given)} queries and hardly more; ask about more images"
            )
            break
        rows, pictures = query
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
    return Asked(answered, skipped, before + answered, remarks)


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


def _subject(subject: str, queries: str, split: str, s3: S3 | None) -> tuple[Images, NDArray[np.floating] | None]:
    """The images, and features of the first few where there is a run. Raises DataError where `queries` are of them."""
    folder = None if subject in BUILT_IN else RunFolder(files.at(subject, s3))
    newest = LoadedCheckpoint.newest(folder) if folder is not None and folder.exists() else None
    if newest is not None and not newest.spec.of_images:
        raise DataError(f"{subject}: is a run over pairs of texts, and images are asked about; give a run over images")
    data = Data(path=subject) if newest is None else newest.spec.data
    if queries in BUILT_IN or (data.path not in BUILT_IN and within(queries, data.path)):
        raise DataError(f"{queries}: is a set of images, or lies in the one that is asked about; {_INSTEAD}")
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


def _new(
    rng: np.random.Generator,
    images: Images,
    draw: Callable[[np.random.Generator], NDArray[np.int64]],
    seen: set[frozenset[int]],
    given: set[Query],
) -> tuple[NDArray[np.int64], list[bytes]] | None:
    """Three images in a random order that are in neither `seen` nor `given`, to which they are added, and their
    pictures; None where so many draws gave no such.
    """
    for _ in range(_DRAWS):
        rows = rng.permutation(draw(rng))
        if (drawn := frozenset(rows.tolist())) in seen:
            continue
        seen.add(drawn)
        pictures = [png(image.permute(1, 2, 0).numpy()) for image in images.get(rows)]
        if (query := _query(pictures)) not in given:
            given.add(query)
            return rows, pictures
    return None


def _query(pictures: list[bytes]) -> Query:
    return tuple(sorted(hashlib.sha256(picture).digest() for picture in pictures))


def _given(place: Place, split: str) -> tuple[int, set[Query]]:
    """The number of a split's next answer, and what was answered. Raises DataError where other things lie there."""
    if place.entry() is not None:
        raise DataError(f"{place}: is a file, and answers are a folder of files; {_INSTEAD}")
    folders = [f"{folder}/" for folder in place.folders() if not folder.startswith(".")]
    listed = [entry for entry in place.entries() if not entry.name.startswith(".")]
    strange = [one.name for one in listed if not (_ANSWER.fullmatch(one.name) or one.name.endswith(_NOTES))] + folders
    if strange:
        raise DataError(
            f"{place}: {len(strange)} of {len(folders) + len(listed)} files and folders in it are no answers of `ask`, "
            f"as {strange[0]}; {_INSTEAD}"
        )
    told = [(one, found) for one in listed if (found := _ANSWER.fullmatch(one.name)) and found[1] == split]
    numbers = [int(found[2]) for _, found in told]
    with ThreadPoolExecutor(_READERS) as pool:
        return max(numbers, default=-1) + 1, set(pool.map(_answered, repeat(place), [one for one, _ in told], numbers))


def _answered(place: Place, entry: Entry, number: int) -> Query:
    """What an answer is of. Raises DataError where the file is none."""
    with opened(place / entry.name, entry) as file:
        is_one = file.metadata.num_rows == 3 and file.schema_arrow.equals(_SCHEMA)
        rows = file.read(use_threads=False).to_pylist() if is_one else []
    if [row["label"] for row in rows] != [number] * 3:
        raise DataError(f"{place / entry.name}: is no answer of `ask`: three images labelled {number}; {_INSTEAD}")
    return _query([row["image"]["bytes"] for row in rows])


def _keep(place: Place, split: str, number: int, pictures: list[bytes]) -> None:
    """Write an answer; the odd one comes last."""
    rows = {"image": [{"bytes": one} for one in pictures], "label": [number] * 3}
    file = io.BytesIO()
    pq.write_table(pa.table(rows, schema=_SCHEMA), file)
    (place / f"{split}-{number:06d}.parquet").write(file.getvalue())
