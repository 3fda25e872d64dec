"""Where a training step goes: a few real steps of one worker, in this process, measured.

    alone     one worker's Trainer over a LocalStore: no Ray, no other rank
    profile   warm-up; steps under the stopwatch alone; as many again under torch.profiler

The parts are taken from steps without the profiler, which slows operators down, so parts and operators may differ a
little. The run is a real one in miniature, of the first images alone: the warm-up visits each of them at least once, so
every chain carries a state and is contrasted as from the second epoch on, with carried negatives that are encoded again
as often as this young an encoder has it. Its images were all read a moment ago, so `data_wait` is that of a warm cache.
With `workers` > 1 a worker's share of the batch is trained on, by itself.
"""

import gzip
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from shutil import copyfileobj, disk_usage
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
from torch.profiler import ProfilerActivity, record_function

from emc2dist import files
from emc2dist.config import Spec, dump, parse
from emc2dist.core.estimators import Fact
from emc2dist.errors import SpecError
from emc2dist.machine import cpus
from emc2dist.store import Layout, LocalStore
from emc2dist.towers.momentum import follower_of
from emc2dist.towers.optim import build_optimiser
from emc2dist.towers.stages import depths
from emc2dist.train.loop import initial_encoder, order_for
from emc2dist.train.memory import Memory, schema_for
from emc2dist.train.sets import (
    TrainingSet,
    columns_of,
    grades_of,
    guide_of,
    judged_of,
    loaders_of,
    open_training_set,
    settled,
)
from emc2dist.train.step import Trainer
from emc2dist.train.timing import PHASES, Stopwatch

WARM_UP = 20
"""Steps, at least, that are not counted. They visit as many batches of images: of so many, few carried states are in
the batch of the step, where they would need no encoding."""
OPERATORS = 10
"""Operators that are told."""
_GENERATION = "profile"


@dataclass(frozen=True)
class Operator:
    """An operator of torch: what it takes itself, without the operators that it calls. Means of a step."""

    name: str
    calls: float
    cpu_ms: float
    cuda_ms: float
    """Of its kernels on the GPU; 0 where there is none."""


@dataclass(frozen=True)
class Profile:
    """Where a step goes. Milliseconds, means of a step."""

    device: str
    batch_size: int
    """Samples of a step."""
    steps: int
    """Steps measured, and as many again for the operators."""
    step_ms: float
    reencoded_images: float
    """Carried negatives that a step encodes again, mean."""
    parts_ms: dict[str, float]
    """Of each of `emc2dist.train.timing.PHASES`; what is left of the step belongs to none of them."""
    profiled_step_ms: float
    """A step under the profiler."""
    operators: list[Operator]
    """Those that take most, the dearest first: on the GPU where there is one, else on the CPU."""


