"""A run over a small set of pairs, trained in this process."""

import json
from pathlib import Path

from train.harness import trained_folder

from emc2dist.config import parse
from emc2dist.data.texts.ingest import ingest_pairs
from emc2dist.run.driver import resolved
from emc2dist.train.model_files import ModelFiles
from emc2dist.train.sets import settled

THINGS = ["apple", "lemon", "river", "engine", "window", "violin"]
KINDS = ["red", "old", "loud", "wide"]
SPEC = """
name: pairs
epochs: 1
batch_size: 4
lr: 1e-2
temperature: 0.2
log_every: 1
data: {kind: pairs}
text: {query_length: 8, document_length: 16, width: 16}
encoder: {backbone: bag, features: 8, hidden: 0, norm: none}
optimiser: {name: sgd}
eval: {every: 0}
negatives: {name: chain, feature_dtype: float32}
watch: {report: false}
"""


def rows(split="train"):
    """24 pairs of which each text is one's alone."""
    return [
        {"query": f"which {thing} is {kind} {split}", "document": f"the {kind} {thing} of {split}", "split": split}
        for thing in THINGS
        for kind in KINDS
    ]


def ingest(folder: Path, table) -> Path:
    """A set of the rows of a table, in order, in `folder`."""
    source = folder.with_suffix(".jsonl")
    source.write_text("".join(f"{json.dumps(row)}\n" for row in table))
    ingest_pairs(str(source), str(folder), vocabulary=512, keep_order=True)
    return folder


def trained(runs: Path, data: Path, *overrides: str) -> Path:
    """The folder of a run over the set at `data`, with its checkpoints."""
    spec = settled(resolved(parse(SPEC, [f"run_dir={runs}", f"data.path={data}", *overrides])))
    return trained_folder(spec, ModelFiles.of(spec)).place.path
