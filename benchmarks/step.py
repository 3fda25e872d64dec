"""What does a step cost? Ours by negatives, and a bare loop of the same encoder, one after the other in each round.

    python benchmarks/step.py                                        # on a CPU, some minutes
    python benchmarks/step.py --device cuda --profile                # on a GPU; docs/performance.md

Views are made beforehand and lie on the device, so this is the step alone; but "end to end" makes them, from images in
memory, as `views.made_on` and `data.loaders` have it. Chains have been visited before: the warm-up takes each sample
once. The bare loop encodes the views of a batch, takes the softmax over the batch, and updates: no facts, no checks,
no store. A ratio is the median over the rounds, with the least and the most. `--profile` adds, on a GPU, the share of a
step in which no kernel runs, by torch's profiler.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from emc2dist.config import Spec, parse
from emc2dist.data.encoded import Traffic
from emc2dist.data.sampler import Order
from emc2dist.store import ChainStore, Layout, LocalStore
from emc2dist.towers.optim import build_optimiser
from emc2dist.train import collectives
from emc2dist.train.loop import initial_encoder, order_for
from emc2dist.train.memory import Memory, schema_for
from emc2dist.train.step import Trainer
from emc2dist.train.views import view_loader

RECIPES: dict[str, Sequence[str]] = {
    "conv4": ["views.size=32", "encoder.backbone=conv4", "encoder.norm=none"],
    "resnet18": ["views.size=32", "encoder.backbone=resnet18", "encoder.stem=cifar", "encoder.norm=none"],
    "resnet18-batch": ["views.size=32", "encoder.backbone=resnet18", "encoder.stem=cifar", "encoder.norm=batch"],
    "resnet50": ["views.size=224", "encoder.backbone=resnet50", "encoder.stem=imagenet", "encoder.norm=group"],
}
"""Encoders, and what they change in the spec."""
KINDS: dict[str, Sequence[str]] = {
    "simclr": ["objective=simclr"],
    "sogclr": ["objective=sogclr"],
    "mh, cached": ["objective=emc2", "negatives.carried=cached"],
    "isir, cached": ["objective=emc2", "negatives.kernel=isir", "negatives.carried=cached"],
    "mh": ["objective=emc2"],
    "isir": ["objective=emc2", "negatives.kernel=isir"],
    "isir, roulette": ["objective=emc2", "negatives.kernel=isir", "negatives.carried=roulette"],
    "isir, 64 proposals": ["objective=emc2", "negatives.kernel=isir", "negatives.cache_proposals=64"],
    "end to end": ["objective=simclr"],
    "bare": ["objective=simclr"],
}
"""What is compared, and what it changes in the spec."""
BASE = """
name: step
epochs: 1000
lr: 1e-4
temperature: 0.1
data: {path: digits}
optimiser: {name: adamw}
"""
GENERATION = "step"


class Noise:
    """N random images of one size in memory: `emc2dist.data.images.Images`, as far as training reads it."""

    fingerprint, classes, remarks = "noise", (), ()

    def __init__(self, samples: int, size: int) -> None:
        self.traffic = Traffic()
        draws = np.random.default_rng(0)
        pixels = draws.integers(0, 256, (min(samples, 4096), size, size, 3), np.uint8)
        self._pixels, self._samples = torch.from_numpy(pixels).permute(0, 3, 1, 2), samples

    def __len__(self) -> int:
        return self._samples

    @property
    def blocks(self) -> NDArray[np.int64]:
        """All of them lie together."""
        return np.array([self._samples])

    def get(self, indices: NDArray[np.int64]) -> list[Tensor]:
        """uint8 [3, size, size] of each."""
        return [self._pixels[int(i) % len(self._pixels)] for i in indices]


class Ready:
    """A loader whose views are there at once, on the device, whatever is asked for."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.traffic, self._size, self._device = Traffic(), size, device
        self._views = torch.zeros(0, dtype=torch.uint8)

    def submit(self, indices: NDArray[np.int64], seeds: NDArray[np.int64], *, urgent: bool = False) -> Future[Tensor]:
        """Noise [V, n, 3, S, S]."""
        shape = (*seeds.shape, 3, self._size, self._size)
        needed = int(np.prod(shape))
        if needed > len(self._views):
            self._views = torch.randint(256, (needed,), dtype=torch.uint8, device=self._device)
        future: Future[Tensor] = Future()
        future.set_result(self._views[:needed].view(shape))
        return future


@contextmanager
def stepping(kind: str, spec: Spec, device: torch.device, batches: int) -> Iterator[Callable[[], object]]:
    """A call that takes a step of the kind; the first epoch, of so many batches, lies behind."""
    images: Any = Noise(batches * spec.batch_size, spec.views.size)
    if kind == "bare":
        yield bare(spec, device)
        return
    with ExitStack() as stack:
        loader: Any = Ready(spec.views.size, device)
        if kind == "end to end":
            loader = stack.enter_context(view_loader(spec, images, device))
        trainer, order = trainer_of(stack, spec, images, loader, device)
        numbers = count()

        def step() -> object:
            return trainer.step(next(numbers))

        for _ in range(order.steps_per_epoch):
            step()
        yield step


