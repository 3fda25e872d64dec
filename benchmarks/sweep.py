"""How fast is a sweep? Seconds on this machine, and the ratio to the readable Python walk in the same run.

    python -m benchmarks.sweep
    python -m benchmarks.sweep --device cuda

One row per (A anchors, P proposals), float32, one thread: the readable walk of `emc2dist.core.walk`, `sweep`
whole (the CPU's hot path) without and with a random order, and the batched walk (a GPU's without Triton, here on the
CPU). Then `sweep` whole against a plain torch loop over proposals, which takes all chains a proposal further at a
time: in turns, in milliseconds by the clock and of CPU, medians with quartiles. On a GPU: milliseconds of `sweep`
whole, launched from Python, and of the same in a CUDA graph, which is the device's own time; and of the batched walk
that stands in for Triton's.
"""

import argparse
import statistics
import time
import timeit
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.rounds import in_turns, load, ratios, spread
from emc2dist.core import sweep
from emc2dist.core.walk import metropolis_row

SIZES = ((128, 63), (512, 255), (2048, 1023))


def readable(scores: torch.Tensor, carried: torch.Tensor, log_u: torch.Tensor) -> None:
    """Every chain by the definition."""
    weights = torch.zeros(len(scores), scores.shape[1] + 1).numpy()
    for s, c, u, w in zip(scores.numpy(), carried.numpy(), log_u.numpy(), weights, strict=True):
        metropolis_row(s, c, u, 0.5, w)


def loop(scores: torch.Tensor, carried: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """mh as torch says it, the random numbers included: weights [A, P+1] with half burnt in, and states [A]."""
    chains, count = scores.shape
    burn_in, column = count // 2, torch.arange(chains)
    order = torch.rand(chains, count).argsort(1)
    log_u = torch.rand(chains, count).log()
    state, current = torch.full((chains,), count), carried.clone()
    weights = torch.zeros(chains, count + 1)
    for step in range(count):
        proposal = order[:, step]
        score = scores[column, proposal]
        accepted = score - log_u[:, step] > current
        state = torch.where(accepted, proposal, state)
        current = torch.where(accepted, score, current)
        if step >= burn_in:
            weights[column, state] += 1
    return weights / (count - burn_in), state


def against_loop(anchors: int, proposals: int, rounds: int, calls: int = 5) -> None:
    """Print the rows of both, by the clock and of CPU."""
    scores, carried, _ = given(anchors, proposals, torch.device("cpu"))
    exact = sweep.sweep(scores, carried).weights.mean(0)
    assert (exact - loop(scores, carried)[0].mean(0)).abs().max() < 0.05, "they walk other chains"

    def timed(work: Callable[..., object]) -> tuple[float, float]:
        began, cpu_began = time.perf_counter(), time.process_time()
        for _ in range(calls):
            work()
        return 1000 * (time.perf_counter() - began) / calls, 1000 * (time.process_time() - cpu_began) / calls

    before = load()
    ways: dict[str, Callable[..., object]] = {
        "sweep": partial(sweep.sweep, scores, carried),
        "loop": partial(loop, scores, carried),
    }
    found = in_turns({name: partial(timed, work) for name, work in ways.items()}, rounds)
    (wall, cpu), (loop_wall, loop_cpu) = (list(zip(*found[name], strict=True)) for name in ways)
    cells = [spread(wall), spread(cpu), spread(loop_wall), spread(loop_cpu)]
    over = [spread(ratios(loop_wall, wall), 1), spread(ratios(loop_cpu, cpu), 1)]
    print(f"| {anchors} | {proposals} | {' | '.join(cells + over)} | {before} to {load()} |", flush=True)


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
    print("| A | P | readable s | whole mh, no order drawn | batched | whole mh | whole isir |")
    print("|---|---|---|---|---|---|---|")
    for anchors, proposals in SIZES:
        scores, carried, log_u = given(anchors, proposals, device)
        slow = best(lambda s=scores, c=carried, u=log_u: readable(s, c, u), 1)  # type: ignore[misc]
        fast = [
            best(work, 5)
            for work in (
                lambda s=scores, c=carried: sweep.sweep(s, c, shuffle=False),
                lambda s=scores, c=carried, u=log_u: sweep._metropolis_batched(s, c, u, 0.5),
                lambda s=scores, c=carried: sweep.sweep(s, c),
                lambda s=scores, c=carried: sweep.sweep(s, c, kernel="isir"),
            )
        ]
        cells = " | ".join(f"{seconds:.4f} s, {slow / seconds:,.0f}x" for seconds in fast)
        print(f"| {anchors} | {proposals} | {slow:.3f} | {cells} |", flush=True)
    print("\n| A | P | mh, ms | of CPU | loop, ms | of CPU | loop / mh, by the clock | by CPU time | load |")
    print("|---|---|---|---|---|---|---|---|---|")
    for anchors, proposals in ((64, 62), (512, 510), (2048, 1023)):
        against_loop(anchors, proposals, rounds=15)


if __name__ == "__main__":
    main()
