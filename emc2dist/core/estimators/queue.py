"""A queue: the batch, its draws, and the samples visited last, by their cached features (MoCo, He et al. 2020).

Which they are is known from the order, and their features stand in the cache: nothing else is remembered. What was
written in the last two steps is on its way there, so the queue ends three steps ago.

Keys of a queue are as old as it is long. That goes well where a follower encodes keys (`encoder.momentum`), which
hardly moves meanwhile, positives too, so that nothing pulls two ways and is pushed one. Without a follower features run
away from their own recent past (docs/draws.md), and the spec is refused.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from typing_extensions import override

from emc2dist.core.batch import Batch
from emc2dist.core.columns import Schema
from emc2dist.core.denominator import Denominator
from emc2dist.core.estimators.base import Encode, Estimator, Recall, Visit, cached_features, rows_as_candidates
from emc2dist.core.estimators.in_batch import among


@dataclass(frozen=True)
class Queue(Estimator):
    """log Z over the batch, the draws and the rows visited last."""

    rows: int = 4096
    """K."""
    feature_dtype: Literal["float16", "float32"] = "float16"

    @property
    @override
    def cache_proposals(self) -> int:
        return self.rows

    @property
    @override
    def newest(self) -> bool:
        return True

    @override
    def tables(self, what: Denominator, views: int, width: int) -> Schema:
        return cached_features(self.feature_dtype, width)

    @override
    def estimate(self, what: Denominator, batch: Batch, recall: Recall, encode: Encode) -> Visit:
        fresh = what.candidates(batch)
        assert recall.proposed is not None
        queued = rows_as_candidates(what, batch, recall.proposed, fresh)
        scores = torch.cat([fresh.scores, queued.scores], 1)
        index, one_sided = (torch.cat(pair) for pair in zip(fresh[1:3], queued[1:3], strict=True))
        estimate = among(what, batch, scores, index, one_sided, fresh.number + queued.number)
        weights = estimate.weights.double()
        of_queue = weights[:, fresh.scores.shape[1] :]
        return Visit(estimate, facts={"cached_weight_ratio": (of_queue.sum(), weights.sum())})
