"""What is MECO worth beside NCE, a chain over noise and one batch alone? Gaussian means, and digits with an exact Z.

    python -m benchmarks.unnormalised --seeds 3 --out unnormalised.jsonl    # the tables of docs/unnormalised.md
    python -m benchmarks.unnormalised --out unnormalised.jsonl --table      # of what is there

`mean`: the mean of a Gaussian by SGD with several step sizes, from where the noise is (Liu et al., ICLR 2022) or not;
once by a density whose Z is constant, exp(-(x - t)^2 / 2), once as an exponential family has it, exp(t x - x^2 / 2).
`digits`: a restricted Boltzmann machine of so few hidden units that its Z is a sum over all their states, learnt from
scikit-learn's digits in black and white by Adam; held-out likelihood, and how well it tells digits from what is none.

One process, one thread. A job that ends is printed and appended to --out; one that stands there is not run again, so
what was cut off goes on.
"""

import argparse
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, softplus

from emc2dist.core.streams import fork
from emc2dist.core.unnormalised import emc2, meco, nce
from emc2dist.data.digits import DigitsImages
from emc2dist.data.grey import GreyImages
from emc2dist.data.omniglot import OmniglotImages

WAYS = (("nce", None), ("meco", 0.1), ("meco", 0.01), ("batch", None), ("emc2", None))
LEARNT = (("noise", None), ("exact", None), *WAYS)
"""Ways to have a density of digits; `noise`: what is drawn from, as it stands."""
DRAWN = (("pixels", 256), ("pixels", 1024), ("classes", 256), ("classes", 1024))
"""Noise of digits, and how much of it in a step."""
FAR = ((1.0, 16.0, 0.0), (2.0, 8.0, 0.0), (5.0, 8.0, 0.0), (5.0, 8.0, -20.0), (5.0, 16.0, 0.0))
"""Width of the noise around 0, where the data are, and where the model begins."""
MEANS = [(natural, *far) for natural in (False, True) for far in FAR]
RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Step sizes of SGD."""
STEPS = {"mean": 10_000, "digits": 3_000}
TOLD = (0.03, 0.3, 1.0)
"""Shares of the steps of `mean` after which its errors are told."""
HIDDEN = 10


class Model(Protocol):
    """A models that have nothing to do with each other."""

    parameters: list[Tensor]

    def log_density(self, x: Tensor) -> Tensor:
        """log p~ [A, n] of `x` [A, n, ...]."""

    def log_z(self) -> Tensor:
        """[A], exact."""


class Noise(Protocol):
    """A known density."""

    def draw(self, models: int, count: int, generator: torch.Generator) -> Tensor:
        """[A, count, ...]."""

    def log_density(self, x: Tensor) -> Tensor:
        """[A, n]."""


class Gaussians:
    """Of variance 1, and of means that are learnt from `start` on."""

    def __init__(self, models: int, *, natural: bool, start: float = 0.0) -> None:
        self.mean = torch.full((models, 1), start, dtype=torch.float64, requires_grad=True)
        self.parameters, self.natural = [self.mean], natural

    def log_density(self, x: Tensor) -> Tensor:
        return self.mean * x - x.square() / 2 if self.natural else -(x - self.mean).square() / 2

    def log_z(self) -> Tensor:
        energy = self.mean.square() / 2 if self.natural else 0 * self.mean
        return (energy + math.log(2 * math.pi) / 2).squeeze(1)


class Normal:
    """Noise around 0."""

    def __init__(self, width: float) -> None:
        self.width = width

    def draw(self, models: int, count: int, generator: torch.Generator) -> Tensor:
        return self.width * torch.randn(models, count, generator=generator, dtype=torch.float64)

    def log_density(self, x: Tensor) -> Tensor:
        return -(x / self.width).square() / 2 - math.log(self.width * math.sqrt(2 * math.pi))


class Boltzmann:
    """One restricted Boltzmann machine, log p~(x) = b x + sum_j softplus(c_j + W_j x); begins as independent pixels."""

    def __init__(self, pixels: Tensor, generator: torch.Generator) -> None:
        weights = torch.randn(HIDDEN, len(pixels), generator=generator, dtype=torch.float64) / 20
        start = weights, torch.zeros(HIDDEN, dtype=torch.float64), pixels.logit()
        self.parameters = self.weights, self.hidden, self.visible = [one.clone().requires_grad_() for one in start]
        self.states = torch.tensor(list(itertools.product((0.0, 1.0), repeat=HIDDEN)), dtype=torch.float64)

    def log_density(self, x: Tensor) -> Tensor:
        return x @ self.visible + softplus(x @ self.weights.T + self.hidden).sum(-1)

    def log_z(self) -> Tensor:
        """By the sum over all states of the hidden units, each of which leaves pixels independent."""
        given = self.states @ self.hidden + softplus(self.states @ self.weights + self.visible).sum(1)
        return given.logsumexp(0, keepdim=True)


class Mixture:
    """Noise of independent pixels within each of K components, all as likely; `means` [K, D] are a pixel's."""

    def __init__(self, means: Tensor) -> None:
        self.means = means

    def draw(self, models: int, count: int, generator: torch.Generator) -> Tensor:
        component = torch.randint(len(self.means), (models, count), generator=generator)
        means = self.means[component]
        return (torch.rand(means.shape, generator=generator, dtype=torch.float64) < means).double()

    def log_density(self, x: Tensor) -> Tensor:
        each = x @ self.means.log().T + (1 - x) @ (1 - self.means).log().T
        return each.logsumexp(-1) - math.log(len(self.means))


