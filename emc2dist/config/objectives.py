"""What is minimised: the options of each objective, by the name that a spec gives it.

The formulas stand in `emc2dist.core.objectives`, a file each, with the same fields.
"""

from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import override

from emc2dist.config.sections import Section

Width = Annotated[float, Field(ge=1e-3, le=1e3)]


class Named(Section):
    """A section that its name chooses among several."""

    name: str

    def options(self) -> dict[str, Any]:
        """What the name leaves open, by key."""
        return self.model_dump(exclude={"name"})

    def refusal(self, negatives: "Named") -> str | None:
        """Of an objective: why it does not go with these negatives, the key named, and what to do; None: it does."""
        return None


class Cacr(Named):
    """Attraction by far positives, repulsion from near negatives; the temperature has no part in it."""

    name: Literal["cacr"]
    t_positive: Annotated[float, Field(ge=0, le=1e3)] = 1.0
    """How much more farther positives weigh, which are the sample's other views; with two views it has no part."""
    t_negative: Annotated[float, Field(ge=1e-3, le=1e3)] = 2.0
    """How much more nearer negatives weigh: softmax of 2 t_negative cosine."""


class Dcl(Named):
    """Decoupled contrastive learning: the positive is not in the denominator."""

    name: Literal["dcl"]


class Dclw(Named):
    """DCL whose positives are weighted by how far apart they are."""

    name: Literal["dclw"]
    sigma: Width = 0.5
    """Width of the weight, in cosines. The larger, the nearer to DCL."""


class GroCo(Named):
    """Cross-entropy of a soft ranking of positives and hard negatives, by cosines."""

    name: Literal["groco"]
    hardest: Annotated[int, Field(ge=1, le=1024)] = 10
    """k: negatives of an anchor that are ranked, the nearest that batch, draws, chain and cache have."""
    steepness: Annotated[float, Field(ge=1e-3, le=1e3)] = 1.0
    """Of swaps in the sorting network. The larger, the harder."""

    @override
    def refusal(self, negatives: Named) -> str | None:
        options = negatives.options()
        if negatives.name == "moving_average":
            return (
                "negatives: moving_average remembers log Z, and objective: groco reads none; it ranks the hardest "
                "candidates, so give in_batch (with negatives.draws there are more of them) or chain"
            )
        if options.get("carried") == "roulette":
            return (
                "negatives.carried: roulette encodes again what has weight, and objective: groco reads no weights; "
                "give cached, which spares all encodings and costs no gradient, or reencode"
            )
        if options["balance"] is not None:
            return (
                f"negatives.balance: {options['balance']} makes up for keys without gradient, and objective: groco "
                "gives none to any key; leave it out"
            )
        return None


class InfoNce(Named):
    """Cross-entropy of picking the positive among all candidates."""

    name: Literal["infonce"]


class MvDhel(Named):
    """One attraction of all pairs of a sample's views, and a repulsion within each view slot."""

    name: Literal["mv_dhel"]


class MvInfoNce(Named):
    """Cross-entropy of picking one of a sample's pairs of views among all pairs that they take part in."""

    name: Literal["mv_infonce"]


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


Objective = Annotated[
    Cacr
    | Dcl
    | Dclw
    | GroCo
    | InfoNce
    | MvDhel
    | MvInfoNce
    | SupCon
    | SupReMix,
    Field(discriminator="name"),
]  # fmt: skip
