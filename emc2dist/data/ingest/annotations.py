"""Labels in a text file beside a split's images: the name of an image and that of its class, a line each.

    val_annotations.txt      val_0.JPEG<TAB>n03444034<TAB>0<TAB>32<TAB>44<TAB>62            Tiny-ImageNet
    LOC_val_solution.csv     ILSVRC2012_val_00048981,n03995372 85 1 499 272                 ImageNet, as Kaggle has it
    test.csv                 filename,label / t_0.png,tiger cat                             a table with a heading

Such a file lies in a folder of the split's images or above it, and its name tells the split. One column holds the
images' names (with or without folders and extension), one the names of classes that are known; where several could,
the heading says `label` or `class`. It must tell every image of the split, and each once.
"""

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from emc2dist import files
from emc2dist.data.splits import split_of
from emc2dist.errors import DataError

_EXTENSIONS = (".txt", ".csv", ".tsv")
_HEADINGS = ("label", "class", "class_name", "target", "category", "y")
_MOST_FOLDERS = 100  # that are looked through

Row = list[str]


class Annotations(NamedTuple):
    """What was found of the classes of a split's images."""

    kinds: list[str] | None
    """The class of each; None where no file tells any."""
    remarks: list[str]


def read_annotations(root: Path, split: str, names: Sequence[str], classes: set[str]) -> Annotations:
    """The classes of the images `names`, from `root` on, of a split.

    Raises:
        DataError: a file tells the classes of some images alone, or of one image two; or two files tell others.
        StorageError: one cannot be read.
    """
    told: dict[Path, list[str]] = {}
    unused = []
    for file in sorted(_candidates(root, split, names)):
        kinds = _of_file(file, split, names, classes)
        if kinds is None:
            unused.append(str(file))
        else:
            told[file] = kinds
    if not told:
        remarks = [f"{split}: no classes of images that are known in {', '.join(unused)}"] if unused else []
        return Annotations(None, remarks)
    (file, kinds), *others = told.items()
    for other, else_kinds in others:
        if else_kinds != kinds:
            raise DataError(f"{other}: tells other classes than {file}; keep the one that is right")
    return Annotations(kinds, [f"{split}: {len(names)} labels are those of {file}"])


def _candidates(root: Path, split: str, names: Sequence[str]) -> set[Path]:
    """Files above any image of the split whose names tell it."""
    above = {parent for name in names for parent in Path(name).parents}
    found = set[Path]()
    for folder in above if len(above) <= _MOST_FOLDERS else (Path(), Path(split)):
        with files.explained(root / folder):
            found |= {file for file in (root / folder).iterdir() if file.suffix.lower() in _EXTENSIONS}
    return {file for file in found if _tells(file, split)}


def _tells(file: Path, split: str) -> bool:
    try:
        return split_of(file.stem) == split_of(split)
    except DataError:  # of two splits
        return False


def _of_file(file: Path, split: str, names: Sequence[str], classes: set[str]) -> list[str] | None:
    """The class of each image as a file tells it; None where it tells none."""
    wanted = {key: name for name in names for key in (Path(name).name, Path(name).stem)}
    rows = [row for row in _rows(file) if len(row) > 1]
    of_images = _column(rows, lambda value: Path(value).name in wanted)
    if of_images is None:
        return None
    heading = [word.strip().lower() for word in rows[0]]
    rows = [row for row in rows if of_images < len(row) and Path(row[of_images]).name in wanted]
    columns = [n for n in range(len(rows[0])) if n != of_images and all(_kind(row, n, classes) for row in rows)]
    if len(columns) > 1:
        named = [n for n in columns if n < len(heading) and heading[n] in _HEADINGS]
        if len(named) != 1:
            raise DataError(
                f"{file}: columns {', '.join(str(n + 1) for n in columns)} could all be the classes; give it a heading "
                "that calls one `label`, or leave out the others"
            )
        columns = named
    if not columns:
        return None
    found: dict[str, str] = {}
    for row in rows:
        name, kind = wanted[Path(row[of_images]).name], _kind(row, columns[0], classes)
        assert kind is not None, "columns hold classes alone"
        if found.setdefault(name, kind) != kind:
            raise DataError(
                f"{file}: tells two classes of {name}, {found[name]} and {kind}; keep the one that is right"
            )
    missing = [name for name in names if name not in found]
    if missing:
        raise DataError(
            f"{file}: tells the classes of {len(found)} of {len(names)} images of {split}, and not that of "
            f"{missing[0]}; complete it, or move it away to do without labels"
        )
    return [found[name] for name in names]


def _column(rows: list[Row], holds: Callable[[str], bool]) -> int | None:
    """The column that holds most, if any."""
    counts = Counter(n for row in rows for n, value in enumerate(row) if holds(value))
    return counts.most_common(1)[0][0] if counts else None


def _kind(row: Row, column: int, classes: set[str]) -> str | None:
    """The class that a cell names: the whole of it, or its first word."""
    if column >= len(row):
        return None
    cell = row[column].strip()
    return next((name for name in (cell, cell.partition(" ")[0]) if name in classes), None)


def _rows(file: Path) -> Iterator[Row]:
    text = files.text(file)
    if file.suffix.lower() != ".csv" and "," not in text.partition("\n")[0]:
        separator = "\t" if "\t" in text.partition("\n")[0] else None
        yield from (line.split(separator) for line in text.splitlines())
        return
    first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)
    try:
        yield from csv.reader(text.splitlines(), delimiter=separator)
    except csv.Error as error:
        raise DataError(f"{file}: no table of values ({error}); correct it, or move it away") from error
