"""Which column of a table names the images, which tells their classes, and what a cell of either means."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from emc2dist.data.ingest.source import EXTENSIONS
from emc2dist.data.ingest.tables import HELP, Row, Unusable
from emc2dist.data.splits import split_of, tells_split
from emc2dist.errors import DataError

_HEADINGS = (
    "label", "labels", "finelabel", "class", "classname", "classid", "cls", "target", "category", "y",
    "predictionstring",
)  # fmt: skip
"""In lower case, without spaces and the like; the first that is there counts. The last is Kaggle's for ImageNet."""
_WITHHELD = ("", "-1", "-1.0", "null", "nan")
_BITS = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}
_WHOLE = re.compile(r"\d+\.0")  # as pandas writes whole numbers where some are missing
_BOXES = re.compile(r"(\S+)( -?[\d.]+)+( \1( -?[\d.]+)+)*")  # as LOC_val_solution.csv has them after the class
_NEW_BOXES = re.compile(r"(\S+)( -?[\d.]+){4}( \1( -?[\d.]+){4})*")  # the same, where no class is known to stand there
_SHOWN = 3  # columns that a message names


def headed(heading: Row) -> list[int]:
    """The columns that a first line calls labels, the likeliest first."""
    found = sorted((_HEADINGS.index(called), n) for n, called in enumerate(map(word, heading)) if called in _HEADINGS)
    return [n for _, n in found]


def composed(text: str) -> str:
    """macOS writes accents as characters of their own."""
    return unicodedata.normalize("NFC", text)


def loosely(name: str) -> str:
    """A name without what people change: capitals, and the extension of an image."""
    path = PurePosixPath(composed(name).lower())
    return str(path.with_suffix("") if path.suffix in EXTENSIONS else path)


class ImagesByCell:
    """Images of a split by what a cell may call them: a path, from the table's folder or the root, or a mere name.

    Names that several of `names` have are none. `key` makes the same text of what is the same name.
    """

    def __init__(
        self,
        folder: PurePosixPath,
        names: Sequence[str],
        split: str,
        own: set[str],
        key: Callable[[str], str] = composed,
    ) -> None:
        self._by_path, self._by_name = dict[str, str | None](), dict[str, str | None]()
        self._split, self._own, self._key = split_of(split), own, key
        prefix = "" if folder == PurePosixPath() else f"{folder}/"
        for name in names:
            for path in {name, name.removeprefix(prefix)}:
                self._note(self._by_path, path, name)
            self._note(self._by_name, name.rpartition("/")[2], name)

    def _note(self, found: dict[str, str | None], called: str, name: str) -> None:
        for key in map(self._key, (called, called.rpartition(".")[0])):
            found[key] = name if found.get(key, name) == name else None

    def find(self, cell: str) -> str | None:
        """The image of the split that a cell names, if any."""
        path, last = self._keys(cell)
        found = self._by_path.get(path, self._by_name.get(last))
        return found if found in self._own else None

    def is_known(self, cell: str) -> bool:
        """Whether a cell names an image, or several, of this split or another."""
        path, last = self._keys(cell)
        return path in self._by_path or last in self._by_name

    def _keys(self, cell: str) -> tuple[str, str]:
        """The path that a cell is, and the mere name; no name where its folders tell another split."""
        path = cell.replace("\\", "/").removeprefix("./")
        folders, _, last = path.rpartition("/")
        told = any(tells_other(part, self._split) for part in folders.split("/"))
        return self._key(path), "" if told else self._key(last)


def image_column(
    file: str, rows: list[Row], images: ImagesByCell, labels: list[int], classes: set[str] | None
) -> int | None:
    """The column that names most images, if any; those that are headed as labels name none."""
    exact, all_of_them = Counter[int](), Counter[int]()
    for row in rows:
        for n, cell in enumerate(row):
            name = None if n in labels else images.find(cell)
            if name is not None:
                all_of_them[n] += 1
                # or a column of numbers names 0.png, 1.png, ...
                exact[n] += PurePosixPath(cell).suffix.lower() in EXTENSIONS
    ranks = sorted(((exact[n], count, n) for n, count in all_of_them.items()), reverse=True)
    if len(ranks) > 1 and ranks[0][:2] == ranks[1][:2]:
        if classes is None and not labels:
            raise Unusable("it has no heading that calls a column `label`")
        raise DataError(
            f"{file}: columns {ranks[1][2] + 1} and {ranks[0][2] + 1} could both name the images; give it a "
            "heading that calls the other one `label`"
        )
    return ranks[0][2] if ranks else None


def is_heading(row: Row, of_images: int, images: ImagesByCell, classes: set[str] | None) -> bool:
    """Whether a first line names neither an image nor a class."""
    names_image = of_images < len(row) and images.find(row[of_images]) is not None
    return not names_image and not any(kind_of(row, n, classes or set()) for n in range(len(row)))


