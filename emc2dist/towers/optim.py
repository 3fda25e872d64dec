"""How parameters are moved: the optimisers, their parameter groups, and the learning-rate schedule.

Biases and the parameters of normalisation layers (one dimension or none) are neither decayed nor LARS-adapted. The
schedule is a function of the number of the update, so there is no scheduler state to save.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from emc2dist.config import Optimiser


class Lars(torch.optim.Optimizer):
    """SGD with momentum whose steps are scaled layer by layer (You, Gitman & Ginsburg 2017, arXiv:1708.03888).

        u = g + weight_decay * w
        v <- momentum * v + lr * ratio * u,    ratio = trust * |w| / |u|
        w <- w - v

    The norm of the whole u stands where the paper has |g| + weight_decay * |w|. The ratio is 1 where either norm is 0,
    and in parameter groups with `adapt=False`.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
        adapt: bool = True,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapt": adapt}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move every parameter that has a gradient; returns the closure's loss where one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, group)
        return loss

    def _move(self, weight: Tensor, group: dict[str, Any]) -> None:
        update = weight.grad.add(weight, alpha=group["weight_decay"])  # type: ignore[union-attr]
        if group["adapt"]:
            update.mul_(_trust_ratio(weight, update, group["trust"]))
        state = self.state[weight]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(weight)
        weight.sub_(state["velocity"].mul_(group["momentum"]).add_(update, alpha=group["lr"]))


def _trust_ratio(weight: Tensor, update: Tensor, trust: float) -> Tensor:
    weight_norm, update_norm = weight.norm(), update.norm()
    # A tensor throughout: a Python branch on a norm would make the GPU wait at every layer.
    return torch.where((weight_norm > 0) & (update_norm > 0), trust * weight_norm / update_norm, 1.0)


def build_optimiser(model: nn.Module, config: Optimiser, lr: float) -> torch.optim.Optimizer:
    """The optimiser over the model's trainable parameters, in two groups: weights, then biases and norms."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    weights: dict[str, Any] = {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay}
    plain: dict[str, Any] = {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}
    momentum = 0.9 if config.momentum is None else config.momentum
    trust = 1e-3 if config.trust is None else config.trust
    match config.name:
        case "adam":
            return torch.optim.Adam([weights, plain], lr=lr)
        case "adamw":
            return torch.optim.AdamW([weights, plain], lr=lr)
        case "sgd":
            return torch.optim.SGD([weights, plain], lr=lr, momentum=momentum)
        case "lars":
            groups = [weights, plain | {"adapt": False}]
            return Lars(groups, lr=lr, momentum=momentum, trust=trust)


def learning_rate(update: int, *, peak: float, warmup: int, total: int) -> float:
    """The rate of the update with this number, counted from 0.

    Rises in equal steps from peak / warmup at update 0 to `peak` at update warmup - 1, stays there for update
    `warmup`, then falls along a cosine that would reach 0 at update `total`: no update is made with a rate of 0.
    """
    if update < warmup:
        return peak * (update + 1) / warmup
    progress = min(1.0, (update - warmup) / max(1, total - warmup))
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group this rate."""
    for group in optimiser.param_groups:
        group["lr"] = lr
