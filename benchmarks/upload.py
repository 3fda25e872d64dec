"""What does sending a checkpoint cost training? The same run twice: sent while the run waits, and while it goes on.

    python benchmarks/upload.py [--rate 40]

A small run in this process, whose writer is that of the training job. In Ray Train's place stands what it does with a
checkpoint: it has it sent at once (SYNC), or on a thread (ASYNC). Storage takes `--rate` MiB/s, which is what a small
S3 server on one machine took; sending costs no CPU here. Prints the seconds that training stood still for each
checkpoint besides writing it to the local disk, and their ratio.
"""

import argparse
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter, sleep
from typing import Any
from unittest import mock

import ray.train
import torch

from emc2dist.config import parse
from emc2dist.data.images import open_images
from emc2dist.files import Entry
from emc2dist.files.disk import DiskPlace
from emc2dist.metrics import Row
from emc2dist.run.folder import RunFolder
from emc2dist.run.worker import _CheckpointWriter
from emc2dist.store import Layout, LocalStore
from emc2dist.train import loop
from emc2dist.train.memory import schema_for

SPEC = parse(
    "{name: upload, epochs: 4, batch_size: 8, lr: 1e-3, data: {path: digits, limit: 80}, views: {size: 8},"
    " encoder: {norm: none}, eval: {every: 0, bank: 40, queries: 40}}"
)


class SlowPlace(DiskPlace):
    """Takes `rate` MiB each second."""

    rate = 40.0

    def __truediv__(self, name: str) -> "SlowPlace":
        return SlowPlace(self.path / name)

    def put(self, source: Path) -> Entry:
        sleep(source.stat().st_size / 2**20 / self.rate)
        return super().put(source)


class Timed:
    """A writer, and how long training stood in it."""

    def __init__(self, writer: loop.CheckpointWriter) -> None:
        self.writer = writer
        self.stood_s: list[float] = []

    def write(self, step: int, folder: Path, row: Row) -> None:
        began = perf_counter()
        self.writer.write(step, folder, row)
        self.stood_s.append(perf_counter() - began)


class Silent:
    """Records nothing, and never asks the run to stop."""

    def record(self, row: Row) -> None:
        pass

    def is_set(self) -> bool:
        return False

    def wait_until_saved(self, timeout_s: float) -> None:
        pass


def train(take: Callable[..., Any]) -> tuple[list[float], float]:
    """Train with checkpoints taken so; returns the seconds stood still for each, and the seconds of the whole run."""
    images = open_images(SPEC.data, "train", SPEC.s3)
    assert images is not None
    store = LocalStore(Layout(len(images), 1), schema_for(SPEC))

    def report(row: Row, *, checkpoint: Any, checkpoint_dir_name: str, checkpoint_upload_fn: Any, **mode: Any) -> None:
        take(checkpoint_upload_fn, checkpoint, checkpoint_dir_name)

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(ray.train, "report", report):
        writer = Timed(_CheckpointWriter(SPEC, RunFolder(SlowPlace(Path(folder))), Silent()))  # type: ignore[arg-type]
        began = perf_counter()
        parts = (store, Silent(), writer, torch.device("cpu"), Silent(), Path(folder))
        loop.run(loop.Job(SPEC, images, None, *parts))
        return writer.stood_s, perf_counter() - began


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=SlowPlace.rate)
    SlowPlace.rate = parser.parse_args().rate
    torch.set_num_threads(1)
    means = []
    with ThreadPoolExecutor(max_workers=1) as pool:
        for name, take in (("SYNC", lambda fn, *arguments: fn(*arguments)), ("ASYNC", pool.submit)):
            stood, whole = train(take)
            means.append(sum(stood) / len(stood))
            print(f"{name:<5}  stood still {', '.join(f'{s:.2f}' for s in stood)} s, the run took {whole:.1f} s")
    print(f"ratio of the means: {means[0] / means[1]:,.0f}")


if __name__ == "__main__":
    main()
