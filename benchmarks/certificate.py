"""Is the averaged gradient the exact one? The certificate of what training does, on frozen features of real images.

    python benchmarks/certificate.py --jobs 16 --out certificate.jsonl     # the tables of docs/certificate.md
    python benchmarks/certificate.py --out certificate.jsonl --tables      # from what is there
    python benchmarks/certificate.py --scale 0.1 --sets digits             # a tenth of the steps, of one set

N images in 20 views each are encoded once and frozen; each step draws B of them and fresh views of each, and contrasts
them with the code that trains (`emc2dist.core.certify`, where the columns are told). Each method is held against the
exact gradient of its own objective over all views. The sets: centred pixels of digits, and features of a small tower
over Omniglot and CIFAR-10, as it is made and after it was trained for 600 steps with `isir`.
"""

import argparse
import itertools
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from dataclasses import asdict, astuple, dataclass, fields
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from emc2dist.config import parse
from emc2dist.core.certify import FrozenRun, certify
from emc2dist.core.contrast import Contrast, contrast_for
from emc2dist.data.images import open_images
from emc2dist.terminal import Progress
from emc2dist.towers.encoder import Encoder
from emc2dist.train.certificate import choose
from emc2dist.train.collectives import unwrapped
from emc2dist.train.frozen import freeze
from emc2dist.train.profile import alone

STEPS = {4: 4_000, 16: 2_500, 64: 1_250}
TEMPERATURES = (0.07, 0.1, 0.2)
SPEC = "name: a\nepochs: 100000\nbatch_size: {batch}\nlr: 2e-3\n"
_TOWER = ("encoder.backbone=conv4", "encoder.norm=group", "encoder.features=64", "views.size=28", "device=cpu")
_OMNIGLOT = (
    "data.path=omniglot-small",
    "views.flip=0",
    "views.jitter_probability=0",
    "views.grey=0",
    "views.rotate=15",
)
_CIFAR = ("data.path=../shared/data/cifar10", "views.flip=0.5")
SETS: dict[str, tuple[tuple[str, ...], bool]] = {
    "digits": ((), False),
    "omniglot, untrained": (_OMNIGLOT, False),
    "omniglot, trained": (_OMNIGLOT, True),
    "cifar10, untrained": (_CIFAR, False),
    "cifar10, trained": (_CIFAR, True),
}


def _chain(kernel: str, **options: object) -> tuple[str, ...]:
    return ("objective=emc2", f"negatives.kernel={kernel}", *(f"negatives.{k}={v}" for k, v in options.items()))


METHODS: dict[str, tuple[str, ...]] = {
    "simclr": ("objective=simclr",),
    "dcl": ("objective=dcl",),
    "dcl + 64 draws": ("objective=dcl", "negatives.draws=64"),
    "sogclr": ("objective=sogclr",),
    "mh": _chain("mh"),
    "mh, complete": _chain("mh", carried="complete"),
    "mh, cached": _chain("mh", carried="cached"),
    "mh + 64 cache": _chain("mh", cache_proposals=64),
    "mh + 512 cache": _chain("mh", cache_proposals=512),
    "isir": _chain("isir"),
    "isir, complete": _chain("isir", carried="complete"),
    "isir, cached": _chain("isir", carried="cached"),
    "isir, roulette": _chain("isir", carried="roulette"),
    "isir + 64 cache": _chain("isir", cache_proposals=64),
    "isir + 512 cache": _chain("isir", cache_proposals=512),
    "isir + 64 draws": _chain("isir", draws=64),
    "isir, complete + 64 draws": _chain("isir", carried="complete", draws=64),
    "infonce, isir": ("objective=infonce", "negatives.name=chain", "negatives.kernel=isir"),
}
CAUSES = {
    "dcl": ("dcl", True),
    "isir, view redrawn": ("isir", False),
    "isir": ("isir", True),
    "isir, complete": ("isir, complete", True),
    "mh, view redrawn": ("mh", False),
    "mh": ("mh", True),
    "mh, complete": ("mh, complete", True),
}
"""For the two causes of bias: a method, and whether it encodes the view that a chain carries."""