class Learner:
    """From a step's data and noise to the loss [A], in one of the ways; what it remembers is in here."""

    def __init__(self, way: str, rate: float | None, model: Model, noise: Noise, seed: int = 0) -> None:
        self.way, self.rate, self.model, self.noise = way, rate or 1.0, model, noise
        exact = model.log_z().detach()
        self.constant = exact.unsqueeze(1).requires_grad_()  # NCE's parameter, which begins at its right value
        self.log_z = torch.full_like(exact, -torch.inf)
        self.carried: Tensor | None = None
        self.streams = fork(seed, torch.arange(len(exact)))

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.model.parameters, *([self.constant] if self.way == "nce" else [])]

    def loss(self, data: Tensor, noise: Tensor, step: int) -> Tensor:
        ratios = self._ratio(data)
        if self.way == "nce":
            return nce(ratios - self.constant, self._ratio(noise) - self.constant)
        if self.way in ("meco", "batch"):
            loss, self.log_z = meco(ratios, self._ratio(noise), self.log_z, self.rate)
            return loss
        if self.way == "emc2":
            return self._chain(ratios, noise, step)
        return self.model.log_z() - ratios.mean(1) if self.way == "exact" else -ratios.mean(1)

    def believed(self) -> float | None:
        """What it takes log Z for, of one model; None: it takes it for nothing."""
        if self.way == "nce":
            return self.constant.item()
        return self.log_z.item() if self.way in ("meco", "batch") else None

    def _chain(self, ratios: Tensor, noise: Tensor, step: int) -> Tensor:
        first = self.carried is None
        points = torch.cat([noise, noise[:, :1] if self.carried is None else self.carried], 1)
        scores = self._ratio(points)
        carried = torch.full_like(self.log_z, -torch.inf) if first else scores[:, -1]
        loss, visit = emc2(ratios, scores[:, :-1], carried, fork(self.streams, step))
        self.carried = points[torch.arange(len(points)), visit.state].unsqueeze(1)
        return loss

    def _ratio(self, x: Tensor) -> Tensor:
        return self.model.log_density(x) - self.noise.log_density(x)


