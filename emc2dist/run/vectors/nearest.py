"""The rows of a file of vectors that lie nearest to a query, by exact search, as a table and as a picture.

A query is a row of the file, by index or path (of texts by id), or something new: an image file or a text, which the
encoder that made the vectors is asked about. Vectors are read a row group at a time.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn.functional import normalize

from emc2dist import files
from emc2dist.config import S3, Data
from emc2dist.data.decode import decode
from emc2dist.data.foreign import opened
from emc2dist.data.images import Images, open_images
from emc2dist.errors import DataError, NonFiniteError, RunError
from emc2dist.evaluate.retrieval import search
from emc2dist.plotting import FONT, label, new_figure, render
from emc2dist.run.loaded import LoadedCheckpoint
from emc2dist.run.texts import Encoding
from emc2dist.towers.views import PlainView

_VECTORS = ("representation", "feature")
_LARGEST_IMAGE = 2**30  # bytes of a file
_SIDE = 1.5  # inches of an image in the picture
_PER_ROW = 6


@dataclass(frozen=True)
class _Query:
    """What is asked about."""

    vector: Tensor
    """[D], of unit norm."""
    told: dict[str, Any]
    row: int | None = None
    """Of the file, where it is one of its rows, which is not its own neighbour."""
    image: Tensor | None = None
    """uint8 [3, H, W], where it is a new one."""


def neighbours(
    vectors: str | Path, query: str, *, count: int = 10, by: str | None = None, split: str | None = None,
    run: str | Path | None = None, out: str | Path | None = None, s3: S3 | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The rows of the greatest cosine with a query, the nearest first, ties by the lower row.

    Args:
        vectors: a file that `embed` wrote, on disk or S3.
        query: a path or an index of the file, of texts an id; else an image file, or a text.
        count: how many rows, at least 1.
        by: `representation`, as kNN has it, or `feature`, which texts have alone.
        split: where an index is of several.
        run: the run or the checkpoint that made the vectors, where it is no longer where the file says.
        out: a PNG to draw images in.
        s3: how S3 is reached.

    Raises:
        DataError: the file holds no vectors of `embed`, or nothing is called so; names what is near. RunError: a new
        query needs the encoder, and that is gone. StorageError: a file cannot be read, or `out` not written.
    """
    place = files.at(vectors, s3)
    entry = place.entry()
    if entry is None:
        raise DataError(f"{vectors}: no such file; make it by `emc2dist embed RUN SOURCE {vectors}`")
    if out is not None:
        files.writable(out)
    with opened(place, entry) as file:
        names = file.schema_arrow.names
        told = {key.decode(): value.decode() for key, value in (file.schema_arrow.metadata or {}).items()}
        if "feature" not in names or "checkpoint" not in told:
            raise DataError(f"{vectors}: holds no vectors that `emc2dist embed` wrote; give such a file")
        of_texts = "text" in names
        by = by or ("feature" if of_texts else "representation")
        if by not in names:
            raise DataError(f"--by: {vectors} has no {by}, as it is of texts; leave it out")
        if out is not None and of_texts:
            raise DataError(f"--out: {vectors} is of texts, of which there is no picture; leave it out")
        row = _row_of(file, query, split, of_texts)
        asked = _of_row(file, row, by) if row is not None else _new(query, by, told, of_texts, run, s3, str(vectors))
        own = 0 if asked.row is None else 1
        scores, rows = search(asked.vector[None], _chunks(file, by), count + own)
        near = [(r, s) for s, r in zip(scores[0].tolist(), rows[0].tolist(), strict=True) if r != asked.row][:count]
        known = _known(file, [r for r, _ in near])
    found = [{"cosine": round(score, 6), **of_row} for (_, score), of_row in zip(near, known, strict=True)]
    result = {"vectors": str(place), "query": asked.told, "by": by, "neighbours": found}
    if out is not None:
        files.at(out).write(_picture(asked, found, told["data"], s3))
        result["out"] = str(out)
    return result


def _row_of(file: pq.ParquetFile, query: str, split: str | None, of_texts: bool) -> int | None:
    """The row that a query names; None where none does. Raises DataError where several do."""
    keys, found, first = (["id"] if of_texts else ["split", "index", "path"]), list[tuple[int, str]](), 0
    for number in range(file.num_row_groups):
        rows = file.read_row_group(number, columns=keys).to_pylist()
        for place, row in enumerate(rows, first):
            called = (row["id"],) if of_texts else (row["path"], str(row["index"]))
            if query in called and split in (None, row.get("split")):
                found.append((place, row.get("split", "")))
        first += len(rows)
    if len(found) > 1:
        splits = sorted({name for _, name in found})
        which = "say which: --split NAME" if len(splits) > 1 else "name one by its index"
        raise DataError(f"{query}: is {len(found)} rows (split {', '.join(splits)}); {which}")
    return found[0][0] if found else None


