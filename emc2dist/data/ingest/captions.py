"""The captions of a set of images, gathered from its source and written beside it: DEST/captions.

Each is read and checked before an image is written. Equal captions are one; a caption that stands in two splits is of
all where one of them is trained on, else of the first, as documents are (`emc2dist.data.texts.collection`). An image
that cannot be read takes its captions with it, unless another has them.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from emc2dist import __version__
from emc2dist.data.catalogue import MANIFEST
from emc2dist.data.ingest.source import Samples, Source, Split
from emc2dist.data.ingest.unfinished import JOB, Job, is_done
from emc2dist.data.parquet import ParquetImages
from emc2dist.data.texts.collection import Passage, Refusals, Side, Unusable
from emc2dist.data.texts.manifest import (
    CAPTIONS,
    DOCUMENTS,
    MOST_BYTES,
    QUERIES,
    RELEVANCE,
    TOKENIZER,
    PairsManifest,
    read_pinned,
)
from emc2dist.data.texts.records import plain
from emc2dist.data.texts.tables import counts, relevance_table, text_table, tokenizer_of
from emc2dist.errors import DataError
from emc2dist.files import Place
from emc2dist.terminal import say


@dataclass(frozen=True)
class Said:
    """Captions of the images of some splits."""

    side: Side
    of_image: Mapping[int, list[int]]
    """Rows of the captions of each image, by its position in the source."""
    dropped: int
    remarks: list[str]


def gather(source: Source, splits: Mapping[str, Split], name: str, *, skip: bool) -> Said:
    """The captions of the images of splits, by what `--captions` names.

    An image without any, and a caption that cannot be used, stop the work, or with `skip` are left out and counted.

    Raises:
        DataError: they do, or nothing in the source is called so.
    """
    side, refusals = Side("caption"), Refusals(skip=skip)
    of_image: dict[int, list[int]] = {}
    remarks, bare = list[str](), 0
    for split, part in splits.items():
        told, on_split = source.captions(part.positions, name, refusals.refuse)
        remarks += [remark for remark in on_split if remark not in remarks]
        for position, texts in zip(part.positions.tolist(), told, strict=True):
            rows = dict.fromkeys(_rows(source, position, split, texts, side, refusals))
            if rows:
                of_image[position] = list(rows)
                continue
            bare += 1
            if not texts:
                refusals.refuse(_where(source, position), "the image has no caption")
        if side.bytes > MOST_BYTES:
            raise DataError(f"{source.root}: more than {MOST_BYTES:,} bytes of captions; make a smaller set")
    if not side.texts:
        raise DataError(f"{source.root}: no image has a caption ({refusals.told}); give a source that has some")
    shared = sum(not side.splits[row] for row in side.several)
    numbers = {
        f"captions repeat another, {len(side.texts):,} differ": side.repeated,
        "captions stand in several splits and are of all": shared,
        "captions stand in several splits, none of them train, and are of the first": len(side.several) - shared,
        "images have no caption, and are none of data.kind: captions": bare,
        refusals.told: refusals.dropped,
    }
    remarks += [plain(f"{number:,} {what}") for what, number in numbers.items() if number]
    return Said(side, of_image, refusals.dropped, remarks)


def _rows(
    source: Source, position: int, split: str, texts: Sequence[object], side: Side, refusals: Refusals
) -> Iterator[int]:
    for text in texts:
        passage = Passage(text)
        try:
            side.claim("", passage)
        except Unusable as error:
            refusals.refuse(_where(source, position), str(error))
            continue
        yield side.add("", passage, split)


def _where(source: Source, position: int) -> str:
    return f"{source.root}/{source.samples(np.array([position])).where(0)}"


@dataclass(frozen=True)
class Written:
    """The images of a split as they were written."""

    images: ParquetImages
    positions: NDArray[np.int64]
    """Where each image stands in the source, in the order of the set, int64 [n]; those that were left out too."""
    samples: Samples
    """The images at these positions."""


def write(
    said: Said, dest: Place, splits: Mapping[str, Written], unreadable: Sequence[str], vocabulary: int
) -> PairsManifest:
    """Write the captions beside the set at `dest`, and return their manifest; the very same may be there already.

    `unreadable` are the set's lines on images that were left out.

    Raises:
        DataError: there are others already.
    """
    place = dest / CAPTIONS
    queries, of_split, scores = _queries(said, splits, unreadable)
    kept = sorted({row for _, row in scores})
    number = {row: place_of for place_of, row in enumerate(kept)}
    order, identity = np.array(kept, np.int64), np.arange(max(len(kept), len(queries)))
    relevance = {(query, number[row]): 1 for query, row in scores}
    tables = {
        DOCUMENTS: text_table(said.side, order),
        QUERIES: queries,
        RELEVANCE: relevance_table(relevance, (identity[: len(queries)], identity[: len(kept)])),
    }
    fingerprints = {name: split.images.fingerprint for name, split in splits.items()}
    job: Job = {"kind": "captions", "vocabulary": vocabulary, "images": fingerprints, "captions": _digest(tables)}
    if is_done(place, job):
        say(f"{place}: these very captions are there already")
        return _kept(place)
    remarks = list(said.remarks)
    tokenizer, tokens = tokenizer_of([said.side], vocabulary, remarks)
    digests = {TOKENIZER: hashlib.sha256(tokenizer.encode()).hexdigest()}
    for name, table in tables.items():
        content = pa.BufferOutputStream()
        pq.write_table(table, content, compression="zstd")
        written = content.getvalue().to_pybytes()
        digests[name] = hashlib.sha256(written).hexdigest()
        (place / name).write(written)
    (place / TOKENIZER).write(tokenizer.encode())
    manifest = PairsManifest(
        kind="captions",
        version=__version__,
        queries=of_split,
        documents=counts(said.side.splits[row] for row in kept),
        relevance=len(relevance),
        vocabulary=tokens,
        text_bytes=said.side.bytes,
        files=digests,
        images=fingerprints,
        dropped=said.dropped,
        remarks=remarks,
    )
    (place / JOB).write(json.dumps(job).encode())
    (place / MANIFEST).write(manifest.model_dump_json(indent=1).encode())
    return manifest


def _queries(
    said: Said, splits: Mapping[str, Written], unreadable: Sequence[str]
) -> tuple[pa.Table, dict[str, int], list[tuple[int, int]]]:
    """The images that have captions, split by split in the order of the set, and how many of each; and pairs of one's
    row and a caption's.
    """
    ids, rows, names, pairs = list[str](), list[int](), list[str](), list[tuple[int, int]]()
    for name, split in splits.items():
        row = 0
        for k, position in enumerate(split.positions.tolist()):
            if len(split.images) < len(split.positions) and _is_left_out(split.samples.where(k), unreadable):
                continue
            captions = said.of_image.get(position, [])
            if captions:
                pairs += [(len(rows), caption) for caption in captions]
                ids.append(split.samples.path(k) or f"{name}/{row}")
                rows.append(row)
                names.append(name)
            row += 1
        if row != len(split.images):
            raise DataError(f"{split.images.catalogue.places[0]}: not the set that was written; ingest it again")
    columns = {"id": pa.array(ids, pa.large_string()), "row": pa.array(rows, pa.int64())}
    return pa.table({**columns, "split": pa.array(names, pa.large_string())}), counts(names), pairs


def _is_left_out(where: str, unreadable: Sequence[str]) -> bool:
    return any(line.startswith(f"{where}: ") for line in unreadable)


def _digest(tables: Mapping[str, pa.Table]) -> str:
    """Of the content of tables, SHA-256, hexadecimal."""
    digest = hashlib.sha256()
    for table in tables.values():
        for column in table.columns:
            digest.update(json.dumps(column.to_pylist()).encode())
    return digest.hexdigest()


def _kept(place: Place) -> PairsManifest:
    """The manifest of the captions in a folder, whose files are there as it tells. Raises DataError where not."""
    manifest = PairsManifest.model_validate_json((place / MANIFEST).read())
    for name in manifest.files:
        read_pinned(place, manifest, name)
    return manifest
