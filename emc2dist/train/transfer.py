"""Tensors on their way to the device and back, with as few waits of the host for a GPU as can be."""

from collections.abc import Iterable

import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on the device. To a GPU it goes by pinned memory, so that nothing waits; later kernels find it."""
    if device.type != "cuda":
        return tensor.to(device)
    # Torch keeps the pinned copy until the GPU has read it.
    return tensor.pin_memory().to(device, non_blocking=True)


def to_numpy(tensors: Iterable[Tensor]) -> list[NDArray]:
    """Arrays of tensors that share a device; from a GPU all of them for one wait."""
    found = [tensor.detach().contiguous() for tensor in tensors]
    arrays = [tensor.to("cpu", non_blocking=True).numpy() for tensor in found]
    if any(tensor.is_cuda for tensor in found):
        torch.cuda.current_stream(found[0].device).synchronize()  # the copies are on their way until then
    return arrays
