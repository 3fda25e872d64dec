"""Is the averaged gradient the exact one? A contrast run for many steps over features that stand still.

Each step takes B of the N samples, views of them, and M draws, contrasts them as training does (the same `Contrast`,
with what it remembers in plain tensors), and takes the gradient g_t of its loss with respect to a shift of every
sample's features, all of its views alike, before they are brought to unit length. Over the last 5/6 of T steps:

    relbias   |mean_t g_t - grad L| / |grad L|
    floor     sqrt(mean_t |g_t - grad L|^2 / T_kept) / |grad L|: what T_kept independent unbiased samples would leave
    iact      integrated autocorrelation time of g_t, from the scatter of block means
    ratio     relbias / (floor sqrt(iact)): about 1 for an unbiased estimator, growing with sqrt(T) for a biased one
    error     mean_t |g_t - grad L|^2 / |grad L|^2: squared error of one step

A biased estimator's relbias stops falling; its ratio grows without bound.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from emc2dist.core.batch import Batch, Side, drawn_in, view_number
from emc2dist.core.contrast import Contrast, Outcome
from emc2dist.core.estimators import FEATURES, CachedRows, Recall
from emc2dist.core.exact import exact_loss
from emc2dist.core.streams import fork, uniforms

_BLOCKS = 20  # block means from which the autocorrelation time is read
_VIEWS, _VISIT, _DRAWS = 2, 3, 4  # labels of random streams


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

    M views of each sample are stored, and a step's views are drawn from them: the V of the batch without repeats, as
    are those that stand beside a remembered one. With M = 1 all views of a sample are alike, so that one stands for
    its sample exactly.
    """

    def __init__(
        self,
        contrast: Contrast,
        features: Tensor,
        batch_size: int,
        temperature: float,
        seed: int = 0,
        views: int = 2,
        anchors: Literal["fresh", "fixed"] = "fresh",
        columns: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Begin; `features` [M, N, D], M = 1 or M >= V = `views`; `anchors: fixed` are the first V at every visit.

        `columns` as of `Batch`.
        """
        self.shift = torch.zeros_like(features[0], requires_grad=True)
        self.features = features + self.shift
        self.contrast, self.batch_size, self.temperature, self.seed = contrast, batch_size, temperature, seed
        self.views, self.anchors, self.columns = views, anchors, columns or {}
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
        """Visit a random batch; returns the gradient [N, D] of its loss."""
        (gradient,) = torch.autograd.grad(self.outcome(t).loss, self.shift, retain_graph=True)
        return gradient

    def exact(self) -> Tensor:
        """The gradient [N, D] of the exact loss."""
        objective = self.contrast.objective
        every = self.features.expand(max(self.views, len(self.features)), -1, -1)
        # Where a loss bends in log Z or in the positive, it is the mean over the views that stand together in a step.
        together = every.split(len(every))
        if self.anchors == "fixed":
            together = every[: self.views].split(self.views)
        elif any(what.valued for what in objective.denominators):
            together = tuple(every[list(views)] for views in combinations(range(len(every)), self.views))
        gradient = torch.zeros_like(self.shift)
        for anchors in together:
            loss = exact_loss(objective, every, self.temperature, anchors, self.contrast.closing, self.columns)
            gradient += torch.autograd.grad(loss, self.shift, retain_graph=True)[0] / len(together)
        return gradient

    def outcome(self, t: int) -> Outcome:
        """Visit a random batch, and remember what was found."""
        index = torch.randperm(self.features.shape[1], generator=self._generator)[: self.batch_size]
        batch = self.batch(index, t)
        again: list[tuple[Tensor, Tensor]] = []

        def encode(side: str, samples: Tensor, numbers: Tensor) -> Tensor:
            features = self.encode(side, samples, numbers)
            again.append((samples, features[0]))
            return features

        outcome = self.contrast(batch, self._recall(index), encode)
        self._remember(outcome, index)
        if FEATURES in self.tables:
            newest = [(index, batch.sides["x"].all[-1]), *again]
            drawn = batch.sides["x"].drawn
            if batch.drawn is not None and drawn is not None:
                newest.insert(0, (batch.drawn, drawn[0]))
            for samples, features in newest:
                self._cache(samples, features, t)
        return outcome

    def encode(self, side: str, samples: Tensor, numbers: Tensor) -> Tensor:
        """[R, m, D]: samples [m] by their views numbered [R, m]; no later view of one repeats the first."""
        stored = self._stored(samples, numbers)
        spare = self._stored(samples, numbers // (2 * self.views) * (2 * self.views) + 2 * self.views - 1)
        repeats = stored == stored[:1]
        repeats[0] = False
        return self.features[torch.where(repeats, spare, stored), samples]

    def _stored(self, samples: Tensor, numbers: Tensor) -> Tensor:
        """int64 [R, m]: which of the M stored views each number stands for; those of one step are a permutation."""
        if len(self.features) == 1:
            return torch.zeros_like(numbers)
        step, slot = drawn_in(numbers, self.views)
        order = uniforms(fork(self.seed, _VIEWS, step, samples), len(self.features)).argsort(-1)
        return order.gather(-1, (slot % len(self.features)).unsqueeze(-1)).squeeze(-1)

    def batch(self, index: Tensor, step: int, first: int = 0, own: int | None = None) -> Batch:
        """The batch of samples int64 [B], as the worker sees it that has `own` of them from slot `first` on."""
        samples = self.features.shape[1]
        last = first + (len(index) if own is None else own)
        slots = torch.arange(self.views).unsqueeze(1)
        streams = fork(self.seed, _VISIT, step, index[first:last], slots).flatten()
        numbers = view_number(step, slots, self.views).expand(-1, len(index))
        every = self.features[self._stored(index, numbers), index]
        fixed = self.features[: self.views, index].expand(self.views, -1, -1)
        anchors = fixed if self.anchors == "fixed" else every
        drawn, features = self._draw(step)
        side = Side(own=anchors[:, first:last], all=every, drawn=features)
        return Batch(
            index,
            first,
            {"x": side},
            self.temperature,
            samples,
            step,
            streams,
            columns=self.columns,
            drawn=drawn,
        )

    def _draw(self, step: int) -> tuple[Tensor | None, Tensor | None]:
        """The step's draws int64 [M], by a permutation of their own, and their fresh view, [1, M, D]."""
        count, samples = self.contrast.estimator.draws, self.features.shape[1]
        if not count:
            return None, None
        turn, position = divmod(step, samples // count)
        order = uniforms(fork(self.seed, _DRAWS, turn, torch.arange(samples)), 1).squeeze(1).argsort()
        drawn = order[position * count : (position + 1) * count]
        view = self._stored(drawn, torch.full_like(drawn, step * 2 * self.views + self.views))
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


def certify(run: FrozenRun, steps: int, tell: Callable[[], object] = lambda: None) -> Report:
    """Take `steps` >= 24 steps and compare the average gradient of the last 5/6 with the exact one; `tell` of each."""
    exact = run.exact()
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
