"""From the first step to the last on one rank: epochs, and when to log, evaluate and keep a checkpoint.

At the end of an epoch the store is settled (see `emc2dist.train.memory`), and there a checkpoint may be written; where
the run is asked to stop, or has gone on for long, one is written with the store parked. Resuming is the same code as
starting: only the first step and the contents of encoder, optimiser and store differ, so it ends as an unbroken run.
"""

from dataclasses import dataclass
from pathlib import Path
from time import monotonic, time
from typing import Protocol
from uuid import uuid4

import torch

from emc2dist import files
from emc2dist.config import Spec
from emc2dist.core.contrast import contrast_for
from emc2dist.core.estimators import FEATURES
from emc2dist.data.sampler import Order
from emc2dist.errors import RunError, SpecError
from emc2dist.metrics import Recorder, Row
from emc2dist.store import ChainStore, nbytes
from emc2dist.towers.encoder import Encoder, ImageEncoder, TextEncoder, TwoTowers, layout
from emc2dist.towers.momentum import follower_of
from emc2dist.towers.optim import build_optimiser
from emc2dist.towers.stages import depths, freeze
from emc2dist.train import arithmetic, checkpoint, collectives
from emc2dist.train.memory import Memory
from emc2dist.train.meter import Meter
from emc2dist.train.model_files import ModelFiles
from emc2dist.train.sets import Judge, TrainingSet, columns_of, grades_of, guide_of, judged_of, loaders_of, order_of
from emc2dist.train.step import Trainer
from emc2dist.train.weights import load_weights


class CheckpointWriter(Protocol):
    """Where checkpoints go."""

    def write(self, step: int, folder: Path, row: Row) -> None:
        """Make one checkpoint of the files that all ranks wrote into their `folder`s; every rank calls it.

        The folder is the writer's from now on. It may be copied while training goes on, and is removed then.
        """


class StopRequest(Protocol):
    """Whether somebody wants the run to write a checkpoint and end. Asked every step, so it must not wait."""

    def is_set(self) -> bool:
        """Whether it is wanted; ranks need not agree. (`threading.Event` is one.)"""


_MOST_STEPS = 2**31 - 1
"""The store notes steps as int32."""
_MOST_READ = 2**29
"""Bytes of cached features that all workers together may read in a step."""
_DEAR_READ = 2**24
"""Bytes from which on that is told."""


def order_for(spec: Spec, train: TrainingSet) -> Order:
    """The order of the samples.

    Raises DataError if the batch or the draws are more than the data, SpecError if it goes too far, or a step would
    read too much.
    """
    _refuse_absurd_reads(spec, len(train))
    order = order_of(spec, train)
    if spec.epochs * order.steps_per_epoch > _MOST_STEPS:
        most = _MOST_STEPS // order.steps_per_epoch
        raise SpecError(
            f"epochs: {spec.epochs} of {order.steps_per_epoch} steps are more than can be noted; at most {most}"
        )
    return order


def dear_reads(spec: Spec, train: TrainingSet) -> list[str]:
    """A remark on cached features of which every step reads and scores very many."""
    rows, size = _read_by_a_step(spec, len(train))
    if size <= _DEAR_READ:
        return []
    return [
        f"every step reads {rows:,} cached features, {size / 2**20:,.0f} MiB, and scores all its anchors against them: "
        "about 0.7 s of a CPU for 128 anchors and 100,000 rows; fewer are negatives.rows, or objective.support"
    ]


def _refuse_absurd_reads(spec: Spec, samples: int) -> None:
    rows, size = _read_by_a_step(spec, samples)
    if size > _MOST_READ:
        raise SpecError(
            f"negatives.rows: {rows:,} cached features, {size / 2**30:.1f} GiB, would be read and scored in every "
            "step; give fewer negatives.rows (or objective.support), or negatives: chain, which needs a few"
        )


def _read_by_a_step(spec: Spec, samples: int) -> tuple[int, int]:
    """Cached rows that all workers need in every step, and the bytes of their features."""
    contrast = contrast_for(spec)
    rows = min(contrast.estimator.cache_proposals, samples) + min(contrast.objective.support, samples)
    columns = contrast.tables(spec.views.count, spec.encoder.features).get(FEATURES)
    return rows, 0 if columns is None else rows * nbytes({FEATURES: {"feature": columns["feature"]}}, 1)


@dataclass(frozen=True)
class Job:
    """What one rank trains, with what, and whom it tells."""

    spec: Spec
    train: TrainingSet
    judge: Judge | None
    """What tells how good the encoder is; None where nothing can."""
    store: ChainStore
    recorder: Recorder
    writer: CheckpointWriter
    device: torch.device
    stop: StopRequest
    scratch: Path
    """A folder on this machine, this process's own; takes a checkpoint's files until the writer has moved them."""
    cores: int | None = None
    """Of this machine, for this rank; None: all."""
    model: ModelFiles | None = None
    """What the run keeps of its model; None: what a new one would."""
    start: Path | None = None
    """The folder of another run's checkpoint, verified, with which a run of `start_from` begins."""


