"""Labels in text files beside the images: the name of an image and that of its class, a line each.

    val_annotations.txt      val_0.JPEG<TAB>n03444034<TAB>0<TAB>32<TAB>44<TAB>62            Tiny-ImageNet
    LOC_val_solution.csv     ILSVRC2012_val_00048981,n03995372 85 1 499 272                 ImageNet, as Kaggle has it
    test.csv                 filename,label / t_0.png,tiger cat                             a table with a heading
    metadata.jsonl           {"file_name": "t_0.png", "label": "tiger cat"}                 as Hugging Face has it;
                             or metadata.parquet with such columns
    dataset.json             {"labels": [["00000/t_0.png", 7], ...]}                        as StyleGAN has it

Such a file lies in a folder of the images or above it. Its name tells the split; or it is called labels, metadata,
annotations or dataset, has a heading and is for all splits below. One column holds the images' names (with or without
folders and extension; where none is there, in other capitals or with another extension). With a heading, the labels are
the column that it calls `label` or `class` (without folders of classes, in a file called labels the only other one), or
the headings of columns of which one holds 1 in each row and the others 0; without one, the only column that holds
nothing but names of the classes that folders tell. It must tell every image of a split, and each once. Beside a heading
a class may be one that no training image has. A column that is headed `split` must tell the splits that the images'
folders tell.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from emc2dist.data.ingest.label_columns import (
    ImagesByCell,
    Unclear,
    by_content,
    composed,
    headed,
    image_column,
    is_heading,
    is_withheld,
    kind_of,
    loosely,
    new_kind,
    one_hot,
    tells_other,
    with_class,
    word,
)
from emc2dist.data.ingest.source import EXTENSIONS, printable
from emc2dist.data.ingest.tables import HELP, LONGEST, Row, Unlabelled, Unusable, rows_of
from emc2dist.data.splits import COLUMNS, split_of, tells_split
from emc2dist.errors import DataError

TEXTS = (".txt", ".csv", ".tsv", ".jsonl", ".json")
"""Extensions of files that may tell labels."""
TABLES = (".csv", ".tsv", ".jsonl", ".json", ".xlsx", ".mat")
"""Extensions of tables, of which some cannot be read here."""
PARQUET = ".parquet"
"""Extension of tables that may tell labels, too, where they are called as for all splits: others are sets."""
_OF_ALL_SPLITS = ("label", "labels", "metadata", "annotation", "annotations", "dataset")
_NAMED_LABELS = ("label", "labels")
_GUESSES = re.compile("submission|predict", re.IGNORECASE)  # these hold what somebody's model says
_SHOWN = 3  # files that a remark names
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')  # of JSON
_HEAD = 2**12  # bytes of a text, which tell whether it is a table
_SHOWN_CHARACTERS = 60  # of a line
_LABELS_ARE = (
    "labels are those of a labels.csv or metadata.csv, or of a table called as its split, beside the images or above, "
    "in the column that a heading calls `label`: write one, if these hold labels"
)


_BEFORE = "write each image before its class (IMAGE,CLASS), for the order of lines tells none"


class _OtherSplit(DataError):
    """A file tells other splits than the folders."""


class _Labels(NamedTuple):
    """What a file tells of a split's images."""

    kinds: dict[str, str | None]
    """The class of each image that it names; None where that is withheld."""
    column: str
    """Where from."""
    odd: str = ""
    """How the names that it gives images or classes differ from what they were taken for, if they do."""


