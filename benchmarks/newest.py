"""Why are the newest rows of a feature cache the worst of negatives? A small tower, trained on a part of Omniglot.

    python -m benchmarks.newest                           # a few minutes on two cores; the table of docs/draws.md
    python -m benchmarks.newest --seeds 1 --steps 1500    # and the longer run that it tells of

Beside its batch every step has M negatives without gradient, balanced. They differ in which samples they are, and by
which encoder their features are; in the last two choices a follower (`encoder.momentum`) encodes all keys.
Each row of the table tells, after so many steps:

    seen, unseen    recall@1 by representation / by feature, as benchmarks/draws.py has it
    rank            effective rank of the features of the asked, at most their width
    drift           how far the mean feature of the same images moves in the M / B steps that the newest rows span,
                    as a cosine's distance from 1; mean over the run
"""

import argparse
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

from benchmarks.draws import Drawings, Row, encoded, recall_at_1
from emc2dist.core.batch import Batch
from emc2dist.core.contrast import Contrast, Outcome
from emc2dist.core.diagnostics import effective_rank
from emc2dist.core.estimators import Encode, Recall
from emc2dist.data.grey import GreyImages
from emc2dist.data.omniglot import SmallOmniglotImages
from emc2dist.towers.views import PlainView
from emc2dist.train.profile import alone

SIDE = "x"
CHOICES = {
    "none": "none",
    "new": "samples drawn anew, encoded by the encoder of today",
    "any": "cached rows of any age",
    "newest": "the newest cached rows",
    "afresh": "the samples of the newest rows, encoded by the encoder of today",
    "shifted": "the newest cached rows, moved by what the mean feature moved since",
    "followed": "none, all keys by a follower",
    "queue": "the newest cached rows, all keys by a follower",
}
_FOLLOWED = ("encoder.momentum=0.99",)


@dataclass
class WithRows:
    """A contrast, and rows that every batch brings along as its draws."""

    contrast: Contrast
    choice: str
    count: int
    """M."""
    encode: Callable[[Tensor], Tensor]
    """Features [m, D] of the plain views of samples [m], without gradient."""
    random: np.random.Generator
    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Samples [B] and features [B, D] of every step so far, the newest last."""

    def __call__(self, batch: Batch, recalls: Mapping[str, Recall], encode: Encode) -> Outcome:
        """As the contrast, with the rows as draws."""
        features = batch.sides[SIDE].all[0].detach()
        rows = self._rows(features)
        self.kept.append((batch.index, features))
        if rows is None:
            return self.contrast(batch, recalls, encode)
        index, drawn = rows
        sides = {SIDE: replace(batch.sides[SIDE], drawn=drawn.unsqueeze(0), drawn_index=index)}
        return self.contrast(replace(batch, sides=sides), recalls, encode)

    def foreseen(self, *of_a_step: Any) -> dict[str, tuple[Tensor, Tensor]]:
        """As the contrast."""
        return self.contrast.foreseen(*of_a_step)

    def _rows(self, batch: Tensor) -> tuple[Tensor, Tensor] | None:
        """Samples [M] without repeats, and features [M, D]."""
        if self.choice in ("none", "new", "followed", "queue") or len(self.kept) * len(batch) < self.count:
            return None
        index, features = (torch.cat(parts) for parts in zip(*self.kept, strict=True))
        latest = _latest(index)
        if self.choice == "any":
            latest = latest[self.random.permutation(len(latest))]
        chosen = torch.from_numpy(np.ascontiguousarray(latest[-self.count :]))
        index, features = index[chosen], features[chosen]
        if self.choice == "afresh":
            features = self.encode(index)
        if self.choice == "shifted":
            features = normalize(features + batch.mean(0) - features.mean(0), dim=1)
        return index, features


def _latest(index: Tensor) -> np.ndarray:
    """Where each sample comes last, in the order of time."""
    _, first = np.unique(index.numpy()[::-1], return_index=True)
    return np.sort(len(index) - 1 - first)


def run(choice: str, seed: int, steps: int, batch_size: int, count: int) -> str:
    """Train, and tell of it in a row of the table."""
    torch.set_num_threads(1)
    drawings = Drawings.of(100, 36, SmallOmniglotImages)
    draws = count if choice == "new" else 0
    negatives = ("negatives.name=in_batch", f"negatives.draws={draws}")
    if choice == "queue":
        negatives = ("negatives.name=queue", f"negatives.rows={count}")
    followed = _FOLLOWED if choice in ("followed", "queue") else ()
    row = Row(choice, ("objective=dcl", *negatives, *followed), batch_size)
    span, probe = count // batch_size, drawings.asked["seen"][1]
    with alone(row.spec(seed), drawings.train, torch.device("cpu")) as trainer:
        trainer.schedule = trainer.schedule._replace(total=steps, warmup=steps // 20)
        trainer.contrast = WithRows(  # type: ignore[assignment]  # it is called, and told of nothing else
            trainer.contrast, choice, count, lambda index: _plain(trainer.model, drawings.train, index),
            np.random.default_rng(seed),
        )  # fmt: skip
        means = []
        for step in range(steps):
            trainer.step(step)
            if step % span == 0:
                means.append(_plain(trainer.model, probe, torch.arange(0, len(probe), 5)).mean(0))
        moved = 1 - cosine_similarity(torch.stack(means[:-1]), torch.stack(means[1:]))
        recalls = recall_at_1(trainer.model, drawings)
        rank = effective_rank(normalize(encoded(trainer.model, probe)[1], dim=1)).item()
    seen, unseen = (
        " / ".join(f"{recalls[f'{who}_{by}']:.3f}".lstrip("0") for by in ("representation", "feature"))
        for who in ("seen", "unseen")
    )
    return f"| {CHOICES[choice]} | {seed} | {seen} | {unseen} | {rank:.0f} | {moved.mean():.4f} |"


@torch.no_grad()
def _plain(encoder: nn.Module, images: GreyImages, index: Tensor) -> Tensor:
    """Features [m, D], of unit length, of plain views."""
    view = PlainView(28)
    training = encoder.training
    encoder.eval()
    features = encoder(torch.stack([view(image) for image in images.get(index.numpy())]))
    encoder.train(training)
    return features


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--choices", nargs="+", default=list(CHOICES), choices=list(CHOICES))
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    print("| rows beside the batch | seed | seen | unseen | rank | drift |\n|---|---|---|---|---|---|", flush=True)
    with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:
        jobs = [(choice, seed) for choice in args.choices for seed in range(args.seeds)]
        what = (args.steps, args.batch_size, args.rows)
        for line in pool.map(run, *zip(*[(*job, *what) for job in jobs], strict=True)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
