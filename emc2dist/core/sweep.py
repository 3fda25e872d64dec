"""Chains over negatives: one visit of every anchor's chain, by either of two kernels.

The target of anchor a is pi_a(c) ~ exp s(a, c) over the other samples of the dataset. A visit takes the carried state
and P proposals by their scores alone (`emc2dist.core.denominator`). It returns weights whose weighted average of score
gradients estimates the gradient of log Z, and the state that the chain is left in.

`mh` (Yau et al., ICML 2024): the proposals are taken one after another in an order drawn anew for every anchor;
proposal c replaces state e iff log u < s(c) - s(e). The weights are the shares of the kept steps.

`isir` (Andrieu, Doucet & Holenstein 2010; Cardoso et al. 2022): the weights are the softmax over proposals and
carried state, and the next state is drawn from them.

`emc2dist.core.walk` has the readable sweep of one chain and, compiled by numba, the whole visit on the CPU. On a GPU it
is one kernel (`emc2dist/core/walk_triton.py`). Where Triton is not, or proposals are too many for it, all chains
and proposals go at once (`_metropolis_batched`): the chain's path is a linked list of acceptances, found by binary
lifting in O(P log P) work and O(log P) steps.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from emc2dist.core import kernels
from emc2dist.core.streams import ACCEPT, DRAW, ORDER, fork, uniforms

Kernel = Literal["mh", "isir"]


class Sweep(NamedTuple):
    """What one visit did. Columns 0..P-1 are the proposals, column P the carried state."""

    weights: Tensor
    """[A, P+1], the scores' type; rows sum to 1 where a proposal or a carried state exists, else to 0."""
    state: Tensor
    """int64 [A]: the column that the chain ends on."""
    acceptance_rate: Tensor
    """[A] in [0, 1]: mh: accepted over valid proposals; isir: the probability that the state changes; 0 without any."""
    proposals: Tensor
    """int64 [A]: valid proposals (those whose score is not -inf)."""

    @property
    def carried_weight(self) -> Tensor:
        """[A]: share of the kept weight on the carried state."""
        return self.weights[:, -1]

    @property
    def distinct(self) -> Tensor:
        """int64 [A]: states with weight."""
        return (self.weights > 0).sum(1)

    @property
    def effective_sample_size(self) -> Tensor:
        """[A]: 1 / sum of squared weights; 0 without any weight."""
        squares = self.weights.square().sum(1)
        return torch.where(squares > 0, 1 / squares, 0)


def sweep(
    proposal_scores: Tensor,
    carried_score: Tensor,
    *,
    kernel: Kernel = "mh",
    burn_in_fraction: float = 0.5,
    generator: torch.Generator | None = None,
    shuffle: bool = True,
    streams: Tensor | None = None,
) -> Sweep:
    """Visit the chains of A anchors once.

    Args:
        proposal_scores: float32 or float64 [A, P]; -inf marks what is no proposal for an anchor: it is neither a
            step nor a rejection. NaN is a step that is rejected.
        carried_score: [A], today's score of the carried state; -inf (or NaN) where the chain was never visited: it
            then takes its first proposal.
        kernel: `mh` or `isir`.
        burn_in_fraction: share in [0, 1) of each chain's valid proposals that `mh` drops, rounded down.
        generator: source of randomness on the CPU; torch's global one by default. Not used where `streams` is given.
        shuffle: draw the order of the proposals anew for every anchor; False keeps the columns' order (`mh`).
        streams: int64 [A], one random stream per chain (`emc2dist.core.streams`), so that the outcome does not
            depend on which process visits the chain.

    Raises:
        ValueError: on shapes, types, a kernel or a burn-in fraction that do not fit.
    """
    _check(proposal_scores, carried_score, kernel, burn_in_fraction)
    scores, carried = proposal_scores.detach(), carried_score.detach()
    if streams is None:
        streams = torch.randint(2**63 - 1, carried.shape, generator=generator)
    streams = streams.to(scores.device)
    if kernel == "isir":
        return _importance_resample(scores, carried, streams)
    if kernels.run_on(scores):
        from emc2dist.core import walk_triton  # here: it needs Triton

        if scores.shape[1] <= walk_triton.MOST:
            return Sweep(*walk_triton.visit(scores, carried, streams, burn_in_fraction, shuffle))
    carried = carried.masked_fill(carried.isnan(), -torch.inf)
    if scores.device.type == "cpu":
        return _visit_compiled(scores, carried, streams, burn_in_fraction, shuffle)
    order = uniforms(streams, scores.shape[1], lane=ORDER).argsort(1) if shuffle else None
    log_u = uniforms(streams, scores.shape[1], lane=ACCEPT).log().to(scores.dtype)
    return metropolis(scores, carried, order, log_u, burn_in_fraction)


