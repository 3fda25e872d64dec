"""Ways to estimate a denominator, by the name that a spec gives them under `negatives`."""

from collections.abc import Mapping

from emc2dist.core.estimators.base import FEATURES, CachedRows, Encode, Estimator, Fact, Recall, Visit
from emc2dist.core.estimators.chain import Chain
from emc2dist.core.estimators.in_batch import InBatch, among, in_batch
from emc2dist.core.estimators.moving_average import MovingAverage

ESTIMATORS: Mapping[str, type[InBatch] | type[Chain] | type[MovingAverage]] = {
    "in_batch": InBatch,
    "chain": Chain,
    "moving_average": MovingAverage,
}

__all__ = [
    "ESTIMATORS", "FEATURES", "CachedRows", "Chain", "Encode", "Estimator", "Fact", "InBatch", "MovingAverage",
    "Recall", "Visit", "among", "in_batch",
]  # fmt: skip
