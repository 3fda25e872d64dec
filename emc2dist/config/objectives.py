"""What is minimised: the options of each objective, by the name that a spec gives it.

The formulas stand in `emc2dist.core.objectives`, a file each, with the same fields.
"""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from typing_extensions import override

from emc2dist.config.sections import Section

if TYPE_CHECKING:
    from emc2dist.config.spec import Spec

Direction = Literal["forward", "backward", "queries", "documents"]
Directions = Literal["forward", "both", "all"] | Annotated[tuple[Direction, ...], Field(max_length=4)] | None
Width = Annotated[float, Field(ge=1e-3, le=1e3)]


class Named(Section):
    """A section that its name chooses among several."""

    name: str

    def options(self) -> dict[str, Any]:
        """What the name leaves open, by key."""
        return self.model_dump(exclude={"name"})

    followed: ClassVar[bool] = False
    """Of an objective: whether all its keys may be a follower's (`encoder.momentum`)."""
    paired: ClassVar[bool] = False
    """Of an objective: whether it is of pairs, too (`data.kind`)."""

    @property
    def learns(self) -> bool:
        """Of an objective: whether it has parameters of its own."""
        return False

    def refusal(self, negatives: "Named") -> str | None:
        """Of an objective: why it does not go with these negatives, the key named, and what to do; None: it does."""
        if negatives.name == "queue" and not self.followed:
            return (
                f"negatives: queue has a follower's keys, and objective: {self.name} gives gradients to keys of the "
                "batch; give other negatives, or objective dcl, dclw, infonce or rgcl"
            )
        return None

    def misfit(self, spec: "Spec") -> str | None:
        """Of an objective: why it does not go with what else the spec says, as `refusal` tells it; None: it does."""
        return None


class Cacr(Named):
    """Attraction by far positives, repulsion from near negatives; the temperature has no part in it."""

    name: Literal["cacr"]
    t_positive: Annotated[float, Field(ge=0, le=1e3)] = 1.0
    """How much more farther positives weigh, which are the sample's other views; with two views it has no part."""
    t_negative: Annotated[float, Field(ge=1e-3, le=1e3)] = 2.0
    """How much more nearer negatives weigh: softmax of 2 t_negative cosine."""

    @override
    def refusal(self, negatives: Named) -> str | None:
        if negatives.name == "gumbel":
            return (
                "negatives: gumbel draws one cached row for its anchor, and objective: cacr needs the mean over all; "
                "give chain or moving_average, which remember it, or in_batch"
            )
        return super().refusal(negatives)


class Directed(Named):
    """An objective of views of one thing, or of pairs."""

    followed: ClassVar[bool] = True
    paired: ClassVar[bool] = True
    directions: Directions = None
    """Of pairs: `forward` has each query pick its document; `both` has each document pick its query, too, the mean of
    both losses. A list has one denominator, the sum of those named: `forward`, `backward` (documents pick queries),
    `queries` and `documents` (other ones of the own side are candidates); `all` is all four. None: `forward`."""

    @model_validator(mode="after")
    def _goes_forward_once(self) -> Self:
        given = self.directions
        if isinstance(given, tuple) and (given.count("forward") != 1 or len(set(given)) < len(given)):
            raise ValueError(
                f"objective.directions: got {', '.join(given) or 'none'}; name each once, and forward, in which the "
                "pair itself stands"
            )
        return self


class Dcl(Directed):
    """Decoupled contrastive learning: the positive is not in the denominator."""

    name: Literal["dcl"]


class Dclw(Named):
    """DCL whose positives are weighted by how far apart they are."""

    name: Literal["dclw"]
    followed: ClassVar[bool] = True
    sigma: Width = 0.5
    """Width of the weight, in cosines. The larger, the nearer to DCL."""


class DebCse(Directed):
    """InfoNCE whose pairs weigh less where texts look alike."""

    name: Literal["debcse"]
    followed: ClassVar[bool] = False
    strength: Annotated[float, Field(ge=0, le=20)] = 1.0
    """e to it is how much more a pair weighs that looks unlike than one that has the same words. 0: InfoNCE."""


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
        if negatives.name == "gumbel":
            return (
                "negatives: gumbel draws one cached row for its anchor by weight, and objective: groco ranks the "
                "hardest; give chain with negatives.cache_proposals, which has cached rows among the candidates"
            )
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
        return super().refusal(negatives)


