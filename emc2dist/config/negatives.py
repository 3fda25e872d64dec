"""How denominators are estimated: the options of each estimator, by the name that a spec gives it.

The estimators stand in `emc2dist.core.estimators`, a file each, with the same fields.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from typing_extensions import override

from emc2dist.config.objectives import Named
from emc2dist.config.sections import AnyPath, Section


class Guide(Section):
    """A frozen model's features of the set's texts, by which candidates are closed; of pairs.

    GISTEmbed (Solatorio 2024, arXiv 2402.16829) and MultiCSR (Wang et al., NAACL 2024) so close false negatives.
    """

    queries: AnyPath
    """Parquet of the queries' ids and features, as `emc2dist embed` writes it."""
    documents: AnyPath
    """The same of the documents."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Closed is what the guide finds nearer than its cosine g with the positive, less (1 - share) |g| ..."""
    margin: Annotated[float, Field(ge=0, le=2)] = 0.0
    """... and less this."""
    above: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Closed is instead what is nearer than this to the guide, wherever the positive is; 0.95 in MultiCSR."""

    @model_validator(mode="after")
    def _has_one_bound(self) -> Self:
        if self.above is not None and (self.share, self.margin) != (1.0, 0.0):
            raise ValueError(
                f"negatives.guide.above: {self.above} does not look at the positive, and share and margin do; give "
                "one or the other"
            )
        return self


class Closing(Named):
    """Which candidates are closed: no negatives of an anchor, wherever they turn up. Every estimator takes these.

    What is compared is written down in `emc2dist.core.closing`.
    """

    ceiling: float | None = None
    """Closed is whatever is nearer to the anchor than this share of its positive's cosine, in (0, 1]; 0.95 is usual.
    None: nothing is."""
    ceiling_after: Annotated[float, Field(ge=0, le=1e6)] | None = None
    """Epochs before the ceiling holds; None: one. Of an untrained encoder all cosines are alike: it would close all
    candidates, and where nothing is repelled they stay alike."""
    close: tuple[Literal["label", "duplicates"], ...] = ()
    """Closed are candidates with the anchor's label (`label`), and images of the very same bytes (`duplicates`)."""
    guide: Guide | None = None
    """A frozen model that closes what it finds too near. None: there is none."""

    @override
    def options(self) -> dict[str, Any]:
        return self.model_dump(exclude={"name", *Closing.model_fields})

    @model_validator(mode="after")
    def _closes_some(self) -> Self:
        if self.ceiling is not None and not 0 < self.ceiling <= 1:
            raise ValueError(
                f"negatives.ceiling: got {self.ceiling}; it is the share of the positive's cosine above which a "
                "candidate is closed: more than 0, at most 1, and 0.95 is usual"
            )
        if self.ceiling is None and self.ceiling_after is not None:
            raise ValueError(
                f"negatives.ceiling_after: {self.ceiling_after} needs negatives.ceiling, which then holds from there on"
            )
        if len(set(self.close)) < len(self.close):
            raise ValueError(f"negatives.close: got {', '.join(self.close)}; name each once")
        return self


class Drawing(Closing):
    """Draws, and how candidates without gradient are balanced. Every estimator takes these."""

    draws: Annotated[int, Field(ge=0, le=2**20)] = 0
    """M: samples of the dataset that are drawn in every step and encoded without a graph, for all anchors. Workers
    share them evenly. 0: none."""
    balance: Literal["pull", "push"] | None = None
    """What makes up for candidates whose features carry no gradient (draws; carried: cached). `pull`: positives get
    less of their gradient as keys; `push`: weights on such candidates count twice. None: `pull`."""

    @property
    def one_sided(self) -> bool:
        """Whether there are candidates whose features carry no gradient."""
        return self.draws > 0

    @model_validator(mode="after")
    def _has_what_it_balances(self) -> Self:
        if self.balance is not None and not self.one_sided:
            raise ValueError(
                f"negatives.balance: {self.balance} is for candidates whose features carry no gradient, and there are "
                "none here; give negatives.draws (or, to a chain, carried: cached), or leave it out"
            )
        return self


class InBatch(Drawing):
    """The samples of the gathered batch and the draws, and nothing else."""

    name: Literal["in_batch"]


class Chain(Drawing):
    """Samples that a Markov chain of each anchor draws from the whole dataset."""

    name: Literal["chain"]
    kernel: Literal["mh", "isir"] = "mh"
    """`mh`: a Metropolis-Hastings sweep over the batch; `isir`: iterated sampling importance resampling."""
    burn_in_fraction: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of an `mh` sweep's valid proposals that is dropped; None: half. `isir` drops none, and takes none."""
    cache_proposals: Annotated[int, Field(ge=0, le=2**20)] = 0
    """K: rows of the feature cache to which a chain may move before its sweep, by delayed acceptance. 0: none."""
    carried: Literal["reencode", "complete", "cached", "roulette"] = "reencode"
    """`reencode`: the view that a chain carries is encoded again and gets a gradient; `complete`: so are V - 1 fresh
    views of its sample beside it, which is exact and costs as many encodings more (none where an objective has each
    view slot for itself); `cached`: the sample's newest cached feature stands in; `roulette`: that decides, and the
    view is encoded again with the probability of its share of the weight, standing then for all of its anchor's
    negatives: one encoding for each unit of weight, gradients to both sides, a little more noise, and where the chain
    goes is as old as the cache."""
    feature_dtype: Literal["float16", "float32"] = "float16"
    """Type of a cached feature."""
    rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Weight of the newest value in each anchor's average of log Z, or of a mean, for objectives that need it."""
    restart: bool = False
    """Whether a chain begins anew at every visit, at one of the `cache_proposals` drawn by its weight, which takes one
    encoding; for objectives whose target is another one every time."""

    @property
    @override
    def one_sided(self) -> bool:
        return self.draws > 0 or self.carried == "cached"

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.kernel == "isir" and self.burn_in_fraction is not None:
            raise ValueError(
                f"negatives.burn_in_fraction: {self.burn_in_fraction} is of kernel: mh; isir weighs every candidate "
                "and drops none, so leave it out"
            )
        if self.restart and not self.cache_proposals:
            raise ValueError(
                "negatives.restart: true begins at one of the cached rows, of which negatives.cache_proposals are at "
                "hand, and that is 0; give some, say 64"
            )
        return self


class Gumbel(Drawing):
    """The gathered batch and the draws by their shares, and of the feature cache one row for each anchor, drawn."""

    name: Literal["gumbel"]
    rows: Annotated[int, Field(ge=1, le=2**20)] | None = None
    """K: rows of the feature cache that are scored in every step, drawn uniformly; None: all of them."""
    carried: Literal["reencode", "cached"] = "reencode"
    """`reencode`: the drawn view is encoded again and gets a gradient; `cached`: its cached feature stands in, which
    takes a follower (encoder.momentum)."""
    feature_dtype: Literal["float16", "float32"] = "float16"
    """Type of a cached feature."""


class MovingAverage(Drawing):
    """The gathered batch and the draws, and each anchor's moving average of its denominator (SogCLR)."""

    name: Literal["moving_average"]
    rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Weight of the newest estimate, SogCLR's gamma."""


class Queue(Drawing):
    """The gathered batch, the draws, and the samples visited last, by their cached features (MoCo)."""

    name: Literal["queue"]
    rows: Annotated[int, Field(ge=1, le=2**20)] = 4096
    """K: how many of them."""
    feature_dtype: Literal["float16", "float32"] = "float16"
    """Type of a cached feature."""


Negatives = Annotated[InBatch | Chain | Gumbel | MovingAverage | Queue, Field(discriminator="name")]
