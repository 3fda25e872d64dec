"""`emc2dist ingest SOURCE DEST` of pairs: read and checked whole, written whole or not at all, the manifest last."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from emc2dist import __version__, files
from emc2dist.config import S3
from emc2dist.data.catalogue import MANIFEST, UNFINISHED
from emc2dist.data.ingest import within
from emc2dist.data.ingest.source import printable
from emc2dist.data.ingest.unfinished import JOB, Job, Unfinished, is_done
from emc2dist.data.texts import formats, sources
from emc2dist.data.texts.collection import Collection
from emc2dist.data.texts.manifest import (
    DOCUMENTS,
    QUERIES,
    RELEVANCE,
    TOKENIZER,
    PairsManifest,
    read_pairs_manifest,
    read_pinned,
)
from emc2dist.data.texts.tables import VOCABULARY, counts, relevance_table, text_table, tokenizer_of
from emc2dist.data.texts.tokenizer import check_vocabulary
from emc2dist.errors import DataError, SpecError
from emc2dist.files import Place
from emc2dist.terminal import say


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
        remarks.append(
            f"no query is of split train, but of {', '.join(counts(asked.splits))}: nothing can be trained on it"
        )
    tokenizer, tokens = tokenizer_of((asked, offered), vocabulary, remarks)
    tables = {
        DOCUMENTS: text_table(offered, orders[1]),
        QUERIES: text_table(asked, orders[0]),
        RELEVANCE: relevance_table(gathered.scores, orders),
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
            queries=counts(asked.splits),
            documents=counts(offered.splits),
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


def _sha256(file: Path) -> str:
    with files.explained(file), file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
