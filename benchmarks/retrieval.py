"""Do negatives from the whole corpus pay in retrieval? Pairs of texts, at equal encodings and at equal time.

    emc2dist ingest ../shared/data/pylibs/pairs.parquet runs/pylibs
    python -m benchmarks.retrieval --data runs/pylibs --seeds 3 --jobs 2 --out retrieval.jsonl
    python -m benchmarks.retrieval --out retrieval.jsonl --table          # the table of docs/retrieval.md

Each job, a way to have negatives, a batch size and one seed, is the production step over a store in its process, with
one thread, a bag of embeddings from nothing, at a constant learning rate after a tenth of an epoch of warm-up. It is
asked (2,000 test queries among 10,000 documents, by feature) when it has encoded `--texts` texts, draws and what is
encoded again counted, and when it has trained for `--seconds` CPU seconds; it ends with the later of the two. A job
that stands in --out is not run again. Needs no Ray.
"""

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emc2dist.config import Spec, changed, parse
from emc2dist.data.texts.pairs import Pairs
from emc2dist.evaluate.bm25 import Bm25
from emc2dist.evaluate.retrieval import search
from emc2dist.towers.encoder import Encoder
from emc2dist.train.profile import alone
from emc2dist.train.retrieval import RetrievalEvaluation, asked_of
from emc2dist.train.sets import open_training_set, plain_views, settled, token_views
from emc2dist.train.step import Trainer

BM25, MINED = "in_batch, a BM25 negative", "in_batch, mined once"
WAYS = {
    "in_batch": "in_batch",
    "in_batch, draws = B": "{name: in_batch, draws: BATCH}",
    "chain, mh": "{name: chain, kernel: mh}",
    "chain, isir": "{name: chain, kernel: isir}",
    "chain, isir, ceiling": "{name: chain, kernel: isir, ceiling: 0.95}",
    BM25: "in_batch",
    MINED: "in_batch",
}
SPEC = """
name: retrieval
epochs: 1000
batch_size: 16
lr: 2e-3
temperature: 0.05
objective: infonce
text: {query_length: 32, document_length: 64, width: 128}
encoder: {backbone: bag, features: 128}
eval: {queries: 2000, bank: 10000}
optimiser: {name: adamw, weight_decay: 1e-2, warmup_epochs: 0.1}
"""
CPU = torch.device("cpu")
_LOOKED = 10  # documents, of which one is named
_SHOWN = ("ndcg_at_10", "mrr_at_10", "recall_at_10")


def spec_of(data: str, way: str, batch: int, seed: int) -> Spec:
    """The spec of a job."""
    negatives = WAYS[way].replace("BATCH", str(batch))
    given = ["data.kind=pairs", f"data.path={data}", f"negatives={negatives}", f"batch_size={batch}", f"seed={seed}"]
    return settled(parse(SPEC, given))


class Run:
    """A run on its way through both budgets, texts and CPU seconds."""

    def __init__(self, spec: Spec, texts: int, seconds: float) -> None:
        pairs, _ = asked_of(spec)
        assert pairs is not None, "the set has a split that is asked"
        self.spec, self.texts, self.seconds = spec, texts, seconds
        self.judge = RetrievalEvaluation(spec, pairs, plain_views(spec), whole=False)
        self.found: dict[str, Any] = {}
        self.encoded, self.spent, self.step = 0.0, 0.0, 0

    def go(self, trainer: Trainer, until: float = 1.0) -> None:
        """Steps until both budgets, or such a share of the texts, are used up; measures where one is."""
        trainer.schedule = trainer.schedule._replace(total=10**9)  # constant: budgets end at other steps
        encoder = trainer.model
        assert isinstance(encoder, Encoder)
        self.found.setdefault("untrained", self.judge.all_measures(encoder, CPU))
        each = self.spec.batch_size * (2 + self.spec.data.negatives) + self.spec.negatives.draws
        for step in count():
            if len(self.found) == 3 or (until < 1 and self.encoded >= until * self.texts):
                return
            began = time.process_time()
            facts = trainer.step(step).values
            self.spent += time.process_time() - began
            again = facts.get("reencoded_images", torch.zeros(()))
            assert isinstance(again, torch.Tensor)
            self.encoded += each + float(again)
            self.step += 1
            due = {"equal_texts": self.encoded >= self.texts, "equal_time": self.spent >= self.seconds}
            for budget in (name for name, reached in due.items() if reached and name not in self.found):
                told = {"steps": self.step, "texts": self.encoded, "cpu_seconds": self.spent}
                self.found[budget] = {**self.judge.all_measures(encoder, CPU), **told}


def train(way: str, spec: Spec, texts: int, seconds: float) -> dict[str, Any]:
    """Train until both budgets are used up; measures at each, and how far it had come."""
    run, there = Run(spec, texts, seconds), open_training_set(spec)
    assert isinstance(there, Pairs)
    if way == BM25:
        found = Bm25(there.documents.get(np.arange(len(there.documents)))).search(
            there.queries.get(np.arange(len(there.queries))), _LOOKED
        )
        there, run.spec = _naming(there, found), changed(spec, {"data.negatives": 1}, source=way)
    with alone(run.spec, there, CPU) as trainer:
        run.go(trainer, until=0.5 if way == MINED else 1.0)
        if way == MINED:
            before = (trainer.model.state_dict(), trainer.optimiser.state_dict())
            there = _mined(run, there, trainer)
    if way == MINED:
        run.spec = changed(spec, {"data.negatives": 1}, source=way)
        with alone(run.spec, there, CPU) as trainer:
            trainer.model.load_state_dict(before[0])
            trainer.optimiser.load_state_dict(before[1])
            run.go(trainer)
    return run.found


def _mined(run: Run, there: Pairs, trainer: Trainer) -> Pairs:
    """The set with negatives by the model: of the nearest the first that does not answer; what that takes counts."""
    began = time.process_time()
    views, encoder = token_views(run.spec), trainer.model
    with torch.no_grad():
        sides = [
            torch.cat([encoder(views[name].tokens(texts.get(some))) for some in
                       np.array_split(np.arange(len(texts)), -(-len(texts) // 256))])
            for name, texts in (("query", there.queries), ("document", there.documents))
        ]  # fmt: skip
    _, found = search(sides[0], sides[1], _LOOKED)
    run.spent += time.process_time() - began
    run.encoded += len(there)
    return _naming(there, found)


def _naming(there: Pairs, found: torch.Tensor) -> Pairs:
    """The set that names for each query, of the documents found, the best that does not answer."""
    answers = set(map(tuple, there.relevance.tolist()))
    named = []
    for query, rows in enumerate(found.tolist()):
        named += [(query, row) for row in rows if row >= 0 and (query, row) not in answers][:1]
    return replace(there, negatives=np.array(named, np.int64))


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
    parser.add_argument("--data", default="runs/pylibs", help="a set of pairs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[*WAYS], metavar="WAY")
    parser.add_argument("--texts", type=int, default=150_000)
    parser.add_argument("--seconds", type=float, default=60.0)
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
    return {"way": way, "batch": batch, "seed": seed} | train(way, spec_of(data, way, batch, seed), texts, seconds)


if __name__ == "__main__":
    main()
