"""What is minimised: the options of each objective, by the name that a spec gives it.

The formulas stand in `emc2dist.core.objectives`, a file each, with the same fields.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

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


class NnClr(Named):
    """Cross-entropy of picking a view by the cached neighbour of the sample's next view."""

    name: Literal["nnclr"]
    support: Annotated[int, Field(ge=1, le=2**20)] = 16384
    """Cached rows, drawn uniformly in every step, among which neighbours are looked for; at most all there are."""
    after: Annotated[float, Field(ge=0, le=1e6)] = 3.0
    """Epochs before neighbours stand in for the sample's next view. Of an untrained encoder all cosines are alike."""
    decoupled: bool = False
    """Whether the positive is left out of the denominator."""


class Rgcl(Named):
    """DCL with a temperature for every anchor, optimised by its own gradient."""

    name: Literal["rgcl"]
    rho: Annotated[float, Field(gt=0, le=1e3)] = 0.4
    """Radius of the weights around uniform ones, in nats: about exp(-rho) of all candidates push an anchor."""
    eta: Annotated[float, Field(ge=0, le=10)] = 0.03
    """Step of a temperature at each visit of its anchor. 0: temperatures stay where they begin."""
    beta: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Weight of the newest gradient in its average."""
    tau_min: Annotated[float, Field(ge=1e-3, le=1e3)] = 0.05
    """Least temperature."""
    tau_max: Annotated[float, Field(ge=1e-3, le=1e3)] = 1.0
    """Largest temperature."""

    @model_validator(mode="after")
    def _has_room(self) -> Self:
        if self.tau_min >= self.tau_max:
            raise ValueError(
                f"objective.tau_min: {self.tau_min:g} is not below objective.tau_max: {self.tau_max:g}; temperatures "
                "move between the two"
            )
        return self


Objective = Annotated[Dcl | Dclw | InfoNce | NnClr | Rgcl, Field(discriminator="name")]
