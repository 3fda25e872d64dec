"""Tensors on their way to the device and back: one copy for all of them, for which nothing waits but who needs them."""

from collections.abc import Iterable, Sequence

import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(tensors: Iterable[Tensor], device: torch.device) -> list[Tensor]:
    """CPU tensors on the device. To a GPU they go by pinned memory, so that nothing waits; later kernels find them."""
    found = list(tensors)
    if device.type == "cpu" or not found:
        return found
    pack = _Pack(found)
    # Torch keeps the pinned copy until the GPU has read it.
    return pack.unpacked(pack.packed(found).pin_memory().to(device, non_blocking=True))


class Departure:
    """Tensors that share a device, on their way to the host; made where they are, read when they are needed."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        found = [tensor.detach().contiguous() for tensor in tensors]
        self._arrived, self._event = found, None
        if not found or found[0].device.type == "cpu":
            return
        self._pack = _Pack(found)
        packed = self._pack.packed(found)
        self._copy = packed.to("cpu", non_blocking=True)
        with torch.cuda.device_of(packed):
            self._event = torch.cuda.Event()
            self._event.record()

    def arrays(self) -> list[NDArray]:
        """The tensors; waits for a GPU until it has computed and copied them, not for what it was given since."""
        if self._event is not None:
            self._event.synchronize()
            self._arrived, self._event = self._pack.unpacked(self._copy), None
        return [tensor.numpy() for tensor in self._arrived]


class _Pack:
    """Where each of several tensors lies in one buffer: the widest elements first, so that all of them lie aligned."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._kinds = [(tensor.dtype, tensor.shape, tensor.nbytes) for tensor in tensors]
        self._order = sorted(range(len(tensors)), key=lambda place: -tensors[place].itemsize)

    def packed(self, tensors: Sequence[Tensor]) -> Tensor:
        """The buffer, uint8 [bytes]."""
        # Strides are given because a contiguous tensor of one element, or none, may have any.
        flat = [tensor.contiguous().as_strided((tensor.numel(),), (1,)) for tensor in tensors]
        parts = [flat[place].view(torch.uint8) for place in self._order]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def unpacked(self, buffer: Tensor) -> list[Tensor]:
        """The tensors, as views of the buffer."""
        parts = buffer.split([self._kinds[place][2] for place in self._order])
        found = dict(zip(self._order, parts, strict=True))
        return [found[place].view(dtype).view(shape) for place, (dtype, shape, _) in enumerate(self._kinds)]
