"""SogCLR's gradient at its right scale, and iSogCLR's temperatures, by the papers' updates in explicit loops."""

import math
from dataclasses import replace

import pytest
import torch
from core.oracles import rgcl
from core.test_estimators import batch_of
from core.test_objectives import contrast, features

from emc2dist.core.estimators import Recall
from emc2dist.core.objectives import OBJECTIVE


def test_sogclrs_weights_are_exp_s_over_n_u():
    """u <- (1 - g) u + g mean exp s; of the published code the gradient is 2 tau as long: it sums the views' losses,
    and weighs cosines."""
    z, tau, rate = features(2, 6).requires_grad_(), 0.3, 0.9
    before = torch.rand(12, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 1
    columns = {"log_mean": (2 * before).log(), "visited": torch.ones(12, dtype=torch.bool)}  # ours is per sample of 2
    batch = replace(batch_of(z, temperature=tau, samples=50))
    outcome = contrast("sogclr", "moving_average", f"negatives.rate={rate}")(
        batch, {"negatives": Recall(columns)}, None
    )
    n, ours, published, remembered = 2 * 5, 0, 0, []
    for v in range(2):
        for i in range(6):
            cosines = torch.stack([z[v, i] @ z[w, j] for w in range(2) for j in range(6) if j != i])
            exp = (cosines.detach() / tau).exp()
            u = (1 - rate) * before[v * 6 + i] + rate * exp.sum() / n
            remembered.append((2 * u).log())
            ours = ours + (-z[v, i] @ z[1 - v, i] / tau + (exp / (n * u) * cosines / tau).sum()) / 12
            published = published + (-z[v, i] @ z[1 - v, i] + (exp / u * cosines).sum() / n) / 6
    torch.testing.assert_close(outcome.remember["negatives"]["log_mean"], torch.stack(remembered).float())
    found, expected, as_published = (
        torch.autograd.grad(loss, z, retain_graph=True)[0] for loss in (outcome.loss, ours, published)
    )
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(2 * tau * found, as_published, atol=1e-12, rtol=0)


def remembered(tau, velocity=None):
    """By anchor, of [V, N]."""
    velocity = torch.zeros_like(tau) if velocity is None else velocity
    return {OBJECTIVE: Recall({"tau": tau.detach().flatten(), "velocity": velocity.flatten()})}


def test_every_anchor_has_its_own_temperature():
    z = features(2, 6).requires_grad_()
    tau = torch.rand(2, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.1
    loss = contrast("rgcl", "in_batch")(batch_of(z, temperature=0.2), remembered(tau), None).loss
    oracle = rgcl(z, tau)
    torch.testing.assert_close(loss, oracle, atol=1e-12, rtol=0)
    torch.testing.assert_close(torch.autograd.grad(loss, z), torch.autograd.grad(oracle, z), atol=1e-12, rtol=0)


@pytest.mark.parametrize("negatives", ["in_batch", "moving_average", "chain", "gumbel"])
def test_a_temperature_goes_down_its_own_gradient(negatives):
    """At a first visit all estimators know the batch alone, here the whole dataset; the gradient is autograd's."""
    z = features(2, 6)
    more = ["negatives.kernel=isir"] if negatives == "chain" else []
    made = contrast("rgcl", negatives, "objective.eta=0.05", "objective.beta=0.25", "objective.rho=0.5", *more)
    tau = torch.rand(2, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 2 + 0.3
    tau.requires_grad_()
    velocity = torch.linspace(-1, 1, 12, dtype=torch.float64).view(2, 6)
    (slope,) = torch.autograd.grad(12 * rgcl(z, tau, rho=0.5), tau)
    batch = replace(batch_of(z), streams=torch.arange(12))
    recalls = {"negatives": first_visit(made, 6)} | remembered(tau.detach(), velocity)
    found = made(batch, recalls, None).remember[OBJECTIVE]
    moved = 0.75 * velocity + 0.25 * slope.clamp(-3, 3)
    torch.testing.assert_close(found["velocity"], moved.flatten().float())
    torch.testing.assert_close(found["tau"], (tau.detach() - 0.05 * moved).flatten().float())


def first_visit(made, samples):
    """What an estimator recalls of 2 `samples` anchors that it never saw."""
    from emc2dist.core.certify import FrozenRun

    return FrozenRun(made, features(2, samples), samples, 0.2)._recall(torch.arange(samples))["negatives"]


def test_temperatures_begin_at_the_specs_and_come_to_where_the_weights_are_rho_from_uniform():
    z, rho = features(2, 30, width=3), 1.2
    made = contrast("rgcl", "in_batch", "objective.eta=0.05", f"objective.rho={rho}", "objective.tau_max=2")
    recalls = remembered(torch.zeros(2, 30, dtype=torch.float64))
    for step in range(800):
        outcome = made(batch_of(z), recalls, None)
        if step == 0:
            torch.testing.assert_close(outcome.facts["anchor_temperature"].item(), 0.2)
        recalls = {OBJECTIVE: Recall({k: v.double() for k, v in outcome.remember[OBJECTIVE].items()})}
    tau = recalls[OBJECTIVE].columns["tau"]
    inside = (tau > 0.0501) & (tau < 1.999)
    assert inside.sum() > 40
    scores = torch.stack(
        [
            torch.stack([z[v, i] @ z[w, j] for w in range(2) for j in range(30) if j != i]) / tau[v * 30 + i]
            for v in range(2)
            for i in range(30)
        ]
    )
    weights = scores.softmax(1)  # of views
    divergence = (weights * (weights * 58).log()).sum(1)
    torch.testing.assert_close(divergence[inside], torch.full_like(divergence[inside], rho), atol=1e-3, rtol=0)
    assert math.isclose(tau.mean(), outcome.facts["anchor_temperature"].item(), rel_tol=1e-3)
