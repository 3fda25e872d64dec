"""How many images a second does SimCLR train on, loading and views included? Ours against lightly's, on CIFAR-10.

    python3 -m venv OTHER && OTHER/bin/pip install -e . lightly     # lightly is no dependency of this project
    OTHER/bin/python -m benchmarks.end_to_end                       # a quarter of an hour; kept in docs/performance.md

Both train the same encoder, from the same weights, by SGD in float32, on views of the same distribution (lightly's own
for CIFAR-10: `SimCLRTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0)`).

    ours         a training step of emc2dist, objective simclr: Parquet with PNGs, `data.loaders: auto`, checks, facts
    lightly, n   SimCLRTransform, NTXentLoss, and torch's DataLoader with n processes over pixels that lie in memory
                 (as torchvision's CIFAR10 holds them: nothing is read or decoded); the loop is that of its example
    resident     encoder, softmax over the batch and update on one batch that is there: what no loading could be faster
                 than, with the encoder as ours lays it in memory

Each is a process of its own, kept to the CPUs named, with as many torch threads as CPUs. In a turn a few steps fill
what is made ahead, and those that follow are timed. Ratios are ours over the other's images a second: by the clock, and
by seconds of CPU of the whole process family. "Views alone" trains nothing: it is what loading and views could feed.
"""

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import psutil

from benchmarks.rounds import in_turns, load, ratios, spread

CIFAR = Path(__file__).parents[2] / "shared" / "data" / "cifar10"
RECIPES: dict[str, Sequence[str]] = {
    "views alone": [],
    "conv4": ["encoder.backbone=conv4", "encoder.norm=none"],
    "resnet18": ["encoder.backbone=resnet18", "encoder.stem=imagenet", "encoder.norm=batch"],
    "resnet18-cifar": ["encoder.backbone=resnet18", "encoder.stem=cifar", "encoder.norm=batch"],
}
"""Encoders, by what they change in the spec. lightly's example trains `resnet18`, with ImageNet's stem."""
SPEC = """
name: end-to-end
epochs: 1000
lr: 1e-3
objective: simclr
temperature: 0.5
views: {size: 32, crop: [0.08, 1.0], flip: 0.5, jitter: [0.4, 0.4, 0.4, 0.1], jitter_probability: 0.8, grey: 0.2}
encoder: {hidden: 512, features: 128}
optimiser: {name: sgd, momentum: 0.9, weight_decay: 5e-4}
"""


class Turn(NamedTuple):
    """What one turn took."""

    images: int
    seconds: float
    cpu_s: float

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds

    @property
    def cpu_rate(self) -> float:
        """Images a second of CPU."""
        return self.images / self.cpu_s


# In the contestants' processes, which import torch only when they are kept to their CPUs.


@contextmanager
def ours(recipe: str, words: Sequence[str], cores: int) -> Iterator[Callable[[], object]]:
    """A step of ours; of views alone, their making."""
    import torch

    from benchmarks.step import trainer_of
    from emc2dist.config import parse
    from emc2dist.data.images import open_images
    from emc2dist.train.views import view_loader

    spec, device = parse(SPEC, words), torch.device("cpu")
    images = open_images(spec.data, "train", spec.s3)
    assert images is not None, "open_images raises where there is nothing to train on"
    with ExitStack() as stack:
        loader = stack.enter_context(view_loader(spec, images, device, cores=cores))
        trainer, _ = trainer_of(stack, spec, images, loader, device)
        numbers = count()
        made = trainer._views if recipe == "views alone" else trainer.step
        yield lambda: made(next(numbers))


@contextmanager
def lightly(recipe: str, words: Sequence[str], cores: int, loaders: int) -> Iterator[Callable[[], object]]:
    """A step of lightly's example of SimCLR."""
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    from emc2dist.config import parse
    from emc2dist.data.images import open_images
    from emc2dist.towers import _torchvision  # noqa: F401  # before lightly, which imports torchvision without a guard
    from emc2dist.train.loop import initial_encoder

    from lightly.loss import NTXentLoss  # isort: skip
    from lightly.transforms import SimCLRTransform  # isort: skip

    spec = parse(SPEC, words)
    images = open_images(spec.data, "train", spec.s3)
    assert images is not None
    pixels = [image.permute(1, 2, 0).contiguous().numpy() for image in images.get(np.arange(len(images)))]

    class InMemory(Dataset[Any]):
        """As torchvision's CIFAR10."""

        transform = SimCLRTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0)

        def __len__(self) -> int:
            return len(pixels)

        def __getitem__(self, index: int) -> Any:
            return self.transform(Image.fromarray(pixels[index]))

    how: dict[str, Any] = {"num_workers": loaders}
    if loaders:
        how |= {"persistent_workers": True, "multiprocessing_context": "fork"}  # as a script on Linux has it
    loader = DataLoader(InMemory(), spec.batch_size, shuffle=True, drop_last=True, **how)
    encoder = initial_encoder(spec, torch.device("cpu")).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    optimiser = torch.optim.SGD(encoder.parameters(), lr=spec.lr, momentum=0.9, weight_decay=5e-4)
    criterion = NTXentLoss(temperature=spec.temperature)
    batches = (batch for _ in count() for batch in loader)

    def step() -> None:
        views = next(batches)
        if recipe == "views alone":
            return
        one, other = (encoder.projector(encoder.backbone(view)) for view in views)
        loss = criterion(one, other)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    yield step


