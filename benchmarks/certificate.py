"""Is the averaged gradient the exact one? The unbiasedness certificate (algorithm.md section 4.2), on frozen features.

    python benchmarks/certificate.py                    # the table of docs/certificate.md
    python benchmarks/certificate.py --scale 0.1        # a tenth of the steps
    python benchmarks/certificate.py --methods "emc2 mh" simclr --batch-sizes 4 --temperatures 0.07 --scale 10

Features of N images in V views are frozen. Each step draws B of the N, visits their chains with the production code
of `emc2dist.core`, and takes the gradient g_t of the estimator's loss with respect to all N V features. Columns, over
the last 5/6 of T steps:

    relbias   |mean_t g_t - grad L| / |grad L|
    floor     sqrt(mean_t |g_t - grad L|^2 / T_kept) / |grad L|: what T_kept independent unbiased samples would leave
    iact      integrated autocorrelation time of g_t, from the scatter of block means
    ratio     relbias / (floor sqrt(iact)): about 1 for an unbiased estimator, growing with sqrt(T) for a biased one
    error     mean_t |g_t - grad L|^2 / |grad L|^2: squared error of one step

A biased estimator's relbias stops falling; its ratio grows without bound.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from emc2dist.core.cache import accept, propose
from emc2dist.core.candidates import BatchScores, batch_scores
from emc2dist.core.chain import Kernel, sweep
from emc2dist.core.exact import global_contrastive_loss
from emc2dist.core.objectives import estimator_loss, in_batch_weights, moving_average_weights
from emc2dist.core.scores import standing_scores
from emc2dist.core.streams import fork
from emc2dist.terminal import Progress

BLOCKS = 20  # block means from which the autocorrelation time is read


@dataclass(frozen=True)
class Method:
    """An estimator under test."""

    objective: str
    kernel: Kernel = "mh"
    burn_in_fraction: float = 0.5
    cache_proposals: int = 0
    one_view: bool = False
    """Carried samples are scored from one random view, as in training, not from all V."""

    def __str__(self) -> str:
        if self.objective != "emc2":
            return self.objective
        cache = f" + {self.cache_proposals} cache" if self.cache_proposals else ""
        return f"emc2 {self.kernel}{cache}{' (one view)' if self.one_view else ''}"


@dataclass(frozen=True)
class Report:
    """The columns above."""

    relbias: float
    floor: float
    iact: float
    error: float

    @property
    def ratio(self) -> float:
        """relbias over the floor that the measured autocorrelation leaves."""
        return self.relbias / (self.floor * self.iact**0.5)


def digit_features(samples: int, seed: int = 0) -> Tensor:
    """[2, samples, 64] unit-norm float64: centred pixels of real handwritten digits; views are shifts by a pixel."""
    from sklearn.datasets import load_digits

    generator = np.random.default_rng(seed)
    images = load_digits().images[generator.permutation(1797)[:samples]]
    shifts = generator.integers(-1, 2, (2, samples, 2))
    views = np.stack([[np.roll(x, s, (0, 1)) for x, s in zip(images, view, strict=True)] for view in shifts])
    pixels = torch.from_numpy(views).flatten(2)
    return torch.nn.functional.normalize(pixels - pixels.mean((0, 1)), dim=-1)


class FrozenRun:
    """Chains over frozen features [V, N, D]: `step(t)` is the gradient of one step, [V, N, D]."""

    def __init__(self, features: Tensor, method: Method, batch_size: int, temperature: float, seed: int) -> None:
        views, samples, _ = features.shape
        self.features = features.clone().requires_grad_()
        self.method, self.batch_size, self.temperature, self.seed = method, batch_size, temperature, seed
        self.state = torch.zeros(views, samples, dtype=torch.int64)
        self.visited = torch.zeros(views, samples, dtype=torch.bool)
        self.log_partition = torch.zeros(views, samples, dtype=features.dtype)
        self.generator = torch.Generator().manual_seed(seed)

    def step(self, t: int) -> Tensor:
        """Visit the chains of a fresh random batch; returns the gradient of its loss."""
        index = torch.randperm(self.features.shape[1], generator=self.generator)[: self.batch_size]
        units = self.features[:, index]
        scores = batch_scores(units, units, index, 0, self.temperature)
        loss = self._visit(scores, units.flatten(0, 1), t) if self.method.objective == "emc2" else self._other(scores)
        (gradient,) = torch.autograd.grad(loss, self.features)
        self.visited[:, index] = True
        return gradient

    def _other(self, scores: BatchScores) -> Tensor:
        candidates = scores.alone()
        if self.method.objective == "sogclr":
            before, visited = (x[:, scores.index].flatten() for x in (self.log_partition, self.visited))
            weights, after = moving_average_weights(candidates, before, visited, rate=0.1)
            self.log_partition[:, scores.index] = after.view(-1, self.batch_size)
            return estimator_loss(candidates, weights)
        weights, positive = in_batch_weights(candidates, with_positive=self.method.objective == "simclr")
        return estimator_loss(candidates, weights, positive)

    def _visit(self, scores: BatchScores, anchors: Tensor, t: int) -> Tensor:
        state, visited = (x[:, scores.index].flatten() for x in (self.state, self.visited))
        streams = fork(self.seed, t, torch.arange(len(anchors)))
        if self.method.cache_proposals:
            state, visited = self._move(scores, anchors, state, visited, streams)
        candidates = scores.candidates(state, torch.where(visited, self._score(anchors, state), -torch.inf))
        visit = sweep(
            candidates.batch,
            candidates.carried,
            kernel=self.method.kernel,
            burn_in_fraction=self.method.burn_in_fraction,
            streams=streams,
        )
        samples = torch.cat([scores.index.expand(len(anchors), -1), state.unsqueeze(1)], 1)
        self.state[:, scores.index] = samples.gather(1, visit.state.unsqueeze(1)).view(-1, self.batch_size)
        return estimator_loss(candidates, visit.weights)

    @torch.no_grad()
    def _move(
        self, scores: BatchScores, anchors: Tensor, state: Tensor, visited: Tensor, streams: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Delayed acceptance; the cache holds one view of each sample, another one in every step."""
        samples = self.features.shape[1]
        rows = torch.randperm(samples, generator=self.generator)[: self.method.cache_proposals]
        view = torch.randint(len(self.features), (samples,), generator=self.generator)
        cached = self.features[view, torch.arange(samples)]
        own = scores.index.repeat(len(self.features))
        closed = (rows == own.unsqueeze(1)) | ((rows == state.unsqueeze(1)) & visited.unsqueeze(1))
        stale = (anchors @ cached[rows].T / self.temperature).masked_fill(closed, -torch.inf)
        stale_carried = ((anchors * cached[state]).sum(1) / self.temperature).masked_fill(~visited, -torch.inf)
        proposal = propose(stale, stale_carried, streams)
        fresh_carried = torch.where(visited, self._score(anchors, state), -torch.inf)
        moved = accept(proposal, self._score(anchors, rows[proposal.row]), fresh_carried, streams)
        return torch.where(moved, rows[proposal.row], state), visited | moved

    def _score(self, anchors: Tensor, samples: Tensor) -> Tensor:
        return standing_scores(anchors, self._views(samples), self.temperature, len(self.features))

    def _views(self, samples: Tensor) -> Tensor:
        """[n, R, D]: all views of each sample, or a random one."""
        if not self.method.one_view:
            return self.features[:, samples].transpose(0, 1)
        view = torch.randint(len(self.features), samples.shape, generator=self.generator)
        return self.features[view, samples].unsqueeze(1)