@dataclass
class Annotations:
    """The texts and tables of a folder of images; `names` are the images', and both are relative to it.

    Without `labels` none are looked for: lists of splits alone are.
    """

    root: Path
    texts: Sequence[str]
    names: Sequence[str]
    labels: bool = True
    used: set[str] = field(default_factory=set)
    """Those that gave labels, or were compared with those of folders."""
    told: set[str] = field(default_factory=set)
    """Those, and those that the `remarks` name."""
    _unused: dict[str, str] = field(default_factory=dict)
    _rows: dict[str, int] = field(default_factory=dict)
    """Of each file that was read, without the heading."""
    _strays: dict[str, dict[int, str]] = field(default_factory=dict)
    """Of each, by their numbers, what those rows name that name no image of any split."""

    def read(
        self, split: str, names: Sequence[str], classes: set[str] | None
    ) -> tuple[list[str | None] | None, list[str]]:
        """The class of each image of a split and remarks on them. A class that is withheld is None; so is the list
        where no file tells any.

        Without `classes`, those that a heading calls labels are the classes.

        Raises:
            DataError: a file tells the classes of some images alone, or of one image two; or two files tell others; or
                what tells the classes could be another thing. StorageError: a file cannot be read.
        """
        told: dict[str, tuple[list[str | None], str]] = {}
        unclear: list[Unclear] = []
        for file in self._candidates(split, names):
            try:
                found = self._labels(file, split, names, classes)
            except Unclear as error:  # which matters only where no other file tells them
                unclear.append(error)
                self._unused.setdefault(file, f"{split}: labels are those of another file than {printable(file)}")
            except Unusable as error:
                self._unused.setdefault(file, f"{split}: no labels are told by {printable(file)}: {error}")
            else:
                told[file] = _complete(self._named(file), split, names, found), found.column + found.odd
        if not told and unclear:
            raise unclear[0]
        if not told:
            return None, []
        (first, (kinds, column)), *others = told.items()
        for other, (else_kinds, _) in others:
            if else_kinds != kinds:
                raise DataError(f"{self._named(other)}: tells other classes than {first}; keep the one that is right")
        self.used |= told.keys()
        return kinds, [f"{len(names)} labels are those of {self._named(first)}, column {column}"]

    def check(self, split: str, kinds: Mapping[str, str]) -> None:
        """Raise DataError where a file tells other classes or splits than the folders do; `kinds` are the former."""
        names = list(kinds)
        for file in self._candidates(split, names):
            try:
                found = self._labels(file, split, names, None, of_folders=True)
            except _OtherSplit:
                raise
            except Unlabelled as error:
                raise DataError(
                    f"{self._named(file)}: {error}, and by the images' folders they have classes; if the folders are "
                    f"none, take no labels with --no-labels; if they are, {HELP}"
                ) from error
            except (Unusable, DataError):
                continue
            self.used.add(file)
            pairs = {(kinds[name], kind) for name, kind in found.kinds.items() if kind}
            for side in (0, 1):
                twice = [one for one, times in Counter(pair[side] for pair in pairs).items() if times > 1]
                if twice:
                    one, other = sorted(pair for pair in pairs if pair[side] == twice[0])[:2]
                    into = "one folder" if is_of_all(file) else f"{split_of(_stem(file))}/"
                    these = f"the {len(found.kinds)} images that it names"
                    raise DataError(
                        f"{self._named(file)}: column {found.column} tells other classes than the images' folders "
                        f"({one[1]!r} in {one[0]}/, {other[1]!r} in {other[0]}/); if the folders are right, move the "
                        f"file elsewhere; if the column is, move {these} into {into}"
                    )

    def remarks(self, splits: Mapping[str, str], *, labelled: bool) -> list[str]:
        """What was not read, after all splits were; `splits` are those of the images by their folders, and `labelled`
        says that no label is wanting.
        """
        wanting = self.labels and not labelled
        left = [name for name in self.texts if name not in self.used]
        reasons = [reason for name, reason in self._unused.items() if name in left] if wanting else []
        of_images = [name for name in left if self._is_of_one_image(name)]
        of_split = [name for name in self.texts if tells_split(_stem(name)) and not self._is_of_one_image(name)]
        named = {name: self._named_by(name) for name in of_split}
        others = {name: images for name, images in named.items() if _others(name, images, splits)}
        apart = {*of_images, *others, *self._unused}
        left = [name for name in left if name not in apart]
        tables = [name for name in left if _is_known(name) or self._is_table(name)]
        tables = [name for name in tables if not _GUESSES.search(name)]
        lists = [name for name in left if (name not in tables or not wanting) and _tells_any_split(name)]
        if not self.labels:
            of_images, tables = [], []
        if labelled:
            tables = [name for name in tables if name not in lists]
        lists = [name for name in lists if not named.get(name)]  # else they say what the folders do
        counts = set(Counter(splits.values()).values())
        bare = [name for name in lists if self._lines_alone(name) in counts]
        self.told |= {*self.used, *tables, *lists, *of_images, *others, *(self._unused if reasons else ())}
        reasons += _on_other_splits(others, splits, labelled)
        if of_images:
            reasons.append(
                f"{_listed(of_images, 'texts called as images')} not read: what tells of one image alone is not"
            )
        if tables:
            told = "there are labels without them" if labelled else _LABELS_ARE
            reasons.append(f"{_listed(tables, 'tables')} not read: {told}")
        if bare:
            told = "there are labels without them" if labelled else f"if these are labels, {_BEFORE}"
            what = _listed(bare, "texts of as many lines as a split has images")
            reasons.append(f"{what} not read, for they name no image: {told}")
        lists = [name for name in lists if name not in bare]
        if lists:
            told = "folders alone tell splits, and where they tell none all images train"
            reasons.append(f"{_listed(lists, 'lists of splits')} not read: {told}")
        for file, strays in sorted(self._strays.items()):
            if file in self.used and strays:
                example = printable(next(iter(strays.values()))[:_SHOWN_CHARACTERS])
                reasons.append(
                    f"{len(strays)} of {self._rows[file]} rows of {printable(file)} name no image, such as {example!r}"
                )
        return reasons

    def _candidates(self, split: str, names: Sequence[str]) -> list[str]:
        """Files above any image of the split that may tell its labels."""
        if not self.labels:
            return []
        read = (name for name in sorted(self.texts) if PurePosixPath(name).suffix.lower() in (*TEXTS, PARQUET))
        told = [name for name in read if is_of_all(name) or (_tells(name, split) and not self._is_of_one_image(name))]
        above = {str(parent) for folder in {name.rpartition("/")[0] for name in names} for parent in _up(folder)}
        return [name for name in told if str(PurePosixPath(name).parent) in above and not _GUESSES.search(name)]

    @cached_property
    def _image_names(self) -> set[str]:
        return {PurePosixPath(name).name for name in self.names}

    @cached_property
    def _image_stems(self) -> set[str]:
        return {_stem(name) for name in self.names}

    def _is_of_one_image(self, file: str) -> bool:
        """Whether a text is called as an image, as boxes and captions are."""
        return _stem(file) in self._image_stems and not is_of_all(file)

    @cached_property
    def _by_ending(self) -> dict[str, str | None]:
        """The images by all that their paths end in, with and without extension; None where several do."""
        found = dict[str, str | None]()
        for name in self.names:
            folders = name.split("/")
            for ending in ("/".join(folders[level:]) for level in range(len(folders))):
                for key in map(composed, (ending, ending.rpartition(".")[0])):
                    found[key] = name if found.get(key, name) == name else None
        return found

    def _named_by(self, file: str) -> set[str]:
        """The images that a list names, each by the end of its path: with their extensions where any is named so."""
        try:
            content = (self.root / file).read_bytes() if (self.root / file).stat().st_size <= LONGEST else b""
        except OSError:  # it is not needed
            return set()
        text = content.decode(errors="replace")
        cells = set(_STRING.findall(text) if ".json" in PurePosixPath(file).suffix.lower() else text.splitlines())
        cells |= {cell for line in cells for cell in re.split(r"[\s,;]+", line)}
        found = {cell: name for cell in cells if (name := self._by_ending.get(composed(cell.strip(" \"'"))))}
        exact = {name for cell, name in found.items() if cell.strip(" \"'").endswith(PurePosixPath(name).suffix)}
        return exact or set(found.values())

    def _is_table(self, file: str) -> bool:
        """Whether a text names images, and tells something of each, in half of its first lines."""
        try:
            with (self.root / file).open("rb") as opened:
                lines = opened.read(_HEAD).decode(errors="replace").splitlines()
        except OSError:  # it is not needed
            return False
        rows = [row for line in lines if len(row := re.split(r"[\s,;]+", line.strip())) > 1]
        named = [
            row
            for row in rows
            if row[0] in self._image_stems or any(PurePosixPath(cell).name in self._image_names for cell in row)
        ]
        return 0 < len(rows) <= 2 * len(named)

    def _lines_alone(self, file: str) -> int:
        """How many lines a text has, where each is one word: none where one is not, or where it cannot be read."""
        try:
            if (self.root / file).stat().st_size > LONGEST:
                return 0
            lines = (self.root / file).read_bytes().decode(errors="replace").split("\n")
        except OSError:  # it is not needed
            return 0
        words = [line.split() for line in lines if line.strip()]
        return len(words) if all(len(word) == 1 for word in words) else 0

    def _named(self, file: str) -> str:
        return printable(str(self.root / file))

    def _labels(
        self, file: str, split: str, names: Sequence[str], classes: set[str] | None, *, of_folders: bool = False
    ) -> _Labels:
        """What a file tells of the images; `of_folders`: these have classes. Raises Unusable."""
        folder = PurePosixPath(file).parent
        below = names if not is_of_all(file) else [n for n in self.names if PurePosixPath(n).is_relative_to(folder)]
        images = ImagesByCell(folder, below, split, set(names))
        rows = [[composed(cell.strip()) for cell in row] for row in rows_of(self.root / file)]
        if not rows:
            raise Unusable("it is empty")
        labels = headed(rows[0])
        of_images = image_column(self._named(file), rows, images, labels, classes)
        otherwise = of_images is None
        if of_images is None:
            images = ImagesByCell(folder, below, split, set(names), loosely)
            of_images = image_column(self._named(file), rows, images, labels, classes)
        if of_images is None:
            self._refuse_unclear(file, rows, ImagesByCell(folder, names, split, set(names), loosely))
            if all(len(row) == 1 for row in rows):
                known = all(row[0] in (classes or ()) for row in rows[bool(labels) :])
                rest = "" if known else ", and classes by the names of their folders" if classes else ""
                raise Unusable(f"its {len(rows)} lines name no image of {split}: {_BEFORE}{rest}")
            line = ", ".join(rows[min(1, len(rows) - 1)])[:_SHOWN_CHARACTERS]
            raise Unusable(f"its line {line!r} names no image of {split}, such as {names[0]}")
        by_tables = classes is None or file in self.used  # and not by folders
        if not (labels or of_folders) and by_tables and _stem(file).lower() in _NAMED_LABELS:
            labels = _only_other(rows, of_images, images)
        if not labels and (hot := one_hot(rows, of_images, images, classes)):
            labels, rows = [len(rows[0])], with_class(rows, hot)
        heading = rows[0] if labels or is_heading(rows[0], of_images, images, classes) else None
        self._note_strays(file, rows, 0 if heading is None else 1, of_images, images)
        rows = [row for row in rows if of_images < len(row) and images.find(row[of_images])]
        if heading is not None:
            self._check_widths(file, heading, [(row[of_images], row) for row in rows])
            self._check_splits(file, split, heading, [(row[of_images], row) for row in rows])
        if heading is None and (classes is None or is_of_all(file)):
            raise Unusable("it has no heading that calls a column `label`")
        if not labels:
            labels = by_content(self._named(file), rows, of_images, heading, classes or set())
        whole = [n for n in labels if all(kind_of(row, n, classes) or is_withheld(row, n) for row in rows)]
        column = whole[0] if whole else max(labels, key=lambda n: sum(bool(kind_of(row, n, classes)) for row in rows))
        if all(is_withheld(row, column) for row in rows):
            raise Unusable(f"all labels of its column {column + 1} are withheld (-1 or empty)")
        called = f"`{heading[column]}`" if heading else str(column + 1)
        self._refuse_other_names(file, [row for row in rows if not is_withheld(row, column)], column, called, classes)
        kinds: dict[str, str | None] = {}
        several, rounded = dict[str, str](), list[str]()
        for row in rows:
            name, kind = images.find(row[of_images]), kind_of(row, column, classes)
            assert name is not None, "other rows were left out"
            if kind is None and not is_withheld(row, column):
                kind = new_kind(row[column])
            if kinds.setdefault(name, kind) != kind:
                several.setdefault(name, f"{name}, {kinds[name]} and {kind}")
            if kind is not None and row[column] == f"{kind}.0":
                rounded.append(kind)
        if several:
            two = f"tells two classes of {len(several)} of {len(kinds)} images, as of {next(iter(several.values()))}"
            if classes is None:  # as where an image shows several things
                raise Unusable(f"it {two}")
            raise DataError(f"{self._named(file)}: {two}; keep the right one")
        odd = "; its names differ from the images' in capitals or extension, as {} from {}" if otherwise else ""
        odd = odd.format(rows[0][of_images], images.find(rows[0][of_images]))
        if rounded:
            odd += f"; {len(rounded)} are written as {rounded[0]}.0 is, and taken for {rounded[0]}"
        return _Labels(kinds, called, odd)

    def _refuse_other_names(
        self, file: str, rows: list[Row], column: int, called: str, classes: set[str] | None
    ) -> None:
        """Raise DataError where a column names no class of the training images, and what is called so may be one: where
        it or these are numbers alone, or the same numbers are written otherwise.
        """
        if classes is None or any(kind_of(row, column, classes) for row in rows):
            return
        theirs, told = _numbers(classes), _numbers(new_kind(row[column]) for row in rows)
        if (theirs is None) != (told is None) or (theirs and told and theirs & told):
            raise DataError(
                f"{self._named(file)}: column {called} tells {rows[0][column]!r}, and none of its {len(rows)} labels "
                f"is a class of the training images (they are called {_some(classes)}); correct it, or {HELP}"
            )

    def _refuse_unclear(self, file: str, rows: list[Row], own: "ImagesByCell") -> None:
        """Raise DataError where a cell is the name of several images of a split but for capitals or extension."""
        for cell in (cell for row in rows for cell in row if PurePosixPath(cell).suffix.lower() in EXTENSIONS):
            if own.is_known(cell) and own.find(cell) is None:
                raise DataError(
                    f"{self._named(file)}: {cell} is the name of no image, and but for capitals or extension that of "
                    f"several; write the names that the images have, or {HELP}"
                )

    def _note_strays(self, file: str, rows: list[Row], first: int, of_images: int, images: "ImagesByCell") -> None:
        """Note the rows that name no image of a split, nor of those before."""
        numbered = list(enumerate(rows))[first:]
        told = {n: row[of_images] if of_images < len(row) else "" for n, row in numbered if any(row)}
        strays = {n: cell for n, cell in told.items() if not images.is_known(cell)}
        before = self._strays.get(file, strays)
        self._rows[file], self._strays[file] = len(told), {n: cell for n, cell in strays.items() if n in before}

    def _check_widths(self, file: str, heading: Row, rows: list[tuple[str, Row]]) -> None:
        """Raise DataError where a row holds more than the heading names; `rows` are by images."""
        for image, row in rows:
            if any(row[len(heading) :]):
                raise DataError(
                    f"{self._named(file)}: the row of {image} has {len(row)} values, its heading {len(heading)}; put "
                    "values that hold a separator in quotes"
                )

    def _check_splits(self, file: str, split: str, heading: Row, rows: list[tuple[str, Row]]) -> None:
        """Raise _OtherSplit where a column tells another split of an image than its folder; `rows` are by images."""
        for column in (n for n, called in enumerate(map(word, heading)) if called in COLUMNS):
            told = [(row[column], image) for image, row in rows if column < len(row)]
            others = [(cell, image) for cell, image in told if tells_other(cell, split_of(split))]
            if others:
                cell, image = others[0]
                raise _OtherSplit(
                    f"{self._named(file)}: column `{heading[column]}` tells other splits of {len(others)} of "
                    f"{len(rows)} images than their folders, which tell {split} ({cell!r} of {image}); move each "
                    "into a folder called as its split, or rename the column to do without it"
                )


