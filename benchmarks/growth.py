"""How does what a step costs besides the encoder grow? Samples, batch, proposals, width, shards and workers swept.

    python -m benchmarks.growth [--out docs/growth.png] [--steps 5] [--rounds 3]

One worker takes production steps (`emc2dist.train.step`): objective emc2, mh, carried: cached, over a LocalStore whose
chains have all been visited and whose features are all there. Its encoder is one small matrix and its views are ready,
so what is left is what chains, scores, sweep, their backward and the store take. Where W is swept each worker has its
own 256 samples; this one's share is computed, and the others' features are copies of its own. Shards are calls within
this process; what a call over Ray costs is in docs/scale.md.

Milliseconds are of CPU, one torch thread: of the whole process, and of those the thread's that calls the store. Points
are medians over rounds; the sizes take turns. An exponent is the slope of a line through the upper half of the points,
logarithms on both axes. With N goes the order of an epoch, drawn once an epoch by every worker.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from matplotlib.ticker import NullFormatter
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.rounds import in_turns, load
from benchmarks.step import GENERATION, Noise, Ready
from emc2dist.config import Spec, parse
from emc2dist.core.estimators import FEATURES
from emc2dist.data.sampler import EpochOrder
from emc2dist.plotting import COLOURS, FONT, add_legend, frame, new_figure, render
from emc2dist.store import Layout, LocalStore, nbytes
from emc2dist.towers.optim import build_optimiser
from emc2dist.train import collectives
from emc2dist.train.loop import order_for
from emc2dist.train.memory import Memory, schema_for
from emc2dist.train.step import Trainer

CPU = torch.device("cpu")
SPEC = """
name: growth
epochs: 1000
lr: 1e-4
temperature: 0.1
objective: emc2
negatives: {kernel: mh, carried: cached}
optimiser: {name: sgd}
views: {size: 1}
"""
USUAL = {"N": 100_000, "B": 256, "K": 512, "d": 128, "S": 1, "W": 1}
SWEPT: dict[str, Sequence[int]] = {
    "N": (10_000, 100_000, 1_000_000, 10_000_000),
    "B": (16, 32, 64, 128, 256, 512, 1024),
    "K": (64, 256, 1024, 4096, 16_384),
    "d": (16, 64, 256, 1024, 4096),
    "S": (1, 4, 16, 64, 256),
    "W": (1, 2, 4, 8, 16, 32, 64),
}
TOLD = {
    "N": "samples, N",
    "B": "batch, B",
    "K": "cache proposals, K",
    "d": "width of a feature, d",
    "S": "shards, S",
    "W": "workers of 256 samples each, W",
}


class Cost(NamedTuple):
    """Of a step, ms of CPU."""

    whole: float
    store: float


class Matrix(nn.Module):
    """An encoder that costs next to nothing: uint8 [n, 3, 1, 1] to unit-norm features [n, d]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3, width)

    def forward(self, images: Tensor) -> Tensor:
        return functional.normalize(self.linear(images.flatten(1) / 255 - 0.5), dim=1)


class Timed(Memory):
    """A memory that knows what its store's thread takes."""

    thread_s = 0.0

    def _call(self, *arguments: Any) -> Any:
        began = time.thread_time()
        try:
            return super()._call(*arguments)
        finally:
            self.thread_s += time.thread_time() - began


def filled(spec: Spec, samples: int) -> LocalStore:
    """A store whose chains carry random states, and whose features are there."""
    store, draws = LocalStore(Layout(samples, spec.shards), schema_for(spec)), np.random.default_rng(0)
    store.reset(GENERATION)
    for shard in store._shards:
        for table, columns in shard._tables.items():
            for name, column in columns.items():
                # Every page is written: of those that are not, a first read would be timed.
                column[:] = draws.integers(0, samples, column.shape) if name == "state" else 1
                if table == FEATURES and name == "feature":
                    column /= np.sqrt(column.shape[1]).astype(column.dtype)
    return store


