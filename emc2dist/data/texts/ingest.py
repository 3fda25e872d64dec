"""`emc2dist ingest SOURCE DEST` of pairs: read and checked whole, written whole or not at all, the manifest last."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from emc2dist import __version__, files
from emc2dist.config import S3
from emc2dist.data.catalogue import MANIFEST, UNFINISHED
from emc2dist.data.ingest import within
from emc2dist.data.ingest.source import printable
from emc2dist.data.ingest.unfinished import JOB, Job, Unfinished, is_done
from emc2dist.data.texts import formats, sources
from emc2dist.data.texts.collection import Collection, Side
from emc2dist.data.texts.manifest import (
    DOCUMENTS,
    QUERIES,
    RELEVANCE,
    TOKENIZER,
    PairsManifest,
    read_pairs_manifest,
    read_pinned,
)
from emc2dist.data.texts.tokenizer import check_vocabulary, train_tokenizer, vocabulary_size
from emc2dist.errors import DataError, SpecError
from emc2dist.files import Place
from emc2dist.terminal import say

VOCABULARY = 16_384
_MOST_TEXTS = 2**20  # that a tokenizer is trained on


def ingest_pairs(
    source: str,
    dest: str,
    *,
    alone: bool = False,
    columns: str = "",
    vocabulary: int = VOCABULARY,
    seed: int = 0,
    keep_order: bool = False,
    skip_unreadable: bool = False,
    s3: S3 | None = None,
) -> dict[str, Any]:
    """Write the pairs at `source` to the folder `dest`, a path or an s3:// URI; returns what was written.

    `alone`: documents without queries, for `data.kind: texts`. `columns` says which column is what, as in
    `query=COL,document=COL`, where names do not tell. `vocabulary` bounds the tokenizer's tokens. Queries and documents
    are shuffled by `seed`, or stand in the source's order with `keep_order`. Rows that cannot be used stop the work, or
    with `skip_unreadable` are dropped, and counted.

    Returns: dest, queries and documents by split ("" are documents of all splits), relevance (judgements), bytes,
    vocabulary, dropped, remarks, seconds.

    Raises:
        SpecError: an argument is out of range. DataError: source or destination cannot be used as asked; names file
            and row. StorageError: source or destination cannot be reached.
    """
    began = time.monotonic()
    if seed < 0:
        raise SpecError(f"--seed {seed}: give 0 or more")
    check_vocabulary(vocabulary)
    chosen, place = formats.parse_columns(columns), files.at(dest, s3)
    found = sources.find(source, alone=alone)
    if within(dest, source):
        raise DataError(f"{dest}: is the source, or lies in it; give a DEST beside it")
    order = None if keep_order else seed
    job: Job = {
        "kind": "pairs",
        "source": found.digest,
        "columns": chosen,
        **({"alone": True} if alone else {}),
        "vocabulary": vocabulary,
        "seed": order,
    }
    if is_done(place, job):
        say(f"{place}: this very set is finished already")
        (place / UNFINISHED).remove()  # which a run that was killed at the very end leaves
        manifest = read_pairs_manifest(place)
        for name in manifest.files:
            read_pinned(place, manifest, name)
        if manifest.dropped and not skip_unreadable:
            raise DataError(
                f"{place}: finished already, but without {manifest.dropped} rows; give --skip-unreadable if that is "
                "meant, or remove the set and correct them"
            )
    else:
        _refuse_others(place)
        unfinished = Unfinished(place, job)
        gathered = Collection(skip=skip_unreadable)
        sources.read(found, chosen, gathered)
        if not (gathered.documents if alone else gathered.queries).texts:
            told, what = "; ".join(gathered.remarks), "document" if alone else "query with a document"
            raise DataError(f"{source}: no {what} ({told or 'no rows'}); give rows that hold some")
        manifest = _write(gathered, place, unfinished, job)
    for remark in manifest.remarks:
        say(remark)
    return {
        "dest": str(place),
        "queries": manifest.queries,
        "documents": manifest.documents,
        "relevance": manifest.relevance,
        "bytes": sum(entry.size for entry in place.entries() if entry.name in manifest.files),
        "vocabulary": manifest.vocabulary,
        "dropped": manifest.dropped,
        "remarks": manifest.remarks,
        "seconds": time.monotonic() - began,
    }


def _refuse_others(dest: Place) -> None:
    """Raise DataError where a folder holds anything and no notes of an ingest: `Unfinished` looks at those."""
    folders, entries = dest.folders(), dest.entries()
    if (folders or entries) and UNFINISHED not in folders:
        one = entries[0].name if entries else f"{folders[0]}/"
        raise DataError(f"{dest}: holds {printable(one)}, and is no set of pairs; give a new folder as DEST")


def _write(gathered: Collection, dest: Place, unfinished: Unfinished, job: Job) -> PairsManifest:
    """Write the set, shuffled by the job's seed, and return its manifest."""
    seed, vocabulary = job["seed"], job["vocabulary"]
    remarks = gathered.remarks
    asked, offered = gathered.queries, gathered.documents
    random = None if seed is None else np.random.default_rng(seed)
    orders = [np.arange(len(s.texts)) if random is None else random.permutation(len(s.texts)) for s in (asked, offered)]
    if not asked.texts:
        remarks.append(f"{len(offered.texts):,} documents, no query: data.kind: texts trains on these, pairs cannot")
    elif "train" not in asked.splits:
        remarks.append(f"no query is of split train, but of {', '.join(_counts(asked))}: nothing can be trained on it")
    say(f"training a tokenizer of at most {vocabulary:,} tokens")
    tokenizer = train_tokenizer(_sample((asked, offered), remarks), vocabulary)
    tokens = vocabulary_size(tokenizer)
    if tokens < vocabulary:
        remarks.append(f"vocabulary: {tokens:,} tokens and not {vocabulary:,}, for the texts have no more words")
    tables = {
        DOCUMENTS: _texts(offered, orders[1]),
        QUERIES: _texts(asked, orders[0]),
        RELEVANCE: _relevance(gathered.scores, orders),
    }
    digests = {TOKENIZER: hashlib.sha256(tokenizer.encode()).hexdigest()}
    with unfinished.drafts() as drafts:
        for name, table in tables.items():
            pq.write_table(table, drafts / name, compression="zstd")
            digests[name] = _sha256(drafts / name)
            (dest / name).put(drafts / name)
        (dest / TOKENIZER).write(tokenizer.encode())
        manifest = PairsManifest(
            version=__version__,
            queries=_counts(asked),
            documents=_counts(offered),
            relevance=len(gathered.scores),
            vocabulary=tokens,
            text_bytes=asked.bytes + offered.bytes,
            files=digests,
            dropped=gathered.dropped,
            remarks=remarks,
        )
        (dest / JOB).write(json.dumps(job).encode())
        (dest / MANIFEST).write(manifest.model_dump_json(indent=1).encode())
    unfinished.remove()
    return manifest


