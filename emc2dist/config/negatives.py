"""How denominators are estimated: the options of each estimator, by the name that a spec gives it.

The estimators stand in `emc2dist.core.estimators`, a file each, with the same fields.
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator
from typing_extensions import override

from emc2dist.config.objectives import Named


class Drawing(Named):
    """What all of them take: draws, and how candidates without gradient are balanced."""

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
    valued: ClassVar[bool] = True
    """Whether it knows the denominator itself, not its gradient alone."""


class Chain(Drawing):
    """Samples that a Markov chain of each anchor draws from the whole dataset."""

    name: Literal["chain"]
    kernel: Literal["mh", "isir"] = "mh"
    """`mh`: a Metropolis-Hastings sweep over the batch; `isir`: iterated sampling importance resampling."""
    burn_in_fraction: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of an `mh` sweep's valid proposals that is dropped; None: half. `isir` drops none, and takes none."""
    cache_proposals: Annotated[int, Field(ge=0, le=2**20)] = 0
    """K: rows of the feature cache to which a chain may move before its sweep, by delayed acceptance. 0: none."""
    carried: Literal["reencode", "cached"] = "reencode"
    """`reencode`: carried negatives are encoded again and get a gradient; `cached`: the stored feature stands in."""
    feature_dtype: Literal["float16", "float32"] = "float16"
    """Type of a cached feature."""
    valued: ClassVar[bool] = False

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
        return self


class MovingAverage(Drawing):
    """The gathered batch and the draws, and each anchor's moving average of its denominator (SogCLR)."""

    name: Literal["moving_average"]
    rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Weight of the newest estimate, SogCLR's gamma."""
    valued: ClassVar[bool] = True


Negatives = Annotated[InBatch | Chain | MovingAverage, Field(discriminator="name")]