@contextmanager
def stepping(**sizes: int) -> Iterator[Callable[[], Cost]]:
    """A call that takes a step with so many N, B, K, d, S and W."""
    given = USUAL | sizes
    words = [f"batch_size={given['B'] * given['W']}", f"workers={given['W']}", f"shards={given['S']}"]
    words += [f"negatives.cache_proposals={given['K']}", f"encoder.features={given['d']}"]
    spec = parse(SPEC, words)
    images: Any = Noise(given["N"], 1)
    order, store = order_for(spec, images), filled(spec, given["N"])
    encoder = Matrix(given["d"])
    numbers = count()

    def copies(features: Tensor) -> Tensor:
        return torch.cat([features, *[features.detach()] * (spec.workers - 1)], 1)

    def rows(part: Tensor) -> Tensor:
        return torch.cat([part] * spec.workers)

    with ExitStack() as stack:
        memory = stack.enter_context(closing(Timed(spec, store, order, 0, GENERATION, CPU)))
        memory.start(0, settled=-1)
        optimiser = build_optimiser(encoder, spec.optimiser, spec.lr)
        loader: Any = Ready(1, CPU)
        trainer = Trainer(spec, encoder, optimiser, memory, {"x": loader}, order, CPU, {})

        def step() -> Cost:
            before, began = memory.thread_s, time.process_time()
            with (
                mock.patch.object(collectives, "gather_features", copies),
                mock.patch.object(collectives, "gather_rows", rows),
            ):
                trainer.step(next(numbers))
            assert memory._ahead is not None
            memory._ahead.reply.result()
            return Cost(1000 * (time.process_time() - began), 1000 * (memory.thread_s - before))

        yield step


def costs(name: str, steps: int, rounds: int) -> list[Cost]:
    """Of each size of one quantity, medians."""
    with ExitStack() as stack:
        taking = {str(size): stack.enter_context(stepping(**{name: size})) for size in SWEPT[name]}

        def some(step: Callable[[], Cost]) -> Cost:
            found = [step() for _ in range(steps)]
            return Cost(*(median(parts) for parts in zip(*found, strict=True)))

        found = in_turns({size: lambda step=step: some(step) for size, step in taking.items()}, rounds)  # type: ignore[misc]
    return [Cost(*(median(parts) for parts in zip(*found[str(size)], strict=True))) for size in SWEPT[name]]


def drawing_ms(samples: int, rounds: int) -> float:
    """CPU time of drawing the order of an epoch."""
    taken = []
    for seed in range(rounds):
        order, began = EpochOrder(samples, 256, seed), time.process_time()
        order.batch(0)
        taken.append(1000 * (time.process_time() - began))
    return median(taken)


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """The slope of the upper half of the points, logarithms on both axes."""
    upper = max(3, (len(sizes) + 1) // 2)
    slope, _ = np.polyfit(np.log(sizes[-upper:]), np.log(values[-upper:]), 1)
    return float(slope)


def draw(found: dict[str, dict[str, list[float]]], out: Path) -> None:
    """The picture: a panel for each quantity."""
    figure = new_figure(9, 5.4)
    for place, (name, lines) in enumerate(found.items(), start=1):
        axes = figure.add_subplot(2, 3, place)
        frame(axes)
        for colour, (line, values) in zip(COLOURS, lines.items(), strict=False):
            sizes = SWEPT[name][-len(values) :]
            told = f"{line}: {name}^{exponent(sizes, values):.2f}"
            axes.loglog(sizes, values, "o-", color=colour, markersize=3, linewidth=1.4, label=told)
        axes.set_xlabel(TOLD[name], fontsize=FONT)
        axes.set_ylabel("ms of CPU" if place % 3 == 1 else "", fontsize=FONT)
        axes.yaxis.set_minor_formatter(NullFormatter())
        add_legend(axes)
    out.write_bytes(render(figure))


def main() -> None:
    """Print the table and draw the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/growth.png"))
    parser.add_argument("--steps", type=int, default=5, help="of a turn")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| | from, to | a step, ms | exponent | of them the store's thread | exponent | load |")
    print("|---|---|---|---|---|---|---|")
    found: dict[str, dict[str, list[float]]] = {}
    for name, sizes in SWEPT.items():
        before, taken = load(), costs(name, args.steps, args.rounds)
        whole, store = [cost.whole for cost in taken], [cost.store for cost in taken]
        found[name] = {"a step": whole, "the store": store}
        cells = [f"{values[0]:.2f}, {values[-1]:.2f} | {exponent(sizes, values):.2f}" for values in (whole, store)]
        span = f"{sizes[0]:,}, {sizes[-1]:,}"
        print(f"| {TOLD[name]} | {span} | {' | '.join(cells)} | {before} to {load()} |", flush=True)
    orders = [drawing_ms(samples, args.rounds) for samples in SWEPT["N"]]
    found["N"]["an epoch's order"] = orders
    draw(found, args.out)
    print(
        f"\nan epoch's order: {', '.join(f'{ms:,.1f}' for ms in orders)} ms of CPU, "
        f"exponent {exponent(SWEPT['N'], orders):.2f}; 8 bytes a sample in each worker, 16 at the turn of an epoch"
    )
    row = nbytes(schema_for(parse(SPEC, ["batch_size=2"])), 1)
    print(f"the store: {row} bytes a sample, d = 128, float16, two views")


if __name__ == "__main__":
    main()
