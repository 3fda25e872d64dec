"""What are negatives without gradient worth, balanced or not, at equal steps and at equal time? Trained on Omniglot.

    python benchmarks/draws.py --seeds 3 --steps 2500 --jobs 16 --out draws.jsonl   # the table of docs/draws.md
    python benchmarks/draws.py --out draws.jsonl --table                            # the means of what is there

Each job, a row of the table with one seed, is the production step (`emc2dist.train.step` over a store in its process)
with one thread. A job that ends is printed and appended to --out; one that stands there is not run again, so what was
cut off goes on. Trained on all 15 training hands of some characters and asked, of hands that drew nothing in training,
for the nearest drawing of a training hand: the share with the same character, of these characters and of as many others
as --unseen says. Needs no Ray.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize

from emc2dist.config import Spec, parse
from emc2dist.data.grey import GreyImages
from emc2dist.data.omniglot import OmniglotImages
from emc2dist.towers.encoder import Tower
from emc2dist.towers.views import PlainView
from emc2dist.train.profile import alone

SPEC = """
name: draws
epochs: 1000000  # no end of its own: --steps is
lr: 2e-3
temperature: 0.1
views: {size: 28, crop: [0.5, 1.0], rotate: 15, flip: 0.0, jitter_probability: 0.0, grey: 0.0}
encoder: {backbone: conv4, norm: group, features: 128}
device: cpu
"""


@dataclass(frozen=True)
class Row:
    """A system to train."""

    name: str
    overrides: tuple[str, ...]
    batch_size: int = 32
    times: int = 1
    """So many times --steps."""
    balanced: bool = True

    def spec(self, seed: int) -> Spec:
        """As `emc2dist train` would take it."""
        return parse(SPEC, [f"batch_size={self.batch_size}", f"seed={seed}", *self.overrides])

    @property
    def images(self) -> int:
        """How many it encodes, about, so that the longest rows can go first."""
        return self.times * (self.batch_size + self.spec(0).negatives.draws)


def rows(batch_size: int, draws: int, times: int) -> Iterator[Row]:
    """Those of every batch size."""
    dcl = ("objective=dcl",)
    drawn = (*dcl, "negatives.name=in_batch", f"negatives.draws={draws}")

    def row(name: str, overrides: tuple[str, ...], longer: int = 1, *, balanced: bool = True) -> Row:
        return Row(f"{name}, B = {batch_size}", overrides, batch_size, times * longer, balanced)

    yield row(f"DCL, {draws} draws, pull", drawn)
    yield row(f"DCL, {draws} draws, push", (*drawn, "negatives.balance=push"))
    yield row(f"DCL, {draws} draws, unbalanced", drawn, balanced=False)
    yield row("DCL", dcl)
    yield row("DCL, twice the steps", dcl, 2)
    yield row("isir, carried encoded again", _CHAIN)


_CHAIN = ("objective=emc2", "negatives.kernel=isir")
_CACHED = (*_CHAIN, "negatives.carried=cached")
_ALL = (
    *rows(32, 256, 1),
    Row("isir, carried encoded again, 256 draws, pull, B = 32", (*_CHAIN, "negatives.draws=256")),
    Row("isir, carried cached, pull, B = 32", _CACHED),
    Row("isir, carried cached, push, B = 32", (*_CACHED, "negatives.balance=push")),
    Row("isir, carried cached, unbalanced, B = 32", _CACHED, balanced=False),
    Row("SimCLR, B = 32", ("objective=simclr",)),
    *rows(8, 64, 2),
)
ROWS = {row.name: row for row in _ALL}


@dataclass(frozen=True)
class Drawings:
    """What is trained on and asked about."""

    train: GreyImages
    """The training hands' drawings of the seen characters."""
    asked: dict[str, tuple[GreyImages, GreyImages]]
    """By `seen` and `unseen`: voters, by the training hands, and queries, by others."""

    @classmethod
    def of(cls, seen: int, unseen: int, split: type[OmniglotImages] = OmniglotImages) -> "Drawings":
        """Of so many characters, and so many others, the same in every run."""
        hands = [split("train"), split("test")]
        order = np.random.default_rng(0).permutation(len(hands[0].classes))
        characters = {"seen": order[:seen], "unseen": order[seen : seen + unseen]}
        asked = {name: (_only(hands[0], chosen), _only(hands[1], chosen)) for name, chosen in characters.items()}
        return cls(asked["seen"][0], asked)


def _only(images: OmniglotImages, characters: NDArray[np.int64]) -> GreyImages:
    labels = images.labels(np.arange(len(images)))
    (kept,) = np.nonzero(np.isin(labels, characters))
    pixels = torch.stack(images.get(kept))[:, 0].numpy()
    return GreyImages(pixels, labels[kept], images.classes)