def learn_mean(job: dict[str, Any], steps: int, batch: int = 64) -> dict[str, Any]:
    """For each of TOLD, RATES and seeds the error, a mean over the last tenth of the steps until then.

    All of them are models that are learnt at once.
    """
    distance, seeds = job["distance"], job["seeds"]
    models, generator = len(RATES) * seeds, torch.Generator().manual_seed(0)
    model, noise = Gaussians(models, natural=job["natural"], start=job["start"]), Normal(job["width"])
    learner = Learner(job["way"], job["rate"], model, noise)
    size = torch.tensor(RATES, dtype=torch.float64).repeat_interleave(seeds).unsqueeze(1)
    errors = []
    for step in range(steps):
        data = distance + Normal(1.0).draw(models, batch, generator)
        loss = learner.loss(data, noise.draw(models, batch, generator), step)
        slopes = torch.autograd.grad(loss.sum(), learner.parameters)
        with torch.no_grad():
            for parameter, slope in zip(learner.parameters, slopes, strict=True):
                parameter -= size * slope
        errors.append((model.mean.detach().squeeze(1) - distance).abs())
    error = torch.stack(errors).unflatten(1, (len(RATES), seeds))
    until = [round(share * steps) for share in TOLD]
    return {"errors": [error[last - max(1, last // 10) : last].mean(0).tolist() for last in until]}


class Digits(NamedTuple):
    """Images in black and white, float64 [n, 64]."""

    train: Tensor
    test: Tensor
    label: Tensor
    """int64 [n], of `train`."""
    others: dict[str, Tensor]
    """What is no digit."""


def digits() -> Digits:
    train, test = (_pixels(DigitsImages(split)) for split in ("train", "test"))
    label = torch.from_numpy(DigitsImages("train").labels(np.arange(len(train))))
    generator = torch.Generator().manual_seed(0)
    black, white = ((one > 0.5).double().flatten(1) for one in (train, test))
    drawings = adaptive_avg_pool2d(_pixels(OmniglotImages("test", limit=len(test))), 8).flatten(1)
    ink = drawings.quantile(1 - white.mean())  # as much of it as digits have
    noise = Mixture(_means(black, torch.zeros_like(label))).draw(1, len(test), generator)[0]
    return Digits(black, white, label, {"pixels": noise, "omniglot": (drawings > ink).double()})


def learn_digits(job: dict[str, Any], steps: int, batch: int = 64) -> dict[str, Any]:
    """Nats of a held-out image after a fifth of the steps and at the end, the error of log Z, and AUROCs."""
    images, seed = digits(), job["seed"]
    generator = torch.Generator().manual_seed(seed)
    alike = images.label if job["noise"] == "classes" else torch.zeros_like(images.label)
    model = Boltzmann(_means(images.train, torch.zeros_like(alike))[0], generator)
    noise = Mixture(_means(images.train, alike))
    if job["way"] == "noise":
        return {"nats": [-noise.log_density(images.test).mean().item()] * 5, "auroc": outside(noise, images)}
    learner, nats = Learner(job["way"], job["rate"], model, noise, seed), []
    optimizer = torch.optim.Adam(learner.parameters, lr=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for step in range(steps):
        data = images.train[torch.randint(len(images.train), (1, batch), generator=generator)]
        loss = learner.loss(data, noise.draw(1, job["proposals"], generator), step)
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % (steps // 5) == 0:
            nats.append(nats_of(model, images.test))
    believed = learner.believed()
    error = None if believed is None else believed - model.log_z().item()
    return {"nats": nats, "log_z_error": error, "auroc": outside(model, images)}


@torch.no_grad()
def nats_of(model: Model, images: Tensor) -> float:
    """Mean negative log-likelihood of images [n, D], Z exact."""
    return (model.log_z() - model.log_density(images)).mean().item()


@torch.no_grad()
def outside(density: Model | Noise, images: Digits) -> dict[str, float]:
    """How well the density tells held-out digits from what is none: AUROCs."""
    inside = density.log_density(images.test)
    return {name: auroc(inside, density.log_density(other)) for name, other in images.others.items()}


def auroc(inside: Tensor, outside: Tensor) -> float:
    """The probability that one of `inside` [n] scores higher than one of `outside` [m]."""
    from sklearn.metrics import roc_auc_score  # here, for its import takes a second

    is_inside = torch.cat([torch.ones_like(inside), torch.zeros_like(outside)])
    return float(roc_auc_score(is_inside.numpy(), torch.cat([inside, outside]).numpy()))


def _pixels(images: GreyImages) -> Tensor:
    """float64 [n, H, W], from 0 to 1."""
    return torch.stack(images.get(np.arange(len(images))))[:, 0].double() / 255


def _means(images: Tensor, label: Tensor) -> Tensor:
    """[K, D], of each label, with one image of all black and one of all white on top."""
    groups = [images[label == one] for one in label.unique()]
    return torch.stack([(group.sum(0) + 1) / (len(group) + 2) for group in groups])


def jobs(seeds: int) -> Iterator[dict[str, Any]]:
    keys = ("natural", "width", "distance", "start", "way", "rate")
    for far, learnt in itertools.product(MEANS, (*WAYS, ("alone", None))):
        yield {"study": "mean", "seeds": seeds} | dict(zip(keys, (*far, *learnt), strict=True))
    for seed, (noise, proposals), (way, rate) in itertools.product(range(seeds), DRAWN, LEARNT):
        yield {"study": "digits", "noise": noise, "proposals": proposals, "way": way, "rate": rate, "seed": seed}


def tables(there: list[dict[str, Any]]) -> str:
    """Both, of what is there."""
    return f"{_means_table([one for one in there if one['study'] == 'mean'])}\n\n{_digits_table(there)}"


def _means_table(there: list[dict[str, Any]]) -> str:
    """Errors after the steps of TOLD, each by the step size that is best then."""
    ways = [*WAYS, ("alone", None)]
    lines = [
        f"| p~ | noise | data at | from | {' | '.join(_name(*way) for way in ways)} |",
        "|---" * (4 + len(ways)) + "|",
    ]
    for natural, width, distance, start in MEANS:
        cells = [
            "exp(t x - x²/2)" if natural else "exp(-(x - t)²/2)",
            f"N(0, {width:g}²)",
            f"{distance:g}",
            f"{start:g}",
        ]
        for way, rate in ways:
            asked = {"natural": natural, "width": width, "distance": distance, "start": start, "way": way, "rate": rate}
            cells += [_best(one) for one in there if _is_of(asked, one)] or [""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _best(job: dict[str, Any]) -> str:
    """[TOLD, RATES, seeds] to a cell."""
    return " / ".join(_short(float(error)) for error in np.array(job["errors"]).mean(2).min(1))


def _digits_table(there: list[dict[str, Any]]) -> str:
    """Means over seeds, and half of their range."""
    head = [
        "noise",
        "a step",
        "way",
        "seeds",
        "nats, a fifth",
        "nats, all",
        "log Z off by",
        "AUROC pixels",
        "AUROC Omniglot",
    ]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for (noise, proposals), (way, rate) in itertools.product(DRAWN, LEARNT):
        asked = {"study": "digits", "noise": noise, "proposals": proposals, "way": way, "rate": rate}
        group = [one for one in there if _is_of(asked, one)]
        if group:
            found = [[one["nats"][0] for one in group], [one["nats"][-1] for one in group]]
            found += [[one.get("log_z_error") for one in group]]
            found += [[one["auroc"][name] for one in group] for name in ("pixels", "omniglot")]
            cells = [noise, f"{proposals:,}", _name(way, rate), str(len(group)), *map(_spread, found)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _is_of(asked: dict[str, Any], job: dict[str, Any]) -> bool:
    return all(job.get(key) == value for key, value in asked.items())


def _name(way: str, rate: float | None) -> str:
    return f"`{way}`" if rate is None else f"`{way}`, rate {rate:g}".replace("0.", ".")


def _spread(values: list[float | None]) -> str:
    known = [one for one in values if one is not None]
    return f"{_short(float(np.mean(known)))} ± {_short((max(known) - min(known)) / 2)}" if known else ""


def _short(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}".replace("0.", ".", 1)


def main() -> None:
    """Run the jobs that are not there yet, or print the tables of those that are."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help=f"instead of {STEPS}")
    parser.add_argument("--out", type=Path, default=Path("unnormalised.jsonl"), help="JSON lines, one a job")
    parser.add_argument("--table", action="store_true", help="run nothing, print the tables of what --out has")
    args = parser.parse_args()
    torch.set_num_threads(1)
    there = [json.loads(text) for text in args.out.read_text().splitlines()] if args.out.exists() else []
    if args.table:
        print(tables(there))
        return
    with args.out.open("a") as out:
        for job in jobs(args.seeds):
            job["steps"] = args.steps or STEPS[job["study"]]
            if any(_is_of(job, one) for one in there):
                continue
            found = job | (learn_mean if job["study"] == "mean" else learn_digits)(job, job["steps"])
            out.write(json.dumps(found) + "\n")
            out.flush()
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
