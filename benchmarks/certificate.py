"""Is the averaged gradient the exact one? The unbiasedness certificate, on frozen features of real digits.

    python benchmarks/certificate.py                    # the table of docs/certificate.md
    python benchmarks/certificate.py --scale 0.1        # a tenth of the steps
    python benchmarks/certificate.py --methods "emc2 mh" simclr --batch-sizes 4 --temperatures 0.07 --scale 10

Features of N images in V views are frozen, and contrasted with the code that trains (`emc2dist.core.certify`, where the
columns are told). Each method is held against the exact gradient of its own objective. Where views are alike, the view
that is encoded again stands for its sample exactly; `(one view)` is a random one of two that differ, as in training.
"""

import argparse
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from emc2dist.config import parse
from emc2dist.core.certify import FrozenRun, certify
from emc2dist.core.contrast import Contrast, contrast_for
from emc2dist.terminal import Progress


@dataclass(frozen=True)
class Method:
    """A contrast under test."""

    name: str
    overrides: tuple[str, ...]
    one_view: bool = False
    """Views differ, and carried samples are scored from a random one."""

    def contrast(self) -> Contrast:
        """As a spec would have it."""
        return contrast_for(parse("name: a\nepochs: 1\nbatch_size: 4\nlr: 1\n", self.overrides))


def digit_features(samples: int, seed: int = 0) -> Tensor:
    """[2, samples, 64] unit-norm float64: centred pixels of real handwritten digits; views are shifts by a pixel."""
    from sklearn.datasets import load_digits

    generator = np.random.default_rng(seed)
    images = load_digits().images[generator.permutation(1797)[:samples]]
    shifts = generator.integers(-1, 2, (2, samples, 2))
    views = np.stack([[np.roll(x, s, (0, 1)) for x, s in zip(images, view, strict=True)] for view in shifts])
    pixels = torch.from_numpy(views).flatten(2)
    return torch.nn.functional.normalize(pixels - pixels.mean((0, 1)), dim=-1)


def _chain(kernel: str, *more: str) -> tuple[str, ...]:
    return ("objective=emc2", f"negatives.kernel={kernel}", *more)


_CACHE = "negatives.cache_proposals=64"
METHODS = (
    Method("simclr", ("objective=simclr",)),
    Method("dcl", ("objective=dcl",)),
    Method("sogclr", ("objective=sogclr",)),
    Method("emc2 mh", _chain("mh")),
    Method("emc2 mh (one view)", _chain("mh"), one_view=True),
    Method("emc2 isir", _chain("isir")),
    Method("emc2 isir (one view)", _chain("isir"), one_view=True),
    Method("emc2 mh + 64 cache", _chain("mh", _CACHE)),
    Method("emc2 isir + 64 cache", _chain("isir", _CACHE)),
)
STEPS = {4: 12_000, 16: 8_000, 64: 4_000}


def rows(samples: int, scale: float, work: list[tuple[float, int, Method]]) -> Iterator[str]:
    """The table, a Markdown line at a time: each (temperature, batch size, method) at T/4 and at T steps."""
    features = digit_features(samples)
    yield "| B | tau | method | T | relbias | floor | iact | ratio | error |"
    yield "|---|---|---|---|---|---|---|---|---|"
    runs = [(*what, max(24, int(STEPS[what[1]] * scale * share))) for what in work for share in (0.25, 1.0)]
    with closing(Progress(sum(steps for *_, steps in runs), unit="step")) as progress:
        for temperature, batch_size, method, steps in runs:
            views = features if method.one_view else features[:1]
            r = certify(FrozenRun(method.contrast(), views, batch_size, temperature), steps, tell=progress.add)
            yield (
                f"| {batch_size} | {temperature} | {method.name} | {steps:,} | {r.relbias:.3f} | {r.floor:.3f} | "
                f"{r.iact:.1f} | {r.ratio:.2f} | {r.error:.1f} |"
            )


def main() -> None:
    """Print the table."""
    names = [method.name for method in METHODS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--samples", type=int, default=500, help="N (default 500)")
    parser.add_argument("--scale", type=float, default=1.0, help="times the default number of steps")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.07, 0.2])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--methods", nargs="+", default=names, choices=names, metavar="METHOD", help=", ".join(names))
    args = parser.parse_args()
    torch.set_num_threads(1)  # the tensors are small: threads only wait for each other
    methods = [method for method in METHODS if method.name in args.methods]
    work = [(tau, size, method) for tau in args.temperatures for size in args.batch_sizes for method in methods]
    for line in rows(args.samples, args.scale, work):
        print(line, flush=True)


if __name__ == "__main__":
    main()
