"""Which documents may be proposed to a query's chain? The certificate of judged pairs, by what a step brings.

    python -m benchmarks.pairs                 # the table of docs/pairs.md; about three minutes of one core

300 queries and 160 documents of which a few answer many queries and many none (Zipf), random features that stand still,
16 queries a step. For each way the averaged gradient of all texts is compared with the exact one
(`emc2dist.core.certify`): relbias is its distance, floor what as many independent unbiased samples would leave, and the
ratio is about 1 where there is no bias.
"""

import argparse
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from emc2dist.core.certify import certify
from emc2dist.core.certify_pairs import FrozenPairs
from emc2dist.core.contrast import Contrast
from emc2dist.core.estimators import ESTIMATORS
from emc2dist.core.objectives import Dcl

QUERIES, DOCUMENTS, WIDTH, BATCH, TEMPERATURE = 300, 160, 16, 16, 0.2
WAYS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "softmax over the batch's documents": ("in_batch", {}, True),
    "chains, the batch's documents proposed": ("chain", {"kernel": "isir"}, True),
    "chains, these and 16 draws": ("chain", {"kernel": "isir", "draws": 16}, True),
    "softmax over 16 draws": ("in_batch", {"draws": 16}, False),
    "chains, 16 draws alone": ("chain", {"kernel": "isir", "draws": 16}, False),
    "chains (mh), 16 draws alone": ("chain", {"kernel": "mh", "draws": 16}, False),
}
"""Estimator, its options, and whether the batch's documents are candidates."""


def judged(generator: torch.Generator) -> Tensor:
    """Pairs int64 [R, 2]: each query has one document or two, drawn by their popularity, 1 / rank."""
    popular = 1 / torch.arange(1.0, DOCUMENTS + 1)
    drawn = torch.multinomial(popular, 2 * QUERIES, replacement=True, generator=generator).view(2, QUERIES)
    pairs = {(query, int(drawn[0, query])) for query in range(QUERIES)}
    pairs |= {(query, int(drawn[1, query])) for query in range(0, QUERIES, 3)}
    return torch.tensor(sorted(pairs))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=4_000)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    features = normalize(torch.randn(QUERIES + DOCUMENTS, WIDTH, dtype=torch.float64, generator=generator), dim=-1)
    pairs = judged(generator)
    nobodys = DOCUMENTS - len(pairs[:, 1].unique())
    most = int(torch.bincount(pairs[:, 1]).max())
    print(f"{len(pairs)} judged pairs; {nobodys} documents answer nobody, one answers {most}; {steps:,} steps")
    print("| candidates | relbias | floor | ratio |\n|---|---|---|---|")
    for name, (estimator, options, proposes) in WAYS.items():
        contrast = Contrast(Dcl("forward"), ESTIMATORS[estimator](**options))
        run = FrozenPairs(contrast, features, QUERIES, pairs, BATCH, TEMPERATURE, proposes=proposes)
        found = certify(run, steps)
        print(f"| {name} | {found.relbias:.3f} | {found.floor:.3f} | {found.ratio:.1f} |", flush=True)


if __name__ == "__main__":
    main()
