"""How fast is a sweep? Seconds on this machine, and the ratio to the readable Python walk in the same run.

    python benchmarks/sweep.py
    python benchmarks/sweep.py --device cuda

One row per (A anchors, P proposals), float32, one thread: the readable walk of `emc2dist.core.walk`, the compiled one
(the CPU's hot path), the batched one (a GPU's without Triton, here on the CPU), and `sweep` whole, random order
included. On a GPU: milliseconds of `sweep` whole, launched from Python, and of the same in a CUDA graph, which is the
device's own time; and of the batched walk that stands in for Triton's.
"""

import argparse
import statistics
import timeit
from collections.abc import Callable
from functools import partial

import torch

from emc2dist.core import sweep
from emc2dist.core.walk import metropolis_row

SIZES = ((128, 63), (512, 255), (2048, 1023))


def readable(scores: torch.Tensor, carried: torch.Tensor, log_u: torch.Tensor) -> None:
    """Every chain by the definition."""
    weights = torch.zeros(len(scores), scores.shape[1] + 1).numpy()
    for s, c, u, w in zip(scores.numpy(), carried.numpy(), log_u.numpy(), weights, strict=True):
        metropolis_row(s, c, u, 0.5, w)


def best(work: Callable[[], object], repeats: int) -> float:
    """Least seconds of a call, after one to warm up."""
    work()
    return min(timeit.repeat(work, number=1, repeat=repeats))


def on_gpu(device: torch.device) -> None:
    """Print the table of a GPU, milliseconds."""
    print("| A | P | mh, from Python | in a graph | batched walk | isir, from Python | in a graph |")
    print("|---|---|---|---|---|---|---|")
    for anchors, proposals in (*SIZES, (64, 32), (512, 510), (2048, 1024)):
        scores, carried, log_u = given(anchors, proposals, device)
        streams = torch.arange(anchors, device=device)
        mh = partial(sweep.sweep, scores, carried, streams=streams)
        isir = partial(sweep.sweep, scores, carried, kernel="isir", streams=streams)
        batched = partial(sweep._metropolis_batched, scores, carried, log_u, 0.5)
        found = [by_events(mh), by_events(graph(mh)), by_events(batched), by_events(isir), by_events(graph(isir))]
        print(f"| {anchors} | {proposals} | {' | '.join(f'{ms:.3f}' for ms in found)} |", flush=True)


def graph(work: Callable[[], object]) -> Callable[[], object]:
    """The same work as a CUDA graph."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.synchronize()
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        work()
    return recorded.replay


def by_events(work: Callable[[], object], repeats: int = 50) -> float:
    """Median milliseconds of a call, by the device's clock."""
    for _ in range(5):
        work()
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for begin, end in marks:
        begin.record()
        work()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in marks)


def given(anchors: int, proposals: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores [A, P], of the carried states [A], and log u [A, P]."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(anchors, proposals, generator=generator) * 3
    log_u = torch.rand(anchors, proposals, generator=generator).log()
    return scores.to(device), torch.zeros(anchors, device=device), log_u.to(device)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu")
    device = torch.device(parser.parse_args().device)
    if device.type == "cuda":
        return on_gpu(device)
    torch.set_num_threads(1)
    print("| A | P | readable s | compiled | batched | whole mh sweep | whole isir |")
    print("|---|---|---|---|---|---|---|")
    for anchors, proposals in SIZES:
        scores, carried, log_u = given(anchors, proposals, device)
        slow = best(lambda s=scores, c=carried, u=log_u: readable(s, c, u), 1)  # type: ignore[misc]
        fast = [
            best(work, 5)
            for work in (
                lambda s=scores, c=carried, u=log_u: sweep._metropolis_compiled(s, c, u, 0.5),
                lambda s=scores, c=carried, u=log_u: sweep._metropolis_batched(s, c, u, 0.5),
                lambda s=scores, c=carried: sweep.sweep(s, c),
                lambda s=scores, c=carried: sweep.sweep(s, c, kernel="isir"),
            )
        ]
        cells = " | ".join(f"{seconds:.4f} s, {slow / seconds:,.0f}x" for seconds in fast)
        print(f"| {anchors} | {proposals} | {slow:.3f} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
