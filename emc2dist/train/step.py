"""One training step: encode, gather, contrast, backward, remember.

    views (made ahead) -> encode, the draws without a graph -> gather -> [store: write t-1, read ahead] -> contrast
    (the sweep, encoding carried negatives again) -> remember -> backward through DDP's buckets -> update

A GPU is only given work: the host waits for what a step found out when the next one sends it to the store, by when the
GPU has long been at something else. Where the sweep decides which images are encoded again (`emc2dist.core.estimators`)
it has to wait for that as well.

Every random number derives from (seed, purpose, step, sample, view), so the outcome does not depend on how many
workers share the batch, and the step number is the whole state of the generators.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from emc2dist.config import Spec
from emc2dist.core.batch import Batch, Side, drawn_in
from emc2dist.core.contrast import Outcome, contrast_for
from emc2dist.core.diagnostics import (
    alignment,
    cached_log_z,
    effective_rank,
    isotropy,
    log_z_errors,
    tolerance,
    uniformity,
)
from emc2dist.core.estimators import FEATURES, CachedRows, Fact
from emc2dist.core.streams import fork, seed_of
from emc2dist.core.transfer import to_device
from emc2dist.data.encoded import Traffic
from emc2dist.data.sampler import Draws, Order, rank_slice
from emc2dist.errors import DataError
from emc2dist.towers.momentum import follow
from emc2dist.towers.optim import clip_gradients, learning_rate, set_learning_rate
from emc2dist.train import collectives, graphs
from emc2dist.train.again import Again, Foreseen, view_ids
from emc2dist.train.compilation import compile_encoder
from emc2dist.train.encoding import Encoding
from emc2dist.train.finite import Finite
from emc2dist.train.memory import Encoded, Memory
from emc2dist.train.timing import Stopwatch

_DATA_TIMEOUT_S = 600
_MOST_COMPARED = 2_048  # samples up to which log Z is compared with that by all cached features
_MOST_MEASURED = 2_048  # samples whose features tell of health: of more, the decomposition takes as long as steps do
_LEAST_CACHED = 0.9  # share of them that has to be cached by then
_VIEWS, _VISIT, _DRAWS = 2, 3, 4  # labels of random streams; `emc2dist.train.memory` uses 1


class Schedule(NamedTuple):
    """The learning rate as a function of the step."""

    peak: float
    accumulate: int
    warmup: int
    """Updates of linear warm-up."""
    total: int
    """Updates of the run."""

    @classmethod
    def of(cls, spec: Spec, steps_per_epoch: int) -> "Schedule":
        """The schedule of a run whose epochs have so many steps."""
        accumulate = spec.optimiser.accumulate
        updates = steps_per_epoch / accumulate
        return cls(spec.lr, accumulate, round(spec.optimiser.warmup_epochs * updates), int(spec.epochs * updates))

    def at(self, step: int) -> float:
        """Learning rate of the update that `step` is part of."""
        return learning_rate(step // self.accumulate, peak=self.peak, warmup=self.warmup, total=self.total)


class Temperature(NamedTuple):
    """The temperature as a function of the step: constant, or a cosine between two bounds."""

    start: float
    end: float
    period: float
    """Steps from `start` to `end` and back."""

    @classmethod
    def of(cls, spec: Spec, steps_per_epoch: int) -> "Temperature":
        """The temperature in a run whose epochs have so many steps."""
        end = spec.temperature if spec.temperature_end is None else spec.temperature_end
        return cls(spec.temperature, end, (spec.temperature_period or 2 * spec.epochs) * steps_per_epoch)

    def at(self, step: int) -> float:
        """Temperature of the scores of `step`: end + (start - end) (1 + cos(2 pi step / period)) / 2."""
        return self.end + (self.start - self.end) * (1 + math.cos(2 * math.pi * step / self.period)) / 2


@dataclass
class Facts:
    """What one step measured."""

    values: Mapping[str, Fact]
    ages: Mapping[str, Tensor]
    """[V * b] of this worker's anchors, steps; -1 where there is none. Only with `health`."""
    traffic: Traffic
    """What the views that came in meanwhile asked of the images."""


