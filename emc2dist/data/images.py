"""A set of images, wherever it comes from: the protocol, and the one function that opens `data.path`.

digits         scikit-learn's handwritten digits; every fifth is the test split
a file         one Parquet file, all of it for training
a folder       `train*.parquet` and `test*.parquet` (else `validation*.parquet`); files with other names train
               where nothing is called train*
"""

from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from emc2dist.config import Data
from emc2dist.data.digits import DigitsImages
from emc2dist.data.parquet import ParquetImages
from emc2dist.errors import DataError

Split = Literal["train", "test"]


class Images(Protocol):
    """Images by index, 0 <= index < len. Can be pickled into another process."""

    classes: list[str]
    """Names of the classes; empty where the set does not name them."""
    labelled: bool
    """Whether `labels` answers."""

    def __len__(self) -> int: ...

    def get(self, indices: NDArray[np.int64]) -> list[Tensor]:
        """The images, uint8 [3, H, W] each, in the order asked; H and W may differ from one to the next.

        Raises:
            DataError: an image cannot be read; names file and row.
            IndexError: an index is out of range.
        """
        ...

    def labels(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Class of each image, [n]. Raises `DataError` where the set has no labels."""
        ...


def open_images(config: Data, split: Split) -> Images | None:
    """Open one split of `config.path`; None where there is no test split. `limit` applies to the training split.

    Raises:
        DataError: the path is missing, or holds no Parquet files, no training files or no rows.
    """
    limit = config.limit if split == "train" else None
    if config.path == "digits":
        return DigitsImages(split, limit=limit)
    train, test = _split_files(Path(config.path).expanduser())
    files = train if split == "train" else test
    if not files:
        return None
    # Every loader process holds a copy of the set, and `cache_mib` is what they may hold together.
    return ParquetImages(files, limit=limit, cache_mib=max(1, config.cache_mib // max(1, config.loaders)))


def _split_files(path: Path) -> tuple[list[Path], list[Path]]:
    """Training files, of which there is at least one, and test files."""
    if path.is_file():
        return [path], []
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder; set data.path to a Parquet file, a folder of them, or digits")
    files = sorted(path.glob("*.parquet"))
    if not files:
        raise DataError(f"{path}: holds no *.parquet files; set data.path to a folder that does")
    named = {name: [f for f in files if f.name.startswith(name)] for name in ("train", "test", "validation")}
    unnamed = [f for f in files if not f.name.startswith(("test", "validation"))]
    train = named["train"] or unnamed
    if not train:
        raise DataError(f"{path}: holds only test files ({files[0].name}); name the training files train*.parquet")
    return train, named["test"] or named["validation"]
