"""What is said of images: captions beside them, as sources tell them (docs/captions.md).

tar       KEY.txt beside KEY.jpg, or a value of KEY.json
Parquet   a column of texts or of lists of texts
folder    a table (CSV, TSV, JSONL or Parquet) with a column of file names and one of captions
"""

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from emc2dist.data.ingest.source import printable, some
from emc2dist.data.texts.records import Refuse, fields_of, is_table, plain, records_of
from emc2dist.errors import DataError

AUTO = "auto"
"""Chooses what custom calls so."""
TXT = "txt"
"""What the members .txt of a tar are called."""
CUSTOM = ("caption", "captions", "text", "texts", "sentence", "sentences", "description")
"""Names of captions, in lower case."""
_FILES = ("file_name", "filename", "file", "image", "image_name", "image_file", "image_path", "path", "filepath")
"""Names of columns of file names, in lower case."""


def chosen_among(where: str, names: Iterable[str], name: str) -> str:
    """Which of these names `--captions name` means. Raises DataError where none is meant, or several could be."""
    known = list(names)
    found = [one for one in known if (one.lower() in CUSTOM if name == AUTO else one == name)]
    if len(found) == 1:
        return found[0]
    shown = plain(some(known)) or "nothing"
    what = f"{' and '.join(found)} could all be" if found else f"{'nothing' if name == AUTO else name} there for"
    raise DataError(f"{where}: {what} the captions, among {shown}; say which with --captions NAME")


def texts_of(value: Any) -> list[Any]:
    """The captions of a value: of a list each, of null none."""
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def of_tables(
    root: Path, tables: Sequence[str], images: Sequence[str], name: str, refuse: Refuse
) -> tuple[Mapping[str, list[Any]], list[str], list[str]]:
    """Captions of images by their names below a folder, as tables beside them tell; these tables, and remarks.

    Args:
        root: the folder.
        tables: names of its files that may be such tables.
        images: names of all images.
        name: FILE, FILE:COLUMN or COLUMN of captions, or `auto`.
        refuse: is told of a row that names no image.

    Raises:
        DataError: no table is one, or it is not clear which column is what.
    """
    file, column = name, AUTO
    if not is_table(name.partition(":")[0]):
        file, column = "", name
    elif ":" in name:
        file, _, column = name.partition(":")
    found: dict[str, list[Any]] = {}
    known, used, remarks = _Names(images), [], []
    for table in [file] if file else tables:
        place = Path(table) if file and not (root / table).exists() else root / table
        if not is_table(place.name):
            continue
        heads = {one: one.lower() for one in fields_of(place)}
        names = [one for one, lower in heads.items() if lower in _FILES]
        if not file and not (names and (column in heads or (column == AUTO and set(heads.values()) & {*CUSTOM}))):
            continue  # some other table
        if len(names) != 1:
            shown = " and ".join(names) if names else f"none of {', '.join(_FILES)}"
            raise DataError(f"{place}: the column of file names is not clear ({shown}); give one such a name")
        said = chosen_among(str(place), [one for one in heads if one not in names], column)
        used.append(table)
        rows = 0
        for where, values in records_of(place, refuse):
            rows += 1
            image = known.find(posixpath.dirname(table), values.get(names[0]))
            if image is None:
                refuse(where, f"no image is called {str(values.get(names[0]))[:100]!r}")
                continue
            found.setdefault(image, []).extend(texts_of(values.get(said)))
        unread = [one for one in heads if one not in (said, names[0])]
        also = f"; not read: {plain(', '.join(unread))}" if unread else ""
        remarks.append(f"captions by column `{said}` of {printable(table)}, {rows:,} rows{also}")
    if not remarks:
        raise DataError(
            f"{root}: no table beside the images has a column of file names ({_FILES[0]}) and one of captions "
            f"({CUSTOM[0] if column == AUTO else column}); name it with --captions FILE:COLUMN"
        )
    return found, used, remarks


class _Names:
    """Names of images, by what tables call them."""

    def __init__(self, images: Sequence[str]) -> None:
        self._images = set(images)
        self._of_base: dict[str, list[str]] = {}
        for image in images:
            self._of_base.setdefault(posixpath.basename(image), []).append(image)

    def find(self, folder: str, told: Any) -> str | None:
        """The image that a table in a folder calls so: by its path from there or from the root, or by a name that it
        has alone.
        """
        if not isinstance(told, str):
            return None
        for path in (posixpath.normpath(posixpath.join(folder, told)), posixpath.normpath(told)):
            if path in self._images:
                return path
        alike = self._of_base.get(posixpath.basename(told), [])
        return alike[0] if len(alike) == 1 else None
