"""Group normalisation that stays in bf16 under autocast, with statistics in float32."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override


class GroupNorm(nn.GroupNorm):
    """torch's, but for bf16 and float16 on a GPU: they go in and come out, and are normalised in float32 between.

    On a GPU autocast would run it in float32 and leave its output there, so that what comes after it, up to the next
    convolution, moves twice the bytes; and torch's own kernel for bf16 rounds the mean and the deviation to bf16. On a
    CPU torch already does what this does.
    """

    @override
    def forward(self, input: Tensor) -> Tensor:
        """Of [n, C, ...], in its type."""
        if input.device.type == "cpu" or input.dtype not in (torch.bfloat16, torch.float16):
            return super().forward(input)
        return self._in_float32(input)

    def _in_float32(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return functional.group_norm(input.float(), self.num_groups, self.weight, self.bias, self.eps).to(
                input.dtype
            )