def exact_gradient(features: Tensor, temperature: float) -> Tensor:
    """Gradient of the exact loss with respect to all features, [V, N, D]."""
    leaf = features.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(global_contrastive_loss(leaf, temperature), leaf)
    return gradient


def certify(
    features: Tensor,
    method: Method,
    batch_size: int,
    temperature: float,
    steps: int,
    seed: int = 0,
    tell: Callable[[], object] = lambda: None,
) -> Report:
    """Run `steps` steps and compare the average gradient of the last 5/6 with the exact one; `tell` of each step."""
    run = FrozenRun(features, method, batch_size, temperature, seed)
    exact = exact_gradient(features, temperature)
    block = (steps - steps // 6) // BLOCKS
    kept = block * BLOCKS
    blocks, square = torch.zeros(BLOCKS, *features.shape, dtype=features.dtype), 0.0
    for t in range(steps):
        gradient = run.step(t)
        tell()
        if t >= steps - kept:
            blocks[(t - (steps - kept)) // block] += gradient / block
            square += (gradient - exact).square().sum().item() / kept
    mean = blocks.mean(0)
    bias = (mean - exact).square().sum().item()
    scatter = (blocks - mean).square().flatten(1).sum(1).sum().item() / (BLOCKS - 1)
    iact = max(1.0, block * scatter / (square - bias))
    norm = exact.square().sum().item()
    return Report((bias / norm) ** 0.5, (square / kept / norm) ** 0.5, iact, square / norm)


METHODS = (
    Method("simclr"),
    Method("dcl"),
    Method("sogclr"),
    Method("emc2", "mh"),
    Method("emc2", "mh", one_view=True),
    Method("emc2", "isir"),
    Method("emc2", "isir", one_view=True),
    Method("emc2", "mh", cache_proposals=64),
    Method("emc2", "isir", cache_proposals=64),
)
STEPS = {4: 12_000, 16: 8_000, 64: 4_000}


def rows(samples: int, scale: float, work: list[tuple[float, int, Method]]) -> Iterator[str]:
    """The table, a Markdown line at a time: each (temperature, batch size, method) at T/4 and at T steps."""
    features = digit_features(samples)
    yield "| B | tau | method | T | relbias | floor | iact | ratio | error |"
    yield "|---|---|---|---|---|---|---|---|---|"
    runs = [(*what, max(24, int(STEPS[what[1]] * scale * share))) for what in work for share in (0.25, 1.0)]
    with closing(Progress(sum(steps for *_, steps in runs), unit="step")) as progress:
        for temperature, batch_size, method, steps in runs:
            r = certify(features, method, batch_size, temperature, steps, tell=progress.add)
            yield (
                f"| {batch_size} | {temperature} | {method} | {steps:,} | {r.relbias:.3f} | {r.floor:.3f} | "
                f"{r.iact:.1f} | {r.ratio:.2f} | {r.error:.1f} |"
            )


def main() -> None:
    """Print the table."""
    names = [str(method) for method in METHODS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--samples", type=int, default=500, help="N (default 500)")
    parser.add_argument("--scale", type=float, default=1.0, help="times the default number of steps")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.07, 0.2])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--methods", nargs="+", default=names, choices=names, metavar="METHOD", help=", ".join(names))
    args = parser.parse_args()
    torch.set_num_threads(1)  # the tensors are small: threads only wait for each other
    methods = [method for method in METHODS if str(method) in args.methods]
    work = [(tau, size, method) for tau in args.temperatures for size in args.batch_sizes for method in methods]
    for line in rows(args.samples, args.scale, work):
        print(line, flush=True)


if __name__ == "__main__":
    main()
