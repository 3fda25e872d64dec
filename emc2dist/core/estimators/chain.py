"""Chains that outlive the batch (EMC^2, Yau et al., ICML 2024): each anchor draws its negatives by a Markov chain.

A visit of the worker's chains, in this order:

1. What each chain carries is scored: from the batch where it is in it, else from its cached feature.
2. With K > 0 cache proposals, chains may move by delayed acceptance (`delayed_acceptance`).
3. The sweep over the batch and the carried state (`emc2dist.core.sweep`). `isir` weighs every candidate, so with
   `carried: reencode` all carried states are encoded again before it; `mh` needs only those that end up with weight,
   which are encoded again after it.
4. The weights of the kept steps estimate the gradient of log Z, fresh scores with gradient to both sides. With
   `carried: cached` the cached features stand in, with gradient to the anchor alone.

A sample is a candidate at most once: a carried sample that is in the batch is taken out of the batch's columns, and
stands with its fresh views as the carried state, the last column. Draws are proposals as the batch's samples are; one
that is carried is taken out, and the carried state scored as ever.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from emc2dist.core.batch import Batch, locate
from emc2dist.core.columns import Column, Schema
from emc2dist.core.denominator import Denominator, Estimate
from emc2dist.core.estimators.base import FEATURES, CachedRows, Encode, Estimator, Fact, Recall, Visit
from emc2dist.core.estimators.delayed_acceptance import accept, propose
from emc2dist.core.sweep import Kernel, Sweep, sweep


@dataclass(frozen=True)
class Carried:
    """What A chains carry, and how it scores today."""

    state: Tensor
    """int64 [A]: the sample; any where not visited."""
    score: Tensor
    """[A]; -inf where not visited."""
    fresh: Tensor
    """bool [A]: the score is of this step's features, not of cached ones."""

    @property
    def exists(self) -> Tensor:
        """bool [A]: visited."""
        return self.score > -torch.inf

    def replaced(self, where: Tensor, state: Tensor, score: Tensor) -> "Carried":
        """With other states and fresh scores [A] at `where` [A]."""
        state = torch.where(where, state, self.state)
        score = torch.where(where, score, self.score)
        return Carried(state, score, self.fresh | where)


@dataclass(frozen=True)
class Chain(Estimator):
    """log Z by a chain for every anchor."""

    kernel: Kernel = "mh"
    burn_in_fraction: float | None = None
    """Share in [0, 1) of an `mh` sweep's valid proposals that is dropped; None: half of them."""
    cache_proposals: int = 0
    """K."""
    carried: Literal["reencode", "cached"] = "reencode"
    feature_dtype: Literal["float16", "float32"] = "float16"

    @override
    def tables(self, what: Denominator, views: int, width: int) -> Schema:
        return {
            what.name: {
                "state": Column("int64", (views,)),
                "visited": Column("bool", (views,)),
                "visited_at": Column("int32", (views,)),
            },
            FEATURES: {
                "feature": Column(self.feature_dtype, (width,)),
                "present": Column("bool"),
                "written_at": Column("int32"),
            },
        }

    @override
    def estimate(self, what: Denominator, batch: Batch, recall: Recall, encode: Encode) -> Visit:
        pool = _Pool(what, batch, encode)
        carried = self._recalled(pool, recall)
        facts: dict[str, Fact] = {}
        if self.cache_proposals:
            carried, moved = self._move(pool, carried, recall)
            facts["cache_moves_ratio"] = moved.double().mean()
        if self.kernel == "isir" and self.carried == "reencode":
            carried = pool.refreshed(carried, carried.exists)
        visit = sweep(
            pool.proposals(carried),
            carried.score,
            kernel=self.kernel,
            burn_in_fraction=0.5 if self.burn_in_fraction is None else self.burn_in_fraction,
            streams=batch.streams,
        )
        if self.kernel == "mh" and self.carried == "reencode":
            carried = pool.refreshed(carried, carried.exists & (visit.carried_weight > 0))
        ages = _ages(batch, recall)
        facts |= _facts(visit) | {f"{name}_steps": _known(age) for name, age in ages.items()}
        facts["visited_ratio"] = recall.columns["visited"].double().mean()
        estimate = pool.estimate(carried, visit.weights)
        return Visit(estimate, _remembered(batch, visit, estimate.index), facts, ages)

    def _recalled(self, pool: "_Pool", recall: Recall) -> Carried:
        """What the chains carry, scored by what is at hand."""
        assert recall.carried is not None
        state, visited = recall.columns["state"], recall.columns["visited"]
        score, here = pool.find(state)
        score = torch.where(here, score, pool.score_cached(recall.carried))
        return Carried(state, torch.where(visited, score, -torch.inf), visited & here)

    def _move(self, pool: "_Pool", carried: Carried, recall: Recall) -> tuple[Carried, Tensor]:
        """Delayed acceptance of one of the K cached rows by each chain; also which chains moved, bool [A]."""
        assert recall.carried is not None
        assert recall.proposed is not None
        rows = recall.proposed
        with torch.no_grad():
            is_carried = (rows.index == carried.state.unsqueeze(1)) & carried.exists.unsqueeze(1)
            stale = pool.score_rows(rows).masked_fill(is_carried, -torch.inf)
            stale_carried = pool.score_cached(recall.carried).masked_fill(~carried.exists, -torch.inf)
            proposal = propose(stale, stale_carried, pool.streams)
        carried = pool.refreshed(carried, carried.exists & proposal.moves)
        state = rows.index[proposal.row]
        score = pool.score_fresh(state, proposal.moves)
        moved = accept(proposal, score.detach(), carried.score.detach(), pool.streams)
        return carried.replaced(moved, state, score), moved


