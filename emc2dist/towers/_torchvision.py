"""The one place that imports torchvision; everything else takes `models` and `v2` from here, where it builds with them.

torchvision brings torch's compiler with it, which takes seconds that a process which builds neither a ResNet nor a view
need not spend: the driver of a run of Conv4, Ray Train's controller, every command on a finished run.

A CUDA build of torchvision cannot load its compiled library beside a CPU build of torch, and then `import torchvision`
fails: it describes the operators `nms` and `qnms`, which that library would have defined. emc2dist uses only
torchvision's Python parts, so in that case the two operators are declared, without an implementation, and the import
is done again. Where torchvision imports, this module changes nothing.
"""

import importlib
import sys

import torch

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_library: torch.library.Library | None = None  # the declarations live as long as this object


def _import_torchvision() -> None:
    global _library
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        # Only now is it certain that torchvision's own library did not load, so that ours cannot clash with it.
        if "torchvision::nms" not in str(error):
            raise
        _library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            _library.define(name + _SIGNATURE)
        for module in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[module]  # half imported
        importlib.import_module("torchvision")


_import_torchvision()

from torchvision import models  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

__all__ = ["models", "v2"]
