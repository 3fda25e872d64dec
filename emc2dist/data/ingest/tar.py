"""Tar shards as WebDataset writes them.

The members of one sample share their name up to its first dot: `n01440764/17.jpg` is an image, and its label stands in
`n01440764/17.cls` (a whole number) or in `n01440764/17.json` under `label`. Class names, where there are any, stand one
per line in `classes.txt` beside the shards. A shard whose name begins with train, val or test belongs to that split;
shards with other names train where nothing is called train*.

The headers of each shard are read once, from first to last; from then on an image is a range of bytes of its shard.
"""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emc2dist.data.ingest.folder import EXTENSIONS, MAX_BYTES, printable
from emc2dist.data.ingest.source import Samples, Source, Split, check_labels, listing_digest, read_range
from emc2dist.errors import DataError

CLASSES = "classes.txt"
_SPLITS = {"train": "train", "val": "validation", "test": "test"}
_IMAGES = frozenset(extension.removeprefix(".") for extension in EXTENSIONS)
_LABELS = ("cls", "json")
_BLOCK = 512  # bytes; a tar ends with blocks of zeros


@dataclass(slots=True)
class _Sample:
    """The members of a shard that share a name."""

    shard: str
    name: str = ""
    """Of the image."""
    start: int = 0
    """Byte of the shard at which the image begins."""
    size: int = -1
    """Bytes of the image; -1 where there is none."""
    label: int | None = None


class Tar(Source):
    """Tar shards of a folder, or one shard.

    Raises:
        DataError: a shard is truncated or no tar, a sample is ambiguous, or some samples of a split have labels and
            others have none; names shard and member.
    """

    def __init__(self, path: Path) -> None:
        shards = [path] if path.is_file() else sorted(path.glob("*.tar"))
        root = path.parent if path.is_file() else path
        if not shards:
            raise DataError(f"{path}: no *.tar files; give a folder that holds some, not compressed")
        self.root = str(root)
        self.classes = _class_names(root / CLASSES)
        self.digest = listing_digest((shard.name, shard.stat().st_size) for shard in shards)
        found = [sample for shard in shards for sample in _samples(shard)]
        self._images = [sample for sample in found if sample.size >= 0]
        if not self._images:
            raise DataError(f"{path}: no images in {len(shards)} shards; WebDataset names them KEY.jpg, KEY.png, ...")
        without = len(found) - len(self._images)
        self.remarks = [f"{without} samples without an image were passed over"] if without else []
        self.splits = self._split(_splits(shards))

    def _split(self, split_of: dict[str, str]) -> dict[str, Split]:
        positions: dict[str, list[int]] = {}
        for position, image in enumerate(self._images):
            positions.setdefault(split_of[image.shard], []).append(position)
        return {split: Split(np.array(found), self._labels(found)) for split, found in positions.items()}

    def _labels(self, positions: list[int]) -> NDArray[np.int64] | None:
        images = [self._images[position] for position in positions]
        bare = [image for image in images if image.label is None]
        if len(bare) == len(images):
            return None
        if bare:
            raise DataError(f"{self._where(bare[0])}: has no label, though others have; give it a .cls or .json member")
        labels = np.array([image.label for image in images], np.int64)
        check_labels(labels, self.classes, lambda n: self._where(images[n]))
        return labels

    def _where(self, image: _Sample) -> str:
        return f"{self.root}/{image.shard}, {printable(image.name)}"

    def samples(self, positions: NDArray[np.int64]) -> Samples:
        """The images at some positions, in that order."""
        return _Members(self.root, [self._images[position] for position in positions])


@dataclass(frozen=True)
class _Members(Samples):
    root: str
    images: list[_Sample]

    def __len__(self) -> int:
        return len(self.images)

    def path(self, k: int) -> str:
        return printable(self.images[k].name)

    def where(self, k: int) -> str:
        return f"{self.images[k].shard}, {self.path(k)}"

    def read(self, k: int) -> bytes:
        image = self.images[k]
        if image.size > MAX_BYTES:
            raise DataError(f"more than {MAX_BYTES} bytes, which no image has")
        return read_range(Path(self.root, image.shard), image.start, image.size)


def _samples(shard: Path) -> list[_Sample]:
    """The samples of a shard, in order."""
    samples: dict[str, _Sample] = {}
    for member in _members(shard):
        folder, slash, base = member.name.rpartition("/")
        stem, _, field = base.partition(".")
        sample, field = samples.setdefault(folder + slash + stem, _Sample(shard.name)), field.lower()
        if field in _IMAGES:
            if sample.size >= 0:
                raise DataError(f"{shard}, {member.name}: a second image of its sample, beside {sample.name}; keep one")
            sample.name, sample.start, sample.size = member.name, member.offset_data, member.size
        elif field in _LABELS:
            label = _label(shard, member, field)
            sample.label = sample.label if label is None else label
    return list(samples.values())


def _members(shard: Path) -> Iterator[tarfile.TarInfo]:
    """The regular files of a shard whose content is one range of it."""
    try:
        with tarfile.open(shard, "r:") as opened:
            for member in opened:
                if member.isreg() and not member.issparse() and not _hidden(member.name):
                    yield member
                opened.members.clear()  # type: ignore[attr-defined]  # or tarfile keeps them all
            end = opened.offset
    except tarfile.TarError as error:
        raise DataError(
            f"{shard}: not a whole tar ({error}); fetch it again, or unpack it if it is compressed"
        ) from error
    # tarfile takes any end for a good one.
    if read_range(shard, end, min(_BLOCK, max(0, shard.stat().st_size - end))) != bytes(_BLOCK):
        raise DataError(f"{shard}: truncated or damaged after byte {end}; fetch it again")


def _hidden(name: str) -> bool:
    return name.rpartition("/")[2].startswith(".")


def _label(shard: Path, member: tarfile.TarInfo, field: str) -> int | None:
    """The label in a .cls or .json member; None where the latter holds none."""
    content = read_range(shard, member.offset_data, min(member.size, 2**20))
    try:
        value: Any = int(content) if field == "cls" else json.loads(content).get("label")
    except (ValueError, AttributeError) as error:
        what = "a whole number" if field == "cls" else "a JSON object"
        raise DataError(f"{shard}, {member.name}: not {what}: {content[:40]!r}; correct it") from error
    if value is not None and type(value) is not int:
        raise DataError(f"{shard}, {member.name}: label {value!r} is no whole number; write the class's number")
    return value


def _class_names(file: Path) -> list[str]:
    return [line.strip() for line in file.read_text().splitlines() if line.strip()] if file.is_file() else []


def _splits(shards: list[Path]) -> dict[str, str]:
    """Split of each shard, by the shard's name."""
    splits = {
        shard.name: next((split for prefix, split in _SPLITS.items() if shard.name.startswith(prefix)), "")
        for shard in shards
    }
    unnamed = [name for name, split in splits.items() if not split]
    if unnamed and "train" in splits.values():
        raise DataError(f"{shards[0].with_name(unnamed[0])}: belongs to no split; name it train*, val* or test*")
    return {name: split or "train" for name, split in splits.items()}