def one_hot(rows: list[Row], of_images: int, images: ImagesByCell, classes: set[str] | None) -> list[int]:
    """The columns headed by classes, where each row holds 1 in one of these and 0 in the others; else none.

    Raises Unusable where there are such columns with other numbers of 1 in a row, and nothing else tells classes.
    """
    heading, *others = rows
    told = [row for row in others if of_images < len(row) and images.find(row[of_images])]
    columns = [n for n, word in enumerate(heading) if n != of_images and word and not tells_split(word)]
    columns = [n for n in columns if all(n < len(row) and row[n].lower() in _BITS for row in told)]
    if not told or len(columns) < 2 or images.find(heading[of_images]):
        return []
    if len({heading[n] for n in columns}) == len(columns) and all(
        sum(_BITS[row[n].lower()] for n in columns) == 1 for row in told
    ):
        return columns
    if classes is None:
        raise Unusable(
            f"its columns {_several(heading, columns)} hold 0 and 1, and not one 1 in each row; write the class of "
            "each image into a column `label`"
        )
    return []


def with_class(rows: list[Row], columns: list[int]) -> list[Row]:
    """The rows with a further column, the class: what heads the one of these columns that holds 1."""
    heading, *others = rows
    headed = [*heading, f"{_several(heading, columns)}: the one that holds 1"]
    kinds = [[heading[n] for n in columns if n < len(row) and _BITS.get(row[n].lower())] for row in others]
    width = len(heading)
    return [headed] + [
        [*row[:width], *[""] * (width - len(row)), *kind[:1]] for row, kind in zip(others, kinds, strict=True)
    ]


def _several(heading: Row, columns: list[int]) -> str:
    return ", ".join(heading[n] for n in columns[:_SHOWN]) + (", ..." if len(columns) > _SHOWN else "")


class Unclear(DataError):
    """A column might tell labels, and no heading says that it does."""


def by_content(file: str, rows: list[Row], of_images: int, heading: Row | None, classes: set[str]) -> list[int]:
    """The only column that holds classes alone, where no heading calls any so.

    Raises:
        Unusable: none does. Unclear: a heading calls it something else.
    """
    width = len(rows[0])
    columns = [n for n in range(width) if n != of_images and all(kind_of(row, n, classes) for row in rows)]
    if heading is not None and columns:
        called = " or ".join(f"`{heading[n]}`" if n < len(heading) else str(n + 1) for n in columns)
        raise Unclear(
            f"{file}: its heading calls no column `label`, and {called} could be the classes; call the classes "
            f"`label`, or {HELP}"
        )
    if heading is not None:
        raise Unusable(f"its heading calls no column `label` ({', '.join(heading)}); call that so which is, if one is")
    if not columns:
        cells = [cell for row in rows for n, cell in enumerate(row) if n != of_images and not kind_of(row, n, classes)]
        why = f"its {cells[0]!r} is no class of the training images" if cells else "it has one column"
        numbers = cells and all(cell.isdigit() for cell in cells)
        raise Unusable(f"{why}; write the names of their folders in place of numbers" if numbers else why)
    if len(columns) > 1:
        raise DataError(
            f"{file}: columns {', '.join(str(n + 1) for n in columns)} could all be the classes; give it a heading "
            "that calls one `label`, or leave out the others"
        )
    return columns


def kind_of(row: Row, column: int, classes: set[str] | None) -> str | None:
    """The class that a cell names: the whole of it, or what stands before the numbers of boxes."""
    if column >= len(row):
        return None
    cell = row[column]
    whole = cell.removesuffix(".0") if _WHOLE.fullmatch(cell) else cell
    if classes is None:
        return None if is_withheld(row, column) else whole
    boxes = _BOXES.fullmatch(cell)
    return next((name for name in (cell, whole, boxes and boxes[1]) if name in classes), None)


def new_kind(cell: str) -> str:
    """The class that a cell names where it is none of those that are known."""
    boxes = _NEW_BOXES.fullmatch(cell)
    return boxes[1] if boxes else cell.removesuffix(".0") if _WHOLE.fullmatch(cell) else cell


def is_withheld(row: Row, column: int) -> bool:
    """Whether a row tells no class."""
    return column >= len(row) or row[column].lower() in _WITHHELD


def word(cell: str) -> str:
    """A cell of a heading without capitals, spaces and the like."""
    return re.sub(r"[\W_]", "", cell.lower())


def tells_other(folder: str, split: str | None) -> bool:
    """Whether a name tells another split than `split`."""
    try:
        return split_of(folder) not in (None, split)
    except DataError:  # of two splits
        return False