def metropolis(scores: Tensor, carried: Tensor, order: Tensor | None, log_u: Tensor, burn_in_fraction: float) -> Sweep:
    """The `mh` kernel, all chains at once: `order` int64 [A, P] or None (as they stand), `log_u` [A, P] in order."""
    if order is not None:
        scores = scores.gather(1, order)
    weights, state, accepted, valid = _metropolis_batched(scores, carried, log_u, burn_in_fraction)
    if order is not None:
        identity = torch.full_like(carried, scores.shape[1], dtype=torch.int64).unsqueeze(1)
        order = torch.cat([order, identity], 1)
        weights = torch.zeros_like(weights).scatter_(1, order, weights)
        state = order.gather(1, state.unsqueeze(1)).squeeze(1)
    return _swept(weights, state, accepted, valid)


def _swept(weights: Tensor, state: Tensor, accepted: Tensor, valid: Tensor) -> Sweep:
    return Sweep(weights, state, (accepted / valid.clamp(min=1)).to(weights.dtype), valid)


def _check(proposals: Tensor, carried: Tensor, kernel: str, burn_in_fraction: float) -> None:
    if proposals.ndim != 2 or carried.shape != proposals.shape[:1]:
        raise ValueError(
            f"proposal_scores must be [A, P] and carried_score [A]; got {tuple(proposals.shape)} and "
            f"{tuple(carried.shape)}"
        )
    if proposals.dtype not in (torch.float32, torch.float64) or carried.dtype != proposals.dtype:
        raise ValueError(f"scores must both be float32 or float64; got {proposals.dtype} and {carried.dtype}")
    if kernel not in ("mh", "isir"):
        raise ValueError(f"kernel must be 'mh' or 'isir', got {kernel!r}")
    if not 0 <= burn_in_fraction < 1:
        raise ValueError(f"burn_in_fraction must be in [0, 1), got {burn_in_fraction}")


def _importance_resample(scores: Tensor, carried: Tensor, streams: Tensor) -> Sweep:
    weights = _softmax(torch.cat([scores, carried.unsqueeze(1)], 1))
    exists = weights.any(1)
    cdf = weights.cumsum(1) if weights.device.type == "cpu" else _parallel_sums(weights)
    threshold = uniforms(streams, 1, lane=DRAW).to(weights.dtype) * cdf[:, -1:]
    state = torch.searchsorted(cdf, threshold, right=True).squeeze(1)
    # Rounding can put the threshold on the very top; the last candidate with weight owns it.
    last = scores.shape[1] - (weights.flip(1) > 0).int().argmax(1)
    state = torch.where(exists, torch.minimum(state, last), scores.shape[1])
    return Sweep(weights, state, (1 - weights[:, -1]) * exists, (scores != -torch.inf).sum(1))


def _parallel_sums(weights: Tensor) -> Tensor:
    """Sums [A, P] of the first columns, each of them; they never fall, and rise only where there is weight.

    Many threads add up each column's sum in an order of its own, so where a weight is 0 the sum may rise by its last
    bit, and a draw may fall there. torch refuses `cumsum` on a GPU where algorithms must be deterministic; doubling
    stands for it.
    """
    sums = _doubled_sums(weights) if torch.are_deterministic_algorithms_enabled() else weights.cumsum(1)
    return torch.where(weights > 0, sums, 0).cummax(1).values


def _doubled_sums(weights: Tensor) -> Tensor:
    """Sums of 2, 4, 8 ... neighbours, until they reach back to the first column (Hillis & Steele 1986)."""
    sums, span = weights, 1
    while span < weights.shape[1]:
        sums = torch.cat([sums[:, :span], sums[:, span:] + sums[:, :-span]], 1)
        span *= 2
    return sums


def _softmax(scores: Tensor) -> Tensor:
    """Softmax over each row's candidates: NaN is none, +inf outweighs all that are finite, no candidate gives 0."""
    scores = scores.masked_fill(scores.isnan(), -torch.inf)
    top = scores == torch.inf
    scores = torch.where(top.any(1, keepdim=True), torch.where(top, 0, -torch.inf), scores)
    exists = (scores > -torch.inf).any(1, keepdim=True)
    return torch.where(exists, scores, 0).softmax(1) * exists