def train(row: Row, seed: int, steps: int, drawings: Drawings) -> dict[str, Any]:
    """Train a row and ask; seconds are those of training alone."""
    spec, steps = row.spec(seed), steps * row.times
    with alone(spec, drawings.train, torch.device("cpu")) as trainer:
        trainer.schedule = trainer.schedule._replace(total=steps, warmup=steps // 20)
        trainer.contrast = replace(trainer.contrast, balanced=row.balanced)
        began, began_cpu = time.perf_counter(), time.process_time()
        for step in range(steps):
            trainer.step(step)
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
        recalls = recall_at_1(trainer.model, drawings)
    found = {"row": row.name, "seed": seed, "steps": steps, "seconds": seconds, "cpu_seconds": cpu_seconds}
    return found | {"images_per_second": steps * row.batch_size / seconds} | recalls


def recall_at_1(encoder: nn.Module, drawings: Drawings) -> dict[str, float]:
    """Of seen and unseen characters, by representation and by feature."""
    encoder.eval()
    found = {}
    for name, (voters, asked) in drawings.asked.items():
        bank, queries = encoded(encoder, voters), encoded(encoder, asked)
        labels, wanted = (torch.from_numpy(images.labels(np.arange(len(images)))) for images in (voters, asked))
        for by, keys, anchors in zip(("representation", "feature"), bank, queries, strict=True):
            nearest = (normalize(anchors, dim=1) @ normalize(keys, dim=1).T).argmax(1)
            found[f"{name}_{by}"] = (labels[nearest] == wanted).double().mean().item()
    return found


@torch.no_grad()
def encoded(encoder: nn.Module, images: GreyImages) -> tuple[Tensor, Tensor]:
    """Representations and features."""
    assert isinstance(encoder, Tower)
    view, parts = PlainView(28), []
    for chunk in np.split(np.arange(len(images)), range(256, len(images), 256)):
        representation = encoder.representation(torch.stack([view(image) for image in images.get(chunk)]))
        parts.append((representation, encoder.projector(representation)))
    representations, features = zip(*parts, strict=True)
    return torch.cat(representations), torch.cat(features)


_COLUMNS = ("seen_representation", "seen_feature", "unseen_representation", "unseen_feature")
HEAD = (
    "| negatives | seed | steps | seen | unseen | seconds | CPU seconds | images/s |\n"
    "|---|---|---|---|---|---|---|---|"
)  # fmt: skip


def line(found: Sequence[dict[str, Any]]) -> str:
    """A row of the table: one job, or the mean of several and, of recalls, half of their range."""
    values = {name: np.array([one[name] for one in found]) for name in found[0] if name != "row"}

    def recall(name: str) -> str:
        half = (values[name].max() - values[name].min()) / 2
        return f"{values[name].mean():.3f}".lstrip("0") + (
            f" ± {half:.3f}".replace("0.", ".") if len(found) > 1 else ""
        )

    seen, unseen = (f"{recall(f'{name}_representation')} / {recall(f'{name}_feature')}" for name in ("seen", "unseen"))
    seed = values["seed"][0] if len(found) == 1 else f"{len(found)} seeds"
    means = [values[name].mean() for name in ("steps", "seconds", "cpu_seconds", "images_per_second")]
    steps, seconds, cpu_seconds, speed = (f"{mean:,.0f}" for mean in means)
    return f"| {found[0]['row']} | {seed} | {steps} | {seen} | {unseen} | {seconds} | {cpu_seconds} | {speed} |"


def main() -> None:
    """Run the jobs that are not there yet, or print the table of those that are."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2500, help="of a row with B = 32; twice as many with B = 8")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes, of one thread each")
    parser.add_argument("--characters", type=int, default=600, help="to train on, 15 drawings of each")
    parser.add_argument("--unseen", type=int, default=400, help="characters that are only asked about")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW")
    parser.add_argument("--out", type=Path, default=Path("draws.jsonl"), help="JSON lines, one a job")
    parser.add_argument("--table", action="store_true", help="run nothing, print the means of what --out has")
    args = parser.parse_args()
    there = [json.loads(text) for text in args.out.read_text().splitlines()] if args.out.exists() else []
    if args.table:
        groups = {name: [one for one in there if one["row"] == name] for name in ROWS}
        print("\n".join([HEAD, *(line(group) for group in groups.values() if group)]))
        return
    done = {(one["row"], one["seed"], one["steps"]) for one in there}
    jobs = [(ROWS[name], seed) for seed in range(args.seeds) for name in args.rows]
    jobs = [job for job in jobs if (job[0].name, job[1], args.steps * job[0].times) not in done]
    jobs.sort(key=lambda job: -job[0].images)
    print(HEAD, flush=True)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes to come
    with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool, args.out.open("a") as out:
        what = (args.steps, args.characters, args.unseen)
        for future in as_completed([pool.submit(_job, *job, *what) for job in jobs]):
            found = future.result()
            out.write(json.dumps(found) + "\n")
            out.flush()
            print(line([found]), flush=True)


def _job(row: Row, seed: int, steps: int, seen: int, unseen: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    return train(row, seed, steps, Drawings.of(seen, unseen))


if __name__ == "__main__":
    main()
