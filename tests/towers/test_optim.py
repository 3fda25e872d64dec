"""Optimisers and schedule, LARS against a loop written out by hand."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from emc2dist.config import Optimiser
from emc2dist.towers.optim import Lars, build_optimiser, learning_rate, set_learning_rate


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2)).double()


def test_lars_equals_a_loop_written_out_and_excludes_biases_and_norms():
    model, lr, momentum, decay, trust = small_model(), 0.5, 0.9, 0.1, 0.02
    config = Optimiser(name="lars", momentum=momentum, weight_decay=decay, trust=trust)
    optimiser = build_optimiser(model, config, lr)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    velocity = {name: torch.zeros_like(w) for name, w in weights.items()}
    for step in range(4):
        set_learning_rate(optimiser, lr * (step + 1))
        optimiser.zero_grad()
        x = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        model(x).square().sum().backward()
        for name, parameter in model.named_parameters():
            update, ratio = parameter.grad.clone(), 1.0
            if parameter.ndim > 1:
                update += decay * weights[name]
                ratio = trust * float(weights[name].norm()) / float(update.norm())
            velocity[name] = momentum * velocity[name] + lr * (step + 1) * ratio * update
            weights[name] = weights[name] - velocity[name]
        optimiser.step()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.detach(), weights[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("weight", "gradient"), [(0.0, 1.0), (1.0, 0.0)])
def test_lars_has_ratio_one_where_a_norm_is_zero(weight, gradient):
    parameter = nn.Parameter(torch.full((2, 2), weight))
    parameter.grad = torch.full((2, 2), gradient)
    Lars([parameter], lr=0.5).step()
    torch.testing.assert_close(parameter.detach(), torch.full((2, 2), weight - 0.5 * gradient))


def test_lars_resumes_from_its_state():
    def stepped(model, optimiser, step):
        optimiser.zero_grad()
        model(torch.full((1, 4), float(step + 1), dtype=torch.float64)).sum().backward()
        optimiser.step()

    first, second, config = small_model(), small_model(), Optimiser(name="lars")
    whole = build_optimiser(first, config, 0.1)
    stepped(first, whole, 0)
    resumed = build_optimiser(second, config, 0.1)
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    for model, optimiser in ((first, whole), (second, resumed)):
        stepped(model, optimiser, 1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD), ("lars", Lars)],
)
def test_two_groups_of_which_only_weights_are_decayed(name, kind):
    model = small_model()
    model[2].weight.requires_grad_(False)
    momentum = 0.7 if name in ("sgd", "lars") else None
    optimiser = build_optimiser(model, Optimiser(name=name, weight_decay=0.3, momentum=momentum), 0.2)
    assert type(optimiser) is kind
    weights, plain = optimiser.param_groups
    assert [p.shape for p in weights["params"]] == [(3, 4)]
    assert [p.shape for p in plain["params"]] == [(3,), (3,), (3,), (2,)]
    assert (weights["weight_decay"], plain["weight_decay"]) == (0.3, 0)
    assert all(group["lr"] == 0.2 for group in optimiser.param_groups)
    if name in ("sgd", "lars"):
        assert all(group["momentum"] == 0.7 for group in optimiser.param_groups)


def test_schedule_rises_to_the_peak_and_falls_to_zero():
    rates = [learning_rate(update, peak=2.0, warmup=4, total=12) for update in range(13)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[8] == pytest.approx(1.0)
    assert rates[12] == pytest.approx(0.0, abs=1e-12)
    assert all(later < earlier for earlier, later in pairwise(rates[4:]))
    assert min(rates[:12]) > 0


def test_schedule_without_warmup_beyond_its_end_and_all_warmup():
    assert learning_rate(0, peak=1.0, warmup=0, total=10) == 1.0
    assert learning_rate(99, peak=1.0, warmup=0, total=10) == pytest.approx(0.0, abs=1e-12)
    assert learning_rate(4, peak=1.0, warmup=5, total=5) == 1.0


def test_set_learning_rate_reaches_every_group():
    optimiser = build_optimiser(small_model(), Optimiser(), 0.1)
    set_learning_rate(optimiser, 0.25)
    assert [group["lr"] for group in optimiser.param_groups] == [0.25, 0.25]