def profile(spec: Spec, steps: int = 10, trace: str | Path | None = None) -> Profile:
    """Train a few steps of `spec` and measure them; `trace` is a file to write for chrome://tracing or Perfetto.

    The operators are those of the step itself and its backward, not those that make views beside it.

    Raises:
        SpecError: a worker's share of the batch is too small, or the spec wants a GPU and there is none.
        DataError: the data cannot be opened, or are fewer than a batch. StorageError: the trace cannot be written.
    """
    target = None if trace is None else files.writable(trace)
    device = _device(spec)
    share = _share(spec, -(-max(WARM_UP, 2 * steps) // spec.optimiser.accumulate))
    share = settled(share)
    images = open_training_set(share)
    accumulate = spec.optimiser.accumulate
    steps = -(-steps // accumulate) * accumulate  # whole updates
    with _threads(spec), alone(share, images, device) as trainer:
        numbers = count()
        _take(trainer, numbers, max(WARM_UP, order_for(share, images).steps_per_epoch) // accumulate * accumulate)
        step_ms, reencoded = _take(trainer, numbers, steps)
        parts = {name: 1000 * seconds / steps for name, seconds in trainer.stopwatch.read().items()}
        trainer.stopwatch = _Traced(device)
        with torch.profiler.profile(activities=_activities(device)) as profiler:
            profiled_ms, _ = _take(trainer, numbers, steps)
    if target is not None:
        _export(profiler, target)
    operators = _dearest(profiler, steps)
    return Profile(str(device), share.micro_batch_size, steps, step_ms, reencoded, parts, profiled_ms, operators)


@contextmanager
def alone(spec: Spec, train: TrainingSet, device: torch.device) -> Iterator[Trainer]:
    """A Trainer of `spec` (of one worker), as `emc2dist.train.loop` makes it, over a store in this process."""
    order = order_for(spec, train)
    columns, _ = columns_of(spec, train)
    encoder = initial_encoder(spec, device)
    optimiser = build_optimiser(encoder, spec.optimiser, spec.lr, depths(encoder))
    store = LocalStore(Layout(len(train), spec.shards), schema_for(spec))
    store.reset(_GENERATION)
    with closing(Memory(spec, store, order, 0, _GENERATION, device)) as memory, ExitStack() as stack:
        loaders = loaders_of(spec, train, device)
        for loader in loaders.values():
            stack.callback(loader.close)
        memory.start(0, settled=-1)
        follower = None if spec.encoder.momentum is None else follower_of(encoder)
        of_pairs = (judged_of(train), guide_of(spec, train), grades_of(spec, train))
        parts = (memory, loaders, order, device, columns, follower, *of_pairs)
        yield Trainer(spec, encoder, optimiser, *parts)


class _Traced(Stopwatch):
    """Names its phases in the trace too."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        with record_function(name), super().phase(name):
            yield


def _device(spec: Spec) -> torch.device:
    available = torch.cuda.is_available()
    if spec.device == "cuda" and not available:
        raise SpecError("device: cuda, but this machine has no GPU that torch can use; profile with device=auto or cpu")
    return torch.device("cuda" if available and spec.device != "cpu" else "cpu")


def _share(spec: Spec, batches: int) -> Spec:
    """What one worker of `spec` does, as a spec of one worker and so many of its batches of images."""
    batch = spec.batch_size // spec.workers
    fewest = 2 * spec.optimiser.accumulate
    if batch < fewest:
        raise SpecError(
            f"batch_size: {spec.batch_size} leaves each of workers: {spec.workers} one sample at a time, and one "
            f"is profiled alone, without negatives then; profile with workers=1 or batch_size={fewest * spec.workers}"
        )
    draws = spec.negatives.draws // spec.workers
    images = max(batches * batch, draws)
    limit = min(images, spec.data.limit or images)
    overrides = ["workers=1", "min_workers=null", f"batch_size={batch}", f"data.limit={limit}"]
    overrides.append(f"negatives.draws={draws}")
    return parse(dump(spec), overrides, source=f"one worker of {spec.workers}")


@contextmanager
def _threads(spec: Spec) -> Iterator[None]:
    """As many CPU threads as a worker has where all workers are on one machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(spec.threads or max(1, cpus() // spec.workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _take(trainer: Trainer, numbers: Iterator[int], steps: int) -> tuple[float, float]:
    """Take so many steps under a fresh stopwatch; returns its milliseconds and the images it encoded again, means."""
    trainer.stopwatch.restart()
    _synchronise(trainer.device)
    reencoded: list[Fact] = []
    began = perf_counter()
    for _ in range(steps):
        values = trainer.step(next(numbers)).values
        reencoded += [values["reencoded_images"]] if "reencoded_images" in values else []
    _synchronise(trainer.device)
    return 1000 * (perf_counter() - began) / steps, sum(map(float, reencoded)) / steps  # type: ignore[arg-type]


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _activities(device: torch.device) -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])


def _export(profiler: torch.profiler.profile, target: Path) -> None:
    """Write the trace whole, or raise StorageError and leave nothing; torch itself says no word of a full disk."""
    with files.explained(target), TemporaryDirectory(prefix=".trace-", dir=target.parent) as folder:
        draft, packed = Path(folder, "trace.json"), Path(folder, "trace.json.gz")
        profiler.export_chrome_trace(str(draft))
        if not _is_whole(draft):
            raise OSError(f"torch could not write the trace there ({disk_usage(folder).free / 2**20:.0f} MiB are free)")
        if target.suffix == ".gz":
            with draft.open("rb") as source, gzip.open(packed, "wb") as sink:
                copyfileobj(source, sink)
        files.at(target).put(packed if target.suffix == ".gz" else draft)


def _is_whole(trace: Path) -> bool:
    """Whether a trace ends as torch ends it, with its own name."""
    if not trace.exists():
        return False
    with trace.open("rb") as file:
        file.seek(-min(trace.stat().st_size, 2**12), os.SEEK_END)
        return re.search(rb'"traceName": "[^"]*"\s*}\s*$', file.read()) is not None


def _dearest(profiler: torch.profiler.profile, steps: int) -> list[Operator]:
    """Operators alone: kernels count for the operator that launched them, and the names of phases are none."""
    operators = [
        Operator(
            str(event.key),
            event.count / steps,
            event.self_cpu_time_total / steps / 1000,
            event.self_device_time_total / steps / 1000,
        )
        for event in profiler.key_averages()
        if event.device_type.name == "CPU" and not event.is_user_annotation and event.key not in PHASES
    ]
    # Off the GPU all of `cuda_ms` is 0.
    return sorted(operators, key=lambda one: (one.cuda_ms, one.cpu_ms), reverse=True)[:OPERATORS]