class Hydra(Named):
    """Cross-entropy of picking a sample of a partner class, by what the pair of classes has in common; needs labels."""

    name: Literal["hydra"]
    partner: Literal["distinct", "arbitrary", "identical"] = "arbitrary"
    """The partner class of an anchor: of a sample of the batch that is of another class (`distinct`), of any
    (`arbitrary`), or the anchor's own (`identical`)."""
    classes: Annotated[int, Field(ge=1, le=2**20)] = 1000
    """Rows of the table of classes; labels are below."""
    embedding: Annotated[int, Field(ge=1, le=2**16)] = 512
    """Width of a row."""
    hidden: Annotated[int, Field(ge=1, le=2**16)] = 1024
    """Width of the hidden layer that makes a gate of two rows."""

    @property
    @override
    def learns(self) -> bool:
        return True

    @override
    def refusal(self, negatives: Named) -> str | None:
        if negatives.name == "moving_average":
            return (
                "negatives: moving_average remembers log Z of an anchor, and with objective: hydra that is another one "
                "at every visit, for partner classes are drawn anew; give gumbel, or in_batch"
            )
        if negatives.name == "chain" and not negatives.options()["restart"]:
            return (
                "negatives: chain carries what it has drawn on to the next visit, where objective: hydra has another "
                "partner class and so another target; give negatives.restart=true with negatives.cache_proposals, or "
                "negatives: gumbel"
            )
        return super().refusal(negatives)


class InfoNce(Directed):
    """Cross-entropy of picking the positive among all candidates."""

    name: Literal["infonce"]
    learn_temperature: bool = False
    """Whether the temperature is learnt with the encoder, from `temperature` on (CLIP); never less than 0.01."""

    @property
    @override
    def learns(self) -> bool:
        return self.learn_temperature

    @override
    def misfit(self, spec: "Spec") -> str | None:
        if self.learn_temperature and spec.temperature_end is not None:
            return (
                f"temperature_end: {spec.temperature_end} moves the temperature, and objective.learn_temperature does; "
                "leave one of the two out"
            )
        return super().misfit(spec)


Row = tuple[Annotated[float, Field(ge=-1e6, le=1e6)], ...]


class InputLabel(Named):
    """Cross-entropy of picking a sample's label by the vector that describes it; needs labels."""

    name: Literal["input_label"]
    vectors: tuple[Row, ...] | None = None
    """A row of numbers for each label, 0 and on, as many as `encoder.features`: attributes, or an embedding of names.
    Rows are brought to unit length. None: the axes, by which labels have nothing in common."""
    held_out: tuple[Annotated[int, Field(ge=0, le=2**31)], ...] = ()
    """Labels that nothing is trained on; `emc2dist evaluate` tells how well their vectors tell them
    (`zero_shot_accuracy`)."""

    @model_validator(mode="after")
    def _describes_each(self) -> Self:
        if self.held_out and self.vectors is None:
            raise ValueError(
                "objective.held_out: needs objective.vectors; of a label that nothing is trained on an axis tells "
                "nothing"
            )
        for number, row in enumerate(self.vectors or ()):
            if len(row) != len((self.vectors or ())[0]) or not any(row):
                raise ValueError(
                    f"objective.vectors: row {number} is all 0, or of another length than the first; give each label "
                    "a vector, all of one length"
                )
        if self.held_out and max(self.held_out) >= len(self.vectors or ()):
            raise ValueError(
                f"objective.held_out: {max(self.held_out)} has no row among the {len(self.vectors or ())} of "
                "objective.vectors, which begin with that of label 0"
            )
        return self

    @override
    def refusal(self, negatives: Named) -> str | None:
        if negatives.name != "in_batch":
            return (
                f"negatives: {negatives.name} brings other samples, and objective: input_label has labels for "
                "candidates, of which a batch brings many; give in_batch, and a larger batch_size for more of them"
            )
        if negatives.options()["draws"]:
            return (
                f"negatives.draws: {negatives.options()['draws']} are images, and objective: input_label has labels "
                "for candidates; leave it out, or give a larger batch_size"
            )
        return super().refusal(negatives)

    @override
    def misfit(self, spec: "Spec") -> str | None:
        width = len(self.vectors[0]) if self.vectors else 0
        if self.vectors is None or width == spec.encoder.features:
            return None
        return (
            f"encoder.features: {spec.encoder.features} is not the {width} numbers of a row of objective.vectors, to "
            f"which features are compared; give encoder.features={width}"
        )


