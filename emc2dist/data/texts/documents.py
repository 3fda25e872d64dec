"""The documents of a set of pairs by themselves, to train on without their queries (`data.kind: texts`)."""

import hashlib
from dataclasses import dataclass

from emc2dist.config import S3, Data
from emc2dist.data.texts.pairs import Texts, open_alone, open_pairs


@dataclass(frozen=True)
class Documents:
    """Texts by index."""

    texts: Texts
    remarks: list[str]
    """What a person should know of the set, with numbers."""
    fingerprint: str
    """What tells these texts from others, and from more or fewer of them, wherever they lie."""

    def __len__(self) -> int:
        return len(self.texts)


def open_documents(data: Data, s3: S3 | None = None) -> Documents:
    """The documents of `data.path` that are of split train or of all; `data.limit` keeps the first so many.

    Raises as `open_pairs` does, but for a set that has no queries at all.
    """
    alone = open_alone(data, s3)
    if alone is None:
        pairs = open_pairs(data.model_copy(update={"limit": None}), "train", s3)
        assert pairs is not None, "raised where there is nothing to train on"
        alone = pairs.documents, list(pairs.remarks), pairs.fingerprint
    texts, remarks, of_set = alone
    if data.limit is not None and data.limit < len(texts):
        remarks.append(f"data.limit: the first {data.limit:,} of {len(texts):,} documents")
        texts = texts.first(data.limit)
    told = f"documents {len(texts)} of {of_set}"
    return Documents(texts, remarks, hashlib.sha256(told.encode()).hexdigest())
