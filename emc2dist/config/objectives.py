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


class Cacr(Named):
    """Attraction by far positives, repulsion from near negatives; the temperature has no part in it."""

    name: Literal["cacr"]
    t_positive: Annotated[float, Field(ge=0, le=1e3)] = 1.0
    """How much farther positives, the sample's other views, weigh more; of two views each has one, and it has no part."""
    t_negative: Annotated[float, Field(ge=1e-3, le=1e3)] = 2.0
    """How much nearer negatives weigh more: softmax of 2 t_negative cosine."""


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


class MvDhel(Named):
    """One attraction of all pairs of a sample's views, and a repulsion within each view slot."""

    name: Literal["mv_dhel"]


class MvInfoNce(Named):
    """Cross-entropy of picking one of a sample's pairs of views among all pairs that they take part in."""

    name: Literal["mv_infonce"]


Objective = Annotated[
    Cacr
    | Dcl
    | Dclw
    | InfoNce
    | MvDhel
    | MvInfoNce,
    Field(discriminator="name"),
]  # fmt: skip
