"""Retrieval: how well queries find their documents among all of a corpus.

    features [Q, D], [N, D]  ->  the k documents of the greatest inner product, exactly    `search`
    these and judgements     ->  nDCG, MRR and recall                                      `measures`

The order is a function of the features alone: where scores are equal the lower row comes first, however documents are
cut into chunks. So that equal documents do have equal scores, products are added up in float64 and rounded to float32.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emc2dist.errors import DataError, NonFiniteError

MOST_SCORES = 2**21
"""Of queries with documents that are held at once; with what is made of them about 128 MiB."""
_PIECE = 2**13  # documents that are compared at once
_MOST_DOCUMENTS = 2**32  # whose row takes half of an int64
_CUT = 10  # of nDCG and MRR


class Judged(NamedTuple):
    """Which documents are relevant to which queries; a pair that is not told is not relevant."""

    relevance: NDArray[np.int64]
    """[R, 2]: the row of a query, the row of a document; each pair once."""
    gains: NDArray[np.integer]
    """[R]: how relevant; 0 or less: not at all."""


def search(queries: Tensor, documents: Tensor | Iterable[Tensor], k: int) -> tuple[Tensor, Tensor]:
    """The `k` best documents of each query, the best first: scores float32 [Q, k] and rows int64 [Q, k].

    With fewer than `k` documents there are as many columns as these. Memory is that of the answer, one chunk of
    documents and `MOST_SCORES`.

    Args:
        queries: [Q, D]; the search is on their device.
        documents: [N, D], or chunks [c, D] of them, in order; N is at most 2^32.
        k: at least 1.

    Raises:
        NonFiniteError: a query or a document is NaN or infinite; names its row.
        DataError: there are more documents than 2^32.
    """
    _check_finite("query", queries, 0)
    rows, first = max(1, MOST_SCORES // (_PIECE + k)), 0
    best = torch.zeros(len(queries), 0, dtype=torch.int64, device=queries.device)
    for chunk in [documents] if isinstance(documents, Tensor) else documents:
        if first + len(chunk) > _MOST_DOCUMENTS:
            raise DataError(f"documents: more than {_MOST_DOCUMENTS}, which no search takes; ask among fewer")
        for piece in chunk.split(_PIECE):
            _check_finite("document", piece, first)
            other = piece.to(queries.device, torch.float64).T
            parts = zip(queries.split(rows), best.split(rows), strict=True)
            candidates = (torch.cat([held, _keys(part.double() @ other, first)], 1) for part, held in parts)
            best = torch.cat([_top(one, k) for one in candidates])
            first += len(piece)
    return _of_keys(best)


def ranked(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` greatest of each row of `scores` [Q, N], the greatest first: float32 and int64 columns [Q, min(k, N)].

    Scores are compared as float32; where they are equal the lower column comes first.
    """
    return _of_keys(_top(_keys(scores, 0), k))


def measures(found: Tensor, judged: Judged) -> dict[str, float]:
    """Means over the queries that have a relevant document.

        ndcg_at_10      sum of gain / log2(1 + rank) over the first 10, by that of the best order: linear gains, as
                        trec_eval and BEIR have it (Järvelin and Kekäläinen 2002, equations 2 and 5)
        mrr_at_10       1 / rank of the first relevant document, 0 where none is among the first 10
        recall_at_...   share of a query's relevant documents that is among the first 1, 10 and 100

    Args:
        found: int64 [Q, k], rows of documents, the best first, none twice; -1: none. With k less than a cut-off what
            stands below k counts as not found.
        judged: rows of queries less than Q.

    Raises:
        DataError: no query has a relevant document, a query is not among Q, or a pair is judged twice.
    """
    relevant = judged.gains > 0
    (query, document), gains = judged.relevance[relevant].T, judged.gains[relevant].astype(np.float64)
    if not len(query) or query.min() < 0 or query.max() >= len(found):
        raise DataError(f"judged: {len(query)} relevant pairs for {len(found)} queries; name rows below that number")
    rows = found.cpu().numpy()
    counts = np.bincount(query, minlength=len(rows))

    order = np.lexsort((-gains, query))
    rank = np.arange(len(order)) - (counts.cumsum() - counts)[query[order]]
    ideal = np.bincount(query[order], gains[order] * _discount(rank), minlength=len(rows))

    asked = counts > 0
    gain, ideal, counts = _looked_up(rows, query, document, gains)[asked], ideal[asked], counts[asked]
    hit, places = gain > 0, np.arange(rows.shape[1])
    of_query = {
        "ndcg_at_10": (gain * _discount(places)).sum(1) / ideal,
        "mrr_at_10": (hit / (places + 1))[:, :_CUT].max(1, initial=0),
        **{f"recall_at_{cut}": hit[:, :cut].sum(1) / counts for cut in (1, 10, 100)},
    }
    return {name: float(values.mean()) for name, values in of_query.items()}


def _discount(rank: NDArray[np.int64]) -> NDArray[np.float64]:
    """What a gain at a rank, from 0, counts in nDCG@10."""
    return (rank < _CUT) / np.log2(rank + 2)


def _looked_up(
    rows: NDArray[np.int64], query: NDArray[np.int64], document: NDArray[np.int64], gains: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Gains [Q, k] of documents `rows` [Q, k]; 0 where nothing is told."""
    width = max(rows.max(initial=-1), document.max()) + 2  # -1, no document, has a number of its own
    pairs, asked = query * width + document + 1, np.arange(len(rows))[:, None] * width + rows + 1
    order = pairs.argsort()
    pairs = pairs[order]
    if (pairs[1:] == pairs[:-1]).any():
        raise DataError("judged: a query and a document are judged twice; keep one judgement of each pair")
    place = pairs.searchsorted(asked).clip(max=len(pairs) - 1)
    return np.where(pairs[place] == asked, gains[order][place], 0)


def _check_finite(what: str, features: Tensor, first: int) -> None:
    finite = features.isfinite().all(1)
    if not finite.all():
        row = first + int(finite.int().argmin())
        raise NonFiniteError(f"{what} {row}: its feature is not finite; the run has diverged")


# A key is an int64 whose order is that of documents: the score in its upper half, the row, turned round, in its lower.
_LOWER = 2**32 - 1


def _keys(scores: Tensor, first: int) -> Tensor:
    """Keys [Q, c] of scores [Q, c], of the rows from `first` on."""
    rows = torch.arange(first, first + scores.shape[1], device=scores.device)
    bits = (scores.float() + 0.0).view(torch.int32)  # with 0 added, -0 is 0
    return _ordered(bits).long().bitwise_left_shift_(32).add_(_LOWER - rows)


def _of_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and rows."""
    return _ordered((keys >> 32).int()).view(torch.float32), _LOWER - (keys & _LOWER)


def _ordered(bits: Tensor) -> Tensor:
    """Bits of a float32 as a number of the same order, and back: of a negative one all but the sign are turned."""
    return (bits >> 31).bitwise_and_(0x7FFFFFFF).bitwise_xor_(bits)


def _top(keys: Tensor, k: int) -> Tensor:
    return keys.topk(min(k, keys.shape[1])).values
