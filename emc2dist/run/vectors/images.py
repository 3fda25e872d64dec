"""Representations and features of a set of images, as Parquet, a row for each image:

    split string, index int64, path string, label int64, class string, representation float32 [R], feature float32 [D]

`path` is the file that the image came from, as its set calls it; what is not known of an image is null. A feature is of
unit norm; of its plain view, as kNN has it. Images go through by the hundred and are written in parts beside the file,
OUT.parts, so memory does not grow with them, and the same command goes on where it was cut off. At the end the parts
become the file, and are removed.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from emc2dist import files
from emc2dist.config import BUILT_IN, S3
from emc2dist.data.catalogue import known_as, splits_of
from emc2dist.data.images import Images, built_in_splits, open_images
from emc2dist.data.loader import ViewLoader
from emc2dist.errors import DataError, NonFiniteError, StorageError
from emc2dist.files import Place
from emc2dist.run.loaded import LoadedCheckpoint
from emc2dist.run.scratch import temporary
from emc2dist.run.vectors.lasting import lasting
from emc2dist.terminal import Progress, say
from emc2dist.towers.encoder import Encoder
from emc2dist.towers.views import PlainViews

_AT_ONCE = 256  # images encoded at once
_PART = 4_096  # rows of a part, which is what may be lost
_ABOUT = "about.json"


@dataclass(frozen=True)
class _Split:
    """A split of the set."""

    name: str
    images: Images
    labels: NDArray[np.int64] | None
    """[N], -1 where there is none; None: it has no labels."""


@torch.no_grad()
def embed_images(
    newest: LoadedCheckpoint, source: str | Path, out: str | Path, *, s3: S3, splits: Sequence[str] = ()
) -> dict[str, Any]:
    """Write both vectors of each image of a set, split by split, in the order of the set.

    Args:
        newest: the checkpoint whose encoder is asked.
        source: what `data.path` may be.
        out: a file on disk or S3.
        s3: how it is reached.
        splits: names of those that are asked for; none: all of the set.

    Raises:
        DataError: an image cannot be read, or the set has no such split; names it. NonFiniteError: the run has
        diverged. StorageError: `out` cannot be written, or OUT.parts holds something else.
    """
    place, path = files.at(out, s3), str(source)
    files.refuse_folder(out)
    place.entry() if place.remote else files.writable(out)  # before anything is read
    opened = _open(newest, path, splits, s3)
    images = sum(len(split.images) for split in opened)
    remarks = [f"{split.name}: {remark}" for split in opened for remark in split.images.remarks]
    for remark in remarks:
        say(remark)
    told = {"checkpoint": lasting(newest.place), "data": lasting(path), "size": str(newest.spec.views.size)}
    parts = _Parts(files.at(f"{out}.parts", s3), told | _identity(newest.encoder, opened))
    remarks += parts.begin()
    with closing(Progress(images, unit="image")) as progress:
        for number, (split, first) in enumerate(_cut(opened)):
            index = np.arange(first, min(first + _PART, len(split.images)))
            if not parts.has(number):
                parts.write(number, _table(newest, split, index))
            progress.add(len(index))
    parts.join(place, told)
    widths = {"representation": newest.tower("image").width, "feature": newest.encoder.features}
    return {**told, "out": str(place), "images": images, **widths, "remarks": [*newest.remarks, *remarks]}


def _open(newest: LoadedCheckpoint, path: str, wanted: Sequence[str], s3: S3) -> list[_Split]:
    """The splits that are wanted, in the order of the set. Raises DataError where there is no such."""
    data = newest.spec.data.model_copy(update={"path": path, "limit": None})
    known = built_in_splits(path) if path in BUILT_IN else splits_of(files.at(path, s3))
    if stranger := next((name for name in wanted if known_as(name, known) not in known), None):
        raise DataError(f"--split: {path} has no split {stranger}, but {', '.join(known)}")
    found = []
    for name in (split for split in known if not wanted or split in {known_as(name, known) for name in wanted}):
        images = open_images(data, name, s3)
        if images is not None:
            labels = None if images.unlabelled() else images.labels(np.arange(len(images)))
            found.append(_Split(name, images, labels))
    return found


def _cut(opened: Sequence[_Split]) -> Iterator[tuple[_Split, int]]:
    """Each part's split and first image."""
    for split in opened:
        for first in range(0, len(split.images), _PART):
            yield split, first


