"""Ways to estimate a denominator, by the name that a spec gives them under `negatives`."""

from collections.abc import Mapping

from emc2dist.core.estimators.base import FEATURES, CachedRows, Encode, Estimator, Fact, Recall, Visit, cached_features
from emc2dist.core.estimators.chain import Chain
from emc2dist.core.estimators.gumbel import Gumbel
from emc2dist.core.estimators.in_batch import InBatch, among, in_batch
from emc2dist.core.estimators.moving_average import MovingAverage
from emc2dist.core.estimators.queue import Queue

ESTIMATORS: Mapping[str, type[InBatch] | type[Chain] | type[Gumbel] | type[MovingAverage] | type[Queue]] = {
    "in_batch": InBatch,
    "chain": Chain,
    "gumbel": Gumbel,
    "moving_average": MovingAverage,
    "queue": Queue,
}

__all__ = [
    "ESTIMATORS", "FEATURES", "CachedRows", "Chain", "Encode", "Estimator", "Fact", "Gumbel", "InBatch",
    "MovingAverage", "Queue", "Recall", "Visit", "among", "cached_features", "in_batch",
]  # fmt: skip
