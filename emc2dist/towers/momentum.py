"""A follower: an encoder that goes a little of the way to another one after every update (MoCo, He et al. 2020).

    follower <- momentum * follower + (1 - momentum) * encoder

Parameters and running statistics alike. It is trained by nothing, so it is the same on every worker as the encoder is.
It takes its running statistics, never those of a batch, by which a key could be told from the others.
"""

from copy import deepcopy

import torch
from torch import nn


def follower_of(encoder: nn.Module) -> nn.Module:
    """A follower that stands where the encoder is, in evaluation mode and without gradient."""
    return deepcopy(encoder).requires_grad_(False).eval()


@torch.no_grad()
def follow(follower: nn.Module, encoder: nn.Module, momentum: float) -> None:
    """Move the follower; `momentum` in [0, 1)."""
    behind, ahead = follower.state_dict(), encoder.state_dict()
    moving = [name for name, value in ahead.items() if value.is_floating_point()]
    torch._foreach_lerp_([behind[name] for name in moving], [ahead[name] for name in moving], 1 - momentum)
    for name in ahead.keys() - set(moving):  # counts
        behind[name].copy_(ahead[name])
