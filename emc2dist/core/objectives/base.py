"""What an objective is: the denominators that it declares, and its terms, given their estimates."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from emc2dist.core.batch import Batch
from emc2dist.core.denominator import Denominator, Estimate


class Objective(Protocol):
    """A formula; its fields are the options of `emc2dist.config.objectives` of the same name."""

    @property
    def denominators(self) -> Sequence[Denominator]:
        """What has to be estimated."""

    @property
    def bends(self) -> bool:
        """Whether the loss is not linear in positive and log Z, so that it matters which views stand together."""
        return any(what.valued for what in self.denominators)

    def terms(self, batch: Batch, estimates: Mapping[str, Estimate]) -> dict[str, Tensor]:
        """Scalars whose sum is the worker's loss, a mean over its samples; `estimates` by the denominators' names.

        Workers' losses are averaged, so no term may count another worker's anchors.
        """
