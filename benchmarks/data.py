"""How fast do images come? Ours against torchvision ImageFolder + DataLoader, Hugging Face datasets and WebDataset.

    pip install -e '.[benchmarks]'
    python benchmarks/data.py --s3           # prints the tables that are kept in docs/data-speed.md

Two sets: the CIFAR-10 files beside the project repeated to 500,000 rows of 32 pixels, and JPEGs of 256 pixels made of
them. Ours is what `emc2dist ingest` writes; Hugging Face datasets reads those same Parquet files. Every rate is of
images decoded to uint8 tensors. In each round every contestant takes its turn; the ratio is the median over the rounds,
so that what else the machine does meets all alike. With `--s3`, the same from a real S3 server (OpenStack Swift,
`make .swift/.ready`) on loopback, which takes its share of the same CPUs.
"""

import argparse
import io
import os
import resource
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from emc2dist.data.ingest import ingest
from emc2dist.data.loader import ViewLoader
from emc2dist.data.parquet import ParquetImages
from emc2dist.data.sampler import EpochOrder
from emc2dist.towers._torchvision import v2

from torchvision import datasets  # isort: skip  # after the guard above

ROOT = Path(__file__).parents[1]
CIFAR = ROOT.parent / "shared" / "data" / "cifar10"
SCHEMA = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))])
PROCESSES = 2
BATCH = 256


class Contestant(Protocol):
    """One way to images."""

    name: str

    def random(self, indices: np.ndarray) -> int:
        """Decode the images of some indices; returns how many."""
        ...

    def epoch(self) -> Iterator[int]:
        """Batch sizes as the batches of a shuffled epoch come, decoded in `PROCESSES` processes."""
        ...


def as_it_is(images: Sequence[Tensor], seeds: np.ndarray) -> Tensor:
    """The view of a benchmark: the images themselves, of one size."""
    return torch.stack(list(images)).unsqueeze(0)


def tensor(image: Image.Image) -> Tensor:
    """A PIL image as uint8 [3, H, W]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


class Ours:
    """ParquetImages and ViewLoader."""

    name = "emc2dist"

    def __init__(self, path: str, size: int, cache: Path) -> None:
        images = ParquetImages.open(path, cache_dir=cache)
        assert images is not None
        self.images, self.size, self.shuffle = images, size, "block" if path.startswith("s3") else "full"

    def random(self, indices: np.ndarray) -> int:
        return len(self.images.get(indices))

    def epoch(self) -> Iterator[int]:
        blocks = self.images.blocks if self.shuffle == "block" else None
        order = EpochOrder(len(self.images), BATCH, time.time_ns(), blocks=blocks, window=16_384)
        seeds = np.zeros((1, BATCH), np.int64)
        with ViewLoader(self.images, as_it_is, self.size, processes=PROCESSES) as loader:
            ahead = [loader.submit(order.batch(step), seeds) for step in range(4)]
            for step in range(4, order.steps_per_epoch):
                yield ahead.pop(0).result().shape[1]
                ahead.append(loader.submit(order.batch(step), seeds))
            yield from (views.result().shape[1] for views in ahead)


class Folder:
    """torchvision's ImageFolder and torch's DataLoader."""

    name = "ImageFolder + DataLoader"

    def __init__(self, folder: Path) -> None:
        self.set = datasets.ImageFolder(str(folder), transform=v2.PILToTensor())

    def random(self, indices: np.ndarray) -> int:
        return len([self.set[index] for index in indices])

    def epoch(self) -> Iterator[int]:
        for images, _ in DataLoader(self.set, BATCH, shuffle=True, num_workers=PROCESSES):
            yield len(images)


class HuggingFace:
    """datasets, map-style, on the Parquet files that are ours."""

    name = "Hugging Face datasets"

    def __init__(self, pattern: str, cache: Path) -> None:
        import datasets as hf

        hf.disable_progress_bars()
        self.set = hf.load_dataset("parquet", data_files={"train": pattern}, split="train", cache_dir=str(cache))

    def random(self, indices: np.ndarray) -> int:
        return len([tensor(image) for image in self.set[indices.tolist()]["image"]])

    def epoch(self) -> Iterator[int]:
        loader = DataLoader(self.set.with_transform(_tensors), BATCH, shuffle=True, num_workers=PROCESSES)
        for batch in loader:
            yield len(batch["image"])


def _tensors(rows: dict[str, Any]) -> dict[str, Any]:
    return {"image": [tensor(image) for image in rows["image"]]}


class WebDataset:
    """Tar shards, read in order, shuffled in a buffer. It has no random access."""

    name = "WebDataset"

    def __init__(self, shards: list[str]) -> None:
        self.shards = shards

    def random(self, indices: np.ndarray) -> int:
        raise NotImplementedError

    def epoch(self) -> Iterator[int]:
        import webdataset as wds

        stream = wds.WebDataset(self.shards, shardshuffle=len(self.shards), empty_check=False).shuffle(1000)
        images = stream.decode("pil").to_tuple("jpg").map_tuple(tensor)
        for (batch,) in wds.WebLoader(images.batched(BATCH), batch_size=None, num_workers=PROCESSES):
            yield len(batch)


# The sets.


def cifar_rows() -> list[bytes]:
    """The 50,000 training images, encoded."""
    files = sorted(CIFAR.glob("train*.parquet"))
    if not files:
        sys.exit(f"{CIFAR}: the CIFAR-10 files are not beside the project")
    columns = [pc.struct_field(pq.read_table(file, columns=["image"]).column(0), "bytes") for file in files]
    return [value for column in columns for value in column.to_pylist()]


def enlarged(encoded: bytes, rng: np.random.Generator) -> bytes:
    """The image at 256 pixels, with the noise that a photograph has."""
    image = Image.open(io.BytesIO(encoded)).resize((256, 256), Image.Resampling.BICUBIC)
    noisy = np.asarray(image) + rng.normal(0, 6, (256, 256, 1))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(buffer, "jpeg", quality=85)
    return buffer.getvalue()


class Made:
    """A set in every contestant's form."""

    def __init__(self, name: str, size: int, rows: Callable[[], Iterator[bytes]], count: int, folder: Path) -> None:
        self.name, self.size, self.count, self.folder = name, size, count, folder
        source = folder / "source.parquet"
        (folder / "files" / "all").mkdir(parents=True)
        (folder / "tars").mkdir()
        kept: list[bytes] = []
        with pq.ParquetWriter(source, SCHEMA) as out:
            for index, encoded in enumerate(tqdm(rows(), total=count, desc=f"make {name}", disable=None)):
                (folder / "files" / "all" / f"{index:07d}.jpg").write_bytes(encoded)
                kept.append(encoded)
                if len(kept) == 10_000 or index == count - 1:
                    _write_tar(folder / "tars" / f"{index:07d}.tar", kept)
                    out.write_table(pa.table({"image": [{"bytes": one, "path": None} for one in kept]}, SCHEMA))
                    kept = []
        ingest(str(source), str(folder / "set"), cache_dir=str(folder / "cache"))

    def local(self) -> list[Contestant]:
        """All of them, on disk."""
        return [
            Ours(str(self.folder / "set"), self.size, self.folder / "cache"),
            HuggingFace(str(self.folder / "set" / "train-*.parquet"), self.folder / "hf"),
            Folder(self.folder / "files"),
            WebDataset([str(tar) for tar in sorted((self.folder / "tars").iterdir())]),
        ]


