"""Where a training step goes: a few real steps of one worker, in this process, measured.

    alone     one worker's Trainer over a LocalStore: no Ray, no other rank
    profile   warm-up; steps under the stopwatch alone; as many again under torch.profiler

The parts are taken from steps without the profiler, which slows operators down, so parts and operators may differ a
little. Steps are those of a second epoch: every chain has been visited, and carried negatives are encoded again. What
the earlier epoch would have left in the store is made up (random states, random features); all else is the real thing.
With `workers` > 1 a worker's share of the batch is trained on, by itself.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch.profiler import ProfilerActivity, record_function

from emc2dist.config import Spec, dump, parse
from emc2dist.data.images import Images, open_images
from emc2dist.data.loader import ViewLoader
from emc2dist.data.sampler import EpochOrder
from emc2dist.errors import RunError, SpecError
from emc2dist.store import ChainStore, Commit, Layout, LocalStore, Rows
from emc2dist.train.loop import order_for
from emc2dist.train.memory import Memory, schema_for
from emc2dist.train.step import Trainer
from emc2dist.train.timing import PHASES, Stopwatch
from emc2dist.vision.augment import RandomView
from emc2dist.vision.encoder import Encoder
from emc2dist.vision.optim import build_optimiser

WARM_UP = 5
"""Steps that are not counted."""
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
    parts_ms: dict[str, float]
    """Of each of `emc2dist.train.timing.PHASES`; what is left of the step belongs to none of them."""
    profiled_step_ms: float
    """A step under the profiler."""
    operators: list[Operator]
    """Those that take most, the dearest first: on the GPU where there is one, else on the CPU."""


def profile(spec: Spec, steps: int = 10, trace: Path | None = None) -> Profile:
    """Train a few steps of `spec` and measure them; `trace` is a file to write for chrome://tracing or Perfetto.

    The operators are those of the step itself and its backward, not those that make views beside it.

    Raises:
        SpecError: a worker's share of the batch is too small, or the spec wants a GPU and there is none.
        DataError: the data cannot be opened, or are fewer than a batch. RunError: there is no folder for the trace.
    """
    if trace is not None and not trace.parent.is_dir():
        raise RunError(f"{trace}: there is no folder {trace.parent}; name a file in one that exists")
    device = _device(spec)
    share = _share(spec)
    images = open_images(share.data, "train", share.s3)
    assert images is not None, "open_images raises where there is nothing to train on"
    accumulate = spec.optimiser.accumulate
    steps = -(-steps // accumulate) * accumulate  # whole updates
    with _threads(spec), alone(share, images, device) as trainer:
        number = _start(trainer, share, order_for(share, images), ahead=2 * steps + WARM_UP + accumulate)
        _take(trainer, number, -(-WARM_UP // accumulate) * accumulate)
        step_ms = _take(trainer, number, steps)
        parts = {name: 1000 * seconds / steps for name, seconds in trainer.stopwatch.read().items()}
        trainer.stopwatch = _Traced(device)
        with torch.profiler.profile(activities=_activities(device)) as profiler:
            profiled_ms = _take(trainer, number, steps)
    if trace is not None:
        profiler.export_chrome_trace(str(trace))
    return Profile(str(device), share.micro_batch_size, steps, step_ms, parts, profiled_ms, _dearest(profiler, steps))


@contextmanager
def alone(spec: Spec, images: Images, device: torch.device) -> Iterator[Trainer]:
    """A Trainer of `spec` (of one worker), as `emc2dist.train.loop` makes it, over a store in this process."""
    torch.manual_seed(spec.seed)
    order = order_for(spec, images)
    encoder = Encoder(spec.encoder)
    encoder = (encoder.double() if spec.precision == "float64" else encoder).to(device)
    optimiser = build_optimiser(encoder, spec.optimiser, spec.lr)
    store = LocalStore(Layout(len(images), spec.shards), schema_for(spec))
    store.reset(_GENERATION)
    memory = Memory(spec, store, order, 0, _GENERATION, device)
    memory.start(0, settled=-1)
    with ViewLoader(images, RandomView(spec.views), spec.views.size, processes=spec.data.loaders) as loader:
        yield Trainer(spec, encoder, optimiser, memory, loader, order, device)


class _Traced(Stopwatch):
    """Names its phases in the trace too."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        with record_function(name), super().phase(name):
            yield


def _device(spec: Spec) -> torch.device:
    available = torch.cuda.is_available()
    if spec.device == "cuda" and not available:
        raise SpecError("device: cuda, but this machine has no GPU that torch can use; profile with device=cpu")
    return torch.device("cuda" if available and spec.device != "cpu" else "cpu")


def _share(spec: Spec) -> Spec:
    """What one worker of `spec` does, as a spec of one worker."""
    overrides = ["workers=1", "min_workers=null", f"batch_size={spec.batch_size // spec.workers}"]
    return parse(dump(spec), overrides, source=f"one worker of {spec.workers}")


@contextmanager
def _threads(spec: Spec) -> Iterator[None]:
    """As many CPU threads as a worker has where all workers are on one machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(spec.threads or max(1, (os.cpu_count() or 1) // spec.workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _start(trainer: Trainer, spec: Spec, order: EpochOrder, ahead: int) -> Iterator[int]:
    """Numbers of steps to take, from the second epoch on; the next `ahead` find their samples visited before."""
    first = order.steps_per_epoch
    if spec.objective == "emc2":
        samples = np.unique(np.concatenate([order.batch(step) for step in range(first, first + ahead)]))
        _visit(trainer.memory.store, spec, samples, step=first - 1)
    trainer.memory.start(first, settled=first - 1)
    return count(first)


def _visit(store: ChainStore, spec: Spec, samples: np.ndarray, step: int) -> None:
    """Have the store show, as of `step`, chains and features of these samples; a chain is at another one of them."""
    draw, number = np.random.default_rng(spec.seed), len(samples)
    others = np.arange(number)[:, None] + draw.integers(1, number, (number, spec.views.count))
    features = draw.standard_normal((number, spec.encoder.features))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    tables = {
        "chain": {"state": samples[others % number], "visited": True, "visited_at": step},
        "feature": {"feature": features, "present": True, "written_at": step},
    }
    writes = {
        table: Rows(
            samples,
            {
                name: np.broadcast_to(values[name], (number, *column.shape)).astype(column.dtype)
                for name, column in store.schema[table].items()
            },
        )
        for table, values in tables.items()
    }
    store.exchange(_GENERATION, Commit(step, 0, writes), {}, step).result()


def _take(trainer: Trainer, numbers: Iterator[int], steps: int) -> float:
    """Take so many steps under a fresh stopwatch; returns the milliseconds of one, mean."""
    trainer.stopwatch.restart()
    _synchronise(trainer.device)
    began = perf_counter()
    for _ in range(steps):
        trainer.step(next(numbers))
    _synchronise(trainer.device)
    return 1000 * (perf_counter() - began) / steps


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _activities(device: torch.device) -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])


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
