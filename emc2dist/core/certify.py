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

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from emc2dist.core.batch import Batch, Side, drawn_in, view_number
from emc2dist.core.contrast import Contrast, Outcome
from emc2dist.core.diagnostics import fact_value, log_z_errors
from emc2dist.core.estimators import FEATURES, CachedRows, Fact, Recall
from emc2dist.core.exact import exact_loss, over_all
from emc2dist.core.objectives import OBJECTIVE
from emc2dist.core.streams import fork, uniforms

_BLOCKS = 20  # block means from which the autocorrelation time is read
_DROPPED = 6  # of T steps the first of so many parts is dropped
_LOOKED = 10  # of so many steps log Z is compared in one: that takes as long as a step
_PER_PART = 4  # points of the curve while T grows by that factor
_VIEWS, VISIT, _DRAWS = 2, 3, 4  # labels of random streams


@dataclass(frozen=True)
class Report:
    """The columns above."""

    relbias: float
    floor: float
    iact: float
    error: float
    curve: tuple[tuple[int, float], ...] = ()
    """(T, relbias after T steps) for T on a geometric grid; the last one is of all steps."""
    excess: float = 0.0
    """relbias^2 without what noise leaves of it: from the products of different blocks, whose noise is independent. Its
    mean is 0, and it may be below, for an unbiased estimator."""
    excess_error: float = 0.0
    """Standard error of that where there is no bias."""
    facts: Mapping[str, float] = field(default_factory=dict)
    """Means over the kept steps of what the contrast told of itself, see `emc2dist.metrics`; and where the objective
    needs log Z itself, `log_z_error`, mean, and `log_z_rms_error`, against that over all stored views."""

    @property
    def ratio(self) -> float:
        """relbias over the floor that the measured autocorrelation leaves."""
        return self.relbias / (self.floor * self.iact**0.5)


