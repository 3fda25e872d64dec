"""A guide's features of the entities of a set of pairs: by them candidates are closed (`emc2dist.core.closing`).

A Parquet file for each side, as `emc2dist embed` writes it of the set's own `queries.parquet` and `documents.parquet`:
`id` string, which the set has too; `feature`, a list of as many numbers in each row; and `text`, which has to be the
set's where it is given. Any model may have made them. Rows that the set has not are passed over.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from emc2dist import files
from emc2dist.config import S3
from emc2dist.config.negatives import Guide
from emc2dist.data.texts.pairs import Pairs, Texts
from emc2dist.errors import DataError

MOST_BYTES = 2**33
"""That the features of all entities may take, in float16: each worker holds them on its device."""
_AT_ONCE = 4_096  # rows in memory beside what is kept


def open_guide(guide: Guide, pairs: Pairs, s3: S3 | None = None) -> NDArray[np.float16]:
    """Unit-norm features [N, D] of all entities, the queries first.

    Raises:
        DataError: a file lacks a column or an entity, has one twice, another text for it or no proper feature; the
            sides' widths differ; or they take more than `MOST_BYTES`. StorageError: one cannot be read.
    """
    sides = ((guide.queries, pairs.queries), (guide.documents, pairs.documents))
    queries, documents = (_features_of(path, texts, len(pairs), s3) for path, texts in sides)
    if queries.shape[1] != documents.shape[1]:
        raise DataError(
            f"negatives.guide: features of {guide.queries} are {queries.shape[1]} wide, those of {guide.documents} "
            f"{documents.shape[1]}; give both of one model"
        )
    return np.concatenate([queries, documents])


def _features_of(path: str, texts: Texts, entities: int, s3: S3 | None) -> NDArray[np.float16]:
    """[n, D], those of one side; `entities` is N."""
    place, known = files.at(path, s3), np.arange(len(texts))
    entry = place.entry()
    if entry is None:
        raise DataError(f"negatives.guide: {place} is not there; write it with emc2dist embed")
    ids = pa.array(texts.ids(known), pa.string())
    found, seen = np.zeros((0, 0), np.float16), np.zeros(len(texts), bool)
    with place.open(entry) as stream:
        try:
            file = pq.ParquetFile(stream)
            names = set(file.schema_arrow.names)
            for lacking in {"id", "feature"} - names:
                raise DataError(f"negatives.guide: {place} has no column {lacking}; write it with emc2dist embed")
            for batch in file.iter_batches(_AT_ONCE, columns=[*({"id", "feature", "text"} & names)]):
                place_of = pc.index_in(batch["id"].cast(pa.string()), value_set=ids)
                batch, rows = batch.filter(place_of.is_valid()), place_of.drop_null().to_numpy()
                if "text" in names and batch["text"].to_pylist() != texts.get(rows):
                    raise DataError(f"negatives.guide: {place} has another text than the set for one of its ids")
                if seen[rows].any() or len(np.unique(rows)) < len(rows):
                    raise DataError(f"negatives.guide: {place} has an id twice; give each once")
                if not len(rows):
                    continue
                features = _unit(str(place), batch["feature"])
                width = features.shape[1]
                if 2 * entities * width > MOST_BYTES:
                    raise DataError(
                        f"negatives.guide: {entities:,} features {width:,} wide take more than "
                        f"{MOST_BYTES / 2**30:.0f} GiB in float16; give narrower ones"
                    )
                if not seen.any():
                    found = np.zeros((len(texts), width), np.float16)
                if width != found.shape[1]:
                    raise DataError(f"negatives.guide: {place}: its features are not all as wide")
                found[rows], seen[rows] = features, True
        except pa.ArrowInvalid as error:
            raise DataError(f"negatives.guide: {place}: {error}; write it with emc2dist embed") from None
    if not seen.all():
        first = texts.ids(np.flatnonzero(~seen)[:1])[0]
        raise DataError(
            f"negatives.guide: {place} lacks {int((~seen).sum()):,} of {len(texts):,} texts of the set, {first!r} "
            "the first of them; write it of the set's own table with emc2dist embed"
        )
    return found


def _unit(place: str, column: "pa.Array[Any]") -> NDArray[np.float32]:
    """[n >= 1, D], of length 1."""
    widths = pc.unique(pc.list_value_length(column))
    if len(widths) > 1 or not widths[0].as_py():
        raise DataError(f"negatives.guide: {place}: its features are not all as wide")
    values = pc.list_flatten(column).to_numpy(zero_copy_only=False).astype(np.float32)
    features = values.reshape(len(column), -1)
    length = np.linalg.norm(features, axis=1, keepdims=True)
    if not (np.isfinite(length) & (length > 0)).all():
        raise DataError(f"negatives.guide: {place}: a feature is zero or not finite")
    return features / length
