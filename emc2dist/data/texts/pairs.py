"""One split of a set of pairs, in memory: texts by index, and which document answers which query.

The tables are read once, whole, from disk or S3, and have to be those that the manifest tells of. A pickled copy takes
its texts along and reads nothing.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from emc2dist.config import S3, Data
from emc2dist.data.catalogue import known_as
from emc2dist.data.encoded import Traffic
from emc2dist.data.texts.manifest import (
    DOCUMENTS,
    MOST_BYTES,
    QUERIES,
    RELEVANCE,
    TOKENIZER,
    PairsManifest,
    pairs_manifest_at,
    read_pinned,
)
from emc2dist.errors import DataError
from emc2dist.files import Place


class Texts:
    """Texts of one side by index, 0 <= index < len. Picklable; calls may come from several threads."""

    traffic = Traffic()
    """Nothing: all texts are in memory."""

    def __init__(self, texts: "pa.Array[Any]", ids: "pa.Array[Any]") -> None:
        self._texts, self._ids = texts, ids

    def __len__(self) -> int:
        return len(self._texts)

    def get(self, indices: NDArray[np.int64]) -> list[str]:
        """The texts in the order asked; an index may be asked for twice.

        Raises:
            IndexError: an index is out of range.
        """
        return self._taken(self._texts, indices)

    def ids(self, indices: NDArray[np.int64]) -> list[str]:
        """What the set calls these texts, in the order asked. Raises as `get` does."""
        return self._taken(self._ids, indices)

    def first(self, count: int) -> "Texts":
        """The first so many."""
        return Texts(self._texts.slice(0, count), self._ids.slice(0, count))

    def _taken(self, values: "pa.Array[Any]", indices: NDArray[np.int64]) -> list[str]:
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"indices {indices.min()}..{indices.max()} are outside 0..{len(self) - 1}")
        return values.take(pa.array(indices, pa.int64())).to_pylist()  # type: ignore[return-value]


class _Counted(Protocol):
    def __len__(self) -> int: ...


Queries = TypeVar("Queries", bound=_Counted)


@dataclass(frozen=True)
class Pairs(Generic[Queries]):
    """Queries of one split, documents, and which of these answer them. Its length counts both.

    Queries are `Texts`, or images whose captions the documents are (`emc2dist.data.captions`).
    """

    queries: Queries
    """Each has a document that answers it."""
    documents: Texts
    relevance: NDArray[np.int64]
    """Rows of a query and of a document that answers it, int64 [R, 2], in order of both."""
    scores: NDArray[np.int16]
    """How well it answers, int16 [R], each more than 0."""
    negatives: NDArray[np.int64]
    """Rows of a query and of a document that was judged, or named, not to answer it, int64 [K, 2], in order of both."""
    is_bijection: bool
    """Whether each query has one document and each document is that of one query: then both have the same row."""
    remarks: list[str]
    """What a person should know of the set and of this split, with numbers."""
    fingerprint: str
    """What tells these texts, their relation and their tokenizer from others, wherever they lie."""

    def __len__(self) -> int:
        return len(self.queries) + len(self.documents)


def open_pairs(data: Data, split: str, s3: S3 | None = None, *, corpus: bool = False) -> Pairs[Texts] | None:
    """The queries of a split of `data.path` that have a document with a score above 0, and the documents of that split
    and of all splits; with `corpus` those of every split. None where no query is of the split, but `train` has to be.

    `data.limit` keeps the first so many queries of `train`, and of a bijection their documents alone.

    Raises:
        DataError: there is no set of pairs, it is damaged or too large, or has no such query to train on; names
            data.kind where it is a set of images. StorageError: it cannot be read.
    """
    folder, manifest = pairs_manifest_at(data, s3)
    found = read_split(folder, manifest, split, data.limit, corpus=corpus)
    return None if found is None else found.pairs(texts_of(found.table, found.queries), [])


@dataclass(frozen=True)
class FoundSplit:
    """A split of a set of pairs, as its tables tell it."""

    table: pa.Table
    """Of the queries of all splits."""
    queries: NDArray[np.int64]
    """Rows of the table, int64 [Q], of those that are meant, in order."""
    documents: Texts
    relation: "_Relation"
    negatives: NDArray[np.int64]
    is_bijection: bool
    remarks: list[str]
    told: list[Any]
    """What tells it from others."""

    def pairs(self, queries: Queries, told: list[Any]) -> Pairs[Queries]:
        """The pairs; `told` is what tells `queries` from others besides."""
        return Pairs(
            queries=queries,
            documents=self.documents,
            relevance=self.relation.rows,
            scores=self.relation.scores,
            negatives=self.negatives,
            is_bijection=self.is_bijection,
            remarks=self.remarks,
            fingerprint=hashlib.sha256(json.dumps(self.told + told).encode()).hexdigest(),
        )


def read_split(
    folder: Place, manifest: PairsManifest, split: str, limit: int | None, *, corpus: bool
) -> FoundSplit | None:
    """What `open_pairs` opens, of the set in a folder; raises as it does. `limit` is `data.limit`."""
    _refuse_large(folder, manifest)
    split = known_as(split, manifest.queries)
    if split not in manifest.queries:
        if split != "train":
            return None
        if not manifest.queries:
            raise DataError(f"{folder}: holds documents without queries; set data.kind: texts, or ingest pairs")
        known = ", ".join(manifest.queries)
        raise DataError(f"{folder}: has no queries of split train, but {known}; call one so in SOURCE and ingest it")
    tables = [pq.read_table(pa.BufferReader(read_pinned(folder, manifest, name))) for name in (QUERIES, DOCUMENTS)]
    asked, offered = _of_splits(tables[0], {split}), _of_splits(tables[1], None if corpus else {split, ""})
    judged = _Relation.read(read_pinned(folder, manifest, RELEVANCE))
    relation, found = judged.taking(judged.scores > 0).among(asked, offered), len(asked)
    asked, relation = relation.answered(asked)
    remarks = list(manifest.remarks)
    if len(asked) < found:
        remarks.append(f"{split}: {found - len(asked):,} of {found:,} queries have no document and are left out")
    if not len(asked):
        if split != "train":
            return None
        raise DataError(f"{folder}: no query of split train has a document with a score above 0; give one that has")
    is_bijection = relation.is_bijection(len(asked), len(offered))
    if is_bijection:
        offered, relation = offered[relation.rows[:, 1]], _Relation.identity(relation.scores)
    if limit is not None and split == "train" and limit < len(asked):
        remarks.append(f"data.limit: the first {limit:,} of {len(asked):,} queries of train")
        asked, relation = asked[:limit], relation.taking(relation.rows[:, 0] < limit)
        offered = offered[:limit] if is_bijection else offered
    negatives = judged.taking(judged.scores <= 0).among(asked, offered)
    return FoundSplit(
        table=tables[0],
        queries=asked,
        documents=texts_of(tables[1], offered),
        relation=relation,
        negatives=negatives.rows[np.lexsort(negatives.rows.T[::-1])],
        is_bijection=is_bijection,
        remarks=remarks,
        told=[sorted(manifest.files.items()), split, corpus, len(asked), len(offered)],
    )


def open_alone(data: Data, s3: S3 | None = None) -> tuple[Texts, list[str], str] | None:
    """The documents of split train or of all of a set without queries, remarks on the set, and its fingerprint; None
    where it has queries. Raises as `open_pairs` does.
    """
    folder, manifest = pairs_manifest_at(data, s3)
    if manifest.queries:
        return None
    _refuse_large(folder, manifest)
    table = pq.read_table(pa.BufferReader(read_pinned(folder, manifest, DOCUMENTS)))
    rows = _of_splits(table, {"train", ""})
    if not len(rows):
        known = ", ".join(manifest.documents)
        raise DataError(f"{folder}: has no documents of split train, but {known}; call one so in SOURCE and ingest it")
    told = hashlib.sha256(json.dumps(sorted(manifest.files.items())).encode()).hexdigest()
    return texts_of(table, rows), list(manifest.remarks), told


def _refuse_large(folder: Place, manifest: PairsManifest) -> None:
    if manifest.text_bytes > MOST_BYTES:
        raise DataError(
            f"{folder}: {manifest.text_bytes:,} bytes of text, and {MOST_BYTES:,} are the most that are held in "
            "memory; make a smaller set"
        )


def load_tokenizer(data: Data, s3: S3 | None = None) -> str:
    """The JSON of the tokenizer that was trained on the set at `data.path`. Raises as `open_pairs` does."""
    folder, manifest = pairs_manifest_at(data, s3)
    return read_pinned(folder, manifest, TOKENIZER).decode()


@dataclass(frozen=True)
class _Relation:
    """Rows of queries and documents that are judged together, [R, 2] in order, and their scores [R]."""

    rows: NDArray[np.int64]
    scores: NDArray[np.int16]

    @staticmethod
    def read(content: bytes) -> "_Relation":
        """All judgements of a table."""
        table = pq.read_table(pa.BufferReader(content))
        rows = np.stack([table[name].to_numpy() for name in ("query", "document")], axis=1)
        scores = table["score"].to_numpy()
        order = np.lexsort(rows.T[::-1])
        return _Relation(rows[order], scores[order])

    @staticmethod
    def identity(scores: NDArray[np.int16]) -> "_Relation":
        """That of each row with the one of its own number."""
        return _Relation(np.repeat(np.arange(len(scores))[:, None], 2, axis=1), scores)

    def taking(self, chosen: NDArray[np.bool_]) -> "_Relation":
        """A part of it."""
        return _Relation(self.rows[chosen], self.scores[chosen])

    def among(self, queries: NDArray[np.int64], documents: NDArray[np.int64]) -> "_Relation":
        """What holds between some of the rows of each side, numbered anew by their places among these."""
        part = self.taking(np.isin(self.rows[:, 0], queries) & np.isin(self.rows[:, 1], documents))
        places = []
        for column, side in enumerate((queries, documents)):
            order = side.argsort()
            places.append(order[np.searchsorted(side, part.rows[:, column], sorter=order)])
        return _Relation(np.stack(places, axis=1), part.scores)

    def answered(self, queries: NDArray[np.int64]) -> "tuple[NDArray[np.int64], _Relation]":
        """Of the queries those that have a document, and the relation numbered by these."""
        numbers, places = np.unique(self.rows[:, 0], return_inverse=True)
        return queries[numbers], _Relation(np.stack([places, self.rows[:, 1]], axis=1), self.scores)

    def is_bijection(self, queries: int, documents: int) -> bool:
        """Whether each of so many queries and documents stands in it once."""
        return len(self.rows) == queries == documents == len(np.unique(self.rows[:, 1]))


def _of_splits(table: pa.Table, splits: set[str] | None) -> NDArray[np.int64]:
    """Rows whose split is one of these, or of any where these are None, ascending."""
    if splits is None:
        return np.arange(len(table))
    return np.flatnonzero(pc.is_in(table["split"], value_set=pa.array(sorted(splits), table["split"].type)).to_numpy())


def texts_of(table: pa.Table, rows: NDArray[np.int64]) -> Texts:
    """Those of some rows of a table, in that order."""
    of_rows = pa.array(rows, pa.int64())
    return Texts(*(table[name].cast(pa.large_string()).combine_chunks().take(of_rows) for name in ("text", "id")))
