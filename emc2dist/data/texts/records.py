"""Rows of Parquet, JSONL and CSV as records: named values, and where they stand. Of a .txt each line is a `text`.

Bytes that are not UTF-8 come through as lone surrogates, as do such escapes in JSON, so that whoever takes a text can
tell which row they stand in.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from emc2dist import files
from emc2dist.data.foreign import opened
from emc2dist.errors import DataError
from emc2dist.files import pointers

LONGEST_LINE = 10 * 2**20
"""Bytes of a line of JSONL or CSV."""
TABLES = (".parquet", ".jsonl", ".csv", ".tsv")
"""Extensions of files that hold records."""
LINES = ".txt"
"""Extension of files that hold a text a line."""
_SHOWN_CHARACTERS = 40  # of a column's name
_BATCH = 1024  # rows of Parquet that are made Python's at once

Refuse = Callable[[str, str], None]
"""Called with where a row stands and what is wrong with it: raises DataError, or notes that the row is dropped."""


class Record(NamedTuple):
    """A row of a table."""

    where: str
    """File and row, counted as that kind of file is: lines from 1, rows of Parquet from 0."""
    values: dict[str, Any]


def plain(text: str) -> str:
    """Text on one line that is proper Unicode: what is not, or is not seen, is escaped."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def is_table(name: str) -> bool:
    """Whether a file is taken for one of records, by its name."""
    return name.lower().endswith(TABLES)


def shown_names(file: Path, names: Iterable[str]) -> str:
    """The names of a table's columns, their beginnings, as a message shows them; and where a heading was taken from."""
    shown = ", ".join(plain(name)[:_SHOWN_CHARACTERS] for name in names) or "no columns"
    return shown + " (its first line, which is taken for the heading)" * is_headed(file)


def is_headed(file: Path) -> bool:
    """Whether a table's first line names the columns, by its name."""
    return file.suffix.lower() in (".csv", ".tsv")


def fields_of(file: Path, refuse: Refuse | None = None) -> dict[str, bool]:
    """The names of a table's columns, of JSONL those of its first record, and whether each can be a value of text.

    `refuse` is told of a first row that is none; by default it is an ingest's.

    Raises:
        DataError: it is no such table. StorageError: it cannot be read.
    """
    if file.suffix.lower() == ".parquet":
        place = files.at(file)
        with opened(place, files.entry_of(file)) as table:
            return {field.name: not is_bytes(field.type) for field in table.schema_arrow}
    first = next(records_of(file, refuse or stop), None)
    return {} if first is None else dict.fromkeys(first.values, True)


def records_of(file: Path, refuse: Refuse) -> Iterator[Record]:
    """The records of a table, in order, without those that are refused.

    Raises:
        DataError: it is no table, or damaged as a whole. StorageError: it cannot be read.
    """
    pointers.refuse(file)
    kind = file.suffix.lower()
    return {".parquet": _parquet, ".jsonl": _jsonl, LINES: _texts}.get(kind, _csv)(file, refuse)


def stop(where: str, what: str) -> None:
    """The `Refuse` that raises."""
    raise DataError(f"{where}: {plain(what)}; correct it, or leave such rows out with --skip-unreadable")


def _parquet(file: Path, refuse: Refuse) -> Iterator[Record]:
    row = 0
    with files.explained(file), opened(files.at(file), files.entry_of(file)) as table:
        _refuse_twice(file, table.schema_arrow.names)
        for batch in table.iter_batches(_BATCH, use_threads=False):
            columns = {name: _values(column) for name, column in zip(batch.schema.names, batch.columns, strict=True)}
            for n in range(batch.num_rows):
                yield Record(f"{file}, row {row + n}", {name: values[n] for name, values in columns.items()})
            row += batch.num_rows


def _values(column: Any) -> list[Any]:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not any(test(column.type) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)):
        return column.to_pylist()
    return [None if value is None else _decoded(value) for value in column.cast(pa.large_binary()).to_pylist()]


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a column holds bytes, or structs with some, as those of images do."""
    if pa.types.is_struct(kind):
        return any(is_bytes(kind.field(n).type) for n in range(kind.num_fields))
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _jsonl(file: Path, refuse: Refuse) -> Iterator[Record]:
    for number, line in _lines(file, refuse):
        where = f"{file}, line {number}"
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            refuse(where, f"no JSON ({error})")
            continue
        if isinstance(values, dict):
            yield Record(where, values)
        else:
            named = ', but a list: name its values, as in {"query": ..., "document": ...}'
            refuse(where, "no JSON object" + named * isinstance(values, list))


def _texts(file: Path, refuse: Refuse) -> Iterator[Record]:
    for number, line in _lines(file, refuse):
        if line.strip():
            yield Record(f"{file}, line {number}", {"text": line.removesuffix("\n").removesuffix("\r")})


def _csv(file: Path, refuse: Refuse) -> Iterator[Record]:
    """Records after a heading; a value in quotes may go over several lines."""
    at = 1

    def lines() -> Iterator[str]:
        nonlocal at
        for at, line in _lines(file, refuse):  # noqa: B007  (the reader takes no line before it needs it)
            yield line

    rest = lines()
    first = next(rest, "")
    separator = "\t" if file.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
    reader = csv.reader(chain([first], rest), delimiter=separator, strict=True)
    heading: list[str] | None = None
    while True:
        csv.field_size_limit(LONGEST_LINE)  # of the process, where tables of labels have another
        try:
            cells = next(reader, None)
        except csv.Error as error:  # what follows cannot be told apart any more
            raise DataError(f"{file}, line {at}: no row of values ({error}); correct the file") from error
        if cells is None:
            return
        if heading is None:
            heading = cells
            _refuse_twice(file, heading, " in its first line, which is taken for the heading: write one above it, or")
        elif len(cells) == len(heading):
            yield Record(f"{file}, line {at}", dict(zip(heading, cells, strict=True)))
        elif cells:
            refuse(f"{file}, line {at}", f"{len(cells)} values under {len(heading)} headings")


def _refuse_twice(file: Path, names: list[str], rest: str = ";") -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{file}: two columns are called {twice[:_SHOWN_CHARACTERS]!r}{rest} rename one")


def _lines(file: Path, refuse: Refuse) -> Iterator[tuple[int, str]]:
    """The lines of a file, with their numbers, those left out that are too long."""
    with files.explained(file), file.open("rb") as stream:
        number = 0
        while line := stream.readline(LONGEST_LINE + 1):
            number += 1
            if len(line) > LONGEST_LINE:
                refuse(f"{file}, line {number}", f"a line of more than {LONGEST_LINE:,} bytes")
                while line and not line.endswith(b"\n"):
                    line = stream.readline(LONGEST_LINE)
                continue
            yield number, _decoded(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)


def _decoded(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")