def _write_tar(path: Path, images: list[bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for number, encoded in enumerate(images):
            member = tarfile.TarInfo(f"{path.stem}-{number:05d}.jpg")
            member.size = len(encoded)
            tar.addfile(member, io.BytesIO(encoded))


# The measurements.


def rate(work: Iterator[int], images: int) -> float:
    """Images a second from the first batch on (start-up is not counted), over at most `images` of them."""
    next(work)
    began, done = time.perf_counter(), 0
    for batch in work:
        done += batch
        if done >= images:
            break
    seconds = time.perf_counter() - began
    work.close()  # type: ignore[attr-defined]
    return done / seconds


def random_rate(contestant: Contestant, rng: np.random.Generator, count: int) -> float:
    """Images a second of 8 random gets of 512 indices."""
    began = time.perf_counter()
    return sum(contestant.random(rng.integers(0, count, 512)) for _ in range(8)) / (time.perf_counter() - began)


def rounds(contestants: list[Contestant], measure: Callable[[Contestant], float], count: int) -> None:
    """Print a row for each contestant: median rate, and the ratio of ours to it."""
    rates: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for _ in range(count):
        for contestant in contestants:
            rates[contestant.name].append(measure(contestant))
    ours = rates[Ours.name]
    for name, found in rates.items():
        ratios = [mine / theirs for mine, theirs in zip(ours, found, strict=True)]
        print(
            f"| {name} | {statistics.median(found):,.0f} | {statistics.median(ratios):.2f} "
            f"| {min(ratios):.2f}–{max(ratios):.2f} |",
            flush=True,
        )


def table(title: str) -> None:
    """Begin a table."""
    print(f"\n### {title}\n\n| | images/s | emc2dist / this | least–most |\n|---|---|---|---|", flush=True)


def compare(made: Made, contestants: list[Contestant], where: str, count: int) -> None:
    """Random access and epochs."""
    rng = np.random.default_rng(0)
    table(f"{made.name}, {where}: 512 random images at a time, one process")
    able = [contestant for contestant in contestants if not isinstance(contestant, WebDataset)]
    for contestant in able:
        random_rate(contestant, rng, made.count)  # what is read for the first time is read once more
    rounds(able, lambda contestant: random_rate(contestant, rng, made.count), count)
    table(f"{made.name}, {where}: a shuffled epoch, {PROCESSES} processes")
    images = min(made.count, 100_000 if made.size == 32 else 10_000)
    rounds(contestants, lambda contestant: rate(contestant.epoch(), images), count)


def opening(folder: Path) -> None:
    """Seconds to open a million rows: an ingested set, and the same files without their manifest."""
    cache = folder / "cache"
    source = folder / "million.parquet"
    pixel = io.BytesIO()
    Image.new("RGB", (1, 1)).save(pixel, "png")
    rows = pa.table(
        {
            "image": [{"bytes": pixel.getvalue(), "path": None}] * 1_000_000,
            "label": (np.arange(1_000_000) % 10).tolist(),
        }
    )
    pq.write_table(rows, source)
    ingest(str(source), str(folder / "million"), cache_dir=str(cache))
    (folder / "foreign").mkdir()
    for file in (folder / "million").glob("*.parquet"):
        os.link(file, folder / "foreign" / file.name)
    print("\n### Opening 1,000,000 rows\n\n| | first, s | again, s |\n|---|---|---|")
    for name, path in (("ingested", "million"), ("the same files without manifest", "foreign")):
        seconds = []
        for _ in range(2):
            began = time.perf_counter()
            images = ParquetImages.open(folder / path, cache_dir=cache)
            assert images is not None
            images.get(np.array([999_999]))
            seconds.append(time.perf_counter() - began)
        print(f"| {name} | {seconds[0]:.2f} | {seconds[1]:.2f} |", flush=True)


def memory(made: Made) -> None:
    """Unshared memory of this process and its loaders over an epoch, in eighths."""
    ours = Ours(str(made.folder / "set"), made.size, made.folder / "cache")
    held: list[float] = []
    done, due = 0, made.count // 8
    for batch in ours.epoch():
        done += batch
        if done >= due * (len(held) + 1):
            family = [psutil.Process(), *psutil.Process().children(recursive=True)]
            held.append(sum(process.memory_full_info().uss for process in family) / 2**20)
    print(f"\n### Memory over an epoch of {made.count:,} rows ({made.name})\n")
    print("MiB after each eighth: " + ", ".join(f"{mib:.0f}" for mib in held), flush=True)


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description="How fast images come, against others.")
    parser.add_argument("--rows", type=int, default=500_000, help="rows of the small set")
    parser.add_argument("--large", type=int, default=10_000, help="rows of the large set")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--s3", action="store_true", help="from an S3 server too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    encoded = cifar_rows()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="emc2-benchmark-") as name:
        folder = Path(name)
        small = Made(
            "CIFAR-10",
            32,
            lambda: (encoded[n % 50_000] for n in range(arguments.rows)),
            arguments.rows,
            folder / "small",
        )
        large = Made(
            "JPEG of 256 pixels", 256, lambda: (enlarged(encoded[n % 50_000], rng) for n in range(arguments.large)),
            arguments.large, folder / "large",
        )  # fmt: skip
        for made in (small, large):
            compare(made, made.local(), "on disk", arguments.rounds)
        opening(folder)
        memory(small)
        if arguments.s3:
            from_s3([small, large], folder, arguments.rounds)


