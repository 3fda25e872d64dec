"""How torch computes in this process, as the spec has it: both ways, so that no default of a machine decides."""

import os

import torch

from emc2dist.config import Spec

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def settle(spec: Spec, device: torch.device) -> None:
    """Set torch's switches, which are the process's; before anything is computed on the device.

    Matrix products are in full float32 in any case: scores are divided by a small temperature, and TF32 has three
    digits.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = spec.precision == "tf32"
    torch.backends.cudnn.benchmark = False  # would choose by the clock, and anew for each number of images
    if device.type == "cpu":
        return  # there the same input gives the same bits anyway
    torch.use_deterministic_algorithms(spec.deterministic)
    # A pass over new memory that nobody reads.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if spec.deterministic:
        os.environ.setdefault(_WORKSPACE, ":4096:8")  # cuBLAS reads it at its first product
