"""How denominators are estimated: the options of each estimator, by the name that a spec gives it.

The estimators stand in `emc2dist.core.estimators`, a file each, with the same fields.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from emc2dist.config.objectives import Named


class InBatch(Named):
    """The samples of the gathered batch, and nothing else."""

    name: Literal["in_batch"]


class Chain(Named):
    """Samples that a Markov chain of each anchor draws from the whole dataset."""

    name: Literal["chain"]
    kernel: Literal["mh", "isir"] = "mh"
    """`mh`: a Metropolis-Hastings sweep over the batch; `isir`: iterated sampling importance resampling."""
    burn_in_fraction: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of an `mh` sweep's valid proposals that is dropped; None: half. `isir` drops none, and takes none."""
    cache_proposals: Annotated[int, Field(ge=0, le=2**20)] = 0
    """K: rows of the feature cache to which a chain may move before its sweep, by delayed acceptance. 0: none."""
    carried: Literal["reencode", "complete", "cached"] = "reencode"
    """`reencode`: the view that a chain carries is encoded again and gets a gradient; `complete`: so are V - 1 fresh
    views of its sample beside it, which is exact and costs as many encodings more; `cached`: the sample's newest cached
    feature stands in."""
    feature_dtype: Literal["float16", "float32"] = "float16"
    """Type of a cached feature."""
    rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Weight of the newest value in each anchor's average of log Z, for objectives that need log Z itself."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.kernel == "isir" and self.burn_in_fraction is not None:
            raise ValueError(
                f"negatives.burn_in_fraction: {self.burn_in_fraction} is of kernel: mh; isir weighs every candidate "
                "and drops none, so leave it out"
            )
        return self


class MovingAverage(Named):
    """The gathered batch, and each anchor's moving average of its denominator (SogCLR)."""

    name: Literal["moving_average"]
    rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Weight of the newest estimate, SogCLR's gamma."""


Negatives = Annotated[InBatch | Chain | MovingAverage, Field(discriminator="name")]
