"""Unnormalised models: MECO, a chain over noise and NCE, against explicit loops and exact normalisers."""

import itertools
import math

import pytest
import torch

from benchmarks import unnormalised as study
from emc2dist.core.streams import fork
from emc2dist.core.unnormalised import emc2, meco, nce

NEVER = torch.full((3,), -torch.inf, dtype=torch.float64)


def ratios(models=3, data=5, noise=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(models, count, generator=generator, dtype=torch.float64) for count in (data, noise)]


def meco_by_loops(data, noise, z, rate):
    """MECO as its paper writes it, of one model: loss, its gradient by hand, and the average."""
    ratio = [score.exp() for score in noise]
    mean = sum(ratio) / len(noise)
    z = mean if z is None else (1 - rate) * z + rate * mean
    slope = [-1 / len(data)] * len(data), [one / (len(noise) * z) for one in ratio]
    return z.log() - sum(data) / len(data), slope, z


@pytest.mark.parametrize("rate", [0.1, 0.7, 1.0])
def test_meco_equals_explicit_loops_over_its_steps_with_gradient(rate):
    log_z, remembered = NEVER, [None] * 3
    for step in range(4):
        data, noise = (one.requires_grad_() for one in ratios(seed=step))
        loss, log_z = meco(data, noise, log_z, rate)
        slopes = torch.autograd.grad(loss.sum(), (data, noise))
        for a in range(3):
            value, expected, remembered[a] = meco_by_loops(data[a].detach(), noise[a].detach(), remembered[a], rate)
            torch.testing.assert_close(loss[a].detach(), value, atol=1e-12, rtol=0)
            torch.testing.assert_close(log_z[a].exp(), remembered[a], atol=0, rtol=1e-12)
            for found, slope in zip(slopes, expected, strict=True):
                torch.testing.assert_close(found[a], torch.tensor(slope, dtype=torch.float64), atol=1e-12, rtol=0)


def test_nce_equals_explicit_loops_with_gradient():
    data, noise = (one.requires_grad_() for one in ratios())
    found, oracle = nce(data, noise), torch.zeros(3, dtype=torch.float64)
    for a in range(3):
        for ratio in data[a].exp():  # of a point the posterior of being data is n p / (n p + C q)
            oracle[a] -= (5 * ratio / (5 * ratio + 4)).log() / 5
        for ratio in noise[a].exp():
            oracle[a] -= (4 / (5 * ratio + 4)).log() / 5
    torch.testing.assert_close(found, oracle, atol=1e-12, rtol=0)
    slopes = (torch.autograd.grad(loss.sum(), (data, noise)) for loss in (found, oracle))
    torch.testing.assert_close(*slopes, atol=1e-12, rtol=0)


def test_gradients_are_those_of_finite_differences():
    data, noise = (one.requires_grad_() for one in ratios())
    assert torch.autograd.gradcheck(nce, (data, noise))
    # What is remembered is a constant; of the batch alone all is differentiated.
    assert torch.autograd.gradcheck(lambda *both: meco(*both, NEVER, 1.0).loss, (data, noise))


@pytest.mark.parametrize("rate", [0.1, 1.0])
def test_limits(rate):
    data, noise = (one.requires_grad_() for one in ratios())
    first = meco(data, noise[:, :1], NEVER, rate)  # one proposal: its own ratio
    torch.testing.assert_close(first.log_z, noise[:, 0].detach())
    (slope,) = torch.autograd.grad(first.loss.sum(), noise)
    torch.testing.assert_close(slope, torch.eye(4, dtype=torch.float64)[:1].expand(3, 4))
    far = meco(data + 2000, noise + 2000, NEVER, rate)  # p~ by a constant: log Z by it, and nothing else; no overflow
    torch.testing.assert_close(far.loss, meco(data, noise, NEVER, rate).loss)
    torch.testing.assert_close(meco(data, noise + 2000, far.log_z, rate).log_z, far.log_z)
    same = torch.zeros_like(data).requires_grad_(), torch.zeros_like(noise).requires_grad_()  # the model is the noise
    assert meco(*same, NEVER, rate).loss.abs().max() == 0
    torch.testing.assert_close(
        nce(*same), torch.full((3,), 9 / 5 * math.log(9) - math.log(5) - 4 / 5 * math.log(4)).double()
    )
    out = noise.detach().clone()
    out[:, 1] = -torch.inf  # p~ is 0 there
    out.requires_grad_()
    (slope,) = torch.autograd.grad(meco(data, out, NEVER, rate).loss.sum(), out)
    assert (slope[:, 1] == 0).all()
    torch.testing.assert_close(slope.sum(1), torch.ones(3, dtype=torch.float64))