def _only_other(rows: list[Row], of_images: int, images: ImagesByCell) -> list[int]:
    """The column beside that of the images, where a heading names two and each row has as many; else none."""
    is_headed = len(rows[0]) == 2 and images.find(rows[0][of_images]) is None
    return [1 - of_images] if is_headed and all(len(row) == 2 for row in rows if any(row)) else []


def _numbers(names: Iterable[str]) -> set[int] | None:
    """What names stand for where all are numbers."""
    every = set(names)
    return {int(name) for name in every} if all(name.isdecimal() for name in every) else None


def _some(classes: set[str] | None) -> str:
    names = sorted(classes or ())
    return ", ".join(map(repr, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")


def _complete(file: str, split: str, names: Sequence[str], found: _Labels) -> list[str | None]:
    """The class of each image of a split, None where it is withheld. Raises DataError where one is left out."""
    kinds = list[str | None]()
    for name in names:
        if name not in found.kinds:
            raise DataError(
                f"{file}: tells the classes of {len(found.kinds)} of {len(names)} images of {split}, and not that of "
                f"{name}; complete it, or {HELP}"
            )
        kinds.append(found.kinds[name])
    return kinds


def _tells(name: str, split: str) -> bool:
    try:
        return split_of(PurePosixPath(name).stem) == split_of(split)
    except DataError:  # of two splits
        return False


def _others(file: str, images: set[str], splits: Mapping[str, str]) -> set[str]:
    """Those of the images that a file names which lie in another split than its name tells."""
    return {name for name in images if split_of(splits.get(name, "")) not in (None, split_of(_stem(file)))}


def _on_other_splits(lists: Mapping[str, set[str]], splits: Mapping[str, str], labelled: bool) -> list[str]:
    """Remarks on images that lists name for other splits than their folders tell."""
    remarks = []
    for split in sorted({str(split_of(_stem(file))) for file in lists}):
        of_it = [file for file in lists if split_of(_stem(file)) == split]
        images = {name for file in of_it for name in _others(file, lists[file], splits)}
        found = " and ".join(sorted({splits[name] for name in images}))
        inside = "CLASS/" if labelled else ""
        rest = f", and the others into train/{inside}" if set(splits.values()) == {"train"} else ""
        remarks.append(
            f"{len(images)} images named by {', '.join(map(printable, of_it))} are in {found}, for folders alone tell "
            f"splits: if they are of {split}, move them into {split}/{inside}{rest}"
        )
    return remarks


def _stem(name: str) -> str:
    return PurePosixPath(name).stem


def _tells_any_split(name: str) -> bool:
    stem = _stem(name)
    try:
        return split_of(stem) is not None or "split" in stem.lower()
    except DataError:  # of two splits
        return True


def _is_known(name: str) -> bool:
    """Whether a file is a table by its name."""
    return PurePosixPath(name).suffix.lower() in (*TABLES, PARQUET)


def is_of_all(name: str) -> bool:
    """Whether a table is called as one for all splits below it."""
    return PurePosixPath(name).stem.lower() in _OF_ALL_SPLITS


def _up(folder: str) -> Iterator[PurePosixPath]:
    yield PurePosixPath(folder)
    yield from PurePosixPath(folder).parents


def _listed(names: list[str], what: str) -> str:
    shown = ", ".join(map(printable, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
    return f"{len(names)} {what} ({shown}) were"