def run(job: Job, resume: Path | None = None) -> int:
    """Train one rank from `resume` (the folder of a checkpoint that was verified) or from the beginning to the end.

    Returns the steps taken: all, or those that the last checkpoint holds where `job.stop` was set before.

    Raises:
        NonFiniteError: the features diverged. DataError, RunError, StoreError: as their names say.
    """
    loop = _Loop(job, resume)
    try:
        return loop.run()
    finally:
        loop.close()


def encoder_for(spec: Spec, described: str | None = None) -> Encoder:
    """An encoder as a spec describes it, on the CPU, with what its objective learns; by torch's generator.

    `described` is the config.json of a model of transformers, where its weights are to come from a checkpoint.
    """
    encoder: Encoder
    if spec.data.kind == "images":
        encoder = ImageEncoder(spec.encoder, spec.views.size)
    elif spec.of_images:
        encoder = TwoTowers(spec.encoder, spec.text, spec.views.size, described)
    else:
        encoder = TextEncoder(spec.encoder, spec.text, described)
    encoder.learnt = contrast_for(spec).objective.learns(spec.encoder.features)
    return encoder.double() if spec.precision == "float64" else encoder


def initial_encoder(spec: Spec, device: torch.device, described: str | None = None, *, weights: bool = True) -> Encoder:
    """The encoder with which training begins; seeds torch's generator, and settles how this process computes.

    `described` as in `encoder_for`. Without `weights` those of `encoder.weights` are still to come.

    Raises:
        SpecError, StorageError: they do not fit, or cannot be read.
    """
    arithmetic.settle(spec, device)
    torch.manual_seed(spec.seed)
    encoder = encoder_for(spec, described)
    if weights:
        load_weights(encoder.described, spec)
    freeze(encoder.described, spec.encoder.freeze)
    return encoder.to(device).to(memory_format=layout(spec.encoder, spec.precision, device))  # type: ignore[call-overload]


