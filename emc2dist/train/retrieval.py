"""How well the queries of a split find the documents that answer them, while an encoder is trained.

While training, `eval.queries` queries are asked about at most, among the documents that answer them and as many others
as make `eval.bank`. `emc2dist evaluate` asks about all, among the whole corpus. BM25 is asked the same beside it.

Images of a split are asked for their captions among the captions of the split, and these for their images.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emc2dist.config import Spec
from emc2dist.data.captions import open_captions
from emc2dist.data.splits import EVALUATED
from emc2dist.data.texts.pairs import Pairs, open_pairs
from emc2dist.errors import DataError
from emc2dist.evaluate.bm25 import Bm25
from emc2dist.evaluate.retrieval import Judged, measures, search
from emc2dist.metrics import Row
from emc2dist.towers.encoder import Encoder
from emc2dist.train import collectives

CUTOFF = 100
"""Documents that are found for each query."""
WHILE_TRAINING = ("ndcg_at_10", "mrr_at_10", "recall_at_10")
"""Measures that rows hold."""
TO_IMAGES = "to_images_"
"""Before the names of measures of captions that look for their images."""
PlainViews = Callable[[Any], Tensor]
"""Makes the one view of each of n texts or images: [n, ...]."""
_CHUNK = 256  # texts encoded at once
_DOCUMENTS = 8_192  # whose features are held at once


class RetrievalEvaluation:
    """Queries, and the documents among which they look.

    At most `eval.queries` and `eval.bank` of them, or all with `whole`.
    """

    neighbours = None

    def __init__(self, spec: Spec, pairs: Pairs, views: Mapping[str, PlainViews], *, whole: bool = False) -> None:
        """Begin; `pairs` are the queries that are asked and the whole corpus, `views` make views of each side."""
        self._pairs, self._views, self._of_images = pairs, views, spec.of_images
        queries = np.arange(len(pairs.queries)) if whole else _sample(len(pairs.queries), spec.eval.queries)
        asked = np.isin(pairs.relevance[:, 0], queries)
        answers = np.unique(pairs.relevance[asked, 1])
        documents = np.arange(len(pairs.documents))
        if not whole and len(documents) > max(spec.eval.bank, len(answers)):
            others = np.setdiff1d(documents, answers)
            others = others[_sample(len(others), max(0, spec.eval.bank - len(answers)))]
            documents = np.sort(np.concatenate([answers, others]))
        self.queries, self.documents = queries, documents
        """Rows of those that are asked and looked among."""
        rows = [
            np.searchsorted(side, pairs.relevance[asked, column]) for column, side in enumerate((queries, documents))
        ]
        self.judged = Judged(np.stack(rows, axis=1), pairs.scores[asked])

    @classmethod
    def of(cls, spec: Spec, views: Mapping[str, PlainViews]) -> "tuple[RetrievalEvaluation | None, list[str]]":
        """What a run is judged by, and what a person should know of it; None where no other split has queries.

        Raises:
            DataError: `eval.asked` is not there.
        """
        pairs, split = asked_of(spec)
        if pairs is None:
            what = "image with a caption" if spec.of_images else "query"
            return None, [f"nothing is evaluated: no {what} is of split test or validation"]
        made = cls(spec, pairs, views)
        if made.texts == len(pairs):
            return made, []
        return made, [
            f"evaluated while training: {len(made.queries):,} of {len(pairs.queries):,} {made.names[0]} of {split}, "
            f"among {len(made.documents):,} of {len(pairs.documents):,} {made.names[1]}"
        ]

    def measured(
        self, encoder: Encoder, device: torch.device, tell: Callable[[int], object] = lambda count: None
    ) -> Row:
        """Measures by feature, see `emc2dist.evaluate.retrieval`; ranks share the encoding, and each has all of them.

        `tell` is called with how many more texts or images this rank has encoded.
        """
        found = self.all_measures(encoder, device, tell)
        return {name: value for name, value in found.items() if name.removeprefix(TO_IMAGES) in WHILE_TRAINING}

    def all_measures(
        self, encoder: Encoder, device: torch.device, tell: Callable[[int], object] = lambda count: None
    ) -> dict[str, float]:
        """All of them, in the same way; of captions in both directions."""
        was_training = encoder.training
        encoder.eval()
        with torch.no_grad():
            queries = torch.cat(list(self._encoded(encoder, device, "query", tell)))
            documents: Tensor | Iterator[Tensor] = self._encoded(encoder, device, "document", tell)
            back: dict[str, float] = {}
            if self._of_images:
                documents = torch.cat(list(documents))
                _, rows = search(documents, queries, CUTOFF)
                back = measures(rows, Judged(self.judged.relevance[:, ::-1], self.judged.gains))
            _, rows = search(queries, documents, CUTOFF)
        encoder.train(was_training)
        return measures(rows, self.judged) | {f"{TO_IMAGES}{name}": value for name, value in back.items()}

    def baseline(self) -> Row:
        """The same by BM25 (k1 1.2, b 0.75); nothing of images."""
        if self._of_images:
            return {}
        found = self.bm25_measures()
        return {f"bm25_{name}": found[name] for name in WHILE_TRAINING}

    def bm25_measures(self) -> dict[str, float]:
        """All measures of BM25."""
        ranked = Bm25(self._pairs.documents.get(self.documents)).search(self._pairs.queries.get(self.queries), CUTOFF)
        return measures(ranked, self.judged)

    @property
    def names(self) -> tuple[str, str]:
        """What queries and documents are."""
        return ("images", "captions") if self._of_images else ("queries", "documents")

    @property
    def texts(self) -> int:
        """Texts and images that are encoded, on both sides together."""
        return len(self.queries) + len(self.documents)

    def _encoded(
        self, encoder: Encoder, device: torch.device, side: str, tell: Callable[[int], object]
    ) -> Iterator[Tensor]:
        """Features [<= `_DOCUMENTS`, D] of a side, in order."""
        source, index = self._side(side)
        ranks = collectives.world_size()
        for cut in np.split(index, range(_DOCUMENTS, len(index), _DOCUMENTS)):
            # Every rank brings as many rows to the gather; the last ones may repeat and are cut off again.
            share = np.resize(cut, -(-len(cut) // ranks) * ranks).reshape(-1, ranks)[:, collectives.rank()]
            parts = []
            for some in np.split(share, range(_CHUNK, len(share), _CHUNK)):
                views = self._views[side](source.get(some))
                parts.append(encoder(views.to(device)).float())
                tell(len(some))
            gathered = collectives.gather_rows(torch.cat(parts))
            yield gathered.unflatten(0, (ranks, -1)).transpose(0, 1).flatten(0, 1)[: len(cut)]

    def _side(self, side: str) -> tuple[Any, NDArray[np.int64]]:
        return (self._pairs.queries, self.queries) if side == "query" else (self._pairs.documents, self.documents)


def asked_of(spec: Spec) -> tuple[Pairs | None, str]:
    """The queries that are asked about with the whole corpus, and their split; None where there are none.

    Of captions the images of the split, with its captions.

    Raises:
        DataError: `eval.asked` names a split without queries.
    """
    if spec.eval.asked is not None:
        pairs = _opened(spec, spec.eval.asked)
        if pairs is None:
            what = "images with captions" if spec.of_images else "queries"
            raise DataError(f"eval.asked: {spec.eval.asked}: {spec.data.path} has no {what} of it; name another split")
        return pairs, spec.eval.asked
    for split in EVALUATED:
        pairs = _opened(spec, split)
        if pairs is not None:
            return pairs, split
    return None, ""


def _opened(spec: Spec, split: str) -> Pairs | None:
    if spec.of_images:
        return open_captions(spec.data, split, spec.s3)
    return open_pairs(spec.data, split, spec.s3, corpus=True)


def _sample(count: int, most: int) -> NDArray[np.int64]:
    """At most so many of rows 0 to count - 1, the same ones each time, ascending."""
    rows = np.arange(count)
    return rows if most >= count else np.sort(np.random.default_rng(0).choice(count, most, replace=False))
