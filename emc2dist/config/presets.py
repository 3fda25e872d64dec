"""Systems of the literature by one name: which objective they are, over which negatives.

`objective: emc2` is short for `objective: dcl` with `negatives: chain`. A bare name stands for a section whose other
keys are left at their defaults. An objective that is no preset takes its negatives from the batch, as its paper does,
unless told otherwise.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from emc2dist.config.negatives import Negatives
from emc2dist.config.objectives import Objective

PRESETS = {
    "emc2": ("dcl", "chain"),
    "isogclr": ("rgcl", "moving_average"),
    "moco": ("infonce", "queue"),
    "simclr": ("infonce", "in_batch"),
    "sogclr": ("dcl", "moving_average"),
}
DEFAULT = "emc2"
_MOMENTUM = {"moco": 0.99}
"""Of a preset's follower, where the spec names none."""


def _names(union: Any) -> list[str]:
    options = get_args(get_args(union)[0])
    return [get_args(one.model_fields["name"].annotation)[0] for one in options]


OBJECTIVES, NEGATIVES = _names(Objective), _names(Negatives)


def expanded(given: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a spec with `objective` and `negatives` as sections that name what they are.

    Raises:
        ValueError: a name that is not known or missing, or negatives that are not the preset's.
    """
    objective = _section("objective", given.get("objective"), [*OBJECTIVES, *PRESETS])
    negatives = _section("negatives", given.get("negatives"), NEGATIVES)
    if "name" not in objective and objective:
        raise ValueError(f"objective.name: missing; give it one of {', '.join([*OBJECTIVES, *PRESETS])}")
    objective.setdefault("name", "dcl" if "name" in negatives else DEFAULT)
    if objective["name"] in PRESETS:
        preset = objective["name"]
        given = _with_momentum(given, preset)
        objective["name"], its_own = PRESETS[preset]
        if negatives.setdefault("name", its_own) != its_own:
            raise ValueError(
                f"negatives: got {negatives['name']!r}; objective: {preset} is short for objective: "
                f"{objective['name']} with negatives: {its_own}, so write the former to take other negatives"
            )
    negatives.setdefault("name", "in_batch")
    return {**given, "objective": objective, "negatives": negatives}


def _with_momentum(given: Mapping[str, Any], preset: str) -> Mapping[str, Any]:
    encoder = given.get("encoder", {})
    if preset not in _MOMENTUM or not isinstance(encoder, Mapping):
        return given
    return {**given, "encoder": {"momentum": _MOMENTUM[preset], **encoder}}


def title(objective: str, negatives: str) -> str:
    """The preset's name, or both: what a picture or a table calls a system."""
    names = {pair: preset for preset, pair in PRESETS.items()} | {("dcl", "in_batch"): "dcl"}
    return names.get((objective, negatives), f"{objective}, {negatives}")


def _section(key: str, given: Any, names: Sequence[str]) -> dict[str, Any]:
    """The section, without a name where none was given."""
    section = dict(given) if isinstance(given, Mapping) else {} if given is None else {"name": given}
    name = section.get("name")
    if name is None or (isinstance(name, str) and name in names):
        return section
    nearest = difflib.get_close_matches(str(name).lower(), names, n=1)
    hint = f"; the nearest is {nearest[0]}" if nearest else ""
    raise ValueError(f"{key}: got {name!r}; allowed are {', '.join(names)}{hint}")
