"""What an objective is: the denominators that it declares, and its terms, given their estimates."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from emc2dist.core.batch import Batch
from emc2dist.core.columns import Column
from emc2dist.core.denominator import Denominator, Estimate
from emc2dist.core.estimators.base import Fact, Recall

Direction = Literal["forward", "backward", "queries", "documents"]
"""A denominator over pairs: of each query over the documents, of each document over the queries, of each query over the
other queries, or of each document over the other documents."""

Directions = Literal["forward", "both", "all"] | tuple[Direction, ...]
"""Of a loss over pairs: `both` is the mean of two losses, `forward` and `backward`; several named ones, or `all` four,
stand in one denominator, their sum (GTE, Li et al. 2023, arXiv 2308.03281)."""

_SIDES: Mapping[str, tuple[str, str]] = {
    "forward": ("query", "document"),
    "backward": ("document", "query"),
    "queries": ("query", "query"),
    "documents": ("document", "document"),
}
_SHORT: Mapping[str, Sequence[str]] = {"forward": ["forward"], "both": ["forward", "backward"], "all": list(_SIDES)}

OBJECTIVE = "objective"
"""The table of what an objective itself remembers; all other tables by anchor are its denominators'."""


def directed(what: Denominator, directions: Directions | None) -> Sequence[Denominator]:
    """The denominator over the sides of pairs, once for each direction; None: over the one side that there is.

    That of `forward` keeps its name, the others have that of their direction.
    """
    if directions is None:
        return (what,)
    made = []
    for direction in _SHORT[directions] if isinstance(directions, str) else directions:
        anchors, keys = _SIDES[direction]
        pair = "document" if anchors == "query" else "query"
        name = what.name if direction == "forward" else direction
        made.append(replace(what, name=name, anchors=anchors, keys=keys, pulled_to=pair))
    return made


def in_one(directions: Directions | None) -> bool:
    """Whether the directions' denominators are summed, not their losses averaged."""
    return directions == "all" or isinstance(directions, tuple)


class Objective(Protocol):
    """A formula; its fields are the options of `emc2dist.config.objectives` of the same name.

    Most declare denominators and write down their terms. What one remembers of each anchor comes in with `prepared`,
    and goes out with `renewed`.
    """

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

    @property
    def support(self) -> int:
        """Cached rows that it wants at hand in every step, drawn uniformly; at most all there are."""
        return 0

    def learns(self, features: int) -> nn.Module | None:
        """A module of its own over features so wide, trained with the encoder and kept with it; `Batch.learnt` then.

        Initialised by torch's generator.
        """
        return None

    def unfit(self, columns: Mapping[str, NDArray[np.int64]], width: int) -> str | None:
        """Why it cannot do with what is known of the images, [N] each, and features so wide; None: it can.

        By the key that is to be set, and to what.
        """
        return None

    def heads(self, features: Tensor) -> dict[str, Tensor]:
        """Parts of features [..., D] that mean something by themselves, by name; `emc2dist evaluate` measures each."""
        return {}

    def remembers(self, views: int) -> Mapping[str, Column]:
        """What it remembers of each sample with `views` views: one value per anchor, [V]."""
        return {}

    def prepared(self, batch: Batch, recall: Recall) -> Batch:
        """The batch as its denominators and terms see it: with sides and temperatures of its own.

        `recall` has what it remembers [A], and in `proposed` its cached rows; neither where the exact loss is taken.
        """
        return batch

    def terms(self, batch: Batch, estimates: Mapping[str, Estimate]) -> dict[str, Tensor]:
        """Scalars whose sum is the worker's loss, a mean over its samples; `estimates` by the denominators' names.

        Workers' losses are averaged, so no term may count another worker's anchors.
        """

    def renewed(self, batch: Batch, estimates: Mapping[str, Estimate], recall: Recall) -> dict[str, Tensor]:
        """The new values of what it remembers, each [A]; of the prepared batch."""
        return {}

    def facts(self, batch: Batch) -> dict[str, Fact]:
        """Diagnostics of its own, of the prepared batch."""
        return {}
