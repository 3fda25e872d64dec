"""Sources of pairs on this machine's disk: which files they are of, and reading them.

a corpus    a folder with tables called `corpus` and `queries` (or folders of such) and judgements called `qrels`:
            BEIR's corpus.jsonl, queries.jsonl, qrels/test.tsv, or the same as Parquet
records     any other table, or a folder of tables, see `emc2dist.data.texts.formats`
texts       documents alone: a corpus without queries, tables of texts, or .txt of a text a line
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from emc2dist import files
from emc2dist.data.catalogue import MANIFEST, UNFINISHED, is_hidden, nothing_at
from emc2dist.data.ingest.kinds import images_below
from emc2dist.data.ingest.source import listing_digest, printable
from emc2dist.data.splits import alone, by_split, left_out, missing, together
from emc2dist.data.texts import formats
from emc2dist.data.texts.collection import Collection, Passage, shown
from emc2dist.data.texts.manifest import kind_of
from emc2dist.data.texts.records import LINES, TABLES, Record, fields_of, is_headed, is_table, records_of, shown_names
from emc2dist.errors import DataError, SpecError
from emc2dist.terminal import say

_QUERY_IDS = ("query-id", "query_id", "qid")
_DOCUMENT_IDS = ("corpus-id", "corpus_id", "doc_id", "docid", "pid")
_TEXTS = ("text", "query")
_HELP = {
    False: "call one so",
    True: "write a heading above it, if it is a row: query-id, corpus-id, score of judgements (of TREC's four columns "
    "leave out the second), _id, text of others; or call one so",
}
"""What would help where a value has none of the names that it needs, by whether the first line names the columns."""
_SHOWN = 3  # files that were passed over

_Columns = TypeVar("_Columns", formats.Columns, formats.TextColumns)


@dataclass(frozen=True)
class Source:
    """The files of a source of pairs."""

    root: Path
    parts: Mapping[str, list[Path]]
    """Of a corpus its tables by `corpus`, `queries` and `qrels`; of records all, by `records`; of texts by `texts`."""
    passed_over: list[str]

    @property
    def digest(self) -> str:
        """Of the names, sizes and times of its files."""
        every = sorted(file for part in self.parts.values() for file in part)
        entries = (files.entry_of(file)._replace(name=str(file.relative_to(self.root.parent))) for file in every)
        with files.explained(self.root):
            return listing_digest(entries)


def is_pairs(path: str) -> bool:
    """Whether what lies at a path is taken for pairs, by the names of files and columns.

    Raises:
        DataError: a file by itself is called as one of records, and its first is damaged.
        StorageError: it cannot be read.
    """
    if files.is_remote(path):
        return False
    place = files.local(path)
    with files.explained(path):
        if place.is_file():
            return is_table(path) and _has_pairs(place)
        if (place / MANIFEST).is_file():
            return kind_of((place / MANIFEST).read_bytes()) == "pairs"
        if not place.is_dir() or (place / UNFINISHED).exists():
            return False
        tables = _tables(place)
        if _corpus(place, tables):
            return True
        try:
            return bool(tables) and _has_pairs(tables[0]) and next(images_below(place), None) is None
        except DataError:  # a table beside images need not be one of records
            return False


def is_texts(path: str) -> bool:
    """Whether what lies at a path is taken for documents alone, by the names of files and columns: a corpus without
    queries, or tables of texts. Raises as `is_pairs` does.
    """
    if files.is_remote(path):
        return False
    place = files.local(path)
    with files.explained(path):
        if place.is_file():
            return is_table(path) and formats.are_texts(fields_of(place))
        if not place.is_dir() or any((place / name).exists() for name in (MANIFEST, UNFINISHED)):
            return False
        tables = _tables(place)
        try:
            if not tables or _part(place, tables, "queries") or next(images_below(place), None):
                return False
            return bool(_part(place, tables, "corpus")) or formats.are_texts(fields_of(tables[0]))
        except DataError:  # a table beside images need not be one of records
            return False


def find(path: str, *, alone: bool = False) -> Source:
    """The source of pairs at a path, or of documents `alone`.

    Raises:
        DataError: there is none. StorageError: it cannot be read.
    """
    if files.is_remote(path):
        raise DataError(f"{path}: pairs are read from a disk; copy the files to one first (aws s3 cp)")
    place = files.local(path)
    with files.explained(path):
        kinds, what = (*TABLES, LINES) if alone else TABLES, "texts" if alone else "records"
        if place.is_file() and not path.lower().endswith(kinds):
            raise DataError(
                f"{path}: is no {', '.join(kinds)}; write the {'texts' if alone else 'pairs'} as one, or unpack it"
            )
        if place.is_file():
            return Source(place, {what: [place]}, [])
        if not place.is_dir():
            raise nothing_at(path, "give the file or folder that holds the pairs")
        if (place / MANIFEST).is_file():
            raise DataError(f"{path}: is a finished set; train on it, or copy the folder")
        tables = _tables(place, kinds)
        corpus = _part(place, tables, "corpus")
        if alone:
            parts = {"texts": corpus or tables}
        elif corpus and not _part(place, tables, "queries"):
            raise DataError(
                f"{path}: holds a corpus and no queries; give these too, or its documents alone with --kind texts"
            )
        else:
            parts = _corpus(place, tables) or {"records": tables}
        if not tables:
            raise DataError(f"{path}: holds no {', '.join(kinds)}; give a folder that does, or such a file")
        if parts.get("qrels") == []:
            raise DataError(
                f"{path}: holds a corpus and queries, and no judgements; put them at qrels.tsv or qrels/SPLIT.tsv"
            )
        taken = {file for part in parts.values() for file in part}
        for file in taken:
            files.refuse_lost(file)
        return Source(place, parts, [printable(name) for name in _inside(place) if place / name not in taken])


def read(source: Source, chosen: Mapping[str, str], into: Collection) -> None:
    """Read a source. `chosen` are columns by what they are (`formats.parse_columns`).

    Raises:
        DataError: files do not hold what they should, or a row cannot be used, see `Collection`.
        SpecError: columns are chosen of a corpus. StorageError: a file cannot be read.
    """
    if source.passed_over:
        few = ", ".join(source.passed_over[:_SHOWN]) + (", ..." if len(source.passed_over) > _SHOWN else "")
        into.notes.append(f"{len(source.passed_over)} other files were passed over ({few})")
    if "records" in source.parts:
        _read_records(source, chosen, into)
        return
    if "texts" in source.parts:
        _read_texts(source, chosen, into)
        return
    if chosen:
        raise SpecError(f"--columns: {source.root} is a corpus with queries and judgements, whose columns are known")
    _read_corpus(source, into)


def _read_records(source: Source, chosen: Mapping[str, str], into: Collection) -> None:
    columns, verdicts = _columns(formats.columns_of, chosen, into), formats.Verdicts()
    for file, split in _split_of_each(source, "records", chosen, into).items():
        for where, values in _said(file, into):
            if not chosen and formats.is_tevatron(values):
                example = formats.of_tevatron(values)
            elif not chosen and formats.is_flag(values):
                example = formats.of_flag(values)
            else:
                known = columns(file, tuple(values))
                verdicts.look(known, values)
                example = known.example(values)
            into.example(where, example, split)
    verdicts.check(str(source.root))


def _split_of_each(source: Source, part: str, chosen: Mapping[str, str], into: Collection) -> dict[Path, str]:
    """The split of each table of a part; of one alone that tells none it is said which."""
    there = source.parts[part]
    splits = _by_split(source.root, there, into)
    if there == [source.root] and formats.SPLIT not in (*fields_of(source.root), *chosen):
        into.notes += alone(source.root)
    return splits


def _columns(
    columns_of: Callable[[str, tuple[str, ...], Mapping[str, str]], _Columns],
    chosen: Mapping[str, str],
    into: Collection,
) -> Callable[[Path, tuple[str, ...]], _Columns]:
    """What the columns of a table of such names are, looked at once; those that are not read are said."""

    @lru_cache
    def columns(file: Path, names: tuple[str, ...]) -> _Columns:
        found = columns_of(str(file), names, chosen)
        if unused := found.unused(names):
            note = f"columns that are not read: {', '.join(unused)}"
            into.notes += [note] * (note not in into.notes)
        return found

    return columns


def _read_texts(source: Source, chosen: Mapping[str, str], into: Collection) -> None:
    columns = _columns(formats.text_columns_of, chosen, into)
    for file, split in _split_of_each(source, "texts", chosen, into).items():
        for where, values in _said(file, into):
            known = columns(file, tuple(values))
            into.document(where, known.passage(values), formats.told_split(values, known.split) or split)


def _read_corpus(source: Source, into: Collection) -> None:
    for file in source.parts["corpus"]:
        for record in _said(file, into):
            into.document(record.where, Passage(formats.titled(record.values), _one_of(file, record, formats.IDS)))
    queries: dict[str, tuple[Passage, str | None]] = {}
    for file in source.parts["queries"]:
        for record in _said(file, into):
            name = str(_one_of(file, record, formats.IDS))
            query = Passage(_one_of(file, record, _TEXTS), name)
            if name in queries and queries[name][0] != query:
                into.refuse(record.where, f"the id {shown(name)} stands for another query already")
            queries.setdefault(name, (query, formats.told_split(record.values, formats.SPLIT)))
    asked = set()
    for file, split in _by_split(source.root, source.parts["qrels"], into).items():
        for record in _said(file, into):
            name, document = (str(_one_of(file, record, ids)) for ids in (_QUERY_IDS, _DOCUMENT_IDS))
            if name not in queries:
                into.refuse(record.where, f"no query has the id {shown(name)}")
                continue
            asked.add(name)
            query, own = queries[name]
            told = formats.told_split(record.values, formats.SPLIT) or (file.parent == source.root and own) or split
            into.judgement(record.where, query, document, _one_of(file, record, formats.SCORES), told)
    if len(asked) < len(queries):
        into.notes.append(f"{len(queries) - len(asked):,} of {len(queries):,} queries are judged nowhere and left out")


def _said(file: Path, into: Collection) -> Iterable[Record]:
    say(f"reading {file}")
    return records_of(file, into.refuse)


def _one_of(file: Path, record: Record, names: Iterable[str]) -> Any:
    """The value of the first of these names that a record of a file has. Raises DataError."""
    for name in names:
        if name in record.values:
            return record.values[name]
    shown = shown_names(file, record.values)
    raise DataError(f"{record.where}: no value called {' or '.join(names)}, but {shown}; {_HELP[is_headed(file)]}")


def _by_split(root: Path, tables: list[Path], into: Collection) -> dict[Path, str]:
    """The split of each file, by its name; files that belong to none are left out."""
    if tables == [root]:
        return {root: "train"}
    names = {str(file.relative_to(root)): file for file in tables}
    found, others = by_split(names)
    into.notes += together(found) + missing(names) + left_out(others)
    return {names[name]: split for split, of_split in found.items() for name in of_split}


def _has_pairs(file: Path) -> bool:
    """Whether a table's columns are those of pairs, none of bytes among them."""
    fields = fields_of(file)
    return all(fields.values()) and formats.may_be_pairs(fields)


def _corpus(folder: Path, tables: list[Path]) -> dict[str, list[Path]]:
    """The tables of a corpus by what they are; nothing where the folder is none."""
    parts = {part: _part(folder, tables, part) for part in ("corpus", "queries", "qrels")}
    return parts if parts["corpus"] and parts["queries"] else {}


def _part(folder: Path, tables: list[Path], part: str) -> list[Path]:
    """The tables of a corpus that are called as a part of one, or lie in a folder called so."""
    return [file for file in tables if file.stem == part or file.parent == folder / part]


def _tables(folder: Path, kinds: tuple[str, ...] = TABLES) -> list[Path]:
    return [folder / name for name in _inside(folder) if name.lower().endswith(kinds)]


def _inside(folder: Path) -> list[str]:
    """The files of a folder and of those in it that are not hidden, sorted. There may be millions, of images."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if entry.is_dir():
                with os.scandir(entry) as inner:
                    found += [f"{entry.name}/{one.name}" for one in inner if not (is_hidden(one.name) or one.is_dir())]
            else:
                found.append(entry.name)
    return sorted(found)
