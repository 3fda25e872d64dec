"""A run in this process: the real loop over a LocalStore, with what it reports kept in lists."""

import json
import math
import shutil
from concurrent.futures import Executor, Future
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from emc2dist import files
from emc2dist.config import Spec, dump, parse
from emc2dist.data.ingest import ingest
from emc2dist.data.ingest.pixels import png
from emc2dist.data.texts.ingest import ingest_pairs
from emc2dist.run.checkpoints import send
from emc2dist.run.folder import RunFolder, checkpoint_name
from emc2dist.store import Layout, LocalStore
from emc2dist.train import collectives, compilation, loop
from emc2dist.train.checkpoint import MANIFEST, Manifest
from emc2dist.train.memory import schema_for
from emc2dist.train.model_files import ModelFiles
from emc2dist.train.sets import judge_of, open_training_set, settled

SMALL = """
name: small
epochs: 2
batch_size: 8
lr: 1e-3
temperature: 0.2
log_every: 1
data: {path: digits, limit: 48}
views: {size: 8, flip: 0.0, jitter_probability: 0.0, grey: 0.0}
encoder: {backbone: conv4, norm: none, features: 16}
optimiser: {name: sgd}  # its state is half as large as AdamW's, and each checkpoint holds it
eval: {bank: 40, queries: 40, neighbours: 3}
negatives: {feature_dtype: float32}
watch: {report: false}  # the pictures take longer than the run
"""


PAIRS = """
name: pairs
epochs: 2
batch_size: 8
lr: 0.1
temperature: 0.2
log_every: 1
objective: infonce
text: {query_length: 6, document_length: 8, width: 16, layers: 1, heads: 2}
encoder: {backbone: mini, features: 12}
optimiser: {name: sgd, momentum: 0.0}
negatives: {name: chain, kernel: isir, feature_dtype: float32}
watch: {report: false}
"""


CAPTIONS = """
name: captions
epochs: 2
batch_size: 8
lr: 0.1
temperature: 0.2
log_every: 1
objective: infonce
views: {size: 8, jitter_probability: 0.0, grey: 0.0}
text: {tower: mini, document_length: 8, width: 16, layers: 1, heads: 2}
encoder: {backbone: conv4, norm: none, features: 12}
optimiser: {name: sgd, momentum: 0.0}
negatives: {name: chain, kernel: isir, draws: 6, feature_dtype: float32}
watch: {report: false}
"""


def small_spec(*overrides: str) -> Spec:
    return parse(SMALL, overrides)


def pairs_spec(folder: Path, *overrides: str) -> Spec:
    """Of the set in a folder, with its vocabulary."""
    kind = [] if any(one.startswith("data.kind=") for one in overrides) else ["data.kind=pairs"]
    return settled(parse(PAIRS, [*kind, f"data.path={folder}", *overrides]))


def captions_spec(folder: Path, *overrides: str) -> Spec:
    """Of the set in a folder, with its vocabulary."""
    return settled(parse(CAPTIONS, ["data.kind=captions", f"data.path={folder}", *overrides]))


