"""What does it cost to be watched? Share of a step, on and off in turns in one run.

    python benchmarks/metrics.py [PAIRS] [KEY=VALUE ...]        # of jobs/quickstart.yaml; 40 pairs by default

A pair is `log_every` steps that are measured and as many that are not, in changing order. Measured: the stopwatch in
every step, facts added up, percentiles once, the row, its way through the exporter, and a scrape. CPU seconds
of the process are compared, for those of other processes are none of ours. The `health` (alignment, uniformity,
effective rank) is told apart: it is arithmetic on features, and `log_every` says how often.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from math import sqrt
from statistics import quantiles
from time import process_time

import torch
from prometheus_client import CollectorRegistry, generate_latest

from emc2dist.config import Spec, load
from emc2dist.data.images import open_images
from emc2dist.run.listeners.prometheus import Exporter
from emc2dist.train.loop import order_for
from emc2dist.train.meter import Meter
from emc2dist.train.profile import alone
from emc2dist.train.step import Trainer
from emc2dist.train.timing import Stopwatch

CPU = torch.device("cpu")


class Silent(Stopwatch):
    """Measures nothing."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Nothing but the body."""
        yield


class Watched:
    """A run of which some stretches of `log_every` steps are measured."""

    def __init__(self, spec: Spec, trainer: Trainer, steps_per_epoch: int) -> None:
        self.spec, self.trainer = spec, trainer
        self.exporter = Exporter(spec, steps_per_epoch)
        self.registry = CollectorRegistry()
        self.registry.register(self.exporter)
        self.step = 0

    def stretch(self, *, watched: bool, health: bool) -> float:
        """CPU seconds of `log_every` steps."""
        self.trainer.stopwatch = Stopwatch(CPU) if watched else Silent(CPU)
        meter = Meter(self.spec.micro_batch_size, self.trainer.stopwatch)
        began = process_time()
        for number in range(self.spec.log_every):
            facts = self.trainer.step(self.step, health=health and number == self.spec.log_every - 1)
            self.step += 1
            if watched:
                meter.add(facts)
        if watched:
            self.record(meter)
        return process_time() - began

    def record(self, meter: Meter) -> None:
        """The row, its way through the exporter, and a scrape."""
        self.exporter.record({"step": self.step, **meter.read()})
        generate_latest(self.registry)


def compare(run: Watched, pairs: int, on: dict[str, bool], off: dict[str, bool]) -> str:
    """Median of what `on` costs more than `off`, percent; between which order statistics it is with 95 %; quartiles."""
    extra = []
    for number in range(pairs):
        turns = (on, off) if number % 2 else (off, on)
        seconds = [run.stretch(**turn) for turn in turns]
        first, second = seconds if number % 2 else reversed(seconds)
        extra.append(100 * (first / second - 1))
    low, middle, high = quantiles(extra, n=4)
    ranks = (pairs - 1.96 * sqrt(pairs)) / 2, (pairs + 1.96 * sqrt(pairs)) / 2
    least, most = (sorted(extra)[min(pairs - 1, max(0, round(rank)))] for rank in ranks)
    between = f"with 95 % between {least:+.2f} and {most:+.2f}; quartiles {low:+.2f} and {high:+.2f}"
    return f"{middle:+.2f} % ({between}; {pairs} pairs)"


def direct(run: Watched, stretches: int = 6) -> str:
    """What is done beside the steps, timed by itself: not subject to the noise of steps, but blind to the stopwatch."""
    run.trainer.stopwatch = Stopwatch(CPU)
    meter = Meter(run.spec.micro_batch_size, run.trainer.stopwatch)
    steps = stretches * run.spec.log_every
    stepping = recording = 0.0
    for number in range(1, steps + 1):
        last = number % run.spec.log_every == 0
        began = process_time()
        facts = run.trainer.step(run.step, health=last)
        run.step += 1
        stepped = process_time()
        meter.add(facts)
        if last:
            run.record(meter)
        stepping, recording = stepping + stepped - began, recording + process_time() - stepped
    own, step = 1000 * recording / steps, 1000 * stepping / steps
    return f"{own:.2f} ms of a step of {step:.0f} ms, {100 * own / step:.2f} % ({steps} steps)"


def main(arguments: list[str]) -> None:
    """Print what watching and health cost."""
    numbers = [int(word) for word in arguments if word.isdigit()]
    spec = load("jobs/quickstart.yaml", ["device=cpu", "epochs=100000", *(word for word in arguments if "=" in word)])
    pairs = numbers[0] if numbers else 40
    torch.set_num_threads(1)
    images = open_images(spec.data, "train")
    assert images is not None
    with alone(spec, images, CPU) as trainer:
        run = Watched(spec, trainer, order_for(spec, images).steps_per_epoch)
        run.stretch(watched=True, health=True)  # warm up
        watched, plain = {"watched": True, "health": True}, {"watched": False, "health": True}
        print(f"direct:   {direct(run)}", flush=True)
        print(f"watching: {compare(run, pairs, watched, plain)}", flush=True)
        print(f"health:   {compare(run, pairs, plain, {'watched': False, 'health': False})}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
