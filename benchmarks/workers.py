"""How near to linear are two workers? Two of one thread each against one of two threads, same global batch, two cores.

    python -m benchmarks.workers [--recipes conv4 resnet18] [--kinds simclr mh] [--batch 128] [--rounds 7]

A Ray of this machine holds a store for each of the two groups, and their processes, as actors: what they take is the
production step, its views made from images in memory, gradients and features by gloo on loopback, chains by RayStore.
(Not Ray Train's own group, whose start and checkpoints have nothing to do with steps.) The chains have been visited
before. The groups take turns. Linear is 1: both have two cores. By the clock, and by seconds of CPU of all processes of
a group but the store's; medians over rounds, with quartiles; a ratio compares the same rounds.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.rounds import in_turns, load, ratios, spread
from emc2dist.run.cluster import connected  # before ray: sets its defaults

import ray  # isort: skip
import torch
import torch.distributed as dist

from benchmarks.step import BASE, GENERATION, KINDS, RECIPES, Noise, trainer_of
from emc2dist.config import dump, parse
from emc2dist.store import Layout
from emc2dist.store.remote import RayStore
from emc2dist.train.memory import schema_for
from emc2dist.train.views import view_loader

CORES = 2


class Cost(NamedTuple):
    """Of a turn of a group."""

    seconds: float
    cpu_s: float


class Rank:
    """A process of a group."""

    def __init__(self, text: str, samples: int, store: RayStore, rank: int, rendezvous: str) -> None:
        spec, device = parse(text), torch.device("cpu")
        torch.set_num_threads(CORES // spec.workers)
        if spec.workers > 1:
            dist.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=spec.workers)
        store = store.joined(rank, spec.workers, start_timeout_s=600)
        images, stack = Noise(samples, spec.views.size), ExitStack()
        loader = stack.enter_context(view_loader(spec, images, device, cores=CORES // spec.workers))  # type: ignore[arg-type]
        self._trainer, order = trainer_of(stack, spec, images, loader, device, store)
        self._numbers, self._stack = count(), stack
        self.take(order.steps_per_epoch)

    def take(self, steps: int) -> Cost:
        """Take so many steps."""
        began, cpu_began = time.perf_counter(), time.process_time()
        for _ in range(steps):
            self._trainer.step(next(self._numbers))
        return Cost(time.perf_counter() - began, time.process_time() - cpu_began)


@contextmanager
def group(words: Sequence[str], workers: int, samples: int, folder: Path) -> Iterator[list[Any]]:
    """The ranks of a group, with a store of their own."""
    spec = parse(BASE, [*words, f"workers={workers}"])
    with closing(RayStore.create(Layout(samples, 1), schema_for(spec), timeout_s=600, start_timeout_s=600)) as store:
        store.reset(GENERATION)
        remote = ray.remote(Rank).options(num_cpus=0)
        rendezvous = str(folder / f"group-{workers}")
        ranks = [remote.remote(dump(spec), samples, store, rank, rendezvous) for rank in range(workers)]
        ray.get([rank.__ray_ready__.remote() for rank in ranks])
        try:
            yield ranks
        finally:
            for rank in ranks:
                ray.kill(rank)


def turn(ranks: Sequence[Any], steps: int) -> Cost:
    """Steps that all ranks take together."""
    costs = ray.get([rank.take.remote(steps) for rank in ranks])
    return Cost(max(cost.seconds for cost in costs), sum(cost.cpu_s for cost in costs))


def compare(recipe: str, kind: str, args: argparse.Namespace) -> str:
    """A line of the table."""
    words = [f"batch_size={args.batch}", *RECIPES[recipe], *KINDS[kind]]
    samples, before = args.batches * args.batch, load()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        groups = {workers: stack.enter_context(group(words, workers, samples, folder)) for workers in (1, 2)}
        turns = {str(workers): partial(turn, ranks, args.steps) for workers, ranks in groups.items()}
        found = in_turns(turns, args.rounds)
    one, two = found["1"], found["2"]
    wall = ratios([cost.seconds for cost in one], [cost.seconds for cost in two])
    cpu = ratios([cost.cpu_s for cost in one], [cost.cpu_s for cost in two])
    rates = [args.steps * args.batch / median(cost.seconds for cost in costs) for costs in (one, two)]
    cells = [f"{rate:,.0f}" for rate in rates]
    return f"| {recipe} | {kind} | {' | '.join(cells)} | {spread(wall)} | {spread(cpu)} | {before} to {load()} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--recipes", nargs="+", default=["conv4", "resnet18"], choices=RECIPES)
    parser.add_argument("--kinds", nargs="+", default=["simclr", "mh"], choices=KINDS)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--batches", type=int, default=6, help="of an epoch; the first one warms up")
    parser.add_argument("--steps", type=int, default=6, help="of a turn")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    print("| encoder | step | one worker, images/s | two workers | two / one, by the clock | by CPU time | load |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with connected(parse(BASE, ["batch_size=2"])):
        for recipe in args.recipes:
            for kind in args.kinds:
                print(compare(recipe, kind, args), flush=True)


if __name__ == "__main__":
    main()
