"""The rows of a file that may tell labels: lines, values between separators, JSON, or Parquet."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

from emc2dist import files
from emc2dist.data.foreign import opened
from emc2dist.data.texts.records import is_bytes
from emc2dist.errors import DataError
from emc2dist.files import pointers

LONGEST = 2**26
"""Bytes of a list of splits, or of JSON."""
HELP = "move the file elsewhere to do without it"
Row = list[str]
_LONGEST_CELL = 2**17  # characters
_BATCH = 1024  # rows of Parquet that are made Python's at once
_SEPARATOR = re.compile(r"\s*sep=(\t|[^\s\"])\r?\n", re.IGNORECASE)  # a first line for spreadsheets


class Unusable(Exception):
    """Why a file tells no labels."""


class Unlabelled(Unusable):
    """A file tells that no image has a label."""


def rows_of(file: Path) -> Iterator[Row]:
    """The rows of a text, its heading first where it has one.

    Raises:
        Unusable: it is JSON that tells no labels, or holds bytes. DataError: it is no table. StorageError: it cannot be
            read.
    """
    if file.suffix.lower() == ".parquet":
        yield from _rows_of_parquet(file)
        return
    text = pointers.text(file)
    if file.suffix.lower() in (".jsonl", ".json"):
        yield from _objects(text) if file.suffix.lower() == ".jsonl" else _pairs(text)
        return
    told = _SEPARATOR.match(text)
    lines = text[told.end() if told else 0 :].splitlines()
    first = text.partition("\n")[0]
    if not told and file.suffix.lower() != ".csv" and "," not in first:
        separator = "\t" if "\t" in first else None
        yield from (line.split(separator) for line in lines)
        return
    separator = told[1] if told else max(",;\t", key=first.count)
    csv.field_size_limit(_LONGEST_CELL)  # of the process, where tables of texts have another
    try:
        yield from csv.reader(lines, delimiter=separator, skipinitialspace=True)
    except csv.Error as error:
        raise DataError(f"{file}: no table of values ({error}); correct it, or {HELP}") from error


def _rows_of_parquet(file: Path) -> Iterator[Row]:
    """Rows of a table, with the names of its columns for a heading. Raises Unusable."""
    with opened(files.at(file), files.entry_of(file)) as table:
        if any(is_bytes(field.type) for field in table.schema_arrow):
            raise Unusable("it holds bytes, as sets of images do; move it out of the folder to read it as one")
        yield table.schema_arrow.names
        for batch in table.iter_batches(_BATCH, use_threads=False):
            for values in batch.to_pylist():
                yield ["" if value is None else str(value) for value in values.values()]


def _objects(text: str) -> Iterator[Row]:
    """Lines of JSON objects as rows, with their keys for a heading. Raises Unusable."""
    try:
        objects = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        raise Unusable(f"it is no JSON of one object a line ({error})") from error
    if not all(isinstance(one, dict) for one in objects):
        raise Unusable("it is no JSON of one object a line")
    keys = list(dict.fromkeys(key for one in objects for key in one))
    if keys:
        yield keys
    for one in objects:
        yield ["" if one.get(key) is None else str(one[key]) for key in keys]


def _pairs(text: str) -> Iterator[Row]:
    """Pairs of an image and its class, under `labels` of a JSON object, as rows with a heading. Raises Unusable."""
    if len(text) > LONGEST:
        raise Unusable(f"it is JSON of more than {LONGEST} characters")
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        told = ...
    pairs = told.get("labels", ...) if isinstance(told, dict) else ...
    if pairs is None:
        raise Unlabelled("its `labels` are null")
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise Unusable(
            "it holds no pairs of image and class under `labels`; write it as labels.csv, if it tells classes"
        )
    yield ["image", "label"]
    yield from (["" if cell is None else str(cell) for cell in pair] for pair in pairs)
