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
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

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
from emc2dist.data.loader import ViewLoader
from emc2dist.data.sampler import EpochOrder, rank_slice
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
SIDE = "x"
"""The one side that there is, images (see `emc2dist.core.batch`)."""

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


class _Ahead(NamedTuple):
    """The views of a step to come, in the making."""

    step: int
    views: Future[Tensor]
    """uint8 [V, b, 3, S, S] of this rank's samples, on the CPU or on the device."""
    drawn: Future[Tensor] | None
    """uint8 [1, M / W, 3, S, S] of this rank's draws; None without."""


class Trainer:
    """Takes training steps on one rank."""

    def __init__(
        self,
        spec: Spec,
        encoder: nn.Module,
        optimiser: torch.optim.Optimizer,
        memory: Memory,
        loader: ViewLoader,
        order: EpochOrder,
        device: torch.device,
        columns: Mapping[str, NDArray[np.int64]],
        follower: nn.Module | None = None,
    ) -> None:
        """Begin; `columns` are what is known of every image (`emc2dist.data.images.known_of_each`).

        The `follower` encodes keys, where the spec has `encoder.momentum`.
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
        self._loader, self._order = loader, order
        draws = spec.negatives.draws
        self._draws = order.unrelated(draws, seed_of(spec.seed, _DRAWS)) if draws else None
        self.contrast = contrast_for(spec)
        self._columns = {name: torch.from_numpy(values).to(device) for name, values in columns.items()}
        self._rank = collectives.rank()
        self.stopwatch = Stopwatch(device)
        self._replied = collectives.Vote()
        self._foreseen: Foreseen | None = None
        self._seen = loader.traffic
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
        with phase("forward"):
            features = self.encoding.of_batch(views.flatten(0, 1)).unflatten(0, views.shape[:2])
        keys = None if self._follower is None else self._encode_alone(views.flatten(0, 1)).unflatten(0, views.shape[:2])
        with torch.no_grad():
            drawn = None if drawn_views is None else self._encode_alone(drawn_views)
        with phase("communication"):
            batch = self._gathered(step, features, keys, drawn)
            # All ranks have had their replies, so their commits up to step - 2 are there. The gather alone says so only
            # where the host waits for it.
            self._replied.close()
        with phase("store_wait"):
            everything = self.memory.features(step) if health and self._compares else None
            self.memory.exchange(step)
        with phase("data_wait"):
            foreseen, self._foreseen = self._foreseen, self._foresee(step + 1)
        encode = partial(self._encode_again, foreseen)
        again = Again(features if keys is None else keys, self._order.samples, encode)
        with phase("sweep"):
            outcome = self.contrast(batch, recall, again)
        with phase("store_wait"):
            encoded = again.encoded(self._share(self._order, step), self._order.batch(step), step, batch.views)
            if drawn is not None:
                encoded = self._drawn_too(step, encoded, drawn)
            finite = [*self._finite(step, batch), again.finite(self._rank)]
            self.memory.remember(step, outcome.remember, encoded, finite)
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
        """Of the whole batch, or its first samples where it is large; measured by one rank for all."""
        features = batch.sides[SIDE].all[:, :_MOST_MEASURED].detach()
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

    @torch.no_grad()
    def _log_z(self, outcome: Outcome, rows: CachedRows | None) -> dict[str, Fact]:
        """How far the first log Z that was needed is from that by the cached features of the whole dataset."""
        if rows is None or rows.present.double().mean() < _LEAST_CACHED:
            return {}
        what = next(what for what in self.contrast.denominators if what.valued)
        return log_z_errors(outcome.log_z[what.name], cached_log_z(what, outcome.batch, rows))

    def _views(self, step: int) -> tuple[Tensor, Tensor | None]:
        """uint8 [V, b, 3, S, S] of this rank's samples and [M / W, 3, S, S] of its draws, on the device.

        Those of the next steps are begun.
        """
        while not self._ahead or self._ahead[-1].step < step + self.spec.data.prefetch:
            self._begin(self._ahead[-1].step + 1 if self._ahead else step)
        due, views, drawn = self._ahead.popleft()
        assert due == step, f"steps are taken one after the other, and {due} was next"
        return self._arrived(views), None if drawn is None else self._arrived(drawn).squeeze(0)

    def _arrived(self, views: Future[Tensor]) -> Tensor:
        """The views on the device, where they may have been made already."""
        made = _made(views)
        if made.device.type == "cpu":
            (made,) = to_device([made], self.device)
        elif made.is_cuda:
            # They were made on another stream, which must not have their memory back before this one has read it.
            made.record_stream(torch.cuda.current_stream(made.device))
        return made

    def _traffic(self) -> Traffic:
        """Since the last call."""
        before, self._seen = self._seen, self._loader.traffic
        return self._seen - before

    def _begin(self, step: int) -> None:
        index = self._share(self._order, step)
        seeds = self._streams(_VIEWS, step, torch.from_numpy(index))
        views, drawn = self._loader.submit(index, seeds.numpy()), None
        if self._draws is not None:
            index = self._share(self._draws, step)
            seeds = fork(self.spec.seed, _VIEWS, step, torch.from_numpy(index), self.spec.views.count)
            drawn = self._loader.submit(index, seeds.unsqueeze(0).numpy())
        self._ahead.append(_Ahead(step, views, drawn))

    def _share(self, order: EpochOrder, step: int) -> NDArray[np.int64]:
        """[n / W], this rank's samples."""
        return rank_slice(order.batch(step), self._rank, self.spec.workers)

    def _streams(self, purpose: int, step: int, index: Tensor) -> Tensor:
        """int64 [V, n]: one stream per view of each sample."""
        views = torch.arange(self.spec.views.count, device=index.device).unsqueeze(1)
        return fork(self.spec.seed, purpose, step, index, views)

    def _foresee(self, step: int) -> Foreseen | None:
        """Begin on the views that step `step` is sure to encode again; None without."""
        batch = torch.from_numpy(self._order.batch(step))
        columns = self.memory.remembered(step)
        samples, numbers = self.contrast.foreseen(columns, batch, step, self.spec.views.count)
        ids = view_ids(samples, numbers, self._order.samples).unique()
        return Foreseen(ids, self._views_again(ids)) if len(ids) else None

    def _views_again(self, ids: Tensor) -> Future[Tensor]:
        """uint8 [1, m, 3, S, S] in the making: views [m]. They go before those of steps to come."""
        samples, numbers = ids % self._order.samples, ids // self._order.samples
        drawn, slot = drawn_in(numbers, self.spec.views.count)
        seeds = fork(self.spec.seed, _VIEWS, drawn, samples, slot)
        return self._loader.submit(samples.numpy(), seeds.unsqueeze(0).numpy(), urgent=True)

    def _encode_again(self, foreseen: Foreseen | None, ids: Tensor) -> Tensor:
        """[m, D]: views [m] encoded with gradient."""
        with self.stopwatch.phase("data_wait"):
            if foreseen is not None and foreseen.has(ids):
                images = foreseen.of(ids, self._arrived(foreseen.images).squeeze(0))
            else:
                images = self._arrived(self._views_again(ids)).squeeze(0)
        return self._encode_alone(images)

    def _encode_alone(self, images: Tensor) -> Tensor:
        """Features [m, D] of images, on the device, as keys that are not of the batch: the follower's, where one is."""
        with self.stopwatch.phase("forward"):
            if self._keys_encoding is None:
                return self.encoding.of_others(images)
            with torch.no_grad():
                return self._keys_encoding.of_others(images)

    def _drawn_too(self, step: int, encoded: Encoded, drawn: Tensor) -> Encoded:
        """With this rank's draws [M / W, D], but for those of the batch: some rank has newer views of them to cache."""
        assert self._draws is not None
        index = self._share(self._draws, step)
        (outside,) = np.nonzero(~np.isin(index, self._order.batch(step)))
        (rows,) = to_device([torch.from_numpy(outside)], self.device)
        samples = torch.from_numpy(index[outside])
        # Of a sample that is encoded again, too, that feature comes last and counts.
        slot = torch.full_like(samples, self.spec.views.count)
        features = torch.cat([drawn[rows], encoded.features])
        return Encoded(torch.cat([samples, encoded.index]), features, torch.cat([slot, encoded.slot]))

    def _gathered(self, step: int, features: Tensor, keys: Tensor | None, drawn: Tensor | None) -> Batch:
        """The batch of all ranks' features, or of a follower's [V, b, D], and of all their draws [M / W, D]."""
        side = Side(features, collectives.gather_features(features if keys is None else keys), keys=keys)
        on_host = torch.from_numpy(self._order.batch(step))
        own = torch.from_numpy(self._share(self._order, step))
        numbers = [on_host, self._streams(_VISIT, step, own).flatten()]
        if self._draws is not None:
            numbers.append(torch.from_numpy(self._draws.batch(step)))
        index, streams, *drawn_index = to_device(numbers, self.device)
        if drawn is not None:
            drawn = collectives.gather_rows(drawn).unsqueeze(0)
            side = replace(side, drawn=drawn, drawn_index=drawn_index[0])
        return Batch(
            index,
            first=self._rank * features.shape[1],
            sides={SIDE: side},
            temperature=self.temperature.at(step),
            samples=self._order.samples,
            step=step,
            streams=streams,
            epoch=step / self._order.steps_per_epoch,
            columns=self._columns,
            host_index=on_host,
            learnt=getattr(collectives.unwrapped(self.model), "learnt", None),
        )

    def _finite(self, step: int, batch: Batch) -> list[Finite]:
        """Of the features of all ranks' samples and draws; and of this rank's anchors, where keys are others."""
        side = batch.sides[SIDE]
        found = [Finite.of(side.all, partial(_owner, self._order.batch(step), self.spec.workers))]
        if side.keys is not None:
            own = self._share(self._order, step)
            found.append(Finite.of(side.own, lambda row: (self._rank, int(own[row]))))
        if self._draws is not None and side.drawn is not None:
            found.append(Finite.of(side.drawn, partial(_owner, self._draws.batch(step), self.spec.workers)))
        return found

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


def _owner(samples: NDArray[np.int64], workers: int, row: int) -> tuple[int, int]:
    """(rank, sample) of a row of gathered samples, of which each rank brought as many."""
    return row // (len(samples) // workers), int(samples[row])


def _made(views: Future[Tensor]) -> Tensor:
    try:
        return views.result(timeout=_DATA_TIMEOUT_S)
    except TimeoutError:
        raise DataError(
            f"no views after {_DATA_TIMEOUT_S} s: the storage under data.path does not answer; check it and resume"
        ) from None