class Line:
    """Scores a x - b x^2/2, of which log Z is known: a Gaussian of mean a/b and variance 1/b; noise N(0, 4)."""

    noise = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), 2.0)

    def __init__(self, models):
        self.a = torch.full((models, 1), 4.0, dtype=torch.float64, requires_grad=True)
        self.b = torch.full((models, 1), 3.0, dtype=torch.float64, requires_grad=True)
        self.generator = torch.Generator().manual_seed(0)

    def proposed(self, count):
        return 2 * torch.randn(len(self.a), count, generator=self.generator, dtype=torch.float64)

    def ratio(self, x):
        return self.a * x - self.b * x.square() / 2 - self.noise.log_prob(x)

    def slope(self, loss):
        """The mean over models."""
        return torch.stack([one.mean() for one in torch.autograd.grad(loss.sum(), (self.a, self.b))])

    @property
    def exact(self):
        a, b = (one[:1].detach().requires_grad_() for one in (self.a, self.b))
        log_z = a.square() / (2 * b) + (2 * torch.pi / b).log() / 2
        return log_z.item(), torch.cat([one.flatten() for one in torch.autograd.grad(log_z.sum(), (a, b))])


def off(found, exact):
    return ((found - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize(("rate", "least", "most"), [(0.02, 0, 0.02), (1.0, 0.08, 1)])
def test_the_average_comes_to_the_exact_gradient_where_one_batch_does_not(rate, least, most):
    """64 models that are one, 4 proposals a step; relative error of the averaged gradient of log Z."""
    line = Line(64)
    (value, exact), log_z = line.exact, NEVER[:1].expand(64)
    data, total, steps = torch.zeros(64, 1, dtype=torch.float64), 0, 0
    for step in range(800):
        loss, log_z = meco(data, line.ratio(line.proposed(4)), log_z, rate)
        if step >= 200:
            total, steps = total + line.slope(loss), steps + 1
    assert least <= off(total / steps, exact) < most
    if rate < 1:
        assert log_z.mean().item() == pytest.approx(value, abs=0.03)


@pytest.mark.parametrize(("carries", "least", "most"), [(True, 0, 0.02), (False, 0.08, 1)])
@pytest.mark.parametrize("kernel", ["isir", "mh"])
def test_a_chain_over_noise_comes_to_the_exact_gradient_unless_it_forgets(kernel, carries, least, most):
    line, stream = Line(64), fork(3, torch.arange(64))
    _, exact = line.exact
    data, total, steps, x = torch.zeros(64, 1, dtype=torch.float64), 0, 0, None
    for step in range(800):
        noise = line.proposed(4)
        never = x is None or not carries
        carried = NEVER[:1].expand(64) if never else line.ratio(x).squeeze(1)
        found = emc2(data, line.ratio(noise), carried, fork(stream, step), kernel)
        x = torch.cat([noise, noise[:, :1] if never else x], 1).gather(1, found.visit.state.unsqueeze(1))
        if step >= 200:
            total, steps = total + line.slope(found.loss), steps + 1
    assert least <= off(total / steps, exact) < most


def normal(mean, width, count=2000):
    """Its quantiles, as good as a population."""
    middle = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return mean + width * torch.distributions.Normal(0.0, 1.0).icdf(middle)


@pytest.mark.parametrize(("width", "flat"), [(1.0, True), (6.0, False)])
def test_nce_is_flat_where_noise_is_far_from_data_and_likelihood_is_not(width, flat):
    """Half-way from narrow noise at 0 to data at 16 (Liu et al., ICLR 2022), log Z at its right value."""
    mean = torch.tensor(8.0, dtype=torch.float64, requires_grad=True)
    q = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), width)

    def ratio(x):
        return (torch.distributions.Normal(mean, 1.0).log_prob(x) - q.log_prob(x)).unsqueeze(0)

    data = ratio(normal(16.0, 1.0))
    (slope,) = torch.autograd.grad(nce(data, ratio(normal(0.0, width))).sum(), mean)
    (exact,) = torch.autograd.grad(-ratio(normal(16.0, 1.0)).mean(), mean)
    assert exact.item() == pytest.approx(-8, abs=1e-6)
    assert (abs(slope.item()) < 1e-3) == flat
    assert (slope.item() < -7) != flat