def _identity(encoder: Encoder, opened: Sequence[_Split]) -> dict[str, Any]:
    """What tells the vectors of these weights and images from others."""
    weights = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        weights.update(name.encode() + tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    told = [[split.name, split.images.fingerprint] for split in opened]
    return {"weights": weights.hexdigest(), "splits": told, "part": _PART}


def _table(newest: LoadedCheckpoint, split: _Split, index: NDArray[np.int64]) -> pa.Table:
    """The rows of some images."""
    tower, representations, features = newest.tower("image"), [], []
    for views in _views(newest, split.images, index):
        representation = tower.representation(views.to(newest.device))
        representations.append(representation.float().cpu())
        features.append(tower.feature(representation).float().cpu())
    both = torch.cat(representations), torch.cat(features)
    if not all(vectors.isfinite().all() for vectors in both):
        raise NonFiniteError(f"{newest.place}: its encoder's features are not finite; the run has diverged")
    labels = np.full(len(index), -1) if split.labels is None else split.labels[index]
    names = dict(enumerate(split.images.classes)) if split.labels is not None else {}
    columns = {
        "split": pa.array([split.name] * len(index)),
        "index": pa.array(index),
        "path": pa.array(split.images.names(index), pa.string()),
        "label": pa.array(labels, mask=labels < 0),
        "class": pa.array([names.get(label) for label in labels.tolist()], pa.string()),
        "representation": _vectors(both[0]),
        "feature": _vectors(both[1]),
    }
    return pa.table(columns)


def _views(newest: LoadedCheckpoint, images: Images, index: NDArray[np.int64]) -> Iterator[Tensor]:
    """Plain views uint8 [n, 3, S, S] of images, in order; the next ones are made while these are encoded."""
    size, nothing = newest.spec.views.size, np.zeros((1, _AT_ONCE), np.int64)
    with ViewLoader(images, PlainViews(size), size) as loader:
        chunks = [index[first : first + _AT_ONCE] for first in range(0, len(index), _AT_ONCE)]
        coming = [loader.submit(chunk, nothing[:, : len(chunk)]) for chunk in chunks[:1]]
        for following in [*chunks[1:], None]:
            if following is not None:
                coming.append(loader.submit(following, nothing[:, : len(following)]))
            yield coming.pop(0).result()[0]


def _vectors(rows: Tensor) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.numpy().ravel(), pa.float32()), rows.shape[1])


@dataclass(frozen=True)
class _Parts:
    """A folder of parts on the way to one file."""

    place: Place
    about: dict[str, Any]
    """Of what they are."""

    def begin(self) -> list[str]:
        """Go on with what lies there, or begin anew where it is of something else; what was found, said.

        Raises:
            StorageError: what lies there is nothing of ours.
        """
        about = self.place / _ABOUT
        content = json.dumps(self.about, indent=1).encode()
        is_ours, parts = about.entry() is not None, len(self.place.entries()) - 1
        if not is_ours and (self.place.entries() or self.place.folders()):
            raise StorageError(f"{self.place}: parts are kept there while this goes on, and it holds others; move it")
        if is_ours and about.read() == content:
            found = f"{self.place}: goes on after {parts} parts of up to {_PART:,} images" if parts else ""
        else:
            found = f"{self.place}: is of another checkpoint or other images, and begins anew" if is_ours else ""
            self.place.remove()
            about.write(content)
        if found:
            say(found)
        return [found] if found else []

    def has(self, number: int) -> bool:
        """Whether a part is there: whole, for it is written whole or not at all."""
        return (self.place / _name(number)).entry() is not None

    def write(self, number: int, table: pa.Table) -> None:
        """Write a part."""
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer)
        (self.place / _name(number)).write(buffer.getvalue().to_pybytes())

    def join(self, out: Place, told: dict[str, str]) -> None:
        """Make one file at `out` of all parts, in order, and remove them."""
        names = sorted(entry.name for entry in self.place.entries() if entry.name != _ABOUT)
        with temporary("emc2-embed-") as scratch, files.explained(scratch):
            draft = Path(scratch) / "vectors.parquet"
            writer = None
            for name in names:
                table = pq.read_table(pa.BufferReader((self.place / name).read()))
                if writer is None:
                    writer = pq.ParquetWriter(draft, table.schema.with_metadata(told))
                writer.write_table(table.replace_schema_metadata(told))
            assert writer is not None, "a set holds images"
            writer.close()
            out.put(draft)
        self.place.remove()


def _name(number: int) -> str:
    return f"part-{number:06d}.parquet"