class MvDhel(Named):
    """One attraction of all pairs of a sample's views, and a repulsion within each view slot."""

    name: Literal["mv_dhel"]


class MvInfoNce(Named):
    """Cross-entropy of picking one of a sample's pairs of views among all pairs that they take part in."""

    name: Literal["mv_infonce"]


class NnClr(Named):
    """Cross-entropy of picking a view by the cached neighbour of the sample's next view."""

    name: Literal["nnclr"]
    support: Annotated[int, Field(ge=1, le=2**20)] = 16384
    """Cached rows, drawn uniformly in every step, among which neighbours are looked for; at most all there are."""
    after: Annotated[float, Field(ge=0, le=1e6)] = 3.0
    """Epochs before neighbours stand in for the sample's next view. Of an untrained encoder all cosines are alike."""
    decoupled: bool = False
    """Whether the positive is left out of the denominator."""
    predictor: Annotated[int, Field(ge=0, le=2**16)] = 0
    """Width of the hidden layer of what predicts neighbours from features; 0: features are compared as they are."""

    @property
    @override
    def learns(self) -> bool:
        return self.predictor > 0

    @override
    def refusal(self, negatives: Named) -> str | None:
        if negatives.options()["balance"] == "push":
            return (
                "negatives.balance: push counts weights twice that push their anchor alone, and the anchors of "
                "objective: nnclr are cached neighbours, which nothing pushes; use pull"
            )
        return super().refusal(negatives)


class Rgcl(Named):
    """DCL with a temperature for every anchor, optimised by its own gradient."""

    name: Literal["rgcl"]
    followed: ClassVar[bool] = True
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

    @override
    def misfit(self, spec: "Spec") -> str | None:
        if spec.temperature_end is None:
            return None
        return (
            f"temperature_end: {spec.temperature_end:g} is nobody's with objective: rgcl, whose anchors have "
            "temperatures of their own that begin at temperature; leave it out"
        )


Weight = Annotated[float, Field(ge=0, le=1e6)]


class SepClr(Named):
    """A common head of all images, and a salient one of what targets have beside background; needs labels."""

    name: Literal["sepclr"]
    width: Annotated[int, Field(ge=1, le=2**16)] = 2
    """Coordinates of the common head, the first ones of a feature; those that `encoder.features` leaves are salient."""
    background: tuple[Annotated[int, Field(ge=0, le=2**31)], ...] = (0,)
    """Labels of background images; all others are targets."""
    common: Weight = 1e-3
    """Weight of alignment and uniformity of the common head. The defaults are a thousandth of the published ones."""
    salient: Weight = 1.0
    """Weight of those of the salient head."""
    empty: Weight = 1.0
    """Weight of the pull of background images to 0 in the salient head."""
    joint: Weight = 1e-2
    """Weight of the repulsion in both heads together, by which they vary independently."""

    @override
    def refusal(self, negatives: Named) -> str | None:
        options = negatives.options()
        if options["draws"] or options.get("carried") == "cached":
            return (
                "negatives.draws and carried: cached are features without gradient, for which positives make up by "
                "pulling less, and objective: sepclr weighs pull and push by itself; leave them out"
            )
        return super().refusal(negatives)

    @override
    def misfit(self, spec: "Spec") -> str | None:
        if self.width < spec.encoder.features:
            return None
        return (
            f"objective.width: {self.width} leaves no salient head of encoder.features: {spec.encoder.features}; give "
            "less, say half"
        )


class Sirl(Named):
    """Triplets of a person's answers to which two of three images are alike (`emc2dist ask`)."""

    name: Literal["sirl"]
    margin: Annotated[float, Field(gt=0, le=4)] = 1.0
    """By how much the odd one has to be farther, in squared distances of features, which are 0 to 4."""

    @override
    def refusal(self, negatives: Named) -> str | None:
        if negatives.name != "in_batch" or negatives.options()["draws"]:
            return (
                f"negatives: {negatives.name} (or draws) brings images that nobody was asked about, and "
                "objective: sirl reads answers alone; give in_batch without draws"
            )
        return super().refusal(negatives)

    @override
    def misfit(self, spec: "Spec") -> str | None:
        if spec.data.per_class == 3:
            return None
        return (
            f"data.per_class: {spec.data.per_class} does not bring the three images of a query together, which "
            "objective: sirl compares; give data.per_class=3"
        )


