"""What `emc2dist ingest` says of a set of pairs, in `manifest.json`, written last of all: a half-written set has none.

documents.parquet    id, text, split: string; split "" is of all splits
queries.parquet      id, text, split: string
relevance.parquet    query, document: int64, rows of the two; score: int16, more than 0 where the document answers;
                     else it was judged, or named by the source, not to
tokenizer.json       trained on the training texts (`emc2dist.data.texts.tokenizer`)
ingest.json          what decided the content of the set (`emc2dist.data.ingest.unfinished`)
"""

import hashlib
import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from emc2dist import files
from emc2dist.config import S3
from emc2dist.data.catalogue import MANIFEST, UNFINISHED
from emc2dist.errors import DataError
from emc2dist.files import Place
from emc2dist.files.pointers import pointer

DOCUMENTS, QUERIES, RELEVANCE, TOKENIZER = "documents.parquet", "queries.parquet", "relevance.parquet", "tokenizer.json"
MOST_BYTES = 2**33
"""Bytes of text, UTF-8, of all queries and documents together: they are held in memory."""


class PairsManifest(BaseModel):
    """The manifest of a set of pairs."""

    model_config = ConfigDict(extra="forbid", strict=True)

    kind: Literal["pairs"] = "pairs"
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
        raise DataError(f"{folder}: is a set of images, and data.kind is pairs; set data.kind: images, or another path")
    try:
        return PairsManifest.model_validate_json(content)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise DataError(f"{folder / MANIFEST}: {key}: {problem['msg']}; ingest the set again") from error


def vocabulary_of(path: str, s3: S3 | None = None) -> int:
    """Tokens of the tokenizer of the set at `path`. Raises as `read_pairs_manifest` does."""
    return read_pairs_manifest(files.at(path, s3)).vocabulary


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