class FrozenRun:
    """Steps of a contrast over features that stand still.

    M views of each sample are stored, and a step's views are drawn from them: the V of the batch without repeats, as
    are those that stand beside a remembered one. With M = 1 all views of a sample are alike, so that one stands for
    its sample exactly.

    What an objective remembers of its anchors (temperatures) stands still too, and a follower is where the encoder is.
    Where an objective wants cached rows at hand, every sample is cached before the first step.
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
        batches: Callable[[int], Tensor] | None = None,
        learnt: nn.Module | None = None,
    ) -> None:
        """Begin; `features` [M, N, D], M = 1 or M >= V = `views`; `anchors: fixed` are the first V at every visit.

        `columns` as of `Batch`; `batches` tells the samples int64 [B] of every step, which are drawn uniformly
        without. What the objective itself learns stands still as `learnt`, by default as it begins.
        """
        self.shift = torch.zeros_like(features[0], requires_grad=True)
        self.features = features
        self.contrast, self.batch_size, self.temperature, self.seed = contrast, batch_size, temperature, seed
        self.views, self.anchors, self.columns = views, anchors, columns or {}
        self._batches = batches
        self.visited: Batch | None = None
        """The last visited batch, with its graph."""
        self._generator = torch.Generator().manual_seed(seed)
        self._so_far: list[int] = []
        """Samples of the batches so far, the newest last."""
        samples, width = features.shape[1:]
        self.learnt = self._initial(width) if learnt is None else learnt
        self.tables = {
            table: {
                name: torch.zeros(samples, *column.shape, dtype=_dtype(column.dtype, features.dtype))
                for name, column in columns.items()
            }
            for table, columns in contrast.tables(views, width).items()
        }

        if contrast.objective.support:  # as after a first pass over the dataset
            self._cache_all()

    def _initial(self, width: int) -> nn.Module | None:
        """What the objective learns, as it begins."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            learnt = self.contrast.objective.learns(width)
        return None if learnt is None else learnt.requires_grad_(False).to(self.features.dtype)

    def _cache_all(self) -> None:
        index = torch.arange(self.features.shape[1])
        stored = self._stored(index, torch.full_like(index, self.views - 1).unsqueeze(0))
        self._cache(index, self._taken(stored, index)[0], 0, self.views - 1)

    def step(self, t: int) -> Tensor:
        """Visit a random batch; returns the gradient [N, D] of its loss."""
        return self.gradient(self.outcome(t))

    def gradient(self, outcome: Outcome) -> Tensor:
        """The gradient [N, D] of a visit's loss, at full length where balance has shortened it."""
        (gradient,) = torch.autograd.grad(outcome.loss, self.shift)
        return gradient / outcome.length

    @property
    def looks_around(self) -> bool:
        """Whether the batch is part of the loss, see `Objective.looks_around`."""
        return self.contrast.objective.looks_around

    def exact(self, steps: int = 1) -> Tensor:
        """The gradient [N, D] of the exact loss.

        Of an objective that looks around in its batch it is the mean over the last 5/6 of the batches that a run which
        begins like this one has in so many steps.
        """
        objective = self.contrast.objective
        if self.looks_around:
            return self._mean_over_batches(steps)
        every = self._every()
        anchors, together = None, None
        if self.anchors == "fixed":
            anchors = every[: self.views]
        elif len(self.features) > 1 and (self.contrast.closing.ceiling is not None or objective.bends):
            # Where a loss bends, or a ceiling closes by the positive, it is the mean over the views that stand together
            # in a step.
            together = self.views
        closing, columns = self.contrast.closing, self.columns
        support = self._rows(torch.arange(self.features.shape[1])) if objective.support else None
        follows = self.contrast.follows
        parts = (anchors, together, closing, columns, support, follows, self.learnt)
        loss = exact_loss(objective, every, self.temperature, *parts)
        return torch.autograd.grad(loss, self.shift)[0]

    def _mean_over_batches(self, steps: int) -> Tensor:
        run = FrozenRun(
            self.contrast, self.features, self.batch_size, self.temperature, self.seed, self.views, self.anchors,
            self.columns, self._batches, self.learnt,
        )  # fmt: skip
        found = []
        for t in range(steps):
            index = run._visited(t)
            run._recall(index)  # for its random numbers
            run.visited = run.batch(index, t)
            found.append(run.exact_of_batch())
        return torch.stack(found[steps - _kept(steps) :]).mean(0)

    def exact_of_batch(self) -> Tensor:
        """The gradient [N, D] of the last visited batch's loss by its denominators over the whole dataset."""
        assert self.visited is not None, "a visit comes first"
        batch = self.contrast.objective.prepared(self.visited, Recall({}))
        estimates = {what.name: over_all(what, batch, self._every()) for what in self.contrast.denominators}
        loss = torch.stack(list(self.contrast.objective.terms(batch, estimates).values())).sum()
        return torch.autograd.grad(loss, self.shift, retain_graph=True)[0]

    def _every(self) -> Tensor:
        """[max(M, V), N, D], all stored views, shifted."""
        return normalize(self.features + self.shift, dim=-1).expand(max(self.views, len(self.features)), -1, -1)

    def _visited(self, t: int) -> Tensor:
        """int64 [B], the batch of step `t`, which comes next."""
        return (
            self._batches(t)
            if self._batches is not None
            else torch.randperm(self.features.shape[1], generator=self._generator)[: self.batch_size]
        )

    def outcome(self, t: int) -> Outcome:
        """Visit a random batch, and remember what was found."""
        index = self._visited(t)
        batch = self.visited = self.batch(index, t)
        fresh: list[tuple[Tensor, Tensor]] = []
        views: list[Tensor] = []

        def encode(side: str, samples: Tensor, numbers: Tensor) -> Tensor:
            features = self.encode(side, samples, numbers)
            cached = (numbers == batch.view_numbers(batch.views, 1)) & ~torch.isin(samples, index)
            fresh.append((samples.expand_as(numbers)[cached], features[cached]))
            views.append((numbers * self.features.shape[1] + samples).flatten())
            return features

        outcome = self.contrast(batch, self._recall(index), encode)
        if FEATURES in self.tables:  # as training counts them, each view once
            encoded = torch.tensor(float(len(torch.cat(views).unique()) if views else 0))
            outcome = replace(outcome, facts={**outcome.facts, "reencoded_images": encoded})
        if outcome.log_z and t % _LOOKED == 0:
            outcome = replace(outcome, facts={**outcome.facts, **self._log_z_errors(outcome)})
        self._remember(outcome, index)
        self._so_far += index.tolist()
        if FEATURES in self.tables:
            side = batch.sides["x"]
            if side.drawn_index is not None and side.drawn is not None:
                fresh.append((side.drawn_index, side.drawn[0]))
            for samples, features in fresh:
                self._cache(samples, features, t, self.views)
            self._cache(index, batch.sides["x"].all[-1], t, self.views - 1)
        return outcome

    def encode(self, side: str, samples: Tensor, numbers: Tensor) -> Tensor:
        """[R, m, D]: samples [m] by their views numbered [R, m]; no later view of one repeats the first."""
        stored = self._stored(samples, numbers)
        spare = self._stored(samples, numbers // (2 * self.views) * (2 * self.views) + 2 * self.views - 1)
        repeats = stored == stored[:1]
        repeats[0] = False
        features = self._taken(torch.where(repeats, spare, stored), samples)
        return features.detach() if self.contrast.follows else features

    def _taken(self, stored: Tensor, samples: Tensor) -> Tensor:
        """[R, m, D]: the stored views int64 [R, m] of samples [m]. Only what is taken is shifted: that is quicker."""
        return normalize(self.features[stored, samples] + self.shift[samples], dim=-1)

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
        streams = fork(self.seed, VISIT, step, index[first:last], slots).flatten()
        numbers = view_number(step, slots, self.views).expand(-1, len(index))
        every = self._taken(self._stored(index, numbers), index)
        anchors = every
        if self.anchors == "fixed":
            anchors = self._taken(slots.clamp(max=len(self.features) - 1), index)
        drawn, features = self._draw(step)
        side = Side(own=anchors[:, first:last], all=every, drawn=features, drawn_index=drawn)
        if self.contrast.follows:
            side = replace(side, all=every.detach(), keys=side.own.detach())
        return Batch(
            index,
            first,
            {"x": side},
            self.temperature,
            samples,
            step,
            streams,
            columns=self.columns,
            learnt=self.learnt,
        )

    @torch.no_grad()
    def _log_z_errors(self, outcome: Outcome) -> dict[str, Fact]:
        """Of the log Z that the first denominator's formula took, against that over all stored views of all samples."""
        batch = outcome.batch
        what = next(what for what in self.contrast.denominators if what.valued)
        every = torch.arange(batch.samples)
        exact = what.scores(batch, normalize(self.features + self.shift, dim=-1), every).logsumexp(1)
        return log_z_errors(outcome.log_z[what.name], exact)

    def _draw(self, step: int) -> tuple[Tensor | None, Tensor | None]:
        """The step's draws int64 [M], by a permutation of their own, and their fresh view, [1, M, D]."""
        count, samples = self.contrast.estimator.draws, self.features.shape[1]
        if not count:
            return None, None
        turn, position = divmod(step, samples // count)
        order = uniforms(fork(self.seed, _DRAWS, turn, torch.arange(samples)), 1).squeeze(1).argsort()
        drawn = order[position * count : (position + 1) * count]
        view = self._stored(drawn, torch.full_like(drawn, step * 2 * self.views + self.views))
        return drawn, self._taken(view, drawn).detach().unsqueeze(0)

    def _samples_of(self, table: str, index: Tensor) -> Tensor:
        """int64 [B], the samples of the anchors whose columns a table has, of the batch `index`."""
        return index

    def _recall(self, index: Tensor) -> dict[str, Recall]:
        estimator, support = self.contrast.estimator, self.contrast.objective.support
        recalls = {what.name: Recall({}) for what in self.contrast.denominators}
        for table, columns in self.tables.items():
            if table != FEATURES:
                anchors = self._samples_of(table, index)
                mine = {name: values[anchors].transpose(0, 1).flatten(0, 1) for name, values in columns.items()}
                recalls[table] = Recall(mine)
        if FEATURES not in self.tables:
            return recalls
        for what in self.contrast.denominators:
            own = recalls[what.name]
            carried = self._rows(own.columns["state"]) if "state" in own.columns else None
            rows = self._newest() if estimator.newest else self._uniform(estimator.cache_proposals, what.keys)
            recalls[what.name] = own._replace(carried=carried, proposed=self._rows(rows))
        if support:
            remembered = recalls.get(OBJECTIVE, Recall({}))
            recalls[OBJECTIVE] = remembered._replace(proposed=self._rows(self._uniform(support)))
        return recalls

    def _uniform(self, count: int, side: str = "x") -> Tensor:
        """int64 [K]: so many entities of a side, at most all, drawn anew."""
        return torch.randperm(self.features.shape[1], generator=self._generator)[:count]

    def _newest(self) -> Tensor:
        """int64 [K]: the samples visited last."""
        newest = dict.fromkeys(reversed(self._so_far))
        return torch.tensor(list(newest)[: self.contrast.estimator.cache_proposals], dtype=torch.int64)

    def _rows(self, index: Tensor) -> CachedRows:
        return CachedRows(index, **{name: values[index] for name, values in self.tables[FEATURES].items()})

    def _remember(self, outcome: Outcome, index: Tensor) -> None:
        for table, columns in outcome.remember.items():
            if table == OBJECTIVE:
                continue
            anchors = self._samples_of(table, index)
            for name, values in columns.items():
                column = self.tables[table][name]
                column[anchors] = values.detach().unflatten(0, (-1, len(anchors))).transpose(0, 1).to(column.dtype)

    def _cache(self, index: Tensor, features: Tensor, step: int, slot: int) -> None:
        cache = self.tables[FEATURES]
        cache["feature"][index] = features.detach()
        cache["present"][index] = True
        cache["written_at"][index] = step
        cache["slot"][index] = slot


def certify(
    run: FrozenRun, steps: int, tell: Callable[[], object] = lambda: None, exact: Tensor | None = None
) -> Report:
    """Take `steps` >= 24 steps and compare the average gradient of the last 5/6 with the exact one; `tell` of each.

    `exact` is `run.exact()`, where it is known already. Of an objective that looks around each step has its own.
    """
    if exact is None and not run.looks_around:
        exact = run.exact()
    kept = _kept(steps)
    block = kept // _BLOCKS
    blocks, square = torch.zeros(_BLOCKS, *run.shift.shape, dtype=run.shift.dtype), 0.0
    target, curve, facts = torch.zeros_like(run.shift.detach()), _Curve(run.shift.detach(), steps), _Means()
    for t in range(steps):
        outcome = run.outcome(t)
        wanted = run.exact_of_batch() if exact is None else exact
        off = run.gradient(outcome) - wanted
        tell()
        curve.add(off)
        if t >= steps - kept:
            blocks[(t - (steps - kept)) // block] += off / block
            square += off.square().sum().item() / kept
            target += wanted / kept
            facts.add(outcome.facts)
    mean = blocks.mean(0)
    bias = mean.square().sum().item()
    scatter = (blocks - mean).square().flatten(1).sum(1).sum().item() / (_BLOCKS - 1)
    noise = square - bias
    iact = max(1.0, block * scatter / noise) if noise > 0 else 1.0  # without any, each step is exact
    norm = target.square().sum().item()
    relbias = (bias / norm) ** 0.5
    points = (*curve.points(norm**0.5)[:-1], (steps, relbias))
    excess = _excess(blocks.flatten(1) / norm**0.5)
    return Report(relbias, (square / kept / norm) ** 0.5, iact, square / norm, points, *excess, facts.read())


def _kept(steps: int) -> int:
    """How many of so many steps count, the last ones: a multiple of `_BLOCKS` where they are enough."""
    kept = steps - steps // _DROPPED
    return kept // _BLOCKS * _BLOCKS or kept


def _excess(blocks: Tensor) -> tuple[float, float]:
    """|.|^2 of what blocks [n, ...] have in common, and its standard error where that is nothing."""
    products = (blocks @ blocks.T).fill_diagonal_(0)
    pairs = len(blocks) * (len(blocks) - 1)
    return products.sum().item() / pairs, (2 * products.square().sum()).sqrt().item() / pairs


class _Curve:
    """relbias of the last 5/6 of T steps, for every T of a grid that goes down from all steps by equal factors."""

    def __init__(self, like: Tensor, steps: int) -> None:
        self._sum, self._taken = torch.zeros_like(like), 0
        factor = _DROPPED ** (1 / _PER_PART)
        self._grid = [steps]
        while self._grid[-1] > 1:
            self._grid.append(min(self._grid[-1] - 1, round(steps / factor ** len(self._grid))))
        self._sums = {0: self._sum.clone()}
        """The sum of what the first gradients were off, by how many."""

    def add(self, off: Tensor) -> None:
        self._sum += off
        self._taken += 1
        if self._taken in self._grid:
            self._sums[self._taken] = self._sum.clone()

    def points(self, norm: float) -> list[tuple[int, float]]:
        """(T, relbias), T ascending; `norm` is the exact gradient's."""
        found = []
        for last, first in zip(self._grid, self._grid[_PER_PART:], strict=False):
            off = (self._sums[last] - self._sums[first]) / (last - first)
            found.append((last, (off.norm() / norm).item()))
        return found[::-1]


class _Means:
    """Means of facts, each weighed as it says."""

    def __init__(self) -> None:
        self._totals: dict[str, float] = defaultdict(float)
        self._weights: dict[str, float] = defaultdict(float)

    def add(self, facts: Mapping[str, Fact]) -> None:
        for name, fact in facts.items():
            total, weight = fact if isinstance(fact, tuple) else (fact, 1.0)
            self._totals[name] += float(total)
            self._weights[name] += float(weight)

    def read(self) -> dict[str, float]:
        weights = self._weights
        return {name: fact_value(name, total, weights[name]) for name, total in self._totals.items() if weights[name]}


def _dtype(name: str, features: torch.dtype) -> torch.dtype:
    """A column's type; a feature is kept as it is, so that no rounding is measured."""
    return features if name.startswith("float") else getattr(torch, name)