class _Pool:
    """Everything that one visit can be contrasted with: batch, draws, cached rows, and what is encoded again."""

    def __init__(self, what: Denominator, batch: Batch, encode: Encode) -> None:
        assert batch.streams is not None, "a chain draws"
        self._what, self._batch, self._encode = what, batch, encode
        self._scores, self._index, self._one_sided = what.candidates(batch)
        self.streams = batch.streams

    def find(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Of one sample per anchor [A]: its score, and bool whether it is in the batch at all (else -inf)."""
        slot, here = locate(samples, self._batch.index)
        score = self._scores.gather(1, slot.unsqueeze(1)).squeeze(1)
        return score.masked_fill(~here, -torch.inf), here

    def score_cached(self, rows: CachedRows) -> Tensor:
        """[A]: one cached row per anchor; -inf where it holds no feature. Gradient to the anchor alone."""
        scores = self._what.score_each(self._batch, rows.feature.to(self._scores.dtype), rows.index)
        return scores.masked_fill(~rows.present, -torch.inf)

    def score_rows(self, rows: CachedRows) -> Tensor:
        """[A, K]: all anchors against cached rows; -inf where one holds no feature."""
        keys = rows.feature.to(self._scores.dtype).unsqueeze(0)
        return self._what.scores(self._batch, keys, rows.index).masked_fill(~rows.present, -torch.inf)

    def score_fresh(self, samples: Tensor, where: Tensor) -> Tensor:
        """[A]: one sample per anchor at `where` [A], by the batch's features or encoded again; any elsewhere."""
        score, here = self.find(samples)
        outside = where & ~here
        rows = outside.nonzero().squeeze(1)  # once: every mask that indexes makes the host wait for a GPU
        if not len(rows):
            return score
        keys = torch.zeros_like(self._batch.anchors(self._what.anchors))
        keys = keys.index_copy(0, rows, self._encode(self._what.keys, samples[rows]).to(keys.dtype))
        return torch.where(outside, self._what.score_each(self._batch, keys, samples), score)

    def refreshed(self, carried: Carried, where: Tensor) -> Carried:
        """Carried states at `where` [A] scored by fresh features, where they are not yet."""
        where = where & ~carried.fresh
        return carried.replaced(where, carried.state, self.score_fresh(carried.state, where))

    def proposals(self, carried: Carried) -> Tensor:
        """[A, P]: scores of the P = B + M proposals, the batch and its draws, without those of what is carried."""
        taken = (self._index == carried.state.unsqueeze(1)) & carried.exists.unsqueeze(1)
        return self._scores.masked_fill(taken, -torch.inf)

    def estimate(self, carried: Carried, weights: Tensor) -> Estimate:
        """The estimate, by weights [A, P + 1] of a sweep over the proposals and the carried state."""
        proposals = self.proposals(carried)
        scores = torch.cat([proposals, carried.score.unsqueeze(1)], 1)
        index = torch.cat([self._index.expand(len(scores), -1), carried.state.unsqueeze(1)], 1)
        one_sided = torch.cat([self._one_sided.expand_as(proposals), ~carried.fresh.unsqueeze(1)], 1)
        return Estimate(proposals.detach().logsumexp(1), scores, weights, index, one_sided)


def _remembered(batch: Batch, visit: Sweep, index: Tensor) -> Mapping[str, Tensor]:
    state = index.gather(1, visit.state.unsqueeze(1)).squeeze(1)
    return {
        "state": state,
        # A chain that had no proposal and no state still has none.
        "visited": visit.weights.sum(1) > 0,
        "visited_at": torch.full_like(state, batch.step, dtype=torch.int32),
    }


def _facts(visit: Sweep) -> dict[str, Fact]:
    valid = visit.proposals.double()
    return {
        "acceptance_rate": ((visit.acceptance_rate * valid).sum(), valid.sum()),
        "carried_weight_ratio": visit.carried_weight.double().mean(),
        "effective_sample_size": visit.effective_sample_size.double().mean(),
        "distinct_negatives": visit.distinct.double().mean(),
    }


def _ages(batch: Batch, recall: Recall) -> dict[str, Tensor]:
    assert recall.carried is not None
    visited = recall.columns["visited"]
    has_feature = visited & recall.carried.present
    return {
        "carried_age": torch.where(visited, batch.step - recall.columns["visited_at"], -1),
        "feature_age": torch.where(has_feature, batch.step - recall.carried.written_at, -1),
    }


def _known(ages: Tensor) -> Fact:
    known = ages >= 0
    return (ages * known).sum(), known.sum()
