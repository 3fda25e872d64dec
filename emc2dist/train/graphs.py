"""The encoder's passes over a batch as CUDA graphs (`cuda_graphs: true`): recorded once, and replayed in every step.

A batch has one shape, so its forward and its backward are the same few hundred kernels in every step, each launched
from Python. Replayed, they are one launch each. What is encoded beside the batch differs in number, and is launched as
ever.
"""

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from emc2dist.config import Spec
from emc2dist.errors import RunError
from emc2dist.terminal import brief


class _Passes(nn.Module):
    """What is recorded: the encoder, and the precision that it runs in."""

    def __init__(self, encoder: nn.Module, spec: Spec) -> None:
        super().__init__()
        self._encoder, self._short = encoder, spec.precision == "bf16"

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Features [n, D] of images uint8 [n, 3, S, S]."""
        # What autocast has cached of the weights would be replayed as it was when it was recorded.
        with torch.autocast("cuda", torch.bfloat16, enabled=self._short, cache_enabled=False):
            return self._encoder(images)


def record(encoder: nn.Module, spec: Spec, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Features [n, D] of a batch's images uint8 [n, 3, S, S], as the encoder makes them, with their backward pass.

    To be called before other threads use the device, which would end the recording. The encoder is left as it was.

    Raises:
        RunError: `device` is no GPU, or something that the encoder does cannot be recorded.
    """
    if device.type != "cuda":
        raise RunError(f"cuda_graphs: true, but this worker trains on {device}; leave it out, or give device=cuda")
    views = torch.zeros(spec.views.count * spec.batch_size, 3, spec.views.size, spec.views.size, dtype=torch.uint8)
    buffers = [buffer.clone() for buffer in encoder.buffers()]
    passes: Any
    gc.collect()  # no graph of before may be taken down while another one is recorded
    try:
        passes = torch.cuda.make_graphed_callables(_Passes(encoder, spec), (views.to(device),))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RunError(
            f"cuda_graphs: true, but the encoder's passes cannot be recorded here ({brief(error)}); leave it out"
        ) from error
    with torch.no_grad():  # trials have moved a batch norm's running statistics
        for buffer, before in zip(encoder.buffers(), buffers, strict=True):
            buffer.copy_(before)
    # Copied, for the next replay writes where this one wrote.
    return lambda images: passes(images).clone()