class _Loop:
    def __init__(self, job: Job, resume: Path | None) -> None:
        spec, train, device = job.spec, job.train, job.device
        self.spec, self.train, self.store, self.device = spec, train, job.store, device
        self.recorder, self.writer, self.stop, self.scratch = job.recorder, job.writer, job.stop, job.scratch
        self.vote = collectives.Vote()
        self.order = order_for(spec, train)
        self.steps = spec.epochs * self.order.steps_per_epoch
        self.model = job.model or ModelFiles.of(spec)
        self.resume = resume
        self.start, self.began = job.start, dict[str, str]()
        described = self.model.config if self.model and resume else None
        self.encoder = initial_encoder(spec, device, described, weights=False)
        if resume is None and spec.encoder.weights is not None:
            self.began["encoder.weights"] = load_weights(self.encoder.described, spec).sha256
        self.optimiser = build_optimiser(self.encoder, spec.optimiser, spec.lr, depths(self.encoder))
        self.follower = None if spec.encoder.momentum is None else follower_of(self.encoder)
        self.generation = collectives.broadcast_text(uuid4().hex)
        self.memory = Memory(spec, job.store, self.order, collectives.rank(), self.generation, device)
        self.loading = ""
        self.loaders = loaders_of(spec, train, device, model=self.model, cores=job.cores, tell=self._is_loading)
        self.judge = job.judge
        self.stopping, self.due = False, False
        self.written, self.written_at = 0, monotonic()

    def close(self) -> None:
        self.memory.close()
        for loader in self.loaders.values():
            loader.close()

    def _is_loading(self, how: str) -> None:
        self.loading = how

    def run(self) -> int:
        first = self._restore(self.resume) if self.resume else self._begin()
        columns, _ = columns_of(self.spec, self.train)
        of_pairs = (judged_of(self.train), guide_of(self.spec, self.train), grades_of(self.spec, self.train))
        parts = (self.memory, self.loaders, self.order, self.device, columns, self.follower, *of_pairs)
        trainer = Trainer(self.spec, self.encoder, self.optimiser, *parts)
        meter = Meter(self.spec.micro_batch_size, trainer.stopwatch)
        done = first
        for step in range(first, self.steps):
            done = step + 1
            epoch, within = divmod(done, self.order.steps_per_epoch)
            due = done % self.spec.log_every == 0 or within == 0
            meter.add(trainer.step(step, health=due))
            if due:
                rates = {"lr": trainer.schedule.at(step), "temperature": trainer.temperature.at(step)}
                self._record({"step": done} | rates | meter.read())
            if within == 0:
                self._end_of_epoch(epoch, done)
                meter.restart()
            if self._stops(done):
                break
        self.vote.close()
        return done

    def _begin(self) -> int:
        here = ModelFiles.of(self.spec)  # the weights were read from this machine's folder
        if here and self.model:
            here.refuse_unlike(self.model.sha256, self.model.place)
        if self.spec.start_from is not None:
            self._take_up()
        elif collectives.rank() == 0:
            self.store.reset(self.generation)
        self._refuse_other_beginnings()
        self.memory.start(0, settled=-1)
        self._record({"step": 0, "resumed": 0, "loading": self.loading})
        self._evaluate(0, first=True)
        return 0

    def _take_up(self) -> None:
        """Begin with what another run had learnt."""
        if self.start is None:
            raise RunError("start_from: is taken up by `emc2dist train` alone, which fetches the run's checkpoint")
        manifest = checkpoint.read_manifest(files.at(self.start))
        checkpoint.refuse_other_data(self.start, manifest, self.train)
        checkpoint.restore_trainer(self.start, self.encoder, self.optimiser, self.follower, own_groups=True)
        checkpoint.restore_store(self.start, manifest, self.store, self.generation, views_at_0=self.spec.views.count)
        self.began["start_from"] = checkpoint.fingerprint(self.start)

    def _refuse_other_beginnings(self) -> None:
        """Raise RunError where another rank began with something else; waits for all."""
        for key, sha256 in self.began.items():
            if len(set(collectives.gather_texts(sha256))) > 1:
                raise RunError(f"{key}: is not the same on all machines; put the same there, or where all see it")
        collectives.barrier()

    def _restore(self, folder: Path) -> int:
        manifest = checkpoint.read_manifest(files.at(folder))
        checkpoint.refuse_other_data(folder, manifest, self.train)
        if self.model:
            self.model.refuse_unlike(manifest.model, folder)
        self.began = manifest.began
        checkpoint.restore_trainer(folder, self.encoder, self.optimiser, self.follower)
        checkpoint.restore_store(folder, manifest, self.store, self.generation)
        collectives.barrier()
        if collectives.rank() == 0:
            checkpoint.resend_pending(folder, manifest, self.store, self.generation)
        collectives.barrier()
        self.memory.start(manifest.step, manifest.applied)
        self._record({"step": manifest.step, "resumed": 1, "loading": self.loading})
        return manifest.step

    def _end_of_epoch(self, epoch: int, step: int) -> None:
        last = epoch == self.spec.epochs
        row: Row = {}
        if last or (self.spec.eval.every and epoch % self.spec.eval.every == 0):
            row = self._evaluate(step)
        # Whether a checkpoint is due or not: how often they are written changes no number.
        applied = self.memory.settle(step - 1)
        collectives.barrier()
        if last or epoch % self.spec.checkpoint.every == 0:
            self._write_checkpoint(step, applied, row)
        if not last:
            self.memory.start(step, applied)

    def _evaluate(self, step: int, *, first: bool = False) -> Row:
        if self.judge is None:
            return {}
        row = {"step": step, **self.judge.measured(self.encoder, self.device)}
        if collectives.rank() != 0:
            return {}
        if first:
            row |= self.judge.baseline()
        self._record(row)
        return row

    def _stops(self, step: int) -> bool:
        """Whether the run ends after `step` steps although more are to come. Makes a checkpoint if one is due."""
        if step == self.steps:
            return False
        stop, due = self.vote.cast(self.stop.is_set(), self._overdue())
        self.stopping, self.due = self.stopping or stop, self.due or due
        if step == self.written:
            self.due = False
        elif (self.stopping or self.due) and step % self.spec.optimiser.accumulate == 0:  # no part of an update is lost
            applied = self.memory.park(step - 1)
            collectives.barrier()
            self._write_checkpoint(step, applied, {})
            if not self.stopping:
                self.memory.start(step, applied)
        return self.stopping and step == self.written

    def _overdue(self) -> bool:
        minutes = self.spec.checkpoint.minutes
        return minutes is not None and monotonic() - self.written_at > 60 * minutes

    def _write_checkpoint(self, step: int, applied: int, row: Row) -> None:
        """Write one of what all ranks have sent; a barrier comes before."""
        parts = (self.spec, self.encoder, self.optimiser, self.store, self.generation, self.train.fingerprint)
        folder = self.scratch / f"checkpoint-{step}"
        folder.mkdir()
        checkpoint.save(folder, step, applied, *parts, self.follower, self.model, self.began)
        self.writer.write(step, folder, {"step": step, **row})
        self.written, self.written_at, self.due = step, monotonic(), False
        self._record({"step": step, "last_checkpoint_timestamp_seconds": time()})

    def _record(self, row: Row) -> None:
        if collectives.rank() == 0:
            self.recorder.record({**row, "epoch": row["step"] / self.order.steps_per_epoch})  # type: ignore[operator]
