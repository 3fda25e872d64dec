"""Objectives: formulas over estimated denominators, by the name that a spec gives them. One file each."""

from collections.abc import Callable, Mapping

from emc2dist.core.objectives.base import OBJECTIVE, Objective
from emc2dist.core.objectives.cacr import Cacr
from emc2dist.core.objectives.dcl import Dcl
from emc2dist.core.objectives.dclw import Dclw
from emc2dist.core.objectives.debcse import DebCse
from emc2dist.core.objectives.groco import GroCo
from emc2dist.core.objectives.hydra import Hydra
from emc2dist.core.objectives.infonce import InfoNce
from emc2dist.core.objectives.input_label import InputLabel
from emc2dist.core.objectives.mv_dhel import MvDhel
from emc2dist.core.objectives.mv_infonce import MvInfoNce
from emc2dist.core.objectives.nnclr import NnClr
from emc2dist.core.objectives.rgcl import Rgcl
from emc2dist.core.objectives.sepclr import SepClr
from emc2dist.core.objectives.sirl import Sirl
from emc2dist.core.objectives.supcon import SupCon
from emc2dist.core.objectives.supremix import SupReMix
from emc2dist.core.objectives.sycl import SyCl
from emc2dist.core.objectives.whitenedcse import WhitenedCse

OBJECTIVES: Mapping[str, Callable[..., Objective]] = {
    "cacr": Cacr,
    "dcl": Dcl,
    "dclw": Dclw,
    "debcse": DebCse,
    "groco": GroCo,
    "hydra": Hydra,
    "infonce": InfoNce,
    "input_label": InputLabel,
    "mv_dhel": MvDhel,
    "mv_infonce": MvInfoNce,
    "nnclr": NnClr,
    "rgcl": Rgcl,
    "sepclr": SepClr,
    "sirl": Sirl,
    "supcon": SupCon,
    "supremix": SupReMix,
    "sycl": SyCl,
    "whitenedcse": WhitenedCse,
}

__all__ = [
    "OBJECTIVE",
    "OBJECTIVES",
    "Cacr",
    "Dcl",
    "Dclw",
    "DebCse",
    "GroCo",
    "Hydra",
    "InfoNce",
    "InputLabel",
    "MvDhel",
    "MvInfoNce",
    "NnClr",
    "Objective",
    "Rgcl",
    "SepClr",
    "Sirl",
    "SupCon",
    "SupReMix",
    "SyCl",
    "WhitenedCse",
]
