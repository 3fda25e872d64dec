"""What an objective is: the denominators that it declares, and its terms, given their estimates."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

from torch import Tensor

from emc2dist.core.batch import Batch
from emc2dist.core.denominator import Denominator, Estimate


class Objective(Protocol):
    """A formula; its fields are the options of `emc2dist.config.objectives` of the same name."""

    @property
    def denominators(self) -> Sequence[Denominator]:
        """What has to be estimated."""

    columns: ClassVar[Sequence[str]] = ()
    """Names of the columns of the set (`Batch.columns`) that it reads; where one is not there a run is refused."""

    @property
    def looks_around(self) -> bool:
        """Whether terms read other samples of the batch than by denominators, so that the batch is part of the loss."""
        return False

    @property
    def bends(self) -> bool:
        """Whether the loss is not linear in positive and log Z, so that it matters which views stand together."""
        return any(what.valued for what in self.denominators)

    def terms(self, batch: Batch, estimates: Mapping[str, Estimate]) -> dict[str, Tensor]:
        """Scalars whose sum is the worker's loss, a mean over its samples; `estimates` by the denominators' names.

        Workers' losses are averaged, so no term may count another worker's anchors.
        """
