"""A first spec, drafted from five answers, with a comment on each choice: what `emc2dist new` writes.

The text stands in draft.yaml.j2 beside this. Its choices follow docs/draws.md and docs/retrieval.md.
"""

from dataclasses import dataclass
from importlib import resources

from emc2dist.config.sections import BUILT_IN
from emc2dist.errors import SpecError

KINDS = ("images", "pairs", "texts")
"""What may be there: pairs are queries and documents, texts stand by themselves."""
GOALS = ("features", "representation", "classes")
"""What it may be for: features compared as they are (search, duplicates), a representation that a classifier is put on,
or classes, whose labels are there to learn from."""

_SMALL = 48  # pixels up to which a stem is not to shrink an image
_RANGES = {"images": (8, 1_024, "pixels"), "pairs": (4, 8_192, "tokens"), "texts": (4, 8_192, "tokens")}
_MOST_GPUS = 4_096


@dataclass(frozen=True)
class Answers:
    """What a person says of a run to be."""

    name: str
    kind: str
    """One of `KINDS`."""
    path: str
    """Of the set."""
    size: int
    """Pixels of an image's side, or tokens of a document."""
    gpus: int
    """Over all machines; 0: CPUs alone."""
    goal: str
    """One of `GOALS`."""

    def __post_init__(self) -> None:
        """Check them. Raises SpecError, which names the option that answers."""
        for option, given, known in (("--data", self.kind, KINDS), ("--goal", self.goal, GOALS)):
            if given not in known:
                raise SpecError(f"{option}: got {given!r}; give {', '.join(known)}")
        low, high, unit = _RANGES[self.kind]
        if not low <= self.size <= high:
            raise SpecError(f"--size: got {self.size}; give {low} to {high} {unit}")
        if not 0 <= self.gpus <= _MOST_GPUS:
            raise SpecError(f"--gpus: got {self.gpus}; give 0 to {_MOST_GPUS}")
        if self.goal == "classes" and self.kind != "images":
            raise SpecError("--goal: classes are of images; give features or representation")


def draft(answers: Answers) -> str:
    """The spec as YAML with comments; it parses, unless the name or the path is none."""
    from jinja2 import Environment, StrictUndefined  # here: nothing else of the config needs it

    environment = Environment(trim_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined)
    environment.filters["quoted"] = lambda text: "'" + text.replace("'", "''") + "'"
    template = environment.from_string((resources.files(__package__) / "draft.yaml.j2").read_text(encoding="utf-8"))
    given = {
        "small": answers.size <= _SMALL,
        "workers": max(1, answers.gpus),
        "features": 256 if answers.goal == "features" else 128,
        "built_in": BUILT_IN,
    }
    return template.render(vars(answers) | given)