def write_captions(folder: Path, *, shared: bool, count: int = 40, vocabulary: int = 512) -> Path:
    """A set of images of one colour each, and its name; where they are `shared` two images have each caption, and
    every third image has two captions. The last fifth are of the split test.
    """
    words = [f"{one}{other}" for one in "bdfgklmnpr" for other in ("a", "e", "i", "o", "u")]
    source = folder.with_name(f"{folder.name}-source")
    source.mkdir(parents=True)
    rows = []
    for row in range(count):
        thing = row // 2 if shared else row
        captions = [f"{words[thing]} {words[(3 * thing + 1) % len(words)]}"]
        captions += [f"also {words[row]} {words[(7 * row + 2) % len(words)]}"] if shared and row % 3 == 0 else []
        colour = np.array([[[(37 * row) % 256, (91 * row + 5) % 256, (11 * row) % 256]]], np.uint8)
        rows.append({"image": {"bytes": png(np.tile(colour, (8, 8, 1)))}, "caption": captions, "label": row % 4})
    for split, some in (("train", rows[: count * 4 // 5]), ("test", rows[count * 4 // 5 :])):
        pq.write_table(pa.Table.from_pylist(some), source / f"{split}.parquet")
    ingest(str(source), str(folder), captions="caption", vocabulary=vocabulary)
    return folder


def write_pairs(folder: Path, *, judged: bool, count: int = 48) -> Path:
    """A set of pairs: of each query a document of its own, or judged ones of which some are popular and some nobody's.

    The documents of every sixth query are of the split test.
    """
    words = [f"{one}{other}" for one in "bdfgklmnpr" for other in ("a", "e", "i", "o", "u")]
    documents = [
        " ".join(words[(row * step + step) % len(words)] for step in (1, 3, 7, 11, 13)) for row in range(count)
    ]
    lines = []
    for row in range(count):
        mine = [row % 5 if row % 2 else row] if judged else [row]
        if judged and row % 3 == 0:
            mine.append(int(row**1.3) % count)
        split = "test" if row % 6 == 5 else "train"
        query = " ".join([words[row], words[(7 * row + 3) % len(words)], words[(mine[0] * 3 + 3) % len(words)]])
        named = {"negative_1": documents[(row + 6) % count]} if row % 4 else {}
        lines += [{"query": query, "document": documents[one], "split": split, **named} for one in sorted(set(mine))]
    if judged:  # documents that nobody asks for
        lines.append({"query": "zu zu", "document": documents[1], "split": "train", "negative_1": "bo bi be"})
    source = folder.with_suffix(".jsonl")
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    ingest_pairs(str(source), str(folder), vocabulary=512)
    return folder


class Run:
    """Runs a spec, or resumes it, and keeps rows and checkpoints."""

    def __init__(self, spec: Spec, folder: Path, stop_after: float = math.inf) -> None:
        self.spec, self.folder, self.stop_after = spec, folder, stop_after
        self.rows: list[dict] = []
        self.checkpoints: dict[int, Path] = {}

    def is_set(self):
        """As a StopRequest: from so many steps on."""
        return bool(self.column("loss")) and self.column("step")[-1] >= self.stop_after

    def record(self, row):
        self.rows.append(dict(row))

    def write(self, step, folder, row):
        self.checkpoints[step] = self.folder / f"{self.spec.name}-{step}"
        shutil.move(folder, self.checkpoints[step])

    def go(self, resume: Path | None = None, model: ModelFiles | None = None, start: Path | None = None) -> "Run":
        train = open_training_set(self.spec)
        judge, _ = judge_of(self.spec, train, model)
        schema = schema_for(self.spec)
        store = LocalStore(Layout(len(train), self.spec.shards), schema)
        with TemporaryDirectory() as scratch:
            parts = (store, self, self, torch.device("cpu"), self, Path(scratch))
            self.steps = loop.run(loop.Job(self.spec, train, judge, *parts, model=model, start=start), resume)
        return self

    def column(self, name: str) -> list[float]:
        return [row[name] for row in self.rows if name in row]


def trained_folder(spec: Spec, model: ModelFiles | None = None) -> RunFolder:
    """The folder of a run that trains in this process, with its checkpoints and rows."""
    folder = RunFolder.prepare(spec, model)
    done = Run(spec, folder.place.path).go()
    for step, checkpoint in done.checkpoints.items():
        checkpoint.rename(folder.place.path / checkpoint_name(step))
    folder.append(done.rows)
    return folder


def leave_manifest(folder: RunFolder, spec: Spec, step: int) -> Manifest:
    """The manifest, and nothing else, of a checkpoint of 48 images that are nobody's, left in the run's folder."""
    manifest = Manifest(
        step=step, applied=step - 1, samples=48, fingerprint="others", shards=1, ranks=1, generation="g", created="now",
        version="0", spec=dump(spec),
    )  # fmt: skip
    (folder.place / checkpoint_name(step) / MANIFEST).write(manifest.model_dump_json().encode())
    return manifest


class InThisThread(Executor):
    """For a pool of threads: what it is to do is done before `submit` returns."""

    def __init__(self, *arguments, **options) -> None:
        """Take what a pool of threads takes."""

    def submit(self, function, *arguments, **options):
        future = Future()
        try:
            future.set_result(function(*arguments, **options))
        except Exception as error:
            future.set_exception(error)
        return future


class CountedParallel(DistributedDataParallel):
    """DDP that counts how often it reduces the gradients."""

    reductions = 0

    def __init__(self, module, **options) -> None:
        super().__init__(module, **options)
        self.register_comm_hook(None, self._reduce)

    @staticmethod
    def _reduce(_, bucket):
        CountedParallel.reductions += bucket.is_last()
        return allreduce_hook(None, bucket)


class Rank:
    """One process of a group: a Ray actor, so that it can hold a RayStore. Here, because Ray imports it by name."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        compilation.BACKEND = "aot_eager"  # machine code takes its time

    def train(self, spec_text, store, rank, rendezvous, folder, stop_after=math.inf, resume=None, start=None):
        """Join the group, train, leave; returns the rows that this rank recorded."""
        spec = parse(spec_text)
        collectives.DistributedDataParallel = CountedParallel
        CountedParallel.reductions = 0
        dist.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=spec.workers)
        store = store.joined(rank, spec.workers, start_timeout_s=120)
        run = Run(spec, Path(folder), stop_after)
        run.write = lambda step, source, row: send(source, files.at(folder))
        train = open_training_set(spec)
        judge, _ = judge_of(spec, train)
        try:
            with TemporaryDirectory() as scratch:
                parts = (store, run, run, torch.device("cpu"), run, Path(scratch))
                loop.run(loop.Job(spec, train, judge, *parts, start=start), resume)
        finally:
            dist.destroy_process_group()
        return run.rows

    def reductions(self):
        """Of gradients, in the last training."""
        return CountedParallel.reductions
