"""What a run reports: the table of metric names, and where rows go.

A row is a mapping from names in `METRICS` to plain numbers, one row per reporting interval. Ratios are means over the
interval and over ranks; nothing is recorded per sample.
"""

from collections.abc import Mapping
from typing import Protocol

Row = Mapping[str, float | int | str]

METRICS: dict[str, str] = {
    "step": "training steps (visits) so far",
    "epoch": "epochs so far, a fraction",
    "loss": "estimate of the global loss L: log-partition from the batch, scaled to N - 1 samples (biased low)",
    "acceptance_rate": "mh: accepted over valid proposals; isir: probability that a chain's state changes",
    "cache_moves_ratio": "share of visits in which a cache proposal moved the chain before its sweep",
    "visited_ratio": "share of this interval's chains that had been visited before",
    "carried_weight_ratio": "share of the kept weight on carried states",
    "carried_age_steps": "mean steps since the carried states' chains were last visited",
    "feature_age_steps": "mean steps since the cached features of carried states were written",
    "effective_sample_size": "mean 1 / sum of squared weights",
    "distinct_negatives": "mean number of states with weight per visit",
    "reencoded_images": "mean images encoded again per step and worker",
    "alignment": "mean squared distance between views of a sample; 0 is perfect",
    "uniformity": "log mean Gaussian potential of features; 0 is collapse",
    "effective_rank": "exp entropy of the features' singular values; 1 is collapse",
    "gradient_norm": "norm of the gradient before clipping",
    "lr": "learning rate",
    "temperature": "what cosines are divided by",
    "images_per_second": "dataset images trained on per second, all workers (each brings V views)",
    "data_wait_seconds": "mean seconds a step waited for views",
    "data_hits": "mean extents (see emc2dist.data.encoded) per step and worker that lay on the worker's machine",
    "data_misses": "mean extents per step and worker that were fetched, or decoded, into the cache on its disk",
    "data_fetched_bytes": "mean bytes of the latter, per step and worker",
    "store_wait_seconds": "mean seconds a step waited for the store",
    "step_seconds": "mean seconds of a step",
    "knn_accuracy": "kNN accuracy of the representation on held-out images",
    "knn_pixels": "the same of the images as they stand, once per run",
    "resumed": "1 where the run resumed at this step, 0 where it began",
}


class Recorder(Protocol):
    """Takes rows; must not block training."""

    def record(self, row: Row) -> None:
        """Take one row."""
