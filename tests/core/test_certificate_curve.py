"""What a certificate says beside its columns: how relbias came down, and what the contrast told of itself."""

import math

import pytest
import torch
from core.test_objectives import contrast, features

from emc2dist.core.certify import FrozenRun, _excess, certify


def frozen():
    return FrozenRun(contrast("emc2", "chain", "negatives.kernel=isir"), features(4, 24, seed=5), 6, 0.2)


def test_the_curve_is_of_the_last_five_sixths_of_so_many_steps():
    found = certify(frozen(), 144)
    run = frozen()
    gradients = torch.stack([run.step(t) for t in range(144)])
    exact = run.exact()
    starts = {144: 24, 92: 15, 59: 10, 38: 6, 24: 4, 15: 3}
    for steps, start in starts.items():
        mean = gradients[start:steps].mean(0)
        assert dict(found.curve)[steps] == pytest.approx(((mean - exact).norm() / exact.norm()).item(), rel=1e-9)
    assert [steps for steps, _ in found.curve] == sorted(dict(found.curve))
    assert found.curve[-1] == (144, found.relbias)


def test_facts_are_means_over_the_kept_steps_weighed_as_they_say():
    found = certify(frozen(), 48)
    run = frozen()
    outcomes = [run.outcome(t) for t in range(48)][-40:]
    accepted, valid = map(sum, zip(*(outcome.facts["acceptance_rate"] for outcome in outcomes), strict=True))
    assert found.facts["acceptance_rate"] == pytest.approx(float(accepted / valid))
    weights = [float(outcome.facts["carried_weight_ratio"]) for outcome in outcomes]
    assert found.facts["carried_weight_ratio"] == pytest.approx(sum(weights) / 40)
    # isir encodes every carried state again, except where it is in the batch, and each view once.
    assert 6 < found.facts["reencoded_images"] < 12
    alone = certify(FrozenRun(contrast("dcl", "in_batch"), features(4, 24), 6, 0.2), 48)
    assert set(alone.facts) == {"loss"}


def test_an_exact_gradient_that_is_known_is_used():
    exact = frozen().exact()
    assert certify(frozen(), 48, exact=exact) == certify(frozen(), 48)
    assert certify(frozen(), 48, exact=2 * exact).relbias != certify(frozen(), 48).relbias


def test_an_excess_is_what_blocks_have_in_common():
    generator = torch.Generator().manual_seed(0)
    noise, bias = torch.randn(400, 20, 30, generator=generator, dtype=torch.float64), torch.zeros(30)
    bias[:4] = 0.2
    for common in (0 * bias, bias):
        found = torch.tensor([_excess(blocks + common) for blocks in noise])
        true, spread = common.square().sum().item(), found[:, 0].std().item()
        assert found[:, 0].mean().item() == pytest.approx(true, abs=4 * spread / 20)
        if not true:
            assert found[:, 1].mean().item() == pytest.approx(spread, rel=0.15)
    run = frozen()
    blocks = torch.stack([run.step(t) for t in range(48)])[-40:].unflatten(0, (20, 2)).mean(1) - run.exact()
    whole = sum((blocks[i] * blocks[j]).sum() for i in range(20) for j in range(20) if i != j) / 380
    assert certify(frozen(), 48).excess == pytest.approx((whole / run.exact().square().sum()).item())


@pytest.mark.parametrize("negatives", ["chain", "in_batch", "moving_average"])
def test_the_error_of_log_z_is_against_all_views_of_all_samples(negatives):
    """By explicit loops; a chain's comes to nothing, and that of the batch alone lacks the samples that it lacks."""
    z, temperature = features(4, 24, seed=5), 0.4
    found = certify(FrozenRun(contrast("infonce", negatives), z, 6, temperature), 240).facts
    run, errors = FrozenRun(contrast("infonce", negatives), z, 6, temperature), []
    for t in range(240):
        index = torch.randperm(24, generator=run._generator.clone_state())[:6]
        own, outcome = run.batch(index, t).sides["x"].own.detach(), run.outcome(t)
        if t >= 40 and t % 10 == 0:
            taken = outcome.log_z["negatives"].view(2, 6)
            for v, i in [(v, i) for v in range(2) for i in range(6)]:
                others = [c for c in range(24) if c != index[i]]
                total = sum(math.exp(float(own[v, i] @ z[m, c]) / temperature) for m in range(4) for c in others)
                errors.append(float(taken[v, i]) - math.log(total * 2 / 4))
    mean, rms = sum(errors) / len(errors), (sum(error**2 for error in errors) / len(errors)) ** 0.5
    assert found["log_z_error"] == pytest.approx(mean)
    assert found["log_z_rms_error"] == pytest.approx(rms)
    if negatives == "in_batch":
        assert mean == pytest.approx(math.log(5 / 23), abs=0.2)
    else:
        assert abs(mean) < 0.15
        assert rms < 0.6
    assert "log_z_error" not in certify(FrozenRun(contrast("dcl", negatives), z, 6, temperature), 24).facts
