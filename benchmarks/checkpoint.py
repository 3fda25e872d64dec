"""What does a checkpoint cost beyond writing its bytes? Chains and features saved, against numpy's own files of them.

    python -m benchmarks.checkpoint [--samples 1000000] [--rounds 7] [--folder /tmp]

A shard in this process: 10^6 samples with two chains each and a feature of 128 float16. Taking turns:

    checkpoint   `emc2dist.train.checkpoint.save`: snapshots in pieces, one file, the trainer's, SHA-256 of all
    numpy        `np.save` of the same columns, a file each, and nothing else
    and SHA-256  numpy's files, and the SHA-256 of each

Neither waits for the disk (no fsync): a checkpoint counts by its checksums, not by when the disk has it. So by the
clock this is the page cache, and the disk where that pushes back. With `--fsync` each then has the system bring its
files to the disk, which is timed too. Seconds by the clock and of CPU; medians over rounds, with quartiles; a ratio
compares the same rounds.
"""

import argparse
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.rounds import Cost, compared, in_turns, load
from benchmarks.scale import commit_of
from emc2dist.config import parse
from emc2dist.store import Layout, LocalStore
from emc2dist.train import checkpoint
from emc2dist.train.memory import schema_for

SPEC = parse("{name: checkpoint, epochs: 1, batch_size: 256, lr: 0.1}")
FILL = 100_000


def timed(folder: Path, write: Callable[[Path], object], *, fsync: bool) -> Cost:
    """The seconds that it takes to write into a new folder, which is gone afterwards."""
    if fsync:
        os.sync()  # what others have written is not to be waited for
    own = folder / "turn"
    own.mkdir()
    began, cpu_began = time.perf_counter(), time.process_time()
    write(own)
    for path in own.iterdir() if fsync else ():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    cost = Cost(time.perf_counter() - began, time.process_time() - cpu_began)
    shutil.rmtree(own)
    return cost


def filled(samples: int) -> tuple[LocalStore, int]:
    """A store with all rows written, and the last step."""
    store, step = LocalStore(Layout(samples, 1), schema_for(SPEC)), 0
    store.reset("run")
    for start in range(0, samples, FILL):
        commit = commit_of(store.schema, step, np.arange(start, min(samples, start + FILL)))
        store.exchange("run", commit, {}, step).result()
        step += 1
    return store, step - 1


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--fsync", action="store_true", help="wait for the disk")
    args = parser.parse_args()
    store, step = filled(args.samples)
    encoder = nn.Linear(1, 1)
    parts = (SPEC, encoder, torch.optim.SGD(encoder.parameters(), lr=0.1), store, "run", "")
    tables = store.snapshot("run", 0, step)

    def by_checkpoint(folder: Path) -> None:
        checkpoint.save(folder, step + 1, step, *parts)

    def by_numpy(folder: Path) -> None:
        for table, columns in tables.items():
            for name, column in columns.items():
                np.save(folder / f"{table}-{name}.npy", column)

    def and_checksums(folder: Path) -> None:
        by_numpy(folder)
        for path in folder.iterdir():
            with path.open("rb") as file:
                hashlib.file_digest(file, "sha256").hexdigest()

    before = load()
    ways = {"checkpoint": by_checkpoint, "numpy": by_numpy, "and SHA-256": and_checksums}
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        turns = {way: partial(timed, Path(name), write, fsync=args.fsync) for way, write in ways.items()}
        found = in_turns(turns, args.rounds)
    nbytes = sum(column.nbytes for columns in tables.values() for column in columns.values())
    print(f"{nbytes:,} bytes{', brought to the disk' if args.fsync else ''}; load {before} to {load()}\n")
    print("| | s | s of CPU | checkpoint / this, by the clock | by CPU time |\n|---|---|---|---|---|")
    print(compared("checkpoint", found))


if __name__ == "__main__":
    main()
