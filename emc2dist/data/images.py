"""A set of images, wherever it comes from: the protocol, and the one function that opens `data.path`.

digits          scikit-learn's handwritten digits; every fifth is the test split
omniglot        drawings of 1,623 characters, in the package; drawers 16 to 20 are the test split
omniglot-small  those of 136 characters
anything else   Parquet, on disk or on S3: see `emc2dist.data.catalogue`
"""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from emc2dist import files
from emc2dist.config import BUILT_IN, S3, Data, Eval
from emc2dist.data.catalogue import known_as, splits_of
from emc2dist.data.digits import DigitsImages
from emc2dist.data.encoded import Traffic
from emc2dist.data.omniglot import OmniglotImages, SmallOmniglotImages
from emc2dist.data.parquet import ParquetImages
from emc2dist.data.splits import EVALUATED
from emc2dist.errors import DataError


class Pixels(Protocol):
    """Pixels of images by index. Can be pickled into another process."""

    @property
    def traffic(self) -> Traffic:
        """What this object has asked for so far."""
        ...

    def get(self, indices: NDArray[np.int64]) -> list[Tensor]:
        """The images, uint8 [3, H, W] each, in the order asked; H and W may differ from one to the next.

        Raises:
            DataError: an image cannot be read; names file and row. StorageError: the set cannot be reached.
            IndexError: an index is out of range.
        """
        ...