def _visit_compiled(scores: Tensor, carried: Tensor, streams: Tensor, burn_in_fraction: float, shuffle: bool) -> Sweep:
    from emc2dist.core.walk import visit  # here: it loads numba, which GPUs never need

    order, accept = (fork(streams, lane).numpy().view(np.uint64) for lane in (ORDER, ACCEPT))
    given = scores.contiguous().numpy(), carried.contiguous().numpy()
    weights, ends = visit(*given, order, accept, float(burn_in_fraction), shuffle)
    return _swept(torch.from_numpy(weights), *torch.from_numpy(ends))


def _metropolis_batched(
    scores: Tensor, carried: Tensor, log_u: Tensor, burn_in_fraction: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Node 0 is the carried state, node t the t-th proposal; node P+1 is the end.

    From node j the chain moves to the first t > j whose threshold s_t - log u_t exceeds s_j. On node j it stays for
    the valid steps from j up to that t, and the weights are those stays, burn-in cut off.
    """
    chains, count = scores.shape
    is_step = scores != -torch.inf
    valid = is_step.sum(1)
    never = scores.new_full((chains, 1), -torch.inf)
    threshold = (scores - log_u).masked_fill(~is_step | scores.isnan(), -torch.inf)
    # A +inf proposal is not accepted over a +inf state (inf - inf is NaN): strict comparison does the same here.
    successor = _first_above(torch.cat([never, threshold], 1), torch.cat([carried.unsqueeze(1), scores], 1))
    on_path = _reachable(successor)

    before = torch.cat([torch.zeros_like(valid).unsqueeze(1), is_step.cumsum(1)], 1)  # valid steps up to each node
    before = torch.cat([before, valid.unsqueeze(1)], 1)
    burn_in = torch.minimum((burn_in_fraction * valid.double()).long(), valid - 1).unsqueeze(1)
    node = torch.arange(count + 1, device=scores.device)
    entered = torch.where(node == 0, 0, before[:, :-1] - 1)  # the step that landed on the node is its first
    left = torch.where(successor <= count, before.gather(1, successor) - 1, valid.unsqueeze(1))
    stay = (left - torch.maximum(entered, burn_in)).clamp(min=0) * on_path
    stay[:, 0] = torch.where(carried == -torch.inf, 0, stay[:, 0])

    kept = stay.sum(1, keepdim=True)
    weights = stay.to(scores.dtype) / kept.clamp(min=1)
    weights[:, 0] = torch.where((kept.squeeze(1) == 0) & (carried != -torch.inf), 1.0, weights[:, 0])
    last = (on_path * node).amax(1)
    state = torch.where(last == 0, count, last - 1)
    return weights.roll(-1, 1), state, on_path.sum(1) - 1, valid


def _first_above(threshold: Tensor, score: Tensor) -> Tensor:
    """For each node j [A, M] the first t > j with threshold[t] > score[j], or M: descend a table of window maxima."""
    chains, nodes = threshold.shape
    levels = max(1, (nodes - 1).bit_length())
    windows = [threshold]  # windows[k][t] is the maximum of the 2^k thresholds from t on
    for k in range(levels - 1):
        padded = torch.nn.functional.pad(windows[-1], (0, 2**k), value=-torch.inf)
        windows.append(torch.maximum(windows[-1], padded[:, 2**k :]))
    position = torch.arange(1, nodes + 1, device=score.device).expand(chains, nodes).contiguous()
    for k in reversed(range(levels)):
        inside = position < nodes
        window = windows[k].gather(1, position.clamp(max=nodes - 1))
        skip = inside & ~(window > score)
        position = torch.where(skip, position + 2**k, position).clamp(max=nodes)
    return position


def _reachable(successor: Tensor) -> Tensor:
    """bool [A, M]: nodes on the path 0 -> successor[0] -> ...; node M is the end.

    A path of 2^k nodes becomes one of twice as many by a jump of 2^k from each: O(log M) steps. All threads write the
    same, so in any order (no atomics). Numbers of nodes are int64 because torch's `gather` takes no other.
    """
    chains, nodes = successor.shape
    end = successor.new_full((chains, 1), nodes)
    jump = torch.cat([successor, end], 1)
    path = torch.zeros_like(end)
    for _ in range(nodes.bit_length()):
        path = torch.cat([path, jump.gather(1, path)], 1)
        jump = jump.gather(1, jump)
    return torch.zeros_like(jump, dtype=torch.bool).scatter_(1, path, True)[:, :nodes]
