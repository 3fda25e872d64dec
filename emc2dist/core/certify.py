"""Is the averaged gradient the exact one? A contrast run for many steps over features that stand still.

Each step takes B of the N samples, and M draws, contrasts them as training does (the same `Contrast`, with what it
remembers in plain tensors), and takes the gradient g_t of its loss with respect to all features. Over the last 5/6 of T
steps:

    relbias   |mean_t g_t - grad L| / |grad L|
    floor     sqrt(mean_t |g_t - grad L|^2 / T_kept) / |grad L|: what T_kept independent unbiased samples would leave
    iact      integrated autocorrelation time of g_t, from the scatter of block means
    ratio     relbias / (floor sqrt(iact)): about 1 for an unbiased estimator, growing with sqrt(T) for a biased one
    error     mean_t |g_t - grad L|^2 / |grad L|^2: squared error of one step

A biased estimator's relbias stops falling; its ratio grows without bound.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from emc2dist.core.batch import Batch, Side
from emc2dist.core.contrast import Contrast, Outcome
from emc2dist.core.estimators import FEATURES, CachedRows, Recall
from emc2dist.core.exact import exact_loss
from emc2dist.core.objectives import Objective
from emc2dist.core.streams import fork, uniforms

_DRAWS = 4  # label of their random streams
_BLOCKS = 20  # block means from which the autocorrelation time is read


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


class FrozenRun:
    """Steps of a contrast over features that stand still.

    With R = 1 distinct view all V views of a sample are alike, and the one that is encoded again stands for its sample
    exactly. With R = V it is a random one of them, as in training.
    """

    def __init__(
        self, contrast: Contrast, features: Tensor, batch_size: int, temperature: float, seed: int = 0, views: int = 2
    ) -> None:
        """Begin; `features` [R, N, D] with R = 1 or R = `views`."""
        self.features = features.clone().requires_grad_()
        self.contrast, self.batch_size, self.temperature, self.seed = contrast, batch_size, temperature, seed
        self.all = self.features.expand(views, -1, -1)
        self._generator = torch.Generator().manual_seed(seed)
        samples, width = features.shape[1:]
        self.tables = {
            table: {
                name: torch.zeros(samples, *column.shape, dtype=_dtype(column.dtype, features.dtype))
                for name, column in columns.items()
            }
            for table, columns in contrast.tables(views, width).items()
        }

    def step(self, t: int) -> Tensor:
        """Visit a random batch; returns the gradient of its loss, as the features are shaped."""
        (gradient,) = torch.autograd.grad(self.outcome(t).loss, self.features)
        return gradient

    def outcome(self, t: int) -> Outcome:
        """Visit a random batch, and remember what was found."""
        index = torch.randperm(self.features.shape[1], generator=self._generator)[: self.batch_size]
        batch = self.batch(index, t)
        view = torch.randint(len(self.features), (self.features.shape[1],), generator=self._generator)
        again: list[Tensor] = []

        def encode(side: str, samples: Tensor) -> Tensor:
            again.append(samples)
            return self.features[view[samples], samples]

        outcome = self.contrast(batch, self._recall(index), encode)
        self._remember(outcome, index)
        if FEATURES in self.tables:
            drawn = batch.sides["x"].drawn
            if batch.drawn is not None and drawn is not None:
                self._cache(batch.drawn, drawn[0], t)
            self._cache(index, self.all[-1, index], t)
            for samples in again:
                self._cache(samples, self.features[view[samples], samples], t)
        return outcome

    def batch(self, index: Tensor, step: int, first: int = 0, own: int | None = None) -> Batch:
        """The batch of samples int64 [B], as the worker sees it that has `own` of them from slot `first` on."""
        views, samples, _ = self.all.shape
        mine = index[first : first + (len(index) if own is None else own)]
        streams = fork(self.seed, step, mine, torch.arange(views).unsqueeze(1)).flatten()
        drawn, features = self._draw(step)
        side = Side(own=self.all[:, mine], all=self.all[:, index], drawn=features)
        return Batch(index, first, {"x": side}, self.temperature, samples, step, streams, drawn)

    def _draw(self, step: int) -> tuple[Tensor | None, Tensor | None]:
        """The step's draws int64 [M], by a permutation of their own, and a random view of each, [1, M, D]."""
        count, (views, samples, _) = self.contrast.estimator.draws, self.features.shape
        if not count:
            return None, None
        turn, position = divmod(step, samples // count)
        order = uniforms(fork(self.seed, _DRAWS, turn, torch.arange(samples)), 1).squeeze(1).argsort()
        drawn = order[position * count : (position + 1) * count]
        view = (uniforms(fork(self.seed, _DRAWS, step, drawn), 1, lane=1).squeeze(1) * views).long()
        return drawn, self.features[view, drawn].detach().unsqueeze(0)

    def _recall(self, index: Tensor) -> dict[str, Recall]:
        recalls = {}
        for table, columns in self.tables.items():
            if table == FEATURES:
                continue
            mine = {name: values[index].transpose(0, 1).flatten(0, 1) for name, values in columns.items()}
            recalls[table] = Recall(mine)
            if FEATURES in self.tables:
                shuffled = torch.randperm(self.features.shape[1], generator=self._generator)
                rows = shuffled[: self.contrast.estimator.cache_proposals]
                recalls[table] = Recall(mine, self._rows(mine["state"]), self._rows(rows))
        return recalls

    def _rows(self, index: Tensor) -> CachedRows:
        return CachedRows(index, **{name: values[index] for name, values in self.tables[FEATURES].items()})

    def _remember(self, outcome: Outcome, index: Tensor) -> None:
        for table, columns in outcome.remember.items():
            for name, values in columns.items():
                column = self.tables[table][name]
                column[index] = values.detach().unflatten(0, (-1, len(index))).transpose(0, 1).to(column.dtype)

    def _cache(self, index: Tensor, features: Tensor, step: int) -> None:
        cache = self.tables[FEATURES]
        cache["feature"][index] = features.detach()
        cache["present"][index] = True
        cache["written_at"][index] = step


def exact_gradient(objective: Objective, features: Tensor, temperature: float, views: int = 2) -> Tensor:
    """Gradient of the exact loss with respect to `features` [R, N, D], see `FrozenRun`; as they are shaped."""
    leaf = features.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(exact_loss(objective, leaf.expand(views, -1, -1), temperature), leaf)
    return gradient


def certify(run: FrozenRun, steps: int, tell: Callable[[], object] = lambda: None) -> Report:
    """Take `steps` >= 24 steps and compare the average gradient of the last 5/6 with the exact one; `tell` of each."""
    exact = exact_gradient(run.contrast.objective, run.features.detach(), run.temperature, len(run.all))
    block = (steps - steps // 6) // _BLOCKS
    kept = block * _BLOCKS
    blocks, square = torch.zeros(_BLOCKS, *exact.shape, dtype=exact.dtype), 0.0
    for t in range(steps):
        gradient = run.step(t)
        tell()
        if t >= steps - kept:
            blocks[(t - (steps - kept)) // block] += gradient / block
            square += (gradient - exact).square().sum().item() / kept
    mean = blocks.mean(0)
    bias = (mean - exact).square().sum().item()
    scatter = (blocks - mean).square().flatten(1).sum(1).sum().item() / (_BLOCKS - 1)
    iact = max(1.0, block * scatter / (square - bias))
    norm = exact.square().sum().item()
    return Report((bias / norm) ** 0.5, (square / kept / norm) ** 0.5, iact, square / norm)


def _dtype(name: str, features: torch.dtype) -> torch.dtype:
    """A column's type; a feature is kept as it is, so that no rounding is measured."""
    return features if name.startswith("float") else getattr(torch, name)
