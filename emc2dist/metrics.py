"""What a run reports: the table of metrics, and where rows go.

A row is a mapping from names in `ROW` to plain numbers, one row per reporting interval. A mean is over the interval,
the ranks and the views, weighted by what it is a mean of; a name whose value does not exist (the age of carried states
before there are any) is left out of the row. Nothing is recorded per sample.

Prometheus sees every metric of `METRICS` but the events, under `exported_name(name)`, with the label `run` and those
of the table.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol

Row = Mapping[str, float | int | str]

Topic = Literal["chains", "learning", "speed", "store", "faults"]
Kind = Literal["gauge", "counter", "event"]
"""`counter`: only rises; a row holds what the interval adds. `event`: marks a row, and is not exported itself."""
Source = Literal["row", "driver", "shard"]
"""Who knows it: the training workers, by rows; the driver; or a shard, which the driver asks."""


class Metric(NamedTuple):
    """One line of the table."""

    topic: Topic
    panel: str
    """Title of the dashboard's panel; metrics of one panel share unit and scale."""
    unit: str
    """`ratio` is in [0, 1], or nearly; empty: a plain number."""
    help: str
    kind: Kind = "gauge"
    source: Source = "row"
    labels: tuple[str, ...] = ()


METRICS: dict[str, Metric] = {
    "acceptance_rate": Metric(
        "chains", "Acceptance", "ratio",
        "mh: accepted over valid proposals; isir: probability that a chain's state changes", labels=("kernel",),
    ),
    "cache_moves_ratio": Metric(
        "chains", "Acceptance", "ratio", "share of visits in which a cache proposal moved the chain before its sweep"
    ),
    "visited_ratio": Metric(
        "chains", "Visited and carried", "ratio", "share of this interval's chains that had been visited before"
    ),
    "carried_weight_ratio": Metric(
        "chains", "Visited and carried", "ratio", "share of the kept weight on carried states"
    ),
    "carried_closed_ratio": Metric(
        "chains", "Visited and carried", "ratio", "share of carried states that are closed by now, and so dropped"
    ),
    "drawn_weight_ratio": Metric("chains", "Visited and carried", "ratio", "share of the weight on draws"),
    "carried_age_steps": Metric(
        "chains", "Age of carried states", "steps", "mean steps since the carried states' chains were last visited"
    ),
    "carried_age_p95_steps": Metric(
        "chains", "Age of carried states", "steps", "95th percentile of the same, over the reporting step's chains"
    ),
    "feature_age_steps": Metric(
        "chains", "Age of cached features", "steps", "mean steps since carried states' cached features were written"
    ),
    "feature_age_p95_steps": Metric(
        "chains", "Age of cached features", "steps", "95th percentile of the same, over the reporting step's chains"
    ),
    "effective_sample_size": Metric("chains", "Negatives of a visit", "", "mean 1 / sum of squared weights"),
    "distinct_negatives": Metric("chains", "Negatives of a visit", "", "mean number of states with weight per visit"),
    "reencoded_images": Metric("chains", "Encoded again", "", "mean images encoded again per step and worker"),
    "cached_weight_ratio": Metric(
        "chains", "Visited and carried", "ratio", "of gumbel and queue: share of the weight that cached rows have"
    ),
    "stale_score_rms_error": Metric(
        "chains", "Staleness", "",
        "of gumbel: root mean square of what a drawn row's score has changed since its feature was cached",
    ),
    "step": Metric("learning", "Step", "", "training steps (visits) so far"),
    "epoch": Metric("learning", "Epoch", "", "epochs so far, a fraction"),
    "steps_per_epoch": Metric("learning", "Step", "", "training steps of an epoch", source="driver"),
    "loss": Metric(
        "learning", "Loss", "",
        "estimate of the global loss L: log-partition from the batch, scaled to N - 1 samples (biased low)",
    ),
    "closed_ratio": Metric(
        "learning", "False negatives", "ratio", "share of the batch's candidates that negatives.ceiling or close closes"
    ),
    "closed_anchors_ratio": Metric(
        "learning", "False negatives", "ratio", "share of anchors that have no open candidate, and so no repulsion"
    ),
    "same_label_weight_ratio": Metric(
        "learning", "False negatives", "ratio", "share of the negatives' weight on those with their anchor's label"
    ),
    "same_label_closed_ratio": Metric(
        "learning", "False negatives", "ratio", "share of the same label's candidates that is closed"
    ),
    "neighbour_label_ratio": Metric(
        "learning", "Neighbours", "ratio", "of nnclr: share of neighbours that have their anchor's label"
    ),
    "log_z_error": Metric(
        "learning", "Error of log Z", "",
        "of infonce over chains, up to 2,048 samples: mean of the remembered log Z less that by all cached features",
    ),
    "log_z_rms_error": Metric(
        "learning", "Error of log Z", "", "root mean square of the same, over the reporting step's anchors"
    ),
    "alignment": Metric(
        "learning", "Alignment", "", "mean squared distance between views of a sample; 0 is perfect"
    ),
    "uniformity": Metric("learning", "Uniformity", "", "log mean Gaussian potential of features; 0 is collapse"),
    "isotropy": Metric(
        "learning", "Isotropy", "", "1 - mean cosine of features; 0 is collapse, 1 is no direction preferred"
    ),
    "tolerance": Metric(
        "learning", "Tolerance", "", "mean cosine of a batch's features of one label, where images have labels"
    ),
    "effective_rank": Metric(
        "learning", "Effective rank", "", "exp entropy of the features' singular values; 1 is collapse"
    ),
    "knn_accuracy": Metric(
        "learning", "kNN accuracy", "ratio", "kNN accuracy of the representation on held-out images"
    ),
    "knn_pixels": Metric("learning", "kNN accuracy", "ratio", "the same of the images as they stand, once per run"),
    "knn_per_class": Metric(
        "learning", "kNN accuracy", "ratio", "kNN accuracy as a mean over classes, where they are uneven"
    ),
    "probe_accuracy": Metric(
        "learning", "Linear probe", "ratio", "accuracy of ridge regression on the representation, on held-out images"
    ),
    "probe_per_class": Metric(
        "learning", "Linear probe", "ratio", "the same as a mean over classes, where they are uneven"
    ),
    "ndcg_at_10": Metric(
        "learning", "Retrieval", "ratio", "nDCG@10 of held-out queries among the documents that are searched, or of "
        "images among captions"
    ),
    "mrr_at_10": Metric("learning", "Retrieval", "ratio", "the same: MRR@10"),
    "recall_at_10": Metric("learning", "Retrieval", "ratio", "the same: recall@10"),
    "to_images_ndcg_at_10": Metric("learning", "Retrieval", "ratio", "of captions that look for images: nDCG@10"),
    "to_images_mrr_at_10": Metric("learning", "Retrieval", "ratio", "the same: MRR@10"),
    "to_images_recall_at_10": Metric("learning", "Retrieval", "ratio", "the same: recall@10"),
    "bm25_ndcg_at_10": Metric("learning", "Retrieval", "ratio", "the same nDCG@10 by BM25, once per run"),
    "bm25_mrr_at_10": Metric("learning", "Retrieval", "ratio", "the same MRR@10 by BM25, once per run"),
    "bm25_recall_at_10": Metric("learning", "Retrieval", "ratio", "the same recall@10 by BM25, once per run"),
    "gradient_norm": Metric("learning", "Gradient norm", "", "norm of the gradient before clipping"),
    "lr": Metric("learning", "Learning rate", "", "learning rate"),
    "temperature": Metric("learning", "Temperature", "", "temperature that scores are divided by"),
    "anchor_temperature": Metric(
        "learning", "Temperature", "",
        "where it is learnt: mean temperature of the reported steps' anchors, of rgcl each its own",
    ),
    "images": Metric(
        "speed", "Images trained on", "images", "dataset images trained on (each brings V views)", kind="counter"
    ),
    "images_per_second": Metric(
        "speed", "Images per second", "images", "the same per second, all workers, while training"
    ),
    "step_seconds": Metric("speed", "A step", "seconds", "mean seconds of a step"),
    "forward_seconds": Metric("speed", "Parts of a step", "seconds", "part of it: encoding, also of carried negatives"),
    "communication_seconds": Metric(
        "speed", "Parts of a step", "seconds",
        "part of it: the gather of features (that of gradients goes on inside the backward)",
    ),
    "sweep_seconds": Metric("speed", "Parts of a step", "seconds", "part of it: scores, sweep and loss"),
    "backward_seconds": Metric("speed", "Parts of a step", "seconds", "part of it: backward"),
    "optimiser_seconds": Metric("speed", "Parts of a step", "seconds", "part of it: clipping and the update"),
    "data_wait_seconds": Metric("speed", "Parts of a step", "seconds", "part of it: waiting for views"),
    "data_wait_slowest_seconds": Metric(
        "speed", "Waits of the slowest rank", "seconds", "the same on the rank that waited longest"
    ),
    "store_wait_seconds": Metric(
        "speed", "Parts of a step", "seconds", "part of it: waiting for the store, and handing to it"
    ),
    "store_wait_slowest_seconds": Metric(
        "speed", "Waits of the slowest rank", "seconds", "the same on the rank that waited longest"
    ),
    "data_hits": Metric(
        "speed", "Extents", "",
        "mean extents (see emc2dist.data.encoded) per step and worker that lay on the worker's machine",
    ),
    "data_misses": Metric(
        "speed", "Extents", "", "mean extents per step and worker that were fetched, or decoded, into its disk's cache"
    ),
    "data_fetched_bytes": Metric("speed", "Fetched", "bytes", "mean bytes of the latter, per step and worker"),
    "data_retries": Metric(
        "faults", "Retries", "", "requests to S3 that were tried again, while making views, all workers", kind="counter"
    ),
    "resumed": Metric(
        "faults", "Restarts", "", "1 where the run resumed at this step, 0 where it began", kind="event"
    ),
    "loading": Metric(
        "speed", "Parts of a step", "", "where views are made, of what pixels, and by how many processes", kind="event"
    ),
    "passed_over": Metric(
        "faults", "Restarts", "", "newer checkpoints than the one the run resumed from, and what is wrong with them",
        kind="event",
    ),
    "device_changed": Metric(
        "faults", "Restarts", "", "from what to what device the run was moved on purpose, which its numbers may show",
        kind="event",
    ),
    "restarts": Metric(
        "faults", "Restarts", "", "times that the workers were started again", kind="counter", source="driver"
    ),
    "restores": Metric(
        "faults", "Restarts", "", "times that the run was restored from a checkpoint", kind="counter", source="driver"
    ),
    "started_timestamp_seconds": Metric(
        "faults", "Last checkpoint", "seconds", "Unix time when the driver started", source="driver"
    ),
    "last_checkpoint_timestamp_seconds": Metric(
        "faults", "Last checkpoint", "seconds", "Unix time when the last checkpoint was kept"
    ),
    "shard_up": Metric("store", "Shards", "", "1 where the shard answers, else 0", source="shard", labels=("shard",)),
    "shard_restored": Metric(
        "store", "Shards", "", "1 where it holds rows that the run may use, 0 while it has none since it started",
        source="shard", labels=("shard",),
    ),
    "shard_rows": Metric("store", "Rows", "", "samples that it owns", source="shard", labels=("shard",)),
    "shard_bytes": Metric("store", "Memory", "bytes", "bytes of its rows", source="shard", labels=("shard",)),
    "shard_buffered_commits": Metric(
        "store", "Commits that wait", "", "commits that wait for their step to be read", source="shard",
        labels=("shard",),
    ),
    "shard_requests": Metric(
        "store", "Requests", "", "exchanges served", kind="counter", source="shard", labels=("shard",)
    ),
    "shard_request_seconds": Metric(
        "store", "Seconds of requests", "seconds", "seconds spent on them, without the way there and back",
        kind="counter", source="shard", labels=("shard",),
    ),
    "shard_dropped_commits": Metric(
        "store", "Commits that came twice or late", "", "commits that changed nothing, being repeated or late",
        kind="counter", source="shard", labels=("shard",),
    ),
    "store_answer_seconds": Metric(
        "store", "Queue", "seconds",
        "seconds until every shard that is up had answered the driver, standing in the queue as any call does",
        source="driver",
    ),
}  # fmt: skip

ROW = frozenset(name for name, metric in METRICS.items() if metric.source == "row")
"""Names that may stand in a row of `metrics.jsonl`."""

EXPORTED = {name: metric for name, metric in METRICS.items() if metric.kind != "event"}
"""What Prometheus sees."""


def exported_name(name: str) -> str:
    """The metric's name in Prometheus, as in `emc2_acceptance_ratio` or `emc2_images_total`."""
    suffix = "_total" if METRICS[name].kind == "counter" else ""
    return f"emc2_{name.replace('_rate', '_ratio')}{suffix}"


def scalars(row: Row) -> dict[str, float]:
    """A row's values but its step, each under its topic, as in `chains/acceptance_rate`."""
    return {f"{METRICS[name].topic}/{name}": float(row[name]) for name in EXPORTED if name in row and name != "step"}


class Recorder(Protocol):
    """Takes rows; must not block training."""

    def record(self, row: Row) -> None:
        """Take one row."""
