"""How large may a shard be? One shard in this process, filled to the last row: memory, calls, checkpoint, restore.

    python benchmarks/scale.py [--chains 50000000] [--features 5000000] [--folder /tmp]

Two shards one after the other: chain state alone, and chain state with 128 float16 features. A call is what a worker
sends in a step: it writes and reads 256 random samples. The checkpoint is `emc2dist.train.checkpoint`'s, pieces and
checksums included, onto the disk of `--folder`. Times are seconds on the clock and, in brackets, of CPU: on a busy
machine the second ones say what the work costs, the first ones also how long others kept it waiting. Memory beyond the
rows is what the process held at most besides them (RssAnon, looked at every 20 ms); Linux alone. docs/scale.md holds
its output and what follows from it.
"""

import argparse
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, process_time
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from emc2dist import files
from emc2dist.config import parse
from emc2dist.store import Commit, Layout, LocalStore, Rows, Schema, nbytes
from emc2dist.train import checkpoint
from emc2dist.train.memory import schema_for

SPEC = parse("{name: scale, epochs: 1, batch_size: 256, lr: 0.1}")
BATCH, CALLS, FILL, MIB = 256, 2000, 100_000, 2**20


def anonymous() -> int:
    """Bytes that this process holds and no file backs."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


@contextmanager
def measured() -> Iterator[SimpleNamespace]:
    """Seconds of what is done inside, and the most bytes that were held beyond those at its start."""
    found, over, before = SimpleNamespace(peak=0), threading.Event(), anonymous()

    def look() -> None:
        while not over.wait(0.02):
            found.peak = max(found.peak, anonymous() - before)

    thread = threading.Thread(target=look)
    thread.start()
    began, cpu_began = perf_counter(), process_time()
    yield found
    found.seconds, found.cpu_s = perf_counter() - began, process_time() - cpu_began
    over.set()
    thread.join()


def commit_of(schema: Schema, step: int, index: np.ndarray) -> Commit:
    """Ones in every column."""
    return Commit(
        step, 0, {
            table: Rows(index, {name: np.ones((len(index), *c.shape), c.dtype) for name, c in columns.items()})
            for table, columns in schema.items()
        },
    )  # fmt: skip


def fill(store: LocalStore) -> int:
    """Write every row; returns the next step."""
    rows, step = store.layout.samples, 0
    for start in range(0, rows, FILL):
        commit = commit_of(store.schema, step, np.arange(start, min(rows, start + FILL)))
        store.exchange("run", commit, {}, step).result()
        step += 1
    return step


def call(store: LocalStore, step: int, calls: int) -> None:
    """Calls of BATCH samples, written and read."""
    index = np.random.default_rng(0).integers(0, store.layout.samples, (calls, BATCH))
    for number in range(calls):
        read = dict.fromkeys(store.schema, index[number])
        store.exchange("run", commit_of(store.schema, step + number, index[number]), read, step + number).result()


def row(what: str, schema: Schema, rows: int, folder: Path) -> str:
    """A line of the table."""
    store = LocalStore(Layout(rows, 1), schema)
    store.reset("run")
    with measured() as filling:
        step = fill(store)
    with measured() as calling:
        call(store, step, CALLS)
    encoder = nn.Linear(1, 1)
    parts = (SPEC, encoder, torch.optim.SGD(encoder.parameters(), lr=0.1), store, "run", "")
    applied = step + CALLS - 1
    with measured() as saving:
        checkpoint.save(folder, applied + 1, applied, *parts)
    with measured() as verifying:
        manifest = checkpoint.verify(files.at(folder))
    with measured() as restoring:
        checkpoint.restore_store(folder, manifest, store, "again")
    size = nbytes(schema, rows) / MIB
    calls = f"{CALLS / calling.seconds:,.0f} ({CALLS / calling.cpu_s:,.0f})"
    speeds = " | ".join(f"{m.seconds:.1f} s ({m.cpu_s:.1f} s)" for m in (saving, verifying, restoring))
    beyond = " / ".join(f"{m.peak / MIB:.0f}" for m in (saving, restoring))
    return f"| {what} | {rows:,} | {size:,.0f} | {filling.peak / MIB:,.0f} | {calls} | {speeds} | {beyond} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=50_000_000)
    parser.add_argument("--features", type=int, default=5_000_000)
    parser.add_argument("--folder", default=tempfile.gettempdir())
    arguments = parser.parse_args()
    schema = schema_for(SPEC)
    print("| shard | rows | MiB | MiB held, full | calls/s | save | verify | restore | MiB beyond, save/restore |")
    print("|---|---|---|---|---|---|---|---|---|")
    for what, part, rows in (
        ("chains", {"negatives": schema["negatives"]}, arguments.chains),
        ("chains and features", schema, arguments.features),
    ):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            print(row(what, part, rows, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
