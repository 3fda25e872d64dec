"""How fast is a sweep? Seconds on this machine, and the ratio to the readable Python walk in the same run.

    python benchmarks/sweep.py

One row per (A anchors, P proposals), float32, one thread: the readable walk of `emc2dist.core.walk`, the compiled one
(the CPU's hot path), the batched one (the GPU's, here on the CPU), and `sweep` whole, random order included.
"""

import timeit
from collections.abc import Callable

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


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    print("| A | P | readable s | compiled | batched | whole mh sweep | whole isir |")
    print("|---|---|---|---|---|---|---|")
    for anchors, proposals in SIZES:
        scores = torch.randn(anchors, proposals, generator=generator) * 3
        carried, log_u = torch.zeros(anchors), torch.rand(anchors, proposals, generator=generator).log()
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