class Images(Pixels, Protocol):
    """Images by index, 0 <= index < len, and what is known of them."""

    @property
    def remarks(self) -> Sequence[str]:
        """What a person should know of how they were found: what was guessed or passed over, with numbers."""
        ...

    @property
    def classes(self) -> list[str]:
        """Names of the classes; empty where the set does not name them. Raises as `labels` does."""
        ...

    def unlabelled(self) -> str | None:
        """Why no image has a label; None where some have."""
        ...

    def __len__(self) -> int: ...

    @property
    def fingerprint(self) -> str:
        """What tells these images from others, and from more or fewer of them, wherever they lie."""
        ...

    @property
    def blocks(self) -> NDArray[np.int64]:
        """Rows of each run of neighbouring indices that lie together, int64 [G]; they sum up to the length."""
        ...

    def labels(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Class of each image, [n]; -1 where it has none. Raises `DataError` where the set has no labels."""
        ...

    def duplicates(self) -> NDArray[np.int64]:
        """The group of images with the very same content that each is of, int64 [N]; -1 where it is alone.

        Raises `DataError` where that is not known.
        """
        ...

    def names(self, indices: NDArray[np.int64]) -> list[str | None]:
        """The file that each image came from, as its set calls it; None where that is not told.

        Raises `DataError` where the set is damaged.
        """
        ...


_BUILT_IN: dict[str, type[DigitsImages | OmniglotImages]] = {
    "digits": DigitsImages,
    "omniglot": OmniglotImages,
    "omniglot-small": SmallOmniglotImages,
}
assert _BUILT_IN.keys() == BUILT_IN.keys()


def built_in_splits(name: str) -> Sequence[str]:
    """The splits of a set that comes with the package, `train` first."""
    return _BUILT_IN[name].splits


def open_images(data: Data, split: str, s3: S3 | None = None) -> Images | None:
    """Open one split of `data.path`; None where it is not there, except that `train` has to be.

    `limit` applies to `train`.

    Raises:
        DataError: the path is missing, or holds no Parquet files, no training files or no rows.
        StorageError: it cannot be read.
    """
    limit = data.limit if split == "train" else None
    if data.path in _BUILT_IN:
        built_in = _BUILT_IN[data.path]
        return built_in(split, limit=limit) if split in built_in.splits else None
    return ParquetImages.open(data.path, split, s3=s3, limit=limit, cache_dir=data.cache_dir, cache_mib=data.cache_mib)


def known_of_each(
    images: Images, wanted: Mapping[str, str] = MappingProxyType({})
) -> tuple[dict[str, NDArray[np.int64]], list[str]]:
    """What is known of every training image, int64 [N] by name: `label` where there are any, and where they are
    `wanted` `target`, the number that its label stands for, `odd`, whether it is the last of its label's three, and
    `duplicates`; -1 is nothing. And remarks.

    Raises:
        DataError: what is `wanted`, each by the key of a spec that wants it, is not known.
    """
    columns, remarks = dict[str, NDArray[np.int64]](), list[str]()
    reason = images.unlabelled()
    if reason is None:
        columns["label"] = images.labels(np.arange(len(images)))
    for key in dict.fromkeys(wanted[name] for name in ("label", "target", "odd") if name in wanted):
        if reason is not None:
            raise DataError(
                f"{key}: needs labels, but no training image has one ({reason}); use data with labels, or do without"
            )
        if without := int((columns["label"] < 0).sum()):
            remarks.append(f"{key}: {without:,} of {len(images):,} images have no label, and share one with nobody")
    if "target" in wanted:
        columns["target"] = numbers_of(columns["label"], images.classes, wanted["target"])
    if "odd" in wanted:
        columns["odd"] = _odd_ones(columns["label"], wanted["odd"])
    if "duplicates" in wanted:
        try:
            columns["duplicates"] = images.duplicates()
        except DataError as error:
            raise DataError(f"{wanted['duplicates']}: duplicates, but {error}, or leave duplicates out") from error
        of_groups = columns["duplicates"]
        groups = len(np.unique(of_groups[of_groups >= 0]))
        remarks.append(
            f"{wanted['duplicates']}: {(of_groups >= 0).sum():,} images are duplicates, in {groups:,} groups"
        )
    return columns, remarks


def _odd_ones(labels: NDArray[np.int64], wanted: str) -> NDArray[np.int64]:
    """1 on the last image of each label, 0 on the other two; raises DataError where they are not three."""
    queries, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
    others = queries[(counts != 3) & (queries >= 0)]
    if len(others):
        raise DataError(
            f"{wanted}: needs a set of answers, three images for each query, and label {others[0]} has "
            f"{counts[queries == others[0]][0]}; make one with `emc2dist ask DATA QUERIES`, and give no data.limit "
            "that cuts a query"
        )
    last = np.zeros(len(queries), np.int64)
    np.maximum.at(last, place, np.arange(len(labels)))
    return ((last[place] == np.arange(len(labels))) & (labels >= 0)).astype(np.int64)


def numbers_of(labels: NDArray[np.int64], classes: Sequence[str], wanted: str) -> NDArray[np.int64]:
    """The number that each label stands for: its class's name, or itself where classes have none; -1 without a label.

    Raises:
        DataError: a name is no number, for then the order of labels is that of the alphabet; names the key `wanted`.
    """
    strange = next((name for name in classes if not re.fullmatch("[0-9]{1,18}", name)), None)
    if strange is not None:
        raise DataError(
            f"{wanted}: needs labels that are numbers, but a class is called {strange!r}; use data whose labels are "
            "whole numbers, or whose classes are called so, from 0"
        )
    return np.array([*map(int, classes), -1])[labels] if classes else labels


class Labelled(NamedTuple):
    """What evaluation takes its images from."""

    voters: Images
    """Their labelled images vote."""
    asked: Images | None
    """Their labelled images are asked about; None: every tenth voter is."""
    remarks: list[str]
    """What a person should know of the choice."""


def open_labelled(data: Data, choice: Eval, train: Images, s3: S3 | None = None) -> Labelled:
    """The images that vote in evaluation and those that are asked about, as `eval` says.

    Raises:
        DataError: a split that `eval` names is not there, or is asked about and has no labels.
    """
    known = _BUILT_IN[data.path].splits if data.path in _BUILT_IN else splits_of(files.at(data.path, s3))
    voting = known_as(choice.voters, known)
    voters = train if voting == "train" else open_images(data, voting, s3)
    if voters is None:
        raise DataError(f"{data.path}: has no split {choice.voters}; set eval.voters to one with labels, or to train")
    if choice.asked is not None:
        asked = known_as(choice.asked, known)
        return Labelled(voters, None if asked == voting else _asked(data, asked, train, s3), [])
    remarks: list[str] = []
    for split in (known_as(split, known) for split in EVALUATED):
        images = None if split == voting else open_images(data, split, s3)
        if images is None:
            continue
        reason = images.unlabelled()
        if reason is None:
            return Labelled(voters, images, remarks)
        remarks.append(f"{split} is not asked about: {reason}")
    return Labelled(voters, None, remarks)


def _asked(data: Data, split: str, train: Images, s3: S3 | None) -> Images:
    images = train if split == "train" else open_images(data, split, s3)
    if images is None:
        raise DataError(f"{data.path}: has no split {split}; set eval.asked to one with labels")
    reason = images.unlabelled()
    if reason:
        raise DataError(f"eval.asked: {split} has no labels ({reason}); name a split that has some")
    return images