class Redrawn(FrozenRun):
    """Encodes a fresh view of a carried sample, as this project did until it remembered views."""

    def encode(self, side: str, samples: Tensor, numbers: Tensor) -> Tensor:
        """See `FrozenRun`; the carried view is another at each visit."""
        newest = numbers.max() // (2 * self.views) + 1
        return super().encode(side, samples, torch.full_like(numbers, int(newest) * 2 * self.views))


@dataclass(frozen=True)
class Row:
    """One run of a contrast over one set."""

    table: str
    features: str
    method: str
    batch_size: int
    temperature: float
    anchors: str = "fresh"

    @property
    def exact(self) -> tuple[str, str, float, str]:
        """What its exact gradient is that of."""
        return self.features, self.contrast().objective.__class__.__name__, self.temperature, self.anchors

    def contrast(self) -> Contrast:
        """As a spec has it."""
        method = CAUSES[self.method][0] if self.table == "causes" else self.method
        return contrast_for(parse(SPEC.format(batch=4), METHODS[method]))

    def run(self, features: Tensor) -> FrozenRun:
        """From its start."""
        kind = FrozenRun if self.table != "causes" or CAUSES[self.method][1] else Redrawn
        return kind(self.contrast(), features, self.batch_size, self.temperature, anchors=self.anchors)  # type: ignore[arg-type]


def rows(sets: list[str]) -> list[Row]:
    """All of both tables."""
    grid = itertools.product(sets, TEMPERATURES, STEPS, METHODS)
    methods = [Row("methods", s, method, size, tau) for s, tau, size, method in grid if tau != 0.1 or size == 16]
    causes = itertools.product(sets, (16, 64), ("fixed", "fresh"), CAUSES)
    return methods + [Row("causes", s, method, size, 0.07, anchors) for s, size, anchors, method in causes]


def digit_features(samples: int, seed: int = 0, views: int = 2) -> Tensor:
    """[views, samples, 64] unit-norm float64: centred pixels of handwritten digits; views are shifts by a pixel."""
    from sklearn.datasets import load_digits

    generator = np.random.default_rng(seed)
    images = load_digits().images[generator.permutation(1797)[:samples]]
    shifts = generator.integers(-1, 2, (views, samples, 2))
    stack = np.stack([[np.roll(x, s, (0, 1)) for x, s in zip(images, view, strict=True)] for view in shifts])
    pixels = torch.from_numpy(stack).flatten(2)
    return normalize(pixels - pixels.mean((0, 1)), dim=-1)


