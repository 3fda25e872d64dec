"""What `emc2dist ingest` says of a set of pairs, in `manifest.json`, written last of all: a half-written set has none.

documents.parquet    id, text, split: string; split "" is of all splits
queries.parquet      id, text, split: string
relevance.parquet    query, document: int64, rows of the two; score: int16, more than 0 where the document answers;
                     else it was judged, or named by the source, not to
tokenizer.json       trained on the training texts (`emc2dist.data.texts.tokenizer`)
ingest.json          what decided the content of the set (`emc2dist.data.ingest.unfinished`)

Captions of a set of images lie in its folder `captions`, in the same files; there queries.parquet has instead of texts
row: int64, that of the image in its split.
"""

import hashlib
import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from emc2dist import files
from emc2dist.config import S3, Data
from emc2dist.data.catalogue import MANIFEST, UNFINISHED
from emc2dist.errors import DataError
from emc2dist.files import Place
from emc2dist.files.pointers import pointer

CAPTIONS = "captions"
"""The folder, in that of a set of images, of their captions."""
DOCUMENTS, QUERIES, RELEVANCE, TOKENIZER = "documents.parquet", "queries.parquet", "relevance.parquet", "tokenizer.json"
MOST_BYTES = 2**33
"""Bytes of text, UTF-8, of all queries and documents together: they are held in memory."""


class PairsManifest(BaseModel):
    """The manifest of a set of pairs."""

    model_config = ConfigDict(extra="forbid", strict=True)

    kind: Literal["pairs", "captions"] = "pairs"
    format: Literal[1] = 1
    version: str
    """emc2dist's, which wrote it."""
    queries: dict[str, int]
    """How many, by split."""
    documents: dict[str, int]
    """How many, by split; "" counts those of all splits."""
    relevance: int
    """Judgements: pairs of a query and a document with a score."""
    vocabulary: int
    """Tokens of the tokenizer."""
    text_bytes: int
    """Of all queries and documents, UTF-8."""
    files: dict[str, str]
    """SHA-256 of each file, hexadecimal."""
    images: dict[str, str] = {}
    """Of captions: the fingerprint of the images of each split; theirs are the queries."""
    dropped: int
    """Rows that could not be used and were left out."""
    remarks: list[str]
    """What was guessed, passed over, merged or dropped, with numbers."""


def read_pairs_manifest(folder: Place) -> PairsManifest:
    """The manifest of the set of pairs at `folder`.

    Raises:
        DataError: there is none, or an unfinished one, one of images or a damaged one. StorageError: it cannot be read.
    """
    if (folder / MANIFEST).entry() is None:
        if UNFINISHED in folder.folders():
            raise DataError(f"{folder}: an unfinished ingest; run the same `emc2dist ingest` again")
        raise DataError(
            f"{folder}: holds no set of pairs (no {MANIFEST}); make one with `emc2dist ingest SOURCE DEST`, or set "
            "data.kind: images"
        )
    content = (folder / MANIFEST).read()
    if what := pointer(content):
        raise DataError(f"{folder / MANIFEST}: {what}")
    if kind_of(content) == "images":
        meant = "captions" if (folder / CAPTIONS / MANIFEST).entry() else "images"
        raise DataError(
            f"{folder}: is a set of images, and data.kind is pairs; set data.kind: {meant}, or another path"
        )
    return _validated(folder / MANIFEST, content)


def _validated(place: Place, content: bytes) -> PairsManifest:
    try:
        return PairsManifest.model_validate_json(content)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise DataError(f"{place}: {key}: {problem['msg']}; ingest the set again") from error


def read_captions_manifest(folder: Place) -> PairsManifest:
    """The manifest of the captions of the set of images at `folder`.

    Raises:
        DataError: there is none, or no such set, or a damaged one. StorageError: it cannot be read.
    """
    place = folder / CAPTIONS / MANIFEST
    if place.entry() is None:
        what = "is no set of images" if (folder / MANIFEST).entry() is None else "its images have no captions"
        raise DataError(
            f"{folder}: {what} (no {CAPTIONS}/{MANIFEST}), and data.kind is captions; make one with `emc2dist ingest "
            "SOURCE DEST --captions auto`"
        )
    return _validated(place, place.read())


def pairs_manifest_at(data: Data, s3: S3 | None = None) -> tuple[Place, PairsManifest]:
    """The folder of the texts of `data.path`, which follows from `data.kind`, and their manifest.

    Raises as `read_pairs_manifest` or `read_captions_manifest`.
    """
    folder = files.at(data.path, s3)
    if data.kind == "captions":
        return folder / CAPTIONS, read_captions_manifest(folder)
    return folder, read_pairs_manifest(folder)


def kind_of(content: bytes) -> str | None:
    """What a manifest is of, `pairs` or `images`, whose own tells no kind; None where it is no manifest."""
    try:
        told = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(told, dict):
        return None
    return "images" if "kind" not in told and "classes" in told else told.get("kind")


def read_pinned(folder: Place, manifest: PairsManifest, name: str) -> bytes:
    """The whole of a file of the set, which is the one that the manifest tells of. Raises DataError where it is not."""
    content = (folder / name).read()
    if hashlib.sha256(content).hexdigest() != manifest.files.get(name):
        what = pointer(content) or f"not the file that {MANIFEST} tells of; ingest the set again"
        raise DataError(f"{folder / name}: {what}")
    return content
