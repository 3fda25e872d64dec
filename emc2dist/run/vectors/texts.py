"""Features of any texts by a run's encoder, as Parquet: id string, text string, feature float32 [D].

A source is a text file, a text a line, or a table (Parquet, JSONL, CSV, TSV) with a column of texts. A text's id is
what a column `_id`, `id`, `docid` or `query_id` says, else its number from 0. Texts go through by the thousand, so
memory does not grow with them.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from emc2dist import files
from emc2dist.config import S3
from emc2dist.data.texts.collection import Passage, Side, Unusable
from emc2dist.data.texts.formats import titled
from emc2dist.data.texts.records import LONGEST_LINE, Record, fields_of, is_table, plain, records_of
from emc2dist.errors import DataError
from emc2dist.run.loaded import LoadedCheckpoint
from emc2dist.run.scratch import temporary
from emc2dist.run.texts import Encoding
from emc2dist.run.vectors.lasting import lasting
from emc2dist.terminal import say

_IDS = ("_id", "id", "docid", "query_id")
_TITLE, _TEXT = "title", "text"
_PACKED = {
    b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd",
}  # fmt: skip
_AT_ONCE = 1_024  # texts in memory
_SAID = 65_536  # texts between two messages


def embed_texts(
    newest: LoadedCheckpoint,
    source: str | Path,
    out: str | Path,
    *,
    s3: S3,
    side: str = "query",
    column: str = "text",
) -> dict[str, Any]:
    """Write the unit-norm feature of each text of a file, in its order, as Parquet at `out`, whole or not at all.

    Args:
        newest: a checkpoint of a run over texts, whose encoder is asked.
        source: a file on this machine.
        out: a file on disk or S3.
        side: `query` or `document`: whose prompt and length texts are given.
        column: of a table, the one of texts.
        s3: how it is reached.

    Raises:
        DataError: a text is empty, too long or no UTF-8, or an id is no text; names the row. Or there is no such
        column, or no text. NonFiniteError: the run has diverged. StorageError: `source` cannot be read, or `out` not
        written.
    """
    place = files.at(out, s3)
    files.refuse_folder(out)
    place.entry() if place.remote else files.writable(out)  # before anything is read
    records, remarks = _records(files.local(source), column)
    encoding = Encoding.of(newest)
    width = newest.encoder.features
    feature = pa.list_(pa.float32(), width)
    told: dict[Any, Any] = {"checkpoint": lasting(newest.place), "side": side}
    schema = pa.schema([("id", pa.string()), ("text", pa.string()), ("feature", feature)], told)
    done = 0
    with temporary("emc2-embed-") as scratch, files.explained(scratch):
        draft = Path(scratch) / "features.parquet"
        with pq.ParquetWriter(draft, schema) as writer:
            for some in _chunks(_named(records, column)):
                ids, texts = zip(*some, strict=True)
                features = pa.FixedSizeListArray.from_arrays(pa.array(encoding.features(texts, side).ravel()), width)
                writer.write_batch(pa.record_batch([list(ids), list(texts), features], schema=schema))
                if (done + len(some)) // _SAID > done // _SAID:
                    say(f"{done + len(some):,} texts")
                done += len(some)
        if not done:
            raise DataError(f"{source}: holds no text; give a file with one a line, or a table with a column of them")
        place.put(draft)
    remarks = [*newest.remarks, *remarks]
    return {**told, "out": str(place), "texts": done, "width": width, "remarks": remarks}


def _records(file: Path, column: str) -> tuple[Iterator[Record], list[str]]:
    """The records of a file, and which of its columns are not read, said."""
    if not is_table(file.name):
        _refuse_no_text(file)
        return _lines(file, column), []
    names = list(fields_of(file, _refuse))
    if names and column not in names:
        raise DataError(f"{file}: has no column {column!r}, but {plain(', '.join(names))}; say which: --column NAME")
    of_id = next((name for name in _IDS if name in names), None)
    unread = [name for name in names if name not in (column, of_id)]
    joined = column == _TEXT and _TITLE in unread
    unread = [name for name in unread if not (joined and name == _TITLE)]
    remarks = [f"columns that are not read: {plain(', '.join(unread))}"] if unread else []
    remarks += [f"{_TITLE} and {_TEXT} of each row are one text, as `emc2dist ingest` has it"] if joined else []
    for remark in remarks:
        say(remark)
    return records_of(file, _refuse), remarks


def _refuse_no_text(file: Path) -> None:
    """Raise DataError where a file that is to be one of texts is none by its name or its first bytes."""
    with files.explained(file), file.open("rb") as stream:
        begin = stream.read(max(map(len, _PACKED)))
    packed = next((how for magic, how in _PACKED.items() if begin.startswith(magic)), None)
    if packed:
        raise DataError(f"{file}: is packed ({packed}); unpack it, and give what that writes")
    if file.suffix.lower() == ".json":
        raise DataError(
            f"{file}: is neither a text a line nor a table; write a JSON object a line and call it {file.stem}.jsonl"
        )


def _lines(file: Path, column: str) -> Iterator[Record]:
    """The lines of a text file, as records of one value."""
    with files.explained(file), file.open("rb") as stream:
        number = 0
        while line := stream.readline(LONGEST_LINE + 1):
            number += 1
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            yield Record(f"{file}, line {number}", {column: text.decode("utf-8", "surrogateescape").rstrip("\r\n")})


def _named(records: Iterator[Record], column: str) -> Iterator[tuple[str, str]]:
    """Id and text of each record. Raises DataError, which names it, where one is of no use."""
    for number, (place, values) in enumerate(records):
        side = Side("text")  # of this one alone: it remembers all it has seen
        told = next((values[name] for name in _IDS if name in values), number)
        try:
            value = titled(values) if column == _TEXT and _TITLE in values else values.get(column)
            text = side.claim("", Passage(value, number if told is None else told))
        except Unusable as error:
            _refuse(place, str(error))
        ((_, name),) = side.of_id
        yield name, text


def _chunks(rows: Iterator[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    while some := list(islice(rows, _AT_ONCE)):
        yield some


def _refuse(place: str, what: str) -> NoReturn:
    raise DataError(f"{place}: {plain(what)}; correct it, or leave it out of the file")