def trainer_of(
    stack: ExitStack,
    spec: Spec,
    images: Any,
    loader: Any,
    device: torch.device,
    store: ChainStore | None = None,
) -> tuple[Trainer, Order]:
    """A trainer of this rank at its first step, and the order of its samples.

    The store is in this process, or one of generation GENERATION.
    """
    order = order_for(spec, images)
    encoder = initial_encoder(spec, device)
    if store is None:
        store = LocalStore(Layout(len(images), spec.shards), schema_for(spec))
        store.reset(GENERATION)
    memory = stack.enter_context(closing(Memory(spec, store, order, collectives.rank(), GENERATION, device)))
    memory.start(0, settled=-1)
    optimiser = build_optimiser(encoder, spec.optimiser, spec.lr)
    return Trainer(spec, encoder, optimiser, memory, {"x": loader}, order, device, {}), order


def bare(spec: Spec, device: torch.device) -> Callable[[], object]:
    """A step of a plain loop."""
    encoder = initial_encoder(spec, device)
    optimiser = build_optimiser(encoder, spec.optimiser, spec.lr)
    views = torch.randint(256, (2 * spec.batch_size, 3, spec.views.size, spec.views.size), dtype=torch.uint8)
    views, target = views.to(device), torch.arange(spec.batch_size, device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=spec.precision == "bf16"):
            one, other = encoder(views).chunk(2)
        scores = one @ other.T / spec.temperature
        loss = (functional.cross_entropy(scores, target) + functional.cross_entropy(scores.T, target)) / 2
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    for _ in range(3):
        step()
    return step


def settled(device: torch.device) -> float:
    """The clock, s, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def milliseconds(step: Callable[[], object], steps: int, device: torch.device) -> float:
    """Of a step, mean."""
    began = settled(device)
    for _ in range(steps):
        step()
    return 1000 * (settled(device) - began) / steps


def busy(step: Callable[[], object], steps: int, device: torch.device) -> tuple[float, float]:
    """Milliseconds of a step in which kernels or copies run on the GPU, and how many they are."""
    settled(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            step()
        settled(device)
    events = [e for e in profiler.events() if e.device_type.name == "CUDA" and not e.is_user_annotation]
    total, end = 0.0, 0.0
    for begin, stop in sorted((e.time_range.start, e.time_range.end) for e in events):
        total += max(0.0, stop - max(begin, end))
        end = max(end, stop)
    return total / 1000 / steps, len(events) / steps


def compare(args: argparse.Namespace, recipe: str, batch: int, device: torch.device) -> dict[str, dict[str, Any]]:
    """Of each kind: milliseconds of each round, and with `--profile` what the GPU was busy."""
    found: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        steps = {}
        for kind in args.kinds:
            words = [f"batch_size={batch}", f"precision={args.precision}", *RECIPES[recipe], *KINDS[kind], *args.set]
            spec = parse(BASE, words)
            steps[kind] = stack.enter_context(stepping(kind, spec, device, args.batches))
            found[kind] = {"ms": []}
        for step in steps.values():
            milliseconds(step, args.steps, device)
        for _ in range(args.rounds):
            for kind, step in steps.items():
                found[kind]["ms"].append(milliseconds(step, args.steps, device))
        for kind, step in steps.items() if args.profile else ():
            found[kind]["busy_ms"], found[kind]["kernels"] = busy(step, args.steps, device)
    return found


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """The median over the rounds, and the least and the most."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def main() -> None:
    """Print a table for each recipe and batch size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--recipes", nargs="+", default=["conv4", "resnet18"], choices=RECIPES)
    parser.add_argument("--batches-of", nargs="+", type=int, default=[32], help="samples of a batch")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--batches", type=int, default=20, help="batches of the first epoch, which warms up")
    parser.add_argument("--steps", type=int, default=10, help="of a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of the spec")
    parser.add_argument("--json", action="store_true", help="a line for each table, with all rounds")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    for recipe in args.recipes:
        for batch in args.batches_of:
            found = compare(args, recipe, batch, device)
            if args.json:
                print(json.dumps({"recipe": recipe, "batch": batch, "precision": args.precision, "kinds": found}))
                continue
            print(f"\n{recipe}, B = {batch}, {args.precision}\n")
            print("| step | ms | over SimCLR | over bare | idle | kernels |\n|---|---|---|---|---|---|")
            for kind, row in found.items():
                over = [ratio(row["ms"], found[of]["ms"]) if of in found else "" for of in ("simclr", "bare")]
                ms = statistics.median(row["ms"])
                idle = f"{max(0.0, 1 - row['busy_ms'] / ms):.2f}" if "busy_ms" in row else ""
                kernels = f"{row['kernels']:,.0f}" if "kernels" in row else ""
                print(f"| {kind} | {ms:.1f} | {over[0]} | {over[1]} | {idle} | {kernels} |", flush=True)


if __name__ == "__main__":
    main()