def _of_row(file: pq.ParquetFile, row: int, by: str) -> _Query:
    (told,) = _known(file, [row])
    group, first = _group_of(file, row)
    vector = _rows(file.read_row_group(group, columns=[by]), by)[row - first]
    return _Query(normalize(vector, dim=0), told, row)


@torch.no_grad()
def _new(
    query: str, by: str, told: dict[str, str], of_texts: bool, run: str | Path | None, s3: S3 | None, vectors: str
) -> _Query:
    """A query that is in no row."""
    path = Path(query).expanduser()
    if not of_texts and not path.is_file():
        raise DataError(
            f"{query}: is neither a path nor an index of {vectors}, nor an image file on this machine; its paths are "
            "those that its set tells"
        )
    newest = LoadedCheckpoint.at(run or told["checkpoint"], s3)
    if of_texts:
        (vector,) = Encoding.of(newest).features([query], told["side"])
        return _Query(torch.from_numpy(vector), {"text": query})
    with files.explained(path):
        if path.stat().st_size > _LARGEST_IMAGE:
            raise DataError(f"{query}: is larger than {_LARGEST_IMAGE} bytes, which no image is read of")
        content = path.read_bytes()
    try:
        image = decode(content)
    except ValueError as error:
        raise DataError(f"{query}: is no image that can be read ({error})") from error
    if str(newest.spec.views.size) != told["size"]:
        raise RunError(f"{run}: takes images of {newest.spec.views.size} pixels, and the vectors are of {told['size']}")
    views = PlainView(newest.spec.views.size)(image)[None].to(newest.device)
    tower = newest.tower("image")
    vector = tower.representation(views) if by == "representation" else tower(views)
    if not vector.isfinite().all():
        raise NonFiniteError(f"{newest.place}: its encoder's features are not finite; the run has diverged")
    return _Query(normalize(vector[0].float().cpu(), dim=0), {"path": query}, image=image)


def _chunks(file: pq.ParquetFile, by: str) -> Iterator[Tensor]:
    """The unit-norm vectors, a row group at a time."""
    for number in range(file.num_row_groups):
        yield normalize(_rows(file.read_row_group(number, columns=[by]), by), dim=1)


def _rows(table: pa.Table, by: str) -> Tensor:
    return torch.from_numpy(np.stack([*table[by].to_numpy()]))


def _group_of(file: pq.ParquetFile, row: int) -> tuple[int, int]:
    """The row group in which a row lies, and the row that it begins with."""
    ends = np.cumsum([file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)])
    group = int(np.searchsorted(ends, row, side="right"))
    return group, int(ends[group - 1]) if group else 0


def _known(file: pq.ParquetFile, rows: list[int]) -> list[dict[str, Any]]:
    """What the file tells of each row beside its vectors."""
    columns = [name for name in file.schema_arrow.names if name not in _VECTORS]
    places, tables = [_group_of(file, row) for row in rows], dict[int, pa.Table]()
    for group, _ in places:
        if group not in tables:
            tables[group] = file.read_row_group(group, columns=columns)
    return [
        tables[group].slice(row - first, 1).to_pylist()[0] for row, (group, first) in zip(rows, places, strict=True)
    ]


def _picture(asked: _Query, found: list[dict[str, Any]], path: str, s3: S3 | None) -> bytes:
    """The query and its neighbours, by rows, as PNG. Raises DataError where their images are gone."""
    opened = cache(lambda split: open_images(Data(path=path), split, s3))
    images = [_image(path, row, opened) for row in found]
    first = asked.image if asked.image is not None else _image(path, asked.told, opened)
    shown = [("query", first, asked.told), *zip((f"{row['cosine']:.3f}" for row in found), images, found, strict=True)]
    wide = min(len(shown), _PER_ROW)
    high = -(-len(shown) // wide)
    figure = new_figure(_SIDE * wide, (_SIDE + 0.35) * high)
    grid = figure.subplots(high, wide, squeeze=False).ravel()
    for axes in grid[len(shown) :]:
        axes.axis("off")
    for axes, (title, image, told) in zip(grid, shown, strict=False):
        axes.imshow(
            image.permute(1, 2, 0).numpy(), interpolation="nearest" if max(image.shape) < 200 else "antialiased"
        )
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(title == "query")
        axes.set_title(title, fontsize=FONT - 2, pad=3)
        axes.set_xlabel(label(_called(told), 24), fontsize=FONT - 2, labelpad=2)
    return render(figure)


def _image(path: str, row: dict[str, Any], opened: Callable[[str], Images | None]) -> Tensor:
    images = opened(row["split"])
    if images is None or row["index"] >= len(images):
        raise DataError(f"{path}: no longer holds image {row['index']} of split {row['split']}; leave out --out")
    return images.get(np.array([row["index"]]))[0]


def _called(told: dict[str, Any]) -> str:
    """What stands under an image: its class, or else its file's name or its index."""
    return str(told.get("class") or Path(told.get("path") or str(told.get("index"))).name)