def test_where_nce_is_flat_meco_arrives_while_it_does_not_push_and_is_driven_off_when_it_does():
    """Noise N(0, 1), data N(16, 1) and a constant Z: weights of a step should sum to 1 (docs/unnormalised.md)."""
    model, noise, generator = study.Gaussians(3, natural=False), study.Normal(1.0), torch.Generator().manual_seed(0)
    learner, errors, pushes = study.Learner("meco", 0.1, model, noise), [], []
    for step in range(1500):
        data, proposed = (source.draw(3, 64, generator) for source in (noise, noise))
        (slope,) = torch.autograd.grad(learner.loss(16 + data, proposed, step).sum(), model.mean)
        with torch.no_grad():
            scores = model.log_density(proposed) - noise.log_density(proposed)
            pushes.append((scores.logsumexp(1) - math.log(64) - learner.log_z).exp())
            model.mean -= 0.1 * slope
            errors.append((model.mean - 16).abs().max())
    assert max(errors[100:300]) < 0.2
    assert torch.stack(pushes[20:300]).max() < 1e-3
    assert max(errors[1000:]) > 1


def images(pixels):
    """All there are, float64 [2^pixels, pixels]."""
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=pixels)), dtype=torch.float64)


def test_the_normaliser_of_the_digits_is_exact(monkeypatch):
    monkeypatch.setattr(study, "HIDDEN", 3)
    generator = torch.Generator().manual_seed(0)
    means = torch.rand(2, 6, generator=generator, dtype=torch.float64)
    model, noise = study.Boltzmann(means[0], generator), study.Mixture(means)
    with torch.no_grad():
        for parameter in model.parameters:
            parameter += torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(model.log_z().squeeze(0), model.log_density(images(6)).logsumexp(0))
    torch.testing.assert_close(noise.log_density(images(6)).logsumexp(0).item(), 0.0, atol=1e-12, rtol=0)
    everything, batch = images(6).unsqueeze(0), images(6)[:9].unsqueeze(0)
    uniform = -math.log(64)  # with all there is for noise MECO's first step is exact
    found = meco(model.log_density(batch) - uniform, model.log_density(everything) - uniform, NEVER[:1], 0.1).loss
    exact = model.log_z() - model.log_density(batch).mean(1) + uniform
    torch.testing.assert_close(found, exact, atol=1e-12, rtol=0)
    slopes = (torch.autograd.grad(loss.sum(), model.parameters) for loss in (found, exact))
    torch.testing.assert_close(*slopes, atol=1e-12, rtol=0)
    drawn = noise.draw(1, 20_000, generator)[0]
    torch.testing.assert_close(drawn.mean(0), means.mean(0), atol=0.015, rtol=0)


def test_auroc_counts_pairs():
    generator = torch.Generator().manual_seed(0)
    inside, outside = (torch.randint(9, (count,), generator=generator) + shift for count, shift in ((30, 2), (20, 0)))
    pairs = [(a > b) + (a == b) / 2 for a in inside.tolist() for b in outside.tolist()]
    assert study.auroc(inside, outside) == pytest.approx(sum(pairs) / 600)


@pytest.mark.parametrize(("way", "rate"), [("exact", None), ("nce", None), ("meco", 0.1), ("emc2", None)])
def test_each_way_learns_digits(way, rate):
    """Independent pixels, which the model begins as, are at 25.3 nats and tell digits from themselves by chance."""
    found = study.learn_digits({"way": way, "rate": rate, "noise": "pixels", "proposals": 256, "seed": 0}, 300)
    assert found["nats"][-1] < 24
    assert found["auroc"]["pixels"] > 0.7


def test_the_study_goes_on_where_it_was_cut_off(monkeypatch, tmp_path, capsys):
    jobs = list(study.jobs(1))
    chosen = [jobs[0], next(job for job in jobs if job["way"] == "noise"), jobs[-1]]
    out = tmp_path / "found.jsonl"
    for count in (2, 3):
        monkeypatch.setattr(study, "jobs", lambda seeds, count=count: iter(dict(job) for job in chosen[:count]))
        monkeypatch.setattr("sys.argv", ["unnormalised", "--steps", "20", "--out", str(out)])
        study.main()
        assert len(out.read_text().splitlines()) == count
        assert len(capsys.readouterr().out.splitlines()) == (2 if count == 2 else 1)
    monkeypatch.setattr("sys.argv", ["unnormalised", "--table", "--out", str(out)])
    study.main()
    assert "| classes | 1,024 | `emc2` | 1 |" in capsys.readouterr().out