class SupCon(Named):
    """InfoNCE whose positives are the batch's samples with the anchor's label."""

    name: Literal["supcon"]
    decoupled: bool = False
    """Whether the own sample's views are left out of the denominator. With `negatives.close: [label]` it then holds
    other labels alone."""
    memory: Annotated[int, Field(ge=0, le=2**20)] = 0
    """Cached rows, drawn uniformly in every step, of which those of the anchor's label are positives too (XBM); at most
    all there are."""


Count = Annotated[int, Field(ge=1, le=64)]


class SupReMix(Named):
    """SupCon for labels that are numbers in order: far ones weigh more, and features are mixed."""

    name: Literal["supremix"]
    window: Annotated[int, Field(ge=1, le=2**31)] = 5
    """A positive is mixed of one feature below and one above the anchor's label, both nearer to it than this."""
    beta: tuple[Count, Count] = (2, 8)
    """Beta distribution of the anchor's share in a mixed negative, [a, b]; [5, 5] and [8, 2] are others of the paper's.
    """


class SyCl(Named):
    """Lists of candidates with grades: how far the batch's distributions are from those of the grades."""

    name: Literal["sycl"]
    paired: ClassVar[bool] = True
    directions: Directions = None
    """Of pairs, whose grades are the scores of the set: `forward` alone, a query's over the documents. None: that."""

    @model_validator(mode="after")
    def _goes_forward(self) -> Self:
        if self.directions not in (None, "forward"):
            raise ValueError(
                f"objective.directions: {self.directions} have no grades; objective: sycl goes forward alone"
            )
        return self

    @override
    def refusal(self, negatives: Named) -> str | None:
        if negatives.name != "in_batch":
            return (
                f"negatives: {negatives.name} estimates a denominator, and objective: sycl reads none, but lists of "
                "the batch; give in_batch"
            )
        return super().refusal(negatives)

    @override
    def misfit(self, spec: "Spec") -> str | None:
        if spec.negatives.draws and spec.data.kind != "pairs":
            return (
                f"negatives.draws: {spec.negatives.draws} have no gradient, and objective: sycl has lists of the "
                "batch; leave it out"
            )
        rows = spec.views.count * spec.micro_batch_size
        if rows > 4096:
            return (
                f"batch_size: {spec.batch_size} gives objective: sycl the singular values of a matrix of {rows} rows "
                "in every step; give at most 4096, views counted"
            )
        return None


class WhitenedCse(Named):
    """Cross-entropy of picking a feature, whitened in shuffled groups of channels, by another shuffle of it."""

    name: Literal["whitenedcse"]
    channels: Annotated[int, Field(ge=1, le=1024)] = 6
    """Most channels of a group, which are whitened over the batch together."""
    shuffles: Annotated[int, Field(ge=2, le=16)] = 3
    """How many there are of a feature: the first picks each of the others."""

    @override
    def refusal(self, negatives: Named) -> str | None:
        if negatives.name != "in_batch" or negatives.options()["draws"]:
            return (
                f"negatives: {negatives.name} (or draws) brings features of other batches, and objective: whitenedcse "
                "whitens over one, in which alone they mean anything; give in_batch without draws"
            )
        return super().refusal(negatives)

    @override
    def misfit(self, spec: "Spec") -> str | None:
        if spec.micro_batch_size > self.channels:
            return None
        return (
            f"objective.channels: {self.channels} have no covariance of full rank over a batch of "
            f"{spec.micro_batch_size}; give fewer, or a larger batch_size"
        )


Objective = Annotated[
    Cacr
    | Dcl
    | Dclw
    | DebCse
    | GroCo
    | Hydra
    | InfoNce
    | InputLabel
    | MvDhel
    | MvInfoNce
    | NnClr
    | Rgcl
    | SepClr
    | Sirl
    | SupCon
    | SupReMix
    | SyCl
    | WhitenedCse,
    Field(discriminator="name"),
]  # fmt: skip
