"""What is each objective worth, with the negatives of its spec, the batch's and chains? Every spec of jobs/objectives.

    python -m benchmarks.objectives --seeds 3 --jobs 2 --out objectives.jsonl    # the table of docs/objectives.md
    python -m benchmarks.objectives --out objectives.jsonl --table               # the means of what is there

Each job, a spec with its own negatives, with `in_batch` or with chains, and one seed, is the production step
(`emc2dist.train.step` over a store in its process) with one thread, for all epochs of the spec, and then every measure
of `emc2dist evaluate` on the images that the spec asks about. A job that ends is printed and appended to --out; one
that stands there is not run again, so what was cut off goes on. Needs no Ray.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from emc2dist.config import BUILT_IN, Spec, load
from emc2dist.data.images import open_images, open_labelled
from emc2dist.errors import SpecError
from emc2dist.towers.encoder import Encoder
from emc2dist.train.evaluation import Evaluation
from emc2dist.train.measures import MOST_IN_PAIRS, Measures, all_measures
from emc2dist.train.profile import alone

SPECS = Path(__file__).resolve().parents[1] / "jobs" / "objectives"
OWN, BATCH, CHAIN = "its own", "in_batch", "chain"
_FORMULA = {"isogclr": ["objective=rgcl"], "moco": ["objective=infonce", "encoder.momentum=0.99"]}  # of presets
_CHAINS = {
    "hydra": "{name: chain, restart: true, cache_proposals: 64, close: [label]}",
    "isogclr": "{name: chain, rate: 0.8}",
    "moco": "{name: chain, carried: cached}",
    "nnclr": "chain",
    "sepclr": "chain",
    "supremix": "chain",
}  # of specs whose own negatives are others, and whose formula no other spec has with chains
CPU = torch.device("cpu")
_SHOWN = (
    "recall_at_1", "knn_accuracy", "linear_probe_accuracy", "linear_probe_per_class", "linear_absolute_error",
    "zero_shot_accuracy", "triplet_accuracy",
)  # fmt: skip
_OF = ("representation", "feature", "common", "salient")  # the last two of what has heads


def specs(name: str, seed: int) -> Iterator[tuple[str, Spec]]:
    """The spec of this name as it stands, with the batch's negatives and with chains, where that is another one."""
    path = SPECS / f"{name}.yaml"
    own = load(path, [f"seed={seed}"])
    yield OWN, own
    formula = _FORMULA.get(name, [])
    if own.negatives.name != BATCH:
        closed = f"[{', '.join(own.negatives.close)}]"
        try:
            yield BATCH, load(path, [f"seed={seed}", *formula, f"negatives={{name: in_batch, close: {closed}}}"])
        except SpecError:  # it does not go with this objective
            return
    if name in _CHAINS:
        yield CHAIN, load(path, [f"seed={seed}", *formula, f"negatives={_CHAINS[name]}"])


def train(spec: Spec, epochs: int) -> dict[str, Any]:
    """Train, and measure before and after; seconds are those of training alone."""
    images = open_images(spec.data, "train")
    assert images is not None, "open_images raises where there are none"
    evaluation = Evaluation(spec, open_labelled(spec.data, spec.eval, images))
    with alone(spec, images, CPU) as trainer:
        steps = epochs * trainer._order.steps_per_epoch
        trainer.schedule = trainer.schedule._replace(total=steps, warmup=min(trainer.schedule.warmup, steps // 5))
        untrained = measured(evaluation, trainer.model)
        began = time.process_time()
        for step in range(steps):
            trainer.step(step)
        seconds = time.process_time() - began
        trained = measured(evaluation, trainer.model)
    speed = steps * spec.micro_batch_size / seconds
    return {"steps": steps, "cpu_seconds": seconds, "images_per_second": speed, "untrained": untrained} | trained


def measured(evaluation: Evaluation, model: nn.Module) -> dict[str, Measures]:
    """Every measure that `emc2dist evaluate` gives."""
    assert isinstance(model, Encoder)
    bank, queries = evaluation.represent(model, CPU)
    return all_measures(evaluation, model, bank, queries, evaluation.pair(model, CPU, MOST_IN_PAIRS))


def table(there: list[dict[str, Any]], shown: list[str]) -> str:
    """A line for each spec and its negatives: means over seeds and half of their range; representation / feature."""
    head = ["objective", "negatives", "seeds", *shown, "before", "effective rank of the feature", "images/s"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, negatives in dict.fromkeys((one["name"], one["negatives"]) for one in there):
        group = [one for one in there if (one["name"], one["negatives"]) == (name, negatives)]
        cells = [name, f"`{group[0]['kind']}`", str(len(group))]
        parts = [of for of in _OF if of in group[0]]
        cells += [" / ".join(_mean(group, of, measure) for of in parts) for measure in shown]
        before = [one["untrained"] for one in group]
        cells.append(" / ".join(_mean(before, of, shown[0]) for of in parts))
        cells.append(_mean(group, "feature", "effective_rank"))
        cells.append(f"{np.mean([one['images_per_second'] for one in group]):,.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(group: list[dict[str, Any]], of: str, measure: str) -> str:
    values = np.array([one[of].get(measure) for one in group], dtype=float)
    if np.isnan(values).any():
        return "-"
    half = f" ± {_short((values.max() - values.min()) / 2)}" if len(values) > 1 else ""
    return _short(values.mean()) + half


def _short(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def main() -> None:
    """Run the jobs that are not there yet, or print the table of those that are."""
    names = sorted(path.stem for path in SPECS.glob("*.yaml"))
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="instead of the spec's")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes, of one thread each")
    parser.add_argument("--specs", nargs="+", choices=names, metavar="NAME")
    parser.add_argument("--measures", nargs="+", default=["recall_at_1"], choices=_SHOWN)
    parser.add_argument("--out", type=Path, default=Path("objectives.jsonl"), help="JSON lines, one a job")
    parser.add_argument("--table", action="store_true", help="run nothing, print the means of what --out has")
    args = parser.parse_args()
    if args.specs is None:  # others say how their images are made first
        args.specs = [name for name in names if load(SPECS / f"{name}.yaml").data.path in BUILT_IN]
    there = [json.loads(text) for text in args.out.read_text().splitlines()] if args.out.exists() else []
    if args.table:
        print(table([one for one in there if one["name"] in args.specs], args.measures))
        return
    done = {(one["name"], one["negatives"], one["seed"]) for one in there}
    jobs = [
        (name, negatives, seed)
        for seed in range(args.seeds)
        for name in args.specs
        for negatives, _ in specs(name, seed)
    ]
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes to come
    with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool, args.out.open("a") as out:
        for future in as_completed([pool.submit(_job, *job, args.epochs) for job in jobs if job not in done]):
            found = future.result()
            out.write(json.dumps(found) + "\n")
            out.flush()
            print(table([found], args.measures).splitlines()[-1], flush=True)


def _job(name: str, negatives: str, seed: int, epochs: int | None) -> dict[str, Any]:
    torch.set_num_threads(1)
    spec = dict(specs(name, seed))[negatives]
    found = train(spec, spec.epochs if epochs is None else epochs)
    return {"name": name, "negatives": negatives, "kind": spec.negatives.name, "seed": seed} | found


if __name__ == "__main__":
    main()