def frozen(name: str, samples: int, views: int, steps: int) -> Tensor:
    """[views, samples, D] unit-norm float64 features of a set."""
    overrides, trained = SETS[name]
    if not overrides:
        return digit_features(samples, views=views)
    spec = parse(SPEC.format(batch=64), [*_TOWER, *overrides, *_chain("isir"), "data.limit=6000"])
    images = open_images(spec.data, "train", spec.s3)
    assert images is not None
    with alone(spec, images, torch.device("cpu")) as trainer:
        trainer.schedule = trainer.schedule._replace(total=steps, warmup=steps // 20)
        for step in range(steps if trained else 0):
            trainer.step(step)
        encoder = unwrapped(trainer.model).eval()
        assert isinstance(encoder, Encoder)
    return freeze(spec, encoder, torch.device("cpu"), images, choose(images, samples, 0), views).double()


def _encode(folder: str, name: str, samples: int, views: int, steps: int) -> None:
    torch.set_num_threads(1)
    torch.save(frozen(name, samples, views, steps), Path(folder, f"{name}.pt"))


@cache
def _features(folder: str, name: str) -> Tensor:
    return torch.load(Path(folder, f"{name}.pt"), weights_only=True)


def _exact(folder: str, row: Row) -> None:
    torch.set_num_threads(1)
    torch.save(row.run(_features(folder, row.features)).exact(), Path(folder, f"{row.exact}.pt"))


def _certified(folder: str, row: Row, scale: float) -> dict[str, Any]:
    torch.set_num_threads(1)
    exact = torch.load(Path(folder, f"{row.exact}.pt"), weights_only=True)
    steps = max(24, int(STEPS[row.batch_size] * scale))
    report = certify(row.run(_features(folder, row.features)), steps, exact=exact)
    numbers = {name: getattr(report, name) for name in ("relbias", "floor", "iact", "ratio", "error")}
    carried = {
        name: value for name, value in report.facts.items() if name in ("reencoded_images", "carried_weight_ratio")
    }
    return asdict(row) | {"steps": steps} | numbers | carried


def measure(wanted: list[Row], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Each row as it is done: features first, then exact gradients, then the runs, so many at a time."""
    with TemporaryDirectory() as folder, ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:
        sets = sorted({row.features for row in wanted})
        list(pool.map(_encode, *zip(*((folder, s, args.samples, args.views, args.train) for s in sets), strict=True)))
        exact = {row.exact: row for row in wanted}
        list(pool.map(_exact, [folder] * len(exact), exact.values()))
        with closing(Progress(len(wanted), unit="row")) as progress:
            for done in as_completed([pool.submit(_certified, folder, row, args.scale) for row in wanted]):
                progress.add()
                yield done.result()


def _key(found: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(found[field.name] for field in fields(Row))


def bias(found: dict[str, Any]) -> float:
    """relbias without what noise leaves of it."""
    return max(0.0, found["relbias"] ** 2 - found["floor"] ** 2 * found["iact"]) ** 0.5


def tables(found: list[dict[str, Any]]) -> Iterator[str]:
    """The bias of every row, as Markdown: a column for each B and temperature, or B and kind of anchors."""
    by_row = {_key(one): bias(one) for one in found}
    for name in SETS:
        for table, heading in (("methods", name), ("causes", f"{name}: the two causes, temperature 0.07")):
            there = [row for row in rows([name]) if row.table == table and astuple(row) in by_row]
            columns = list(dict.fromkeys((row.batch_size, row.temperature, row.anchors) for row in there))
            if not there:
                continue
            titles = [f"B = {size}, {anchors if table == 'causes' else tau}" for size, tau, anchors in columns]
            yield f"\n### {heading}\n"
            yield f"| | {' | '.join(titles)} |"
            yield "|---" * (len(titles) + 1) + "|"
            for method in dict.fromkeys(row.method for row in there):
                cells = [by_row.get((table, name, method, *column)) for column in columns]
                yield f"| {method} | {' | '.join('' if cell is None else f'{cell:.2f}' for cell in cells)} |"


def main() -> None:
    """Measure what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--samples", type=int, default=300, help="N (default 300)")
    parser.add_argument("--views", type=int, default=20, help="stored views of each (default 20)")
    parser.add_argument("--train", type=int, default=600, help="steps of a trained encoder (default 600)")
    parser.add_argument("--scale", type=float, default=1.0, help="times the default number of steps")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--methods", nargs="+", default=[*METHODS, *CAUSES], choices=[*METHODS, *CAUSES])
    parser.add_argument("--jobs", type=int, default=1, help="rows at a time, each in a process of one thread")
    parser.add_argument("--out", type=Path, help="JSON lines; rows that stand there are not measured again")
    parser.add_argument("--tables", action="store_true", help="print what stands in --out")
    args = parser.parse_args()
    found = [json.loads(line) for line in args.out.open()] if args.out and args.out.exists() else []
    done = {
        tuple(one[k] for k in ("table", "features", "method", "batch_size", "temperature", "anchors")) for one in found
    }
    wanted = [row for row in rows(args.sets) if row.method in args.methods and astuple(row) not in done]
    if wanted and not args.tables:
        for one in measure(wanted, args):
            found.append(one)
            if args.out:
                with args.out.open("a") as file:
                    file.write(json.dumps(one) + "\n")
    for line in tables(found):
        print(line)


if __name__ == "__main__":
    main()
