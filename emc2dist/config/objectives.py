"""What is minimised: the options of each objective, by the name that a spec gives it.

The formulas stand in `emc2dist.core.objectives`, a file each, with the same fields.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from emc2dist.config.sections import Section

Width = Annotated[float, Field(ge=1e-3, le=1e3)]


class Named(Section):
    """A section that its name chooses among several."""

    name: str

    def options(self) -> dict[str, Any]:
        """What the name leaves open, by key."""
        return self.model_dump(exclude={"name"})


class Dcl(Named):
    """Decoupled contrastive learning: the positive is not in the denominator."""

    name: Literal["dcl"]


class Dclw(Named):
    """DCL whose positives are weighted by how far apart they are."""

    name: Literal["dclw"]
    sigma: Width = 0.5
    """Width of the weight, in cosines. The larger, the nearer to DCL."""


class InfoNce(Named):
    """Cross-entropy of picking the positive among all candidates."""

    name: Literal["infonce"]


class SupCon(Named):
    """InfoNCE whose positives are the batch's samples with the anchor's label."""

    name: Literal["supcon"]
    decoupled: bool = False
    """Whether the own sample's views are left out of the denominator. With `negatives.close: [label]` it then holds
    other labels alone."""


Count = Annotated[int, Field(ge=1, le=64)]


class SupReMix(Named):
    """SupCon for labels that are numbers in order: far ones weigh more, and features are mixed."""

    name: Literal["supremix"]
    window: Annotated[int, Field(ge=1, le=2**31)] = 5
    """A positive is mixed of one feature below and one above the anchor's label, both nearer to it than this."""
    beta: tuple[Count, Count] = (2, 8)
    """Beta distribution of the anchor's share in a mixed negative, [a, b]; [5, 5] and [8, 2] are others of the paper's.
    """


Objective = Annotated[Dcl | Dclw | InfoNce | SupCon | SupReMix, Field(discriminator="name")]
