"""Labels in a text file beside a split's images: the name of an image and that of its class, a line each.

    val_annotations.txt      val_0.JPEG<TAB>n03444034<TAB>0<TAB>32<TAB>44<TAB>62            Tiny-ImageNet
    LOC_val_solution.csv     ILSVRC2012_val_00048981,n03995372 85 1 499 272                 ImageNet, as Kaggle has it
    test.csv                 filename,label / t_0.png,tiger cat                             a table with a heading

Such a file lies in a folder of the split's images or above it, and its name tells the split. One column holds the
images' names (with or without folders and extension), one the names of classes that are known; where several could,
the heading says `label` or `class`. It must tell every image of the split, and each once.
"""

import csv
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from emc2dist import files
from emc2dist.data.splits import split_of
from emc2dist.errors import DataError

_EXTENSIONS = (".txt", ".csv", ".tsv")
_HEADINGS = ("label", "class", "class_name", "classname", "class_id", "classid", "target", "category", "y")
_BOXES = re.compile(r"(\S+)( -?[\d.]+)+( \1( -?[\d.]+)+)*")  # as LOC_val_solution.csv has them after the class
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
    told: dict[Path, tuple[list[str], str]] = {}
    unused = []
    for file in sorted(_candidates(root, split, names)):
        found = _of_file(file, split, names, classes)
        if found is None:
            unused.append(str(file))
        else:
            told[file] = found
    if not told:
        remarks = [f"{split}: no classes of images that are known in {', '.join(unused)}"] if unused else []
        return Annotations(None, remarks)
    (file, (kinds, column)), *others = told.items()
    for other, (else_kinds, _) in others:
        if else_kinds != kinds:
            raise DataError(f"{other}: tells other classes than {file}; keep the one that is right")
    return Annotations(kinds, [f"{split}: {len(names)} labels are those of {file}, column {column}"])


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
        return not file.name.startswith(".") and split_of(file.stem) == split_of(split) and file.is_file()
    except DataError:  # of two splits
        return False


def _of_file(file: Path, split: str, names: Sequence[str], classes: set[str]) -> tuple[list[str], str] | None:
    """The class of each image as a file tells it, and by which column; None where it tells none."""
    wanted = {_composed(key): name for name in names for key in (Path(name).name, Path(name).stem)}
    rows = [[_composed(cell.strip()) for cell in row] for row in _rows(file)]
    heading = [word.lower() for word in rows[0]] if rows else []
    headed = [n for n, word in enumerate(heading) if word in _HEADINGS]
    of_images = _image_column(file, rows, wanted, headed)
    if of_images is None:
        return None
    rows = [row for row in rows if of_images < len(row) and Path(row[of_images]).name in wanted]
    column = _class_column(file, rows, of_images, headed, classes)
    if column is None:
        return None
    found: dict[str, str] = {}
    for row in rows:
        name, kind = wanted[Path(row[of_images]).name], _kind(row, column, classes)
        if kind is None:
            told = repr(row[column]) if column < len(row) else "nothing"
            raise DataError(
                f"{file}: column {column + 1} tells {told} of {name}, which is no class of the training images; "
                "correct it, or move the file away to do without labels"
            )
        if found.setdefault(name, kind) != kind:
            raise DataError(f"{file}: tells two classes of {name}, {found[name]} and {kind}; keep the right one")
    missing = [name for name in names if name not in found]
    if missing:
        raise DataError(
            f"{file}: tells the classes of {len(found)} of {len(names)} images of {split}, and not that of "
            f"{missing[0]}; complete it, or move it away to do without labels"
        )
    return [found[name] for name in names], heading[column] if column in headed else str(column + 1)


def _image_column(file: Path, rows: list[Row], wanted: Mapping[str, str], headed: list[int]) -> int | None:
    """The column that names most images, if any; those that are headed as classes name none."""
    counts = Counter(n for row in rows for n, cell in enumerate(row) if n not in headed and Path(cell).name in wanted)
    best = counts.most_common(2)
    if len(best) == 2 and best[0][1] == best[1][1]:
        raise DataError(
            f"{file}: columns {best[0][0] + 1} and {best[1][0] + 1} could both name the images; give it a heading that "
            "calls the other one `label`"
        )
    return best[0][0] if best else None


def _class_column(file: Path, rows: list[Row], of_images: int, headed: list[int], classes: set[str]) -> int | None:
    """The column that is headed so, or else the only one that holds classes alone."""
    if len(headed) == 1:
        return headed[0]
    columns = [n for n in range(len(rows[0])) if n != of_images and all(_kind(row, n, classes) for row in rows)]
    columns = [n for n in columns if n in headed] or columns
    if len(columns) > 1:
        raise DataError(
            f"{file}: columns {', '.join(str(n + 1) for n in columns)} could all be the classes; give it a heading "
            "that calls one `label`, or leave out the others"
        )
    return columns[0] if columns else None


def _kind(row: Row, column: int, classes: set[str]) -> str | None:
    """The class that a cell names: the whole of it, or what stands before the numbers of boxes."""
    if column >= len(row):
        return None
    boxes = _BOXES.fullmatch(row[column])
    return next((name for name in (row[column], boxes and boxes[1]) if name in classes), None)


def _composed(text: str) -> str:
    """macOS writes accents as characters of their own."""
    return unicodedata.normalize("NFC", text)


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