class Loader(Protocol):
    """Makes views of one side's entities ahead of the steps that need them."""

    @property
    def traffic(self) -> Traffic:
        """What making the views has asked of their source so far."""

    def submit(self, indices: NDArray[np.int64], seeds: NDArray[np.int64], *, urgent: bool = False) -> Future[Tensor]:
        """Begin on the views of entities [n], by their rows, and seeds int64 [V, n]: a tensor [V, n, ...].

        Urgent ones go before all that has not begun.
        """

    def close(self) -> None:
        """End what makes them."""


class _Ahead(NamedTuple):
    """The views of a step to come, in the making."""

    step: int
    views: Mapping[str, Future[Tensor]]
    """Of each side those [V, b, ...] of this rank's samples, on the CPU or on the device."""
    drawn: Mapping[str, Future[Tensor]]
    """Of each side that has draws those [1, M / W, ...] of this rank's."""


class _Encoded(NamedTuple):
    """What a rank encoded of a side."""

    features: Tensor
    """[V, b, D] of its samples."""
    keys: Tensor | None
    """[V, b, D], the same by a follower; None without."""
    drawn: Tensor | None
    """[M / W, D] of its draws; None without."""


class Trainer:
    """Takes training steps on one rank."""

    def __init__(
        self,
        spec: Spec,
        encoder: nn.Module,
        optimiser: torch.optim.Optimizer,
        memory: Memory,
        loaders: Mapping[str, Loader],
        order: Order,
        device: torch.device,
        columns: Mapping[str, NDArray[np.int64]],
        follower: nn.Module | None = None,
        judged: Tensor | None = None,
        guide: Tensor | None = None,
        grades: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Begin.

        Args:
            spec: of the run.
            encoder: is trained; encodes views of any side.
            optimiser: of its parameters.
            memory: recalls and remembers.
            loaders: of each side, of views of its entities by their rows.
            order: tells who stands in a step.
            device: computes.
            columns: what is known of every entity, int64 [N] by name (`emc2dist.data.images.known_of_each`).
            follower: encodes keys, where the spec has `encoder.momentum`.
            judged: as of `Batch`, on any device.
            guide: the same.
            grades: the same.
        """
        self.spec, self.optimiser, self.memory, self.device = spec, optimiser, memory, device
        if spec.compile:
            compile_encoder(encoder)
        self.model = collectives.data_parallel(encoder)
        self._follower, self._keys_encoding = follower, None
        if follower is not None:
            self._keys_encoding = Encoding(follower, spec.precision, spec.encode_chunk)
        recorded = graphs.record(encoder, spec, device) if spec.cuda_graphs else None
        parts = (self.model, spec.precision, spec.encode_chunk)
        self.encoding = Encoding(*parts, compiled=spec.compile, recorded=recorded)
        self.schedule = Schedule.of(spec, order.steps_per_epoch)
        self.temperature = Temperature.of(spec, order.steps_per_epoch)
        self._loaders, self._order = loaders, order
        self.contrast = contrast_for(spec)
        self._keys = tuple(side for side in order.sides if side in {what.keys for what in self.contrast.denominators})
        """The sides of candidates, whose features are cached."""
        draws, seed = spec.negatives.draws, seed_of(spec.seed, _DRAWS)
        self._draws: dict[str, Draws] = {}
        if draws:
            self._draws = {side: order.draws(draws, seed, side) for side in self._keys or order.sides}
        if order.named(0).size:
            self._draws["document"] = NamedToo(order, self._draws.get("document"), spec.workers)
        self._columns = {name: torch.from_numpy(values).to(device) for name, values in columns.items()}
        self._judged, self._guide = (None if one is None else one.to(device) for one in (judged, guide))
        self._grades = None if grades is None else (grades[0].to(device), grades[1].to(device))
        self._rank = collectives.rank()
        self.stopwatch = Stopwatch(device)
        self._replied = collectives.Vote()
        self._foreseen: dict[str, Foreseen] = {}
        self._seen = self._asked()
        self._ahead: deque[_Ahead] = deque()

    def step(self, step: int, *, health: bool = False) -> Facts:
        """Take step number `step`; `health` adds what is dear to measure. Raises NonFiniteError when it diverged."""
        # DDP decides in the forward whether the backward reduces: only that of an update's last micro-batch has to.
        last = (step + 1) % self.schedule.accumulate == 0
        with nullcontext() if last else collectives.without_sync(self.model):
            return self._step(step, health)

    def _step(self, step: int, health: bool) -> Facts:
        phase = self.stopwatch.phase
        with phase("data_wait"):
            views, drawn_views = self._views(step)
        with phase("store_wait"):
            recall = self.memory.recall(step)
        self._replied.cast(True)
        encoded = {side: self._encode(views[side], drawn_views.get(side)) for side in self._order.sides}
        with phase("communication"):
            batch = self._gathered(step, encoded)
            # All ranks have had their replies, so their commits up to step - 2 are there. The gather alone says so only
            # where the host waits for it.
            self._replied.close()
        with phase("store_wait"):
            everything = self._everything(step) if health and self._compares else None
            self.memory.exchange(step)
        with phase("data_wait"):
            foreseen, self._foreseen = self._foreseen, self._foresee(step + 1)
        encode = partial(self._encode_again, foreseen)
        again = Again(next(iter(encoded.values())).features, self._order.samples, encode)
        with phase("sweep"):
            outcome = self.contrast(batch, recall, again)
        with phase("store_wait"):
            finite = [*self._finite(step, batch), again.finite(self._rank, self._named)]
            self.memory.remember(step, outcome.remember, self._to_cache(step, encoded, again), finite)
        facts = {**outcome.facts, **self._update(step, outcome.loss)}
        if FEATURES in self.memory.schema:
            facts["reencoded_images"] = torch.full((), float(len(again)), device=self.device)
        if not health:
            return Facts(facts, {}, self._traffic())
        self.memory.confirm()  # what is not finite has no singular values, and is not to be logged
        facts |= self._health(batch) | self._log_z(outcome, everything)
        return Facts(facts, outcome.ages, self._traffic())

    @torch.no_grad()
    def _health(self, batch: Batch) -> dict[str, Fact]:
        """Of the whole batch, or its first samples where it is large; measured by one rank for all.

        What stands in one slot on several sides is taken for views of one thing.
        """
        features = torch.cat([side.all[:, :_MOST_MEASURED] for side in batch.sides.values()]).detach()
        measures: dict[str, Callable[[], Fact]] = {
            "alignment": lambda: alignment(features),
            "uniformity": lambda: uniformity(features[0]),
            "isotropy": lambda: isotropy(features[0]),
            "effective_rank": lambda: effective_rank(features[0]),
        }
        if "label" in batch.columns:
            labels = batch.columns["label"][batch.index[:_MOST_MEASURED]]
            measures["tolerance"] = lambda: tolerance(features[0], labels)
        if self._rank != 0:
            nothing = torch.zeros((), device=self.device)
            return {name: (nothing, nothing) for name in measures}
        return {name: measure() for name, measure in measures.items()}

    @property
    def _compares(self) -> bool:
        """Whether log Z is remembered, and the samples few enough to be compared with all of them."""
        schema = self.memory.schema
        valued = any(what.valued and "log_mean" in schema.get(what.name, {}) for what in self.contrast.denominators)
        return valued and FEATURES in schema and self._order.samples <= _MOST_COMPARED

    def _everything(self, step: int) -> CachedRows:
        """The cached features of all candidates of the first denominator whose log Z is needed."""
        what = next(what for what in self.contrast.denominators if what.valued)
        side = what.keys if what.keys in self._order.sides else self._order.sides[0]
        return self.memory.features(step, self._order.entities(side))

    @torch.no_grad()
    def _log_z(self, outcome: Outcome, rows: CachedRows | None) -> dict[str, Fact]:
        """How far the first log Z that was needed is from that by the cached features of the whole dataset."""
        if rows is None or rows.present.double().mean() < _LEAST_CACHED:
            return {}
        what = next(what for what in self.contrast.denominators if what.valued)
        return log_z_errors(outcome.log_z[what.name], cached_log_z(what, outcome.batch, rows))

    def _views(self, step: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Of each side views [V, b, ...] of this rank's samples, and [M / W, ...] of its draws, on the device.

        Those of the next steps are begun.
        """
        while not self._ahead or self._ahead[-1].step < step + self.spec.data.prefetch:
            self._begin(self._ahead[-1].step + 1 if self._ahead else step)
        due, views, drawn = self._ahead.popleft()
        assert due == step, f"steps are taken one after the other, and {due} was next"
        made = {side: self._arrived(some) for side, some in views.items()}
        return made, {side: self._arrived(some).squeeze(0) for side, some in drawn.items()}

    def _arrived(self, views: Future[Tensor]) -> Tensor:
        """The views on the device, where they may have been made already."""
        made = _made(views)
        if made.device.type == "cpu":
            (made,) = to_device([made], self.device)
        elif made.is_cuda:
            # They were made on another stream, which must not have their memory back before this one has read it.
            made.record_stream(torch.cuda.current_stream(made.device))
        return made

    def _asked(self) -> Traffic:
        """What making views has asked of the sources so far."""
        return sum((loader.traffic for loader in self._loaders.values()), Traffic())

    def _traffic(self) -> Traffic:
        """Since the last call."""
        before, self._seen = self._seen, self._asked()
        return self._seen - before

    def _begin(self, step: int) -> None:
        views, drawn = dict[str, Future[Tensor]](), dict[str, Future[Tensor]]()
        for side in self._order.sides:
            index = self._share(step, side)
            views[side] = self._submit(side, index, self._streams(_VIEWS, step, torch.from_numpy(index)))
        for side, draws in self._draws.items():
            index = self._drawn_share(draws, step)
            index = np.where(index < 0, self._order.entities(side).start, index)  # any, for what is none
            seeds = fork(self.spec.seed, _VIEWS, step, torch.from_numpy(index), self.spec.views.count)
            drawn[side] = self._submit(side, index, seeds.unsqueeze(0))
        self._ahead.append(_Ahead(step, views, drawn))

    def _submit(self, side: str, index: NDArray[np.int64], seeds: Tensor, *, urgent: bool = False) -> Future[Tensor]:
        """Begin on views of a side's entities [n], by seeds [V, n]."""
        rows = index - self._order.entities(side).start
        return self._loaders[side].submit(rows, seeds.numpy(), urgent=urgent)

    def _share(self, step: int, side: str) -> NDArray[np.int64]:
        """[b], this rank's samples of a side."""
        return rank_slice(self._order.batch(step, side), self._rank, self.spec.workers)

    def _drawn_share(self, draws: Draws, step: int) -> NDArray[np.int64]:
        """[M / W], this rank's draws."""
        return rank_slice(draws.batch(step), self._rank, self.spec.workers)

    def _streams(self, purpose: int, step: int, index: Tensor) -> Tensor:
        """int64 [V, n]: one stream per view of each sample."""
        views = torch.arange(self.spec.views.count, device=index.device).unsqueeze(1)
        return fork(self.spec.seed, purpose, step, index, views)

    def _foresee(self, step: int) -> dict[str, Foreseen]:
        """Begin on the views of each side that step `step` is sure to encode again."""
        nothing = np.zeros(0, np.int64)
        here = {
            side: torch.from_numpy(self._order.batch(step, side) if self._proposes(side) else nothing)
            for side in self._keys
        }
        found = self.contrast.foreseen(self.memory.remembered(step), here, step, self.spec.views.count)
        ids = {side: view_ids(*views, self._order.samples).unique() for side, views in found.items()}
        return {side: Foreseen(some, self._views_again(side, some)) for side, some in ids.items() if len(some)}

    def _proposes(self, side: str) -> bool:
        """Whether the batch's samples are candidates (`emc2dist.core.batch.Side`); queries come uniformly always."""
        return self._judged is None or side == "query" or self.spec.negatives.name == "in_batch"

    def _views_again(self, side: str, ids: Tensor) -> Future[Tensor]:
        """[1, m, ...] in the making: views [m] of a side. They go before those of steps to come."""
        samples, numbers = ids % self._order.samples, ids // self._order.samples
        drawn, slot = drawn_in(numbers, self.spec.views.count)
        seeds = fork(self.spec.seed, _VIEWS, drawn, samples, slot)
        return self._submit(side, samples.numpy(), seeds.unsqueeze(0), urgent=True)

    def _encode_again(self, foreseen: Mapping[str, Foreseen], side: str, ids: Tensor) -> Tensor:
        """[m, D]: views [m] of a side encoded with gradient."""
        with self.stopwatch.phase("data_wait"):
            if side in foreseen and foreseen[side].has(ids):
                views = foreseen[side].of(ids, self._arrived(foreseen[side].views).squeeze(0))
            else:
                views = self._arrived(self._views_again(side, ids)).squeeze(0)
        return self._encode_alone(views)

    def _encode(self, views: Tensor, drawn: Tensor | None) -> _Encoded:
        """What this rank encodes of a side: views [V, b, ...] of its samples, and of its draws [M / W, ...].

        Of pairs the draws are encoded together with the samples, with a graph.
        """
        samples = views.flatten(0, 1)
        with self.stopwatch.phase("forward"):
            together = samples if drawn is None or not self._draws_learn else torch.cat([samples, drawn])
            features = self.encoding.of_batch(together)
        own, others = features.split([len(samples), len(features) - len(samples)])
        own = own.unflatten(0, views.shape[:2])
        if self._draws_learn:
            return _Encoded(own, None, None if drawn is None else others)
        keys = None if self._follower is None else self._encode_alone(samples).unflatten(0, views.shape[:2])
        with torch.no_grad():
            return _Encoded(own, keys, None if drawn is None else self._encode_alone(drawn))

    @property
    def _draws_learn(self) -> bool:
        """Whether draws get a gradient: of pairs, whose documents have no other role in which one would make up."""
        return len(self._order.sides) > 1

    def _encode_alone(self, views: Tensor) -> Tensor:
        """Features [m, D] of views, on the device, as keys that are not of the batch: the follower's, where one is."""
        with self.stopwatch.phase("forward"):
            if self._keys_encoding is None:
                return self.encoding.of_others(views)
            with torch.no_grad():
                return self._keys_encoding.of_others(views)

    def _to_cache(self, step: int, encoded: Mapping[str, _Encoded], again: Again) -> Encoded:
        """This step's features of candidates: of draws, of this rank's samples, and of what was encoded again."""
        views, own, features, everyone = self.spec.views.count, [], [], []
        for side in self._keys or self._order.sides:
            batch, part = self._order.batch(step, side), encoded[side]
            index, newest = self._share(step, side), (part.features if part.keys is None else part.keys)[-1]
            if self._judged is not None:  # of a document that comes twice the first one counts
                once = np.flatnonzero(~rank_slice(_repeats(batch), self._rank, self.spec.workers))
                (rows,) = to_device([torch.from_numpy(once)], self.device)
                index, newest = index[once], newest[rows]
            own.append(index)
            features.append(newest)
            everyone.append(batch)
        found = again.encoded(np.concatenate(own), torch.cat(features), np.concatenate(everyone), step, views)
        for side in self._draws:
            found = self._drawn_too(step, side, found, encoded[side].drawn)
        return found

    def _drawn_too(self, step: int, side: str, encoded: Encoded, drawn: Tensor | None) -> Encoded:
        """With this rank's draws [M / W, D], but for those of the batch: some rank has newer views of them to cache."""
        assert drawn is not None
        index = self._drawn_share(self._draws[side], step)
        (outside,) = np.nonzero(~np.isin(index, self._order.batch(step, side)))
        (rows,) = to_device([torch.from_numpy(outside)], self.device)
        samples = torch.from_numpy(index[outside])
        # Of a sample that is encoded again, too, that feature comes last and counts.
        slot = torch.full_like(samples, self.spec.views.count)
        features = torch.cat([drawn[rows].detach(), encoded.features])
        return Encoded(torch.cat([samples, encoded.index]), features, torch.cat([slot, encoded.slot]))

    def _gathered(self, step: int, encoded: Mapping[str, _Encoded]) -> Batch:
        """The batch of all ranks' features, and of all their draws."""
        sides = {side: self._side(step, side, part) for side, part in encoded.items()}
        first, *_ = sides.values()
        assert first.index is not None
        return Batch(
            first.index,
            first=self._rank * first.own.shape[1],
            sides=sides,
            temperature=self.temperature.at(step),
            samples=self._order.samples,
            step=step,
            streams=first.streams,
            epoch=step / self._order.steps_per_epoch,
            columns=self._columns,
            grades=self._grades,
            guide=self._guide,
            judged=self._judged,
            host_index=first.host_index,
            learnt=getattr(collectives.unwrapped(self.model), "learnt", None),
        )

    def _side(self, step: int, side: str, part: _Encoded) -> Side:
        """A side of all ranks' features [V, b, D], or of a follower's, and of all their draws [M / W, D]."""
        on_host = torch.from_numpy(self._order.batch(step, side))
        own = torch.from_numpy(self._share(step, side))
        numbers = [on_host, self._streams(_VISIT, step, own).flatten()]
        if side in self._draws:
            numbers.append(torch.from_numpy(self._draws[side].batch(step)))
        if self._judged is not None:
            numbers.append(torch.from_numpy(_repeats(self._order.batch(step, side))))
        index, streams, *others = to_device(numbers, self.device)
        repeats = others.pop() if self._judged is not None else None
        drawn = None if part.drawn is None else collectives.gather_features(part.drawn.unsqueeze(0))
        return Side(
            part.features,
            collectives.gather_features(part.features if part.keys is None else part.keys),
            keys=part.keys,
            drawn=drawn,
            drawn_index=others[0] if others else None,
            drawn_learn=self._draws_learn,
            index=index,
            host_index=on_host,
            streams=streams,
            entities=len(self._order.entities(side)),
            repeats=repeats,
            proposes=self._proposes(side),
        )

    def _finite(self, step: int, batch: Batch) -> list[Finite]:
        """Of the features of all ranks' samples and draws; and of this rank's anchors, where keys are others."""
        found = []
        for name, side in batch.sides.items():
            found.append(Finite.of(side.all, partial(self._owner, self._order.batch(step, name))))
            if side.keys is not None:
                found.append(Finite.of(side.own, partial(self._mine, self._share(step, name))))
            if side.drawn is not None:
                found.append(Finite.of(side.drawn, partial(self._owner, self._draws[name].batch(step))))
        return found

    def _mine(self, samples: NDArray[np.int64], row: int) -> tuple[int, str]:
        """This rank, and what a row of its samples is."""
        return self._rank, self._named(int(samples[row]))

    def _owner(self, samples: NDArray[np.int64], row: int) -> tuple[int, str]:
        """The rank that a row of gathered samples is of, of which each brought as many, and what it is."""
        return row // (len(samples) // self.spec.workers), self._named(int(samples[row]))

    def _named(self, entity: int) -> str:
        """As in `sample 7`, or of several sides `document 7`, by its row there."""
        if len(self._order.sides) == 1:
            return f"sample {entity}"
        side = next(side for side in self._order.sides if entity in self._order.entities(side))
        return f"{side} {entity - self._order.entities(side).start}"

    def _update(self, step: int, loss: Tensor) -> dict[str, Fact]:
        """Backward and, at the end of an accumulated update, the optimiser's step; then returns the gradient norm."""
        accumulate = self.schedule.accumulate
        with self.stopwatch.phase("backward"):
            self.encoding.backward(loss / accumulate)
        if (step + 1) % accumulate:
            return {}
        with self.stopwatch.phase("optimiser"):
            norm = clip_gradients(self.model.parameters(), self.spec.optimiser.clip_norm)
            set_learning_rate(self.optimiser, self.schedule.at(step))
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
            if self._follower is not None and self.spec.encoder.momentum is not None:
                follow(self._follower, collectives.unwrapped(self.model), self.spec.encoder.momentum)
        return {"gradient_norm": norm}


def _repeats(entities: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool [n]: which stand earlier, too."""
    found = np.ones(len(entities), bool)
    found[np.unique(entities, return_index=True)[1]] = False
    return found


class NamedToo:
    """Draws, and what each sample of the batch names besides; each worker brings those of its own samples.

    What is in the batch is named in vain, and so is what another one named: -1 stands there.
    """

    def __init__(self, order: Order, draws: Draws | None, workers: int) -> None:
        self._order, self._draws, self._workers = order, draws, workers

    def batch(self, step: int) -> NDArray[np.int64]:
        """int64 [M + B n], worker by worker the draws and the named ones."""
        named = self._order.named(step).reshape(self._workers, -1)
        drawn = np.zeros((self._workers, 0), np.int64)
        if self._draws is not None:
            drawn = self._draws.batch(step).reshape(self._workers, -1)
        every = np.concatenate([drawn, named], 1).flatten()
        return np.where(_repeats(every), -1, every)


def _made(views: Future[Tensor]) -> Tensor:
    try:
        return views.result(timeout=_DATA_TIMEOUT_S)
    except TimeoutError:
        raise DataError(
            f"no views after {_DATA_TIMEOUT_S} s: the storage under data.path does not answer; check it and resume"
        ) from None
