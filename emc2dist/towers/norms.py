"""Group normalisation that stays in bf16 under autocast, with statistics in float32."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from emc2dist.core import kernels


class GroupNorm(nn.GroupNorm):
    """torch's, but for bf16 and float16 on a GPU: they go in and come out, and are normalised in float32 between.

    On a GPU autocast would run it in float32 and leave its output there, so that what comes after it, up to the next
    convolution, moves twice the bytes; and torch's own kernel for bf16 rounds the mean and the deviation to bf16. Here
    it is a kernel of its own (`emc2dist/towers/norms_triton.py`), or torch's between two conversions where Triton is
    not, or where the encoder is compiled. On a CPU torch already does what this does.
    """

    @override
    def forward(self, input: Tensor) -> Tensor:
        """Of [n, C, ...], in its type."""
        if input.dtype not in (torch.bfloat16, torch.float16):
            return super().forward(input)
        if torch.compiler.is_compiling():  # what is compiled converts where it reads and writes, which takes no pass
            return self._in_float32(input)
        if len(input) and kernels.run_on(input):
            from emc2dist.towers.norms_triton import GroupNormFunction  # here: it needs Triton

            return GroupNormFunction.apply(input, self.weight, self.bias, self.num_groups, self.eps)
        return super().forward(input) if input.device.type == "cpu" else self._in_float32(input)

    def _in_float32(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return functional.group_norm(input.float(), self.num_groups, self.weight, self.bias, self.eps).to(
                input.dtype
            )
