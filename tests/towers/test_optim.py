"""Optimisers and schedule, LARS against a loop written out by hand."""

import copy
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from operators import Operators
from torch import nn

from emc2dist.config import Optimiser
from emc2dist.towers.optim import (
    Lars,
    build_optimiser,
    clip_gradients,
    learning_rate,
    restore_optimiser,
    set_learning_rate,
)


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
    restore_optimiser(resumed, copy.deepcopy(whole.state_dict()))
    for model, optimiser in ((first, whole), (second, resumed)):
        stepped(model, optimiser, 1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("adapt", [True, False])
def test_lars_tells_the_device_once_for_all_layers(adapt):
    def operators(layers):
        parameters = [nn.Parameter(torch.ones(2, 3, device="meta")) for _ in range(layers)]  # as a GPU, not the CPU
        optimiser = Lars(parameters, lr=0.1, adapt=adapt)
        for _ in range(2):  # the first one makes the velocities
            for parameter in parameters:
                parameter.grad = torch.ones(2, 3, device="meta")
            with Operators() as counted:
                optimiser.step()
        return counted.count

    assert operators(20) == operators(5)


def test_lars_moves_the_same_by_layers_and_all_at_once(monkeypatch):
    """As on a CPU, and as on a GPU."""

    def moved():
        parameters = [nn.Parameter(torch.linspace(-1, 2, n * n).view(n, n)) for n in (2, 3, 8)]
        optimiser = Lars(parameters, lr=0.3, weight_decay=0.1)
        for _ in range(3):
            for parameter in parameters:
                parameter.grad = parameter.detach().sin()
            optimiser.step()
        return parameters

    by_layers = moved()
    monkeypatch.setattr("emc2dist.towers.optim._together", lambda weights: [weights])
    assert all(torch.equal(a, b) for a, b in zip(by_layers, moved(), strict=True))


def test_lars_leaves_alone_what_has_no_gradient():
    moved, left = (nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    moved.grad = torch.ones(2, 2)
    optimiser = Lars([moved, left], lr=0.5)
    optimiser.step()
    assert torch.equal(left, torch.ones(2, 2))
    assert not torch.equal(moved, left)
    assert left not in optimiser.state


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_restored_state_has_the_parameters_layout_and_is_updated_as_here(name):
    """A file's rows lie one after the other; a run that trained on a GPU may have taken another kind of update."""
    convolution = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimiser = build_optimiser(convolution, Optimiser(name=name), 0.1)
    convolution(torch.ones(1, 3, 5, 5)).sum().backward()
    optimiser.step()
    state = copy.deepcopy(optimiser.state_dict())
    slots = [slot for slot in state["state"][0] if state["state"][0][slot].ndim]
    for slot in slots:
        state["state"][0][slot] = state["state"][0][slot].contiguous()
    for group in state["param_groups"]:
        group["fused"] = True
    other = build_optimiser(convolution, Optimiser(name=name), 0.1)
    restore_optimiser(other, state)
    assert slots
    for slot in slots:
        found = other.state[convolution.weight][slot]
        assert torch.equal(found, state["state"][0][slot])
        assert found.stride() == convolution.weight.stride()
    assert not any(group.get("fused") for group in other.param_groups if name != "lars")


def test_gradients_are_measured_and_only_clipped_where_that_is_asked_for():
    first, second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    first.grad, second.grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    parameters = [first, second, nn.Parameter(torch.zeros(5))]  # the last one takes no part
    with Operators() as counted:
        assert clip_gradients(iter(parameters), None).item() == 5
    measured = counted.count
    assert (first.grad.tolist(), second.grad.tolist()) == ([3, 0], [4])
    with Operators() as counted:
        assert clip_gradients(parameters, 10.0).item() == 5
    assert counted.count > measured
    assert (first.grad.tolist(), second.grad.tolist()) == ([3, 0], [4])
    assert clip_gradients(parameters, 2.5).item() == 5
    assert first.grad[0].item() == pytest.approx(1.5, rel=1e-5)
    assert second.grad[0].item() == pytest.approx(2.0, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD), ("lars", Lars)],
)
def test_two_groups_of_which_only_weights_are_decayed(name, kind):
    model = small_model()
    model[2].weight.requires_grad_(False)
    momentum = 0.7 if name in ("sgd", "lars") else None
    optimiser = build_optimiser(model, Optimiser(name=name, weight_decay=0.3, momentum=momentum), 0.2)
    assert kind in (type(optimiser), *type(optimiser).__bases__)
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


WITHOUT_COMPILER = """
import sys, torch
from emc2dist.config import Optimiser
from emc2dist.towers.optim import build_optimiser, restore_optimiser
for name in ("sgd", "adam", "adamw", "lars"):
    model = torch.nn.Linear(2, 2)
    optimiser = build_optimiser(model, Optimiser(name=name), lr=0.1)
    model(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    optimiser.zero_grad()
    restore_optimiser(optimiser, optimiser.state_dict())
print({"torch._dynamo", "torch._inductor"} & set(sys.modules))
"""


def test_no_optimiser_imports_torchs_compiler():
    done = subprocess.run([sys.executable, "-c", WITHOUT_COMPILER], capture_output=True, text=True, timeout=120)
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.parametrize(("name", "of_torch"), [("sgd", "SGD"), ("adam", "Adam"), ("adamw", "AdamW")])
def test_an_optimiser_of_torch_moves_as_it_does_there(name, of_torch):
    models = small_model(), small_model()
    ours = build_optimiser(models[0], Optimiser(name=name, weight_decay=0.1), lr=0.1)
    groups = [{key: value for key, value in group.items() if key != "params"} for group in ours.param_groups]
    sorted_by_group = [[p for p in models[1].parameters() if (p.ndim > 1) == (group == 0)] for group in (0, 1)]
    theirs = getattr(torch.optim, of_torch)([g | {"params": p} for g, p in zip(groups, sorted_by_group, strict=True)])
    for seed in range(3):
        x = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        for model, optimiser in zip(models, (ours, theirs), strict=True):
            optimiser.zero_grad()
            model(x).square().sum().backward()
            optimiser.step()
    assert all(torch.equal(*both) for both in zip(models[0].parameters(), models[1].parameters(), strict=True))
    assert all(p.requires_grad for p in models[0].parameters())