def _sample(sides: Sequence[Side], remarks: list[str]) -> Iterable[str]:
    """The texts that the tokenizer is trained on: those of training, or all where there are none; so many at most."""
    texts = [
        text for side in sides for text, split in zip(side.texts, side.splits, strict=True) if split in ("train", "")
    ]
    if not texts:
        texts = [text for side in sides for text in side.texts]
        remarks.append("the tokenizer is trained on the texts of all splits, for none is of training")
    if len(texts) <= _MOST_TEXTS:
        return texts
    remarks.append(f"the tokenizer is trained on {_MOST_TEXTS:,} of {len(texts):,} texts, drawn at random")
    return (texts[n] for n in np.random.default_rng(0).choice(len(texts), _MOST_TEXTS, replace=False))


def _counts(side: Side) -> dict[str, int]:
    """Texts of each split, train first."""
    counts = Counter(side.splits)
    return {split: counts[split] for split in sorted(counts, key=lambda split: (split != "train", split))}


def _texts(side: Side, order: NDArray[np.int64]) -> pa.Table:
    columns = {"id": side.ids, "text": side.texts, "split": side.splits}
    return pa.table({name: pa.array(values, pa.large_string()) for name, values in columns.items()}).take(order)


def _relevance(scores: dict[tuple[int, int], int], orders: Sequence[NDArray[np.int64]]) -> pa.Table:
    """Judgements by the rows of the two tables, in order of both."""
    rows = np.array(list(scores), np.int64).reshape(-1, 2)
    places = np.stack([np.argsort(order)[rows[:, column]] for column, order in enumerate(orders)], axis=1)
    sorted_ = np.lexsort(places.T[::-1])
    grades = np.fromiter(scores.values(), np.int16, len(scores))
    return pa.table({"query": places[sorted_, 0], "document": places[sorted_, 1], "score": grades[sorted_]})


def _sha256(file: Path) -> str:
    with files.explained(file), file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
