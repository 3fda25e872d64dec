"""Can carried states be encoded again for less? Ways to do it, on frozen features (docs/algorithm.md).

    python -m benchmarks.thinning --sets "omniglot, trained" digits          # half an hour of one core
    python -m benchmarks.thinning --noise 0.5 --ways all roulette cached     # cached features that are off, as by age

N = 300 images in 20 views, fresh views of anchors and candidates at every visit, V = 2, as in
`benchmarks/certificate.py`. For each way, kernel and B: the bias of the mean gradient, the variance of one step, its
autocorrelation time, images encoded beside the batch, NOISE (variance, times autocorrelation time, times what a step
encodes over what a plain step does), and the distance of a mean gradient that costs the encodings of 1,000 plain steps
(as in `emc2dist certify`); all in lengths of the exact gradient. An encoding without a graph counts for a third.

    all          every carried state that may have weight                      (`carried: reencode`)
    visit r      with probability r the chain is visited, and what that adds to in-batch softmax counts 1 / r; else
                 in-batch softmax alone, and the chain stays. The choice knows nothing of the state: exact.
    decide r     the cached feature decides where the chain goes; with probability r the carried state is encoded again,
                 and its share of the weight counts 1 / r, with in-batch softmax as control variate
    roulette     the same with the probability of its share, which then counts 1 (`carried: roulette`)
    graph        all are encoded without a graph, and decide; then roulette for the gradient. Exact as `all` is.
    shared       the views of a sample share a carried state, that of a random one of them
    forward      all without a graph, balanced
    cached       none, the cached feature stands in, balanced                   (`carried: cached`)
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize
from typing_extensions import override

from benchmarks.certificate import SETS, frozen
from emc2dist.core.batch import Batch
from emc2dist.core.certify import FrozenRun, Report, certify
from emc2dist.core.contrast import Contrast
from emc2dist.core.denominator import Denominator, Estimate
from emc2dist.core.estimators import Chain, Encode, Estimator, InBatch, Recall, Visit
from emc2dist.core.estimators.chain import Carried, _Pool, staked
from emc2dist.core.objectives import Dcl
from emc2dist.core.streams import uniforms
from emc2dist.core.sweep import Kernel, sweep

STEPS = {64: 625, 16: 1_250}
AVERAGED = 1000
NOT_KEPT = ("visit", "decide", "graph", "shared", "forward")
WAYS = ("all", *NOT_KEPT, "roulette", "cached")
_COIN, _SLOT = 8, 9  # lanes of a chain's random stream

Way = Literal["visit", "decide", "graph", "shared", "forward"]


class Signed(Estimate):
    """An estimate whose weights may be negative."""

    @property
    @override
    def _pull(self) -> Tensor:
        pull = (self.weights * torch.where(self.weights == 0, 0, self.scores)).sum(1)
        return pull - pull.detach()


@dataclass(frozen=True)
class Thinned(Chain):
    """A chain that encodes what it carries in one of the ways that were not kept."""

    way: Way = "visit"
    share: float = 1.0
    """r."""

    @override
    def estimate(self, what: Denominator, batch: Batch, recall: Recall, encode: Encode) -> Visit:
        pool = _Pool(what, batch, recall, encode, complete=False)
        carried, coin = self._recalled(what, pool, recall), uniforms(pool.streams, 1, lane=_COIN).squeeze(1)
        here = pool.find(carried.state)[0].fresh
        skipped = carried.exists & (coin >= self.share) & (self.way == "visit")
        carried = carried.replaced(skipped, replace(carried, score=torch.full_like(carried.score, -torch.inf)))
        if self.way != "decide" and self.kernel == "isir":
            carried = pool.refreshed(carried, pool.asked(carried.exists))
        visit = sweep(pool.proposals(carried), carried.score, kernel=self.kernel, streams=batch.streams)
        weights, weighs = visit.weights, carried.exists & (visit.carried_weight > 0)
        survives = ~here & (coin < (self.share if self.way == "decide" else visit.carried_weight))
        if self.way == "visit":
            base = torch.cat([pool._scores.detach().softmax(1), torch.zeros_like(weights[:, :1])], 1)
            factor = torch.where(skipped, 0, torch.where(carried.exists, 1 / self.share, 1)).unsqueeze(1)
            weights = base + factor * (weights - base)
        elif self.way == "decide":
            weighs &= survives
            last = torch.where(here, 1, survives / self.share) * weights[:, -1]
            base = pool.proposals(carried).detach().softmax(1)
            weights = torch.cat([weights[:, :-1] + (weights[:, -1] - last).unsqueeze(1) * base, last.unsqueeze(1)], 1)
        elif self.way == "graph":
            weights = torch.where(here.unsqueeze(1), weights, staked(weights, survives))
        carried = pool.refreshed(carried, pool.asked(weighs))
        estimate = self._estimate(pool, carried, weights, here)
        state = estimate.index.gather(1, visit.state.unsqueeze(1)).squeeze(1)
        new = {
            "state": state,
            "view": pool.view_of(visit.state, carried),
            "visited": visit.weights.sum(1) > 0,
            "visited_at": torch.full_like(state, batch.step),
        }
        kept = {name: torch.where(skipped, recall.columns[name], values) for name, values in new.items()}
        facts = {"with_graph": survives.sum().double()} if self.way == "graph" else {}
        return Visit(estimate, self._shared(batch, kept) if self.way == "shared" else kept, facts)

    def _estimate(self, pool: _Pool, carried: Carried, weights: Tensor, here: Tensor) -> Estimate:
        found = pool.estimate(carried, weights, None)
        # A skipped chain's sample may be in the batch, and then has weight there.
        scores = torch.cat([pool._scores, carried.score.unsqueeze(1)], 1)
        one_sided = found.one_sided.clone()
        one_sided[:, -1] = ~here & (self.way == "forward")
        return Signed(**{**vars(found), "scores": scores, "one_sided": one_sided})

    def _shared(self, batch: Batch, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        assert batch.streams is not None
        slot = (uniforms(batch.streams, 1, lane=_SLOT).view(batch.views, -1)[:1] * batch.views).long()
        by_view = {name: values.view(batch.views, -1) for name, values in columns.items()}
        return {name: v.gather(0, slot).expand_as(v).flatten() for name, v in by_view.items()}


class Aged(FrozenRun):
    """Whose cached features are off by noise, as long as `noise` times a feature; encodes without a graph on demand."""

    noise, graph = 0.0, True

    @override
    def encode(self, side: str, samples: Tensor, numbers: Tensor) -> Tensor:
        found = super().encode(side, samples, numbers)
        return found if self.graph else found.detach()

    @override
    def _cache(self, index: Tensor, features: Tensor, step: int, slot: int) -> None:
        length = self.noise / features.shape[-1] ** 0.5
        generator = torch.Generator().manual_seed(step)
        noise = torch.randn(features.shape, generator=generator, dtype=features.dtype)
        super()._cache(index, normalize(features.detach() + length * noise, dim=-1), step, slot)


def ways(kernel: Kernel) -> Iterator[tuple[str, Estimator]]:
    """All of them, by name."""
    yield "all", Chain(kernel)
    yield "roulette", Chain(kernel, carried="roulette")
    yield "cached", Chain(kernel, carried="cached")
    for share in (0.5, 0.25):
        yield f"visit {share}", Thinned(kernel, way="visit", share=share)
    for share in (1.0, 0.5, 0.25):
        yield f"decide {share}", Thinned(kernel, way="decide", share=share)
    if kernel == "isir":
        yield "graph", Thinned(kernel, way="graph")
    yield "shared", Thinned(kernel, way="shared")
    yield "forward", Thinned(kernel, way="forward")


def row(features: Tensor, estimator: Estimator, size: int, args: argparse.Namespace, exact: Tensor) -> Report:
    """The certificate of one of them."""
    run = Aged(Contrast(Dcl(), estimator), features, size, args.temperature, args.seed)
    run.noise, run.graph = args.noise, not (isinstance(estimator, Thinned) and estimator.way == "forward")
    return certify(run, int(STEPS[size] * args.scale), exact=exact)


def told(name: str, found: Report, size: int) -> str:
    """A line of the table."""
    batch, bias = 2 * size, max(0.0, found.excess)
    again = found.facts.get("reencoded_images", 0.0)
    if name in ("graph", "forward"):
        again = again / 3 + found.facts.get("with_graph", 0.0)
    variance, least = found.error - bias, 3 * found.excess_error
    price = (batch + again) / batch
    distance = (bias + variance * found.iact * price / AVERAGED) ** 0.5
    shown = f"{bias**0.5:.3f}" if bias > least else f"<{least**0.5:.3f}"
    return (
        f"{shown:>7} {variance:8.1f} {found.iact:5.2f} {again:6.1f} "
        f"{variance * found.iact * price:8.1f} {distance:8.3f}"
    )


def main() -> None:
    """Print a table for each set and B."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sets", nargs="+", default=["digits"], choices=list(SETS))
    parser.add_argument("--sizes", nargs="+", type=int, default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--temperature", type=float, default=0.07)
    parser.add_argument("--train", type=int, default=250, help="steps of a trained encoder (default 250)")
    parser.add_argument("--scale", type=float, default=1.0, help="times the default number of steps")
    parser.add_argument("--noise", type=float, default=0.0, help="of cached features, as if they were old (default 0)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.sets:
        features = frozen(name, 300, 20, args.train)
        exact = FrozenRun(Contrast(Dcl(), InBatch()), features, 16, args.temperature).exact()
        for size in args.sizes:
            print(f"{name}, B = {size}, temperature {args.temperature}, noise {args.noise}")
            print(f"{'':15} {'BIAS':>7} {'VARIANCE':>8} {'IACT':>5} {'AGAIN':>6} {'NOISE':>8} {'DISTANCE':>8}")
            batch = row(features, InBatch(), size, args, exact)
            print(f"{'in batch':15} {told('', batch, size)}", flush=True)
            for kernel in ("isir", "mh"):
                for way, estimator in ways(kernel):
                    if way.split()[0] in args.ways:
                        found = row(features, estimator, size, args, exact)
                        print(f"{kernel + ', ' + way:15} {told(way, found, size)}", flush=True)


if __name__ == "__main__":
    main()
