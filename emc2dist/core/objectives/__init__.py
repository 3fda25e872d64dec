"""Objectives: formulas over estimated denominators, by the name that a spec gives them. One file each."""

from collections.abc import Mapping

from emc2dist.core.objectives.base import OBJECTIVE, Objective
from emc2dist.core.objectives.dcl import Dcl
from emc2dist.core.objectives.dclw import Dclw
from emc2dist.core.objectives.infonce import InfoNce
from emc2dist.core.objectives.nnclr import NnClr
from emc2dist.core.objectives.rgcl import Rgcl

OBJECTIVES: Mapping[str, type[Dcl] | type[Dclw] | type[InfoNce] | type[NnClr] | type[Rgcl]] = {
    "dcl": Dcl,
    "dclw": Dclw,
    "infonce": InfoNce,
    "nnclr": NnClr,
    "rgcl": Rgcl,
}

__all__ = ["OBJECTIVE", "OBJECTIVES", "Dcl", "Dclw", "InfoNce", "NnClr", "Objective", "Rgcl"]
