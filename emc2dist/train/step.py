"""One training step: encode, gather, contrast, backward, remember.

    views (made ahead) -> encode, the draws without a graph -> gather -> [store: write t-1, read ahead] -> contrast
    (the sweep, encoding carried negatives again) -> backward through DDP's buckets -> update -> remember

Every random number derives from (seed, purpose, step, sample, view), so the outcome does not depend on how many
workers share the batch, and the step number is the whole state of the generators.
"""

import math
from collections import deque
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from emc2dist.config import Spec
from emc2dist.core.batch import Batch, Side, drawn_in, locate, view_number
from emc2dist.core.contrast import Outcome, contrast_for
from emc2dist.core.diagnostics import alignment, cached_log_z, effective_rank, log_z_errors, uniformity
from emc2dist.core.estimators import FEATURES, CachedRows, Fact
from emc2dist.core.streams import fork, seed_of
from emc2dist.data.encoded import Traffic
from emc2dist.data.loader import ViewLoader
from emc2dist.data.sampler import EpochOrder, rank_slice
from emc2dist.errors import DataError, NonFiniteError
from emc2dist.towers.encoder import running_statistics
from emc2dist.towers.optim import learning_rate, set_learning_rate
from emc2dist.train import collectives, transfer
from emc2dist.train.memory import Encoded, Memory
from emc2dist.train.timing import Stopwatch

