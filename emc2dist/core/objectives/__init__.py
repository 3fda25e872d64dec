"""Objectives: formulas over estimated denominators, by the name that a spec gives them. One file each."""

from collections.abc import Mapping

from emc2dist.core.objectives.base import Objective
from emc2dist.core.objectives.dcl import Dcl
from emc2dist.core.objectives.dclw import Dclw
from emc2dist.core.objectives.infonce import InfoNce
from emc2dist.core.objectives.supcon import SupCon
from emc2dist.core.objectives.supremix import SupReMix

OBJECTIVES: Mapping[str, type[Dcl] | type[Dclw] | type[InfoNce] | type[SupCon] | type[SupReMix]] = {
    "dcl": Dcl,
    "dclw": Dclw,
    "infonce": InfoNce,
    "supcon": SupCon,
    "supremix": SupReMix,
}

__all__ = ["OBJECTIVES", "Dcl", "Dclw", "InfoNce", "Objective", "SupCon", "SupReMix"]
