"""Do negatives from the whole corpus pay in retrieval? Pairs of texts, at equal encodings and at equal time.

    emc2dist ingest ../shared/data/pystdlib/pairs.parquet runs/pystdlib
    python -m benchmarks.retrieval --data runs/pystdlib --seeds 3 --jobs 2 --out retrieval.jsonl
    python -m benchmarks.retrieval --out retrieval.jsonl --table          # the table of docs/retrieval.md

Each job, a way to have negatives, a batch size and one seed, is the production step over a store in its process, with
one thread, from nothing, at a constant learning rate after a tenth of an epoch of warm-up. It is asked (all test
queries, the whole corpus, by feature) when it has encoded `--texts` texts, draws and what is encoded again counted, and
when it has trained for `--seconds` CPU seconds; it ends with the later of the two. A job that stands in --out is not
run again. Needs no Ray.
"""

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emc2dist.config import Spec, parse
from emc2dist.towers.encoder import Encoder
from emc2dist.train.profile import alone
from emc2dist.train.retrieval import RetrievalEvaluation, asked_of
from emc2dist.train.sets import open_training_set, settled, token_views

WAYS = {
    "in_batch": "in_batch",
    "in_batch, draws = B": "{name: in_batch, draws: BATCH}",
    "chain, mh": "{name: chain, kernel: mh}",
    "chain, isir": "{name: chain, kernel: isir}",
    "chain, isir, ceiling": "{name: chain, kernel: isir, ceiling: 0.95}",
}
SPEC = """
name: retrieval
epochs: 1000
batch_size: 16
lr: 1e-3
temperature: 0.05
objective: infonce
text: {query_length: 32, document_length: 64, width: 128, layers: 2, heads: 4}
encoder: {backbone: mini, features: 128}
optimiser: {name: adamw, weight_decay: 1e-2, warmup_epochs: 0.1}
"""
CPU = torch.device("cpu")
_SHOWN = ("ndcg_at_10", "mrr_at_10", "recall_at_10")


def spec_of(data: str, way: str, batch: int, seed: int) -> Spec:
    """The spec of a job."""
    negatives = WAYS[way].replace("BATCH", str(batch))
    given = ["data.kind=pairs", f"data.path={data}", f"negatives={negatives}", f"batch_size={batch}", f"seed={seed}"]
    return settled(parse(SPEC, given))


def train(spec: Spec, texts: int, seconds: float) -> dict[str, Any]:
    """Train until both budgets are used up; measures at each, and how far it had come."""
    train = open_training_set(spec)
    pairs, _ = asked_of(spec)
    assert pairs is not None, "the set has a split that is asked"
    judge = RetrievalEvaluation(spec, pairs, token_views(spec), whole=True)
    found: dict[str, Any] = {"untrained": {}}
    with alone(spec, train, CPU) as trainer:
        trainer.schedule = trainer.schedule._replace(total=10**9)  # constant: budgets end at other steps
        encoder = trainer.model
        assert isinstance(encoder, Encoder)
        found["untrained"] = judge.all_measures(encoder, CPU)
        encoded, spent, step = 0.0, 0.0, 0
        while "equal_texts" not in found or "equal_time" not in found:
            began = time.process_time()
            facts = trainer.step(step).values
            spent += time.process_time() - began
            again = facts.get("reencoded_images", torch.zeros(()))
            assert isinstance(again, torch.Tensor)
            encoded += 2 * spec.batch_size + spec.negatives.draws + float(again)
            step += 1
            due = {"equal_texts": encoded >= texts, "equal_time": spent >= seconds}
            for budget in (name for name, reached in due.items() if reached and name not in found):
                told = {"steps": step, "texts": encoded, "cpu_seconds": spent}
                found[budget] = {**judge.all_measures(encoder, CPU), **told}
    return found


def table(there: list[dict[str, Any]]) -> str:
    """A line for each way and batch size: means over seeds, and half of their range."""
    head = ["B", "negatives", "seeds", *(f"{name}, {of}" for of in ("equal texts", "equal time") for name in _SHOWN)]
    lines = [f"| {' | '.join([*head, 'texts/s'])} |", "|---" * (len(head) + 1) + "|"]
    for batch, way in sorted(
        {(one["batch"], one["way"]) for one in there}, key=lambda key: (key[0], [*WAYS].index(key[1]))
    ):
        group = [one for one in there if (one["batch"], one["way"]) == (batch, way)]
        cells = [str(batch), way, str(len(group))]
        cells += [_mean(group, of, name) for of in ("equal_texts", "equal_time") for name in _SHOWN]
        speed = np.mean([one["equal_time"]["texts"] / one["equal_time"]["cpu_seconds"] for one in group])
        lines.append(f"| {' | '.join([*cells, f'{speed:,.0f}'])} |")
    return "\n".join(lines)


def _mean(group: list[dict[str, Any]], of: str, name: str) -> str:
    values = np.array([one[of][name] for one in group])
    half = f" ± {(values.max() - values.min()) / 2:.3f}" if len(values) > 1 else ""
    return f"{values.mean():.3f}{half}"


def main() -> None:
    """Run the jobs that are not there yet, or print the table of those that are."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", default="runs/pystdlib", help="a set of pairs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[*WAYS], metavar="WAY")
    parser.add_argument("--texts", type=int, default=50_000)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes, of one thread each")
    parser.add_argument("--out", type=Path, default=Path("retrieval.jsonl"), help="JSON lines, one a job")
    parser.add_argument("--table", action="store_true", help="run nothing, print the means of what --out has")
    args = parser.parse_args()
    there = [json.loads(text) for text in args.out.read_text().splitlines()] if args.out.exists() else []
    if args.table:
        print(table(there))
        return
    done = {(one["way"], one["batch"], one["seed"]) for one in there}
    jobs = [(way, batch, seed) for seed in range(args.seeds) for batch in args.batches for way in args.ways]
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes to come
    budgets = (args.data, args.texts, args.seconds)
    with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool, args.out.open("a") as out:
        for future in as_completed([pool.submit(_job, *job, *budgets) for job in jobs if job not in done]):
            found = future.result()
            out.write(json.dumps(found) + "\n")
            out.flush()
            print(table([found]).splitlines()[-1], flush=True)


def _job(way: str, batch: int, seed: int, data: str, texts: int, seconds: float) -> dict[str, Any]:
    torch.set_num_threads(1)
    return {"way": way, "batch": batch, "seed": seed} | train(spec_of(data, way, batch, seed), texts, seconds)


if __name__ == "__main__":
    main()
