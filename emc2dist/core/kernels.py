"""Whether Triton's kernels run where a tensor is; torch's operators stand for them elsewhere."""

from functools import cache

import torch
from torch import Tensor

from emc2dist.terminal import brief, say_once


def run_on(tensor: Tensor) -> bool:
    """Whether they do on the tensor's device."""
    return tensor.is_cuda and run_there(tensor.device)


def run_there(device: torch.device) -> bool:
    """Whether they do on the device: a GPU for which Triton is here and can compile."""
    return device.type == "cuda" and _tried(device)


@cache
def _tried(device: torch.device) -> bool:
    """Try one; why it does not run is said."""
    try:
        from emc2dist.core.walk_triton import visit  # here: it needs Triton

        nothing = torch.zeros(1, 1, device=device)
        visit(nothing, nothing[0], nothing[0].long(), 0.5, True)
    except Exception as error:  # no Triton, no C compiler for it, or a GPU that it cannot compile for
        reason = f"Triton's kernels do not run here ({brief(error)})"
        say_once("triton", f"{reason}: sweep and group norm go by torch's operators, which takes longer")
        return False
    return True
