"""How parameters are moved: the optimisers, their parameter groups, and the learning-rate schedule.

Biases and the parameters of normalisation layers (one dimension or none) are neither decayed nor LARS-adapted. The
schedule is a function of the number of the update, so there is no scheduler state to save.

The optimisers are torch's, called as they are: what hides them from torch's compiler would import it first, which takes
a second and 70 MB. Here it is given an encoder alone (`emc2dist.train.compilation`), and never meets an optimiser.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from emc2dist.config import Optimiser


class _Bare(torch.optim.Optimizer):
    """Methods of all optimisers, without what hides them from torch's compiler."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)


class SGD(_Bare, torch.optim.SGD):
    """Torch's."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


class Adam(_Bare, torch.optim.Adam):
    """Torch's."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


class AdamW(_Bare, torch.optim.AdamW):
    """Torch's."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class Lars(_Bare):
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
            moved = [weight for weight in group["params"] if weight.grad is not None]
            for together in _together(moved):
                self._move(together, group)
        return loss

    def _move(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        updates = list(torch._foreach_add(_gradients(weights), weights, alpha=group["weight_decay"]))
        if group["adapt"]:
            torch._foreach_mul_(updates, _trust_ratios(weights, updates, group["trust"]))
        for weight in weights:
            if "velocity" not in self.state[weight]:
                self.state[weight]["velocity"] = torch.zeros_like(weight)
        velocities = [self.state[weight]["velocity"] for weight in weights]
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, updates, alpha=group["lr"])
        torch._foreach_sub_(weights, velocities)


def _gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _together(weights: list[Tensor]) -> list[list[Tensor]]:
    """The weights in lists that are moved at once.

    A GPU is told once for all, not once for each layer; a CPU that takes one after the other finds each in its cache.
    """
    if weights and weights[0].device.type != "cpu":
        return [weights]
    return [[weight] for weight in weights]


def _trust_ratios(weights: list[Tensor], updates: list[Tensor], trust: float) -> list[Tensor]:
    """Of each layer, a tensor: a Python branch on a norm would make the GPU wait."""
    weight_norms, update_norms = (torch.stack(torch._foreach_norm(tensors)) for tensors in (weights, updates))
    adapted = (weight_norms > 0) & (update_norms > 0)
    return list(torch.where(adapted, trust * weight_norms / update_norms, 1.0).unbind())


def build_optimiser(
    model: nn.Module, config: Optimiser, lr: float, depths: Mapping[str, int] | None = None
) -> torch.optim.Optimizer:
    """The optimiser over the model's trainable parameters, in two groups: weights, then biases and norms.

    With `layer_decay` in two for each depth of `depths`, by parameter (`emc2dist.towers.stages`), the least first. A
    group's rate is `scale` times that of the schedule, layer_decay ** (greatest depth - its own) (Bao et al. 2022,
    "BEiT"; after Clark et al. 2020, "ELECTRA").
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups: list[dict[str, Any]] = []
    if config.layer_decay is None or depths is None:
        groups += _groups(trained.values(), config)
    else:
        top = max(depths.values())
        for depth in sorted({depths[name] for name in trained}):
            here = [p for name, p in trained.items() if depths[name] == depth]
            scale = config.layer_decay ** (top - depth)
            groups += [group | {"scale": scale, "lr": scale * lr} for group in _groups(here, config) if group["params"]]
    momentum = 0.9 if config.momentum is None else config.momentum
    trust = 1e-3 if config.trust is None else config.trust
    # One kernel for all parameters on a GPU; None leaves the choice to torch, as before.
    fused = True if all(p.is_cuda for p in trained.values()) else None
    match config.name:
        case "adam":
            return Adam(groups, lr=lr, fused=fused)
        case "adamw":
            return AdamW(groups, lr=lr, fused=fused)
        case "sgd":
            return SGD(groups, lr=lr, momentum=momentum)
        case "lars":
            return Lars(groups, lr=lr, momentum=momentum, trust=trust)


def _groups(parameters: Iterable[Tensor], config: Optimiser) -> list[dict[str, Any]]:
    """Weights, then biases and norms, which are neither decayed nor LARS-adapted."""
    parameters = list(parameters)
    weights = {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay}
    plain = {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}
    return [weights, plain | ({"adapt": False} if config.name == "lars" else {})]


def restore_optimiser(optimiser: torch.optim.Optimizer, state: dict[str, Any], *, own_groups: bool = False) -> None:
    """Put its state dict back, of this or another kind of device: how it computes, and its layout, stay its own.

    With `own_groups` what its groups say stays as well: decay, momentum, scale.

    Raises what `torch.optim.Optimizer.load_state_dict` does where the state is another optimiser's.
    """
    groups = [dict(group) for group in (optimiser.state_dict() if own_groups else state)["param_groups"]]
    for group, own in zip(groups, optimiser.param_groups, strict=False):  # as many or not, torch will tell
        group |= {"fused": own["fused"]} if "fused" in own else {}
    optimiser.load_state_dict({**state, "param_groups": groups})
    for parameter, slots in optimiser.state.items():
        for name, slot in slots.items():
            if slot.shape == parameter.shape and slot.stride() != parameter.stride():
                # Files hold rows one after the other; a fused update takes no other layout than the parameter's.
                slots[name] = torch.empty_like(parameter).copy_(slot)


def clip_gradients(parameters: Iterable[Tensor], longest: float | None) -> Tensor:
    """Scale the gradients down to the norm `longest`, if they are longer; returns their norm before.

    None leaves them as they are, and costs no pass over them.
    """
    moved = [parameter for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(_gradients(moved))
    if longest is not None:
        torch.nn.utils.clip_grads_with_norm_(moved, longest, norm)
    return norm


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
    """Give every parameter group this rate, times its own `scale` where it has one."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group.get("scale", 1.0)