def from_s3(sets: list[Made], folder: Path, count: int) -> None:
    """The same from a real S3 server; first what a machine sees that has nothing yet."""
    sys.path.insert(0, str(ROOT / "tests"))
    from s3_server import S3Server

    server = S3Server(folder / "s3")
    try:
        os.environ.update(server.environment)
        for made in sets:
            bucket = server.bucket(f"set-{made.size}")
            _first_and_warm(made, bucket, folder / f"s3-{made.size}", count)
    finally:
        server.stop()


def _first_and_warm(made: Made, bucket: str, folder: Path, count: int) -> None:
    import s3fs

    fs = s3fs.S3FileSystem()
    ingest(f"{made.folder / 'set'}", f"{bucket}/set", cache_dir=str(folder / "ingest"))
    for tar in sorted((made.folder / "tars").iterdir()):
        fs.put_file(str(tar), f"{bucket}/tars/{tar.name}")
    tars = [f"{bucket}/tars/{tar.name}" for tar in sorted((made.folder / "tars").iterdir())]
    makers: dict[str, Callable[[], Contestant]] = {
        Ours.name: lambda: Ours(f"{bucket}/set", made.size, folder / "cache"),
        HuggingFace.name: lambda: HuggingFace(f"{bucket}/set/train-*.parquet", folder / "hf"),
        WebDataset.name: lambda: WebDataset(_streams(tars)),
    }
    print(f"\n### {made.name}, from S3, on a machine that has nothing yet\n")
    print("| | first batch, s | whole epoch, s |\n|---|---|---|")
    contestants = []
    for name, make in makers.items():
        began = time.perf_counter()
        contestant = make()
        epoch = contestant.epoch()
        next(epoch)
        first = time.perf_counter() - began
        for _ in epoch:
            pass
        print(f"| {name} | {first:.1f} | {time.perf_counter() - began:.1f} |", flush=True)
        contestants.append(contestant)
    compare(made, contestants, "from S3, from the second epoch on", count)


def _streams(tars: list[str]) -> list[str]:
    """WebDataset reads S3 through a command; this one needs nothing installed but s3fs."""
    script = (
        "import s3fs, shutil, sys; shutil.copyfileobj(s3fs.S3FileSystem().open(sys.argv[1]), sys.stdout.buffer, 2**20)"
    )
    return [f"pipe:{sys.executable} -c '{script}' {tar}" for tar in tars]


if __name__ == "__main__":
    main()