_DATA_TIMEOUT_S = 600
_MOST_COMPARED = 2_048  # samples up to which log Z is compared with that by all cached features
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
    ) -> None:
        """Begin; `columns` are what is known of every image (`emc2dist.data.images.known_of_each`)."""
        self.spec, self.optimiser, self.memory, self.device = spec, optimiser, memory, device
        self.model = collectives.data_parallel(encoder)
        self.schedule = Schedule.of(spec, order.steps_per_epoch)
        self.temperature = Temperature.of(spec, order.steps_per_epoch)
        self._loader, self._order = loader, order
        draws = spec.negatives.draws
        self._draws = order.unrelated(draws, seed_of(spec.seed, _DRAWS)) if draws else None
        self.contrast = contrast_for(spec)
        self._columns = {name: torch.from_numpy(values).to(device) for name, values in columns.items()}
        self._rank = collectives.rank()
        self.stopwatch = Stopwatch(device)
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
        with phase("forward"):
            features = self._encode(self.model, views.flatten(0, 1)).unflatten(0, views.shape[:2])
        with torch.no_grad():
            drawn = None if drawn_views is None else self._encode_alone(drawn_views)
        with phase("communication"):
            batch = self._gathered(step, features, drawn)
        with phase("store_wait"):
            everything = self.memory.features(step) if health and self._compares else None
            self.memory.exchange(step)
        with phase("sweep"):
            again = _Again(features, self._order.samples, lambda *views: self._encode_again(step, *views))
            outcome = self.contrast(batch, recall, again)
        facts = {**outcome.facts, **self._update(step, outcome.loss)}
        if FEATURES in self.memory.schema:
            facts["reencoded_images"] = torch.full((), float(len(again)), device=self.device)
        first_fresh = view_number(step, batch.views, batch.views)
        encoded = again.encoded(batch.own_index(SIDE), torch.from_numpy(self._order.batch(step)), first_fresh)
        if drawn is not None:
            encoded = self._drawn_too(step, encoded, drawn)
        self.memory.remember(step, outcome.remember, encoded)
        if not health:
            return Facts(facts, {}, self._traffic())
        facts |= _health(batch) | self._log_z(batch, outcome, everything)
        return Facts(facts, outcome.ages, self._traffic())

    @property
    def _compares(self) -> bool:
        """Whether log Z is remembered, and the samples few enough to be compared with all of them."""
        valued = any(what.valued for what in self.contrast.denominators)
        return valued and FEATURES in self.memory.schema and self._order.samples <= _MOST_COMPARED

    @torch.no_grad()
    def _log_z(self, batch: Batch, outcome: Outcome, rows: CachedRows | None) -> dict[str, Fact]:
        """How far the first log Z that was needed is from that by the cached features of the whole dataset."""
        if rows is None or rows.present.double().mean() < _LEAST_CACHED:
            return {}
        what = next(what for what in self.contrast.denominators if what.valued)
        return log_z_errors(outcome.log_z[what.name], cached_log_z(what, batch, rows))

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
        if not made.is_cuda:
            return transfer.to_device(made, self.device)
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

    def _encode(self, model: nn.Module, images: Tensor) -> Tensor:
        with self._autocast():
            return model(images)

    def _encode_again(self, step: int, samples: Tensor, numbers: Tensor) -> Tensor:
        """[m, D]: samples [m] by their views numbered [m], both on the CPU, encoded with gradient."""
        drawn, slot = drawn_in(numbers, self.spec.views.count)
        seeds = fork(self.spec.seed, _VIEWS, drawn, samples, slot)
        with self.stopwatch.phase("data_wait"):
            (images,) = self._arrived(self._loader.submit(samples.numpy(), seeds.unsqueeze(0).numpy(), urgent=True))
        features = self._encode_alone(images)
        _check_finite(features, lambda slot: (self._rank, int(samples[slot])), step)
        return features

    def _encode_alone(self, images: Tensor) -> Tensor:
        """Features [m, D] of images that are not of the batch, of which every rank may have another number."""
        # Past DDP's wrapper: the parameters already took part in this step's forward, and a rank may have nothing to
        # encode again. A handful of negatives has no batch statistics of its own, hence the running ones.
        encoder = collectives.unwrapped(self.model)
        with self.stopwatch.phase("forward"), running_statistics(encoder):
            return self._encode(encoder, images)

    def _drawn_too(self, step: int, encoded: Encoded, drawn: Tensor) -> Encoded:
        """With this rank's draws [M / W, D], but for those of the batch: some rank has newer views of them to cache."""
        assert self._draws is not None
        index = self._share(self._draws, step)
        (outside,) = np.nonzero(~np.isin(index, self._order.batch(step)))
        samples, rows = (
            transfer.to_device(torch.from_numpy(numbers), self.device) for numbers in (index[outside], outside)
        )
        # Of a sample that is encoded again, too, that feature comes last and counts.
        return Encoded(torch.cat([samples, encoded.index]), torch.cat([drawn[rows], encoded.features]))

    def _autocast(self) -> AbstractContextManager[object]:
        if self.spec.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def _gathered(self, step: int, features: Tensor, drawn: Tensor | None) -> Batch:
        """The batch of all ranks' features, and of all their draws [M / W, D]."""
        side = Side(own=features, all=collectives.gather_features(features))
        index, drawn_index = self._index(self._order, step), None
        gathered = [(index, side.all.transpose(0, 1))]
        if drawn is not None and self._draws is not None:
            rows, drawn_index = collectives.gather_rows(drawn), self._index(self._draws, step)
            side = replace(side, drawn=rows.unsqueeze(0))
            gathered.append((drawn_index, rows))
        self._check_gathered(gathered, step)
        first, own = self._rank * features.shape[1], features.shape[1]
        streams = self._streams(_VISIT, step, index[first : first + own]).flatten()
        temperature, epoch = self.temperature.at(step), step / self._order.steps_per_epoch
        return Batch(
            index,
            first,
            {SIDE: side},
            temperature,
            self._order.samples,
            step,
            streams,
            epoch,
            self._columns,
            drawn_index,
        )

    def _check_gathered(self, gathered: Collection[tuple[Tensor, Tensor]], step: int) -> None:
        """Raise for the first of all ranks' rows [n, ...] of samples [n] that is not finite. A GPU is asked once."""
        if torch.stack([rows.isfinite().all() for _, rows in gathered]).all():
            return
        for samples, rows in gathered:
            share = len(samples) // self.spec.workers
            _check_finite(rows, partial(_owner, samples, share), step)

    def _index(self, order: EpochOrder, step: int) -> Tensor:
        """int64 [n], the samples of all ranks, on the device."""
        return transfer.to_device(torch.from_numpy(order.batch(step)), self.device)

    def _update(self, step: int, loss: Tensor) -> dict[str, Fact]:
        """Backward and, at the end of an accumulated update, the optimiser's step; then returns the gradient norm."""
        accumulate = self.schedule.accumulate
        with self.stopwatch.phase("backward"):
            (loss / accumulate).backward()
        if (step + 1) % accumulate:
            return {}
        with self.stopwatch.phase("optimiser"):
            clip = self.spec.optimiser.clip_norm or float("inf")
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip)
            set_learning_rate(self.optimiser, self.schedule.at(step))
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
        return {"gradient_norm": norm}


