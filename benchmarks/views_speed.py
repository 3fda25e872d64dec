"""How fast are random views? Ours, compiled and by the batch, against torchvision's v2, a view at a time; on one core.

    python benchmarks/views_speed.py                 # a table, some minutes; kept in docs/performance.md
    python benchmarks/views_speed.py --device cuda   # views a second of a GPU

The augmentations of SimCLR, blur from 96 pixels on, of images of one size. In each round all make views of the same
images, one after the other; a ratio is the median over the rounds, so that what else the machine does meets all alike.
Milliseconds are of the CPU, of one thread. By the batch is what a GPU does (`views.made_on`); here, on the CPU, packing
included.
"""

import argparse
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emc2dist.config import Views
from emc2dist.towers._torchvision import v2
from emc2dist.towers.batched import BatchedViews
from emc2dist.towers.parameters import SIGMA, kernel
from emc2dist.towers.views import RandomView

CASES = [(32, (32, 32)), (96, (96, 96)), (224, (224, 224)), (224, (375, 500))]
"""Side of the views, and the images' height and width."""
IMAGES, V = 32, 2


def spec(size: int) -> Views:
    """The augmentations of SimCLR at some size."""
    blur = 0.5 if size >= 96 else 0.0
    return Views(size=size, crop=(0.08, 1.0), jitter=(0.8, 0.8, 0.8, 0.2), blur=blur)


def by_torchvision(config: Views, taps: int) -> Callable[[Tensor], Tensor]:
    """The same augmentations."""
    steps = [
        v2.RandomResizedCrop(config.size, scale=config.crop, ratio=config.aspect, antialias=True),
        v2.RandomHorizontalFlip(config.flip),
        v2.RandomApply([v2.ColorJitter(*config.jitter)], p=config.jitter_probability),
        v2.RandomGrayscale(config.grey),
    ]
    if config.blur:
        steps.append(v2.RandomApply([v2.GaussianBlur(taps, sigma=SIGMA)], p=config.blur))
    return v2.Compose(steps)


def pictures(height: int, width: int) -> list[Tensor]:
    """Smooth and rough colours, uint8 [3, H, W], as a decoder lays them: pixel after pixel."""
    draw = torch.Generator().manual_seed(0)
    coarse = torch.rand(IMAGES, 3, 8, 8, generator=draw)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    pixels = smooth + 0.1 * torch.randn(smooth.shape, generator=draw)
    by_pixel = pixels.clamp(0, 1).mul(255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return list(by_pixel.permute(0, 3, 1, 2))


def milliseconds(made: Callable[[], object]) -> float:
    """CPU time of a view, where `made` makes those of all images."""
    began = time.thread_time()
    made()
    return 1000 * (time.thread_time() - began) / (IMAGES * V)


def rounds(size: int, images: Sequence[Tensor], count: int) -> NDArray[np.float64]:
    """Milliseconds a view [3, rounds]: compiled, by the batch, and torchvision's."""
    config = spec(size)
    view, batched = RandomView(config), BatchedViews(config, torch.device("cpu"))
    other = by_torchvision(config, kernel(size))
    draws = np.random.default_rng(0)
    taken = []
    for _ in range(count + 1):
        streams = draws.integers(0, 2**63, (V, IMAGES))
        ways: list[Callable[[], object]] = [
            lambda streams=streams: view(images, streams),  # type: ignore[misc]
            lambda streams=streams: batched([batched.pack(images, streams)]),  # type: ignore[misc]
            lambda: [other(image) for image in images for _ in range(V)],
        ]
        taken.append([milliseconds(way) for way in ways])
    return np.array(taken[1:]).T  # the first warms up


def ratio(slower: NDArray[np.float64], faster: NDArray[np.float64]) -> str:
    """The median over the rounds, and the least and the most."""
    ratios = slower / faster
    return f"{np.median(ratios):.1f} ({ratios.min():.1f} to {ratios.max():.1f})"


def on_gpu(device: torch.device, count: int) -> None:
    """Print the table of a GPU: batches of 512 views, packed by one thread of the host, made on the device."""
    print("| view, px | image, px | views/s, made | views/s, packed and made | views/s, compiled, a core |")
    print("|---|---|---|---|---|")
    for size, (height, width) in CASES:
        images = pictures(height, width) * 8
        config = spec(size)
        view, batched = RandomView(config), BatchedViews(config, device)
        draws = np.random.default_rng(0)
        seconds = []
        for _ in range(count + 1):
            streams = draws.integers(0, 2**63, (V, len(images)))
            times = [time.perf_counter()]
            packed = [batched.pack(images, streams)]
            times.append(time.perf_counter())
            batched(packed)  # waits for its stream
            times.append(time.perf_counter())
            view(images[:IMAGES], streams[:, :IMAGES])
            times.append(time.perf_counter())
            seconds.append(np.diff(times))
        packing, making, compiled = np.median(seconds[1:], 0)
        views = V * len(images)
        rates = [views / making, views / (packing + making), V * IMAGES / compiled]
        print(f"| {size} | {height} x {width} | {' | '.join(f'{rate:,.0f}' for rate in rates)} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if args.device != "cpu":
        return on_gpu(torch.device(args.device), args.rounds)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(
        "| view, px | image, px | torchvision, ms | compiled, ms | by the batch, ms "
        "| torchvision / compiled | by the batch / compiled |"
    )
    print("|---|---|---|---|---|---|---|")
    for size, (height, width) in CASES:
        ours, batched, theirs = rounds(size, pictures(height, width), args.rounds)
        print(
            f"| {size} | {height} x {width} | {np.median(theirs):.2f} | {np.median(ours):.3f} "
            f"| {np.median(batched):.2f} | {ratio(theirs, ours)} | {ratio(batched, ours)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