@contextmanager
def resident(recipe: str, words: Sequence[str], cores: int) -> Iterator[Callable[[], object]]:
    """A step of the plain loop of `benchmarks.step`."""
    import torch

    from benchmarks.step import bare
    from emc2dist.config import parse

    yield bare(parse(SPEC, words), torch.device("cpu"))


def contestant(
    way: Callable[..., Any], cpus: Sequence[int], recipe: str, words: Sequence[str], orders: Connection
) -> None:
    """A process that takes steps when it is told to, (untimed, timed), and answers with what these took."""
    os.sched_setaffinity(0, cpus)
    import torch

    torch.set_num_threads(len(cpus))
    with way(recipe, words, len(cpus)) as step:
        while True:
            untimed, timed = orders.recv()
            for _ in range(untimed):
                step()
            began, cpu_began = time.perf_counter(), family_cpu_s()
            for _ in range(timed):
                step()
            orders.send((time.perf_counter() - began, family_cpu_s() - cpu_began))


def family_cpu_s() -> float:
    """Seconds of CPU of this process and those that it started."""
    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return sum(one.user + one.system for one in times)


# In the benchmark's own process.


@contextmanager
def taking_turns(
    ways: dict[str, Callable[..., Any]], cpus: Sequence[int], recipe: str, words: Sequence[str], args: Any
) -> Iterator[dict[str, Callable[[], Turn]]]:
    """A process for each way; what has it take its turn."""
    spawn = multiprocessing.get_context("spawn")
    turns: dict[str, Callable[[], Turn]] = {}
    processes = []
    timed = args.steps * (4 if recipe == "views alone" else 1)
    for name, way in ways.items():
        near, far = spawn.Pipe()
        process = spawn.Process(target=contestant, args=(way, cpus, recipe, words, far))
        process.start()
        far.close()  # so that an end of the process is an end of the pipe
        processes.append(process)

        def turn(near: Connection = near) -> Turn:
            near.send((args.ahead, timed))
            seconds, cpu_s = near.recv()
            return Turn(timed * args.batch, seconds, cpu_s)

        turns[name] = turn
    try:
        yield turns
    finally:
        for process in processes:
            process.terminate()
            process.join()


def compare(recipe: str, cores: int, args: Any) -> None:
    """Print the rows of a recipe and a number of cores."""
    cpus = sorted(os.sched_getaffinity(0))[-cores:]
    words = [f"data.path={args.data}", f"batch_size={args.batch}", *RECIPES[recipe]]
    ways: dict[str, Callable[..., Any]] = {"ours": ours}
    if recipe != "views alone":
        ways["resident"] = resident
    ways |= {f"lightly, {n}": partial(lightly, loaders=n) for n in range(cores + 1)}
    before = load()
    with taking_turns(ways, cpus, recipe, words, args) as turns:
        found = in_turns(turns, args.rounds)
    own = found["ours"]
    for name, rows in found.items():
        rates = [[turn.rate for turn in turns] for turns in (own, rows)]
        cpu_rates = [[turn.cpu_rate for turn in turns] for turns in (own, rows)]
        print(
            f"| {recipe} | {cores} | {name} | {median(rates[1]):,.0f} | {spread(ratios(*rates))} "
            f"| {spread(ratios(*cpu_rates))} | {before} to {load()} |",
            flush=True,
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", default=str(CIFAR), help="a folder of CIFAR-10's Parquet files")
    parser.add_argument("--cores", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--recipes", nargs="+", default=["views alone", "conv4", "resnet18"], choices=RECIPES)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--ahead", type=int, default=4, help="steps before the timed ones")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of a turn; of views alone four times as many")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    if find_spec("lightly") is None:
        sys.exit("lightly is not installed here; in an environment of its own: pip install -e . lightly")
    print("| encoder | cores | | images/s | ours / this | by CPU time | load |\n|---|---|---|---|---|---|---|")
    for recipe in args.recipes:
        for cores in args.cores:
            compare(recipe, cores, args)


if __name__ == "__main__":
    main()