class _Again:
    """Views that are encoded again in one step, each once."""

    def __init__(self, features: Tensor, samples: int, encode: Callable[[Tensor, Tensor], Tensor]) -> None:
        """None yet; `encode` takes samples and the numbers of their views, of a dataset of so many `samples`."""
        self._own, self._samples, self._encode = features, samples, encode
        self._views = torch.zeros(0, dtype=torch.int64, device=features.device)
        """number * N + sample, each once."""
        self._on_cpu = self._views.cpu()
        self._features = features.new_zeros(0, features.shape[-1])

    def __call__(self, side: str, samples: Tensor, numbers: Tensor) -> Tensor:
        """Features [R, m, D] of samples int64 [m] by their views numbered [R, m], with gradient."""
        views = numbers * self._samples + samples
        missing = views.unique()
        missing = missing[~torch.isin(missing, self._views, assume_unique=True)]
        if len(missing):
            on_cpu = missing.cpu()
            features = self._encode(on_cpu % self._samples, on_cpu // self._samples)
            self._views, self._on_cpu = torch.cat([self._views, missing]), torch.cat([self._on_cpu, on_cpu])
            self._features = torch.cat([self._features, features])
        slot, _ = locate(views.flatten(), self._views)
        return self._features[slot].unflatten(0, views.shape)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._views)

    def encoded(self, own: Tensor, batch: Tensor, number: int) -> Encoded:
        """What is cached of this step: the worker's `own` samples by their last view, and fresh views of others.

        A view that a chain carries is not: it was chosen, and another rank may encode another one of its sample.

        Args:
            own: int64 [b].
            batch: int64 [B] on the CPU, the samples of all ranks.
            number: that of the step's first fresh view, which is the same on all ranks.
        """
        samples = self._on_cpu % self._samples
        (rows,) = ((self._on_cpu // self._samples == number) & ~torch.isin(samples, batch)).nonzero(as_tuple=True)
        samples, rows = (transfer.to_device(part, own.device) for part in (samples[rows], rows))
        features = torch.cat([self._own[-1], self._features[rows]]).detach()
        return Encoded(torch.cat([own, samples]), features)


def _owner(samples: Tensor, share: int, slot: int) -> tuple[int, int]:
    """(rank, sample) of a slot of gathered samples, of which each rank brought `share`."""
    return slot // share, int(samples[slot])


def _check_finite(rows: Tensor, name: Callable[[int], tuple[int, int]], step: int) -> None:
    """Raise for the first row [n, ...] that is not finite; `name(row)` gives its (rank, sample)."""
    finite = rows.detach().isfinite().flatten(1).all(1)
    if not finite.all():
        rank, sample = name(int(finite.logical_not().nonzero()[0]))
        raise NonFiniteError(
            f"rank {rank}, step {step}, sample {sample}: the feature is not finite; the run has diverged: "
            "lower lr, raise optimiser.warmup_epochs or set optimiser.clip_norm"
        )


def _health(batch: Batch) -> dict[str, Fact]:
    features = batch.sides[SIDE].all.detach()
    return {
        "alignment": alignment(features),
        "uniformity": uniformity(features[0]),
        "effective_rank": effective_rank(features[0]),
    }


def _made(views: Future[Tensor]) -> Tensor:
    try:
        return views.result(timeout=_DATA_TIMEOUT_S)
    except TimeoutError:
        raise DataError(
            f"no views after {_DATA_TIMEOUT_S} s: the storage under data.path does not answer; check it and resume"
        ) from None
