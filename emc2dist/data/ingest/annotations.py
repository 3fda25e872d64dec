"""Labels in a text file beside a split's images: the name of an image and that of its class, a line each.

    val_annotations.txt      val_0.JPEG<TAB>n03444034<TAB>0<TAB>32<TAB>44<TAB>62            Tiny-ImageNet
    LOC_val_solution.csv     ILSVRC2012_val_00048981,n03995372 85 1 499 272                 ImageNet, as Kaggle has it

Such a file lies in the split's folder or above it and its name tells the split. Its first two words of a line count,
where the second names a class that is known; the extension of the image may be missing.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from emc2dist import files
from emc2dist.data.splits import split_of
from emc2dist.errors import DataError

_EXTENSIONS = (".txt", ".csv", ".tsv")
_WORDS = re.compile(r"[^\s,;\"']+")


class Annotations(NamedTuple):
    """The classes of the images of a split."""

    file: str
    kinds: list[str]


def read_annotations(root: Path, split: str, names: Sequence[str], classes: set[str]) -> Annotations | None:
    """The classes of images `names` of a split of the folder `root`; None where no file tells any.

    Raises:
        DataError: a file tells those of some images alone. StorageError: it cannot be read.
    """
    for file in sorted(_candidates(root, split)):
        kinds = dict(_lines(file, classes))
        told = [kinds.get(name) or kinds.get(Path(name).stem) for name in names]
        if None not in told:
            return Annotations(str(file), [kind for kind in told if kind is not None])
        if any(told):
            raise DataError(
                f"{file}: tells the classes of {len(told) - told.count(None)} of {len(told)} images of {split}, and "
                f"not that of {names[told.index(None)]}; complete it, or move it away to do without labels"
            )
    return None


def _candidates(root: Path, split: str) -> set[Path]:
    with files.explained(root):
        found = {file for folder in (root, root / split) if folder.is_dir() for file in folder.iterdir()}
    return {file for file in found if file.suffix.lower() in _EXTENSIONS and split_of(file.stem) == split_of(split)}


def _lines(file: Path, classes: set[str]) -> list[tuple[str, str]]:
    words = [_WORDS.findall(line)[:2] for line in files.text(file).splitlines()]
    return [(found[0], found[1]) for found in words if len(found) == 2 and found[1] in classes]
