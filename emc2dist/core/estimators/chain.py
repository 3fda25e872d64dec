"""Chains that outlive the batch (EMC^2, Yau et al., ICML 2024): each anchor draws its negatives by a Markov chain.

A visit of the worker's chains, in this order:

1. What each chain carries is scored: from the batch where it is in it, else from its cached feature.
2. With K > 0 cache proposals, chains may move by delayed acceptance (`delayed_acceptance`).
3. The sweep over the batch and the carried state (`emc2dist.core.sweep`). `isir` weighs every candidate, so with
   `carried: reencode` all carried states are encoded again before it; `mh` needs only those that end up with weight,
   which are encoded again after it. With `carried: complete` both have them encoded before. With `roulette` the cached
   features decide, with `isir` too, and each carried state is encoded again with the probability of its share of the
   weight: where it is, it stands for all of the anchor's candidates, and elsewhere the proposals do.
4. The weights of the kept steps estimate the gradient of log Z, fresh scores with gradient to both sides. With
   `carried: cached` the cached features stand in, with gradient to the anchor alone.
5. Of the sample that a chain ends on one view is drawn, by its share of the sample's weight, and remembered.

With `restart` nothing is carried on: a chain begins at one of the K cached rows, drawn by its stale score, and what it
ends on is forgotten. For targets that are others at every visit.

For an objective that takes the hardest candidates the K cached rows are candidates themselves, too, without weight.

What is closed (`emc2dist.core.closing`) is no proposal, of the batch and of cached rows alike, and a carried state that
is closed today is dropped: the chain goes on as if not yet visited. With a ceiling and `reencode` that is judged by a
fresh feature, so what is carried is then encoded again in step 1, with `mh` too; and so it is with `roulette`.

A sample is a candidate at most once: a carried sample that is in the batch is taken out of the batch's columns, and
stands as the carried state, the last column. Draws are proposals as the batch's samples are; one that is carried is
taken out, and the carried state scored as ever.

**The view is part of the state.** A chain carries one *view* of a sample, the one that it was drawn with, and encodes
that view again; a fresh one would have another weight than the one by which it was chosen. Alone it stands for all V
(`reencode`); completed by V - 1 fresh views (`complete`) the visit is exact for views drawn at random, as conditional
importance sampling has it (docs/algorithm.md has the proof), at the price of so many encodings more.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from emc2dist.core.batch import Batch, fresh_numbers, locate
from emc2dist.core.columns import Column, Schema
from emc2dist.core.denominator import Denominator, Estimate
from emc2dist.core.estimators.base import (
    CachedRows,
    Encode,
    Estimator,
    Fact,
    Recall,
    Visit,
    cached_features,
    with_mean,
)
from emc2dist.core.estimators.delayed_acceptance import accept, propose
from emc2dist.core.estimators.moving_average import blended
from emc2dist.core.streams import gumbels, uniforms
from emc2dist.core.sweep import Kernel, Sweep, sweep
from emc2dist.core.transfer import to_device

_CARRIED_VIEW, _VIEW, _ROULETTE = 5, 6, 7  # lanes of a chain's random stream; sweeps and moves use 0 to 4


@dataclass(frozen=True)
class Carried:
    """What A chains carry, and how it scores today."""

    state: Tensor
    """int64 [A]: the sample; any where not visited."""
    score: Tensor
    """[A]; -inf where not visited, or closed."""
    view: Tensor
    """int64 [A]: the number of the view of it that goes on, see `emc2dist.core.batch`."""
    fresh: Tensor
    """bool [A]: the score is of this step's features, not of cached ones."""

    @property
    def exists(self) -> Tensor:
        """bool [A]: visited, and not closed."""
        return self.score > -torch.inf

    def replaced(self, where: Tensor, other: "Carried") -> "Carried":
        """With what `other` has at `where` [A]."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Carried(*(torch.where(where, theirs, ours) for ours, theirs in pairs))


@dataclass(frozen=True)
class Chain(Estimator):
    """log Z by a chain for every anchor."""

    kernel: Kernel = "mh"
    burn_in_fraction: float | None = None
    """Share in [0, 1) of an `mh` sweep's valid proposals that is dropped; None: half of them."""
    cache_proposals: int = 0
    """K."""
    carried: Literal["reencode", "complete", "cached", "roulette"] = "reencode"
    feature_dtype: Literal["float16", "float32"] = "float16"
    rate: float = 0.1
    """Weight of the newest value in the averages of log Z and of a mean, in (0, 1]; for objectives that need them."""
    restart: bool = False
    """Whether a chain begins anew at every visit, at one of the K cached rows."""

    @override
    def tables(self, what: Denominator, views: int, width: int) -> Schema:
        chains = {
            "state": Column("int64", (views,)),
            "view": Column("int64", (views,)),
            "visited": Column("bool", (views,)),
            "visited_at": Column("int32", (views,)),
        }
        averages = {"log_mean": what.valued, "mean": what.values is not None}
        return {
            what.name: chains | {name: Column("float32", (views,)) for name, needed in averages.items() if needed},
        } | cached_features(self.feature_dtype, width)

    @override
    def foreseen(
        self, what: Denominator, columns: Mapping[str, Tensor], batch: Tensor, step: int, views: int
    ) -> tuple[Tensor, Tensor]:
        if self.restart or not (self._weighs_all or self._judges_all(what)):
            return super().foreseen(what, columns, batch, step, views)
        where, state = columns["visited"], columns["state"]
        is_complete = self.carried == "complete"
        if not is_complete:
            _, here = locate(state, batch)
            where = where & ~here
        carried = columns["view"][where]
        numbers = _completed(carried, step, views, self._at_once(what, views))
        return state[where].expand_as(numbers).flatten(), numbers.flatten()

    @property
    def _weighs_all(self) -> bool:
        """Whether all that is carried is encoded again before the sweep."""
        return self.carried == "complete" or (self.kernel == "isir" and self.carried == "reencode")

    def _judges_all(self, what: Denominator) -> bool:
        """Whether all that is carried is encoded again to see whether it is closed."""
        return what.closing.ceiling is not None and self.carried != "cached"

    def _at_once(self, what: Denominator, views: int) -> int:
        """How many of the V views of a sample are encoded again: all, or one that stands for all."""
        # In a slot of its own a sample has one view.
        return views if self.carried == "complete" and what.views == "all" else 1

    @override
    def estimate(self, what: Denominator, batch: Batch, recall: Recall, encode: Encode) -> Visit:
        recall = _forgotten(recall) if self.restart else recall
        pool = _Pool(what, batch, recall, encode, self.carried == "complete", self._at_once(what, batch.views))
        carried = self._recalled(what, pool, recall)
        dropped = recall.columns["visited"] & ~carried.exists
        facts: dict[str, Fact] = {}
        if self.cache_proposals:
            carried, moved = self._move(pool, carried, recall)
            facts["cache_moves_ratio"] = moved.double().mean()
        if self._weighs_all:
            carried = pool.refreshed(carried, pool.existing(carried))
        visit = sweep(
            pool.proposals(carried),
            carried.score,
            kernel=self.kernel,
            burn_in_fraction=0.5 if self.burn_in_fraction is None else self.burn_in_fraction,
            streams=pool.streams,
        )
        ages = _ages(batch, recall)
        facts |= _facts(visit) | {f"{name}_steps": _known(age) for name, age in ages.items()}
        visited = recall.columns["visited"]
        facts["visited_ratio"] = visited.double().mean()
        if what.closing:
            facts["carried_closed_ratio"] = dropped.sum(), visited.sum()
        log_mean = self._log_mean(pool, recall)
        weights = visit.weights
        # Last of all, for here the host may wait for a GPU, which had better have something to do.
        if self.kernel == "mh" and self.carried == "reencode":
            carried = pool.refreshed(carried, pool.asked(carried.exists & (visit.carried_weight > 0)))
        elif self.carried == "roulette":
            survives = ~carried.fresh & (uniforms(pool.streams, 1, lane=_ROULETTE).squeeze(1) < visit.carried_weight)
            weights = torch.where(carried.fresh.unsqueeze(1), weights, staked(weights, survives))
            carried = pool.refreshed(carried, pool.asked(survives))
        estimate = pool.estimate(carried, weights, log_mean)
        state = estimate.index.gather(1, visit.state.unsqueeze(1)).squeeze(1)
        remember = {
            "state": state,
            "view": pool.view_of(visit.state, carried),
            # A chain that had no proposal and no state still has none.
            "visited": visit.weights.sum(1) > 0,
            "visited_at": torch.full_like(state, batch.step, dtype=torch.int32),
        }
        remember |= {} if log_mean is None else {"log_mean": log_mean.float()}
        estimate, mean = with_mean(what, estimate, recall, self.rate)
        if what.ranked and recall.proposed is not None:
            estimate = pool.with_rows(estimate, recall.proposed)
        return Visit(estimate, remember | mean, facts, ages)

    def _recalled(self, what: Denominator, pool: "_Pool", recall: Recall) -> Carried:
        """What the chains carry, scored by what is at hand."""
        assert recall.carried is not None
        columns, visited = recall.columns, recall.columns["visited"]
        cached = pool.score_cached(recall.carried).masked_fill(~visited, -torch.inf)
        carried = Carried(columns["state"], cached, columns["view"], torch.zeros_like(visited))
        if not pool.complete:
            here, where = pool.find(pool.recall.columns["state"])
            carried = carried.replaced(visited & here.fresh, here)
            pool.leave(where)
        if self._judges_all(what):
            carried = pool.refreshed(carried, pool.stale)
        return carried

    def _log_mean(self, pool: "_Pool", recall: Recall) -> Tensor | None:
        """[A]: the average of log Z - log(N - 1), with this batch's; None where nobody needs it."""
        before = recall.columns.get("log_mean")
        return None if before is None else blended(before, pool.log_mean(), recall.columns["visited"], self.rate)

    def _move(self, pool: "_Pool", carried: Carried, recall: Recall) -> tuple[Carried, Tensor]:
        """Delayed acceptance of one of the K cached rows by each chain; also which chains moved, bool [A]."""
        rows = recall.proposed
        assert recall.carried is not None
        assert rows is not None
        with torch.no_grad():
            is_carried = (rows.index == carried.state.unsqueeze(1)) & carried.exists.unsqueeze(1)
            stale = pool.score_rows(rows).masked_fill(is_carried, -torch.inf)
            stale_carried = pool.score_cached(recall.carried).masked_fill(~carried.exists, -torch.inf)
            proposal = propose(stale, stale_carried, pool.streams)
        samples, moves, exists = pool.told(rows.index[proposal.row], proposal.moves, carried.exists)
        moves = moves.bool()
        carried = pool.refreshed(carried, moves & exists.bool())
        row, here = pool.find(samples)
        row = pool.fresh(row, samples, pool.fresh_views(), moves if pool.complete else moves & ~here)
        moved = accept(proposal, row.score.detach(), carried.score.detach(), pool.streams)
        pool.leave(moves)
        return carried.replaced(moved, row), moved


def _completed(carried: Tensor, step: int, views: int, count: int) -> Tensor:
    """int64 [count, A], on the CPU: the carried views' numbers [A], and below each those of count - 1 fresh ones."""
    others = fresh_numbers(step, count - 1, views).expand(-1, len(carried))
    return torch.cat([carried.unsqueeze(0), others])


def staked(weights: Tensor, survives: Tensor) -> Tensor:
    """[A, C]: all weight on the last column, the carried state, where bool [A] `survives`; on the others elsewhere.

    Russian roulette: where it survives with the probability of its weight, the mean is `weights`.
    """
    others = weights[:, :-1]
    rest = others / others.sum(1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    last = survives.unsqueeze(1).to(weights.dtype)
    return torch.cat([rest * (1 - last), last], 1)


class _Pool:
    """Everything that one visit can be contrasted with: batch, draws, cached rows, and what is encoded again.

    Which images are encoded again the host has to know, to have them made into views. What was recalled it has on the
    CPU; only what this visit itself decides it must ask a GPU for, and wait (`asked`, `told`).
    """

    def __init__(
        self, what: Denominator, batch: Batch, recall: Recall, encode: Encode, complete: bool, at_once: int = 1
    ) -> None:
        """Begin; `complete`: a carried view stays though its sample be in the batch; `at_once`: views encoded again."""
        streams = batch.streams_of(what.anchors)
        assert streams is not None, "a chain draws"
        self._what, self._batch, self._encode = what, batch, encode
        self._keys = batch.sides[what.keys].all
        self._scores, self._index, self._one_sided, self._count = what.candidates(batch)
        self.streams = streams
        self.complete, self._at_once = complete, at_once
        self.recall = recall.on_host
        """What was recalled, on the CPU."""
        self.stale = self.recall.columns["visited"]
        """bool [A], on the CPU: which chains carry what they were recalled with, scored by its cached feature alone."""

    def log_mean(self) -> Tensor:
        """[A]: log of the mean of w exp s over batch and draws; a closed one counts as 0."""
        return self._scores.detach().logsumexp(1) - self._count.log()

    def find(self, samples: Tensor) -> tuple[Carried, Tensor]:
        """One sample per anchor [A], given on the CPU, as it is in the batch; and where it is, bool [A] on the CPU."""
        slot, where = locate(samples, self._batch.index_on_host(self._what.keys))
        where = where & self._batch.sides[self._what.keys].proposes  # else it has no column there
        samples, slot, here = to_device((samples, slot, where), self._scores.device)
        score = self._scores.gather(1, slot.unsqueeze(1)).squeeze(1)
        view = self._batch_view(slot, _CARRIED_VIEW)
        return Carried(samples, score.masked_fill(~here, -torch.inf), view, here), where

    def score_cached(self, rows: CachedRows) -> Tensor:
        """[A]: one cached row per anchor; -inf where it holds no feature. Gradient to the anchor alone."""
        keys = rows.feature.to(self._scores.dtype).unsqueeze(0)
        return self._what.score_each(self._batch, keys, rows.index).masked_fill(~rows.present, -torch.inf)

    def score_rows(self, rows: CachedRows) -> Tensor:
        """[A, K]: all anchors against cached rows; -inf where one holds no feature."""
        keys = rows.feature.to(self._scores.dtype).unsqueeze(0)
        return self._what.scores(self._batch, keys, rows.index).masked_fill(~rows.present, -torch.inf)

    def fresh_views(self) -> Tensor:
        """int64 [V or 1, 1], on the CPU: the numbers of this step's fresh views, as many as stand for a sample."""
        return fresh_numbers(self._batch.step, self._at_once, self._batch.views)

    def existing(self, carried: Carried) -> Tensor:
        """bool [A], on the CPU: which stale states exist. Nothing has to be asked where nothing can be closed."""
        if self._what.closing or self._what.log_weight is not None:
            return self.asked(carried.exists)
        assert self.recall.carried is not None
        return self.stale & self.recall.carried.present

    def asked(self, where: Tensor) -> Tensor:
        """bool [A] on the CPU: which stale states are at `where`; waits for a GPU if there are any."""
        return self.stale & where.cpu() if self.stale.any() else self.stale

    def told(self, *decided: Tensor) -> Tensor:
        """int64 [n, A] on the CPU: n tensors [A]; waits for a GPU."""
        return torch.stack([one.long() for one in decided]).cpu()

    def leave(self, where: Tensor) -> None:
        """The chains at `where` bool [A], on the CPU, are not stale any more."""
        self.stale = self.stale & ~where

    def fresh(self, carried: Carried, samples: Tensor, views: Tensor, where: Tensor) -> Carried:
        """The states at `where` [A] encoded again; elsewhere as they were.

        Args:
            carried: what the chains carry.
            samples: int64 [A], on the CPU: the states.
            views: int64 [R, A or 1], on the CPU: the numbers of the views to encode.
            where: bool [A], on the CPU.
        """
        rows = where.nonzero().squeeze(1)
        if not len(rows):
            return carried
        views = views.expand(-1, len(samples))
        again = self._encode(self._what.keys, samples[rows], views[:, rows])
        rows, views, where = to_device((rows, views, where), again.device)
        keys = again.new_zeros(len(again), len(samples), again.shape[-1]).index_copy(1, rows, again)
        keys = keys.to(self._scores.dtype)
        score = self._what.score_each(self._batch, keys, carried.state)
        view = self._drawn_view(keys.detach(), carried.state, views, _CARRIED_VIEW)
        return carried.replaced(where, Carried(carried.state, score, view, torch.ones_like(where)))

    def refreshed(self, carried: Carried, where: Tensor) -> Carried:
        """Stale states at `where` bool [A], on the CPU, scored by fresh features."""
        views = _completed(self.recall.columns["view"], self._batch.step, self._batch.views, self._at_once)
        carried = self.fresh(carried, self.recall.columns["state"], views, where & self.stale)
        self.leave(where)
        return carried

    def view_of(self, state: Tensor, carried: Carried) -> Tensor:
        """int64 [A]: the number of the view that goes on with each chain, by the column int64 [A] that it ended on."""
        count = len(self._batch.index)
        view = self._batch_view(state.clamp(max=count - 1), _VIEW)
        view = torch.where(state < count, view, self._batch.view_numbers(self._batch.views, 1)[0])
        return torch.where(state == len(self._index), carried.view, view)

    def _batch_view(self, slot: Tensor, lane: int) -> Tensor:
        """int64 [A]: a view drawn of the batch's sample in slot int64 [A]."""
        numbers = self._batch.view_numbers(0, self._batch.views)
        index = self._batch.index_of(self._what.keys)
        return self._drawn_view(self._keys.detach()[:, slot], index[slot], numbers, lane)

    def _drawn_view(self, keys: Tensor, samples: Tensor, numbers: Tensor, lane: int) -> Tensor:
        """int64 [A]: one view of each anchor's candidate [A], numbered [R, A or 1], by its share of the weight."""
        numbers = numbers.expand(-1, len(self.streams))
        if len(keys) == 1:
            return numbers[0]
        noise = gumbels(self.streams, len(keys), lane=lane).T
        drawn = (self._what.view_scores(self._batch, keys, samples).double() + noise).argmax(0)
        return numbers.gather(0, drawn.unsqueeze(0)).squeeze(0)

    def proposals(self, carried: Carried) -> Tensor:
        """[A, P]: scores of the P = B + M proposals, the batch and its draws, without those of what is carried."""
        taken = (self._index == carried.state.unsqueeze(1)) & carried.exists.unsqueeze(1)
        return self._scores.masked_fill(taken, -torch.inf)

    def estimate(self, carried: Carried, weights: Tensor, log_mean: Tensor | None) -> Estimate:
        """The estimate, by weights [A, P + 1] of a sweep over the proposals and the carried state."""
        proposals = self.proposals(carried)
        scores = torch.cat([proposals, carried.score.unsqueeze(1)], 1)
        index = torch.cat([self._index.expand(len(scores), -1), carried.state.unsqueeze(1)], 1)
        followed = self._batch.sides[self._what.keys].keys is not None
        stale = (~carried.fresh | followed).unsqueeze(1) & (not self._what.constant)
        one_sided = torch.cat([self._one_sided.expand_as(proposals), stale], 1)
        log_mean = self.log_mean() if log_mean is None else log_mean
        others = self._batch.others(self._what.keys)
        log_z = math.log(others) + log_mean
        closed = self._what.closed(self._batch, self._scores.detach())
        return Estimate(log_z, scores, weights, index, one_sided, closed, count=others)

    def with_rows(self, estimate: Estimate, rows: CachedRows) -> Estimate:
        """The estimate with cached rows as candidates without weight, but for those that are among the others."""
        _, here = locate(rows.index, self._index)
        is_carried = rows.index == estimate.index[:, -1:]
        scores = self.score_rows(rows).masked_fill(here | is_carried, -torch.inf)
        none = torch.zeros_like(scores)
        return replace(
            estimate,
            scores=torch.cat([estimate.scores, scores], 1),
            weights=torch.cat([estimate.weights, none], 1),
            index=torch.cat([estimate.index, rows.index.expand_as(scores)], 1),
            one_sided=torch.cat([estimate.one_sided, none.bool()], 1),
        )


def _forgotten(recall: Recall) -> Recall:
    """As if no chain had been visited yet."""
    host = None if recall.host is None else _forgotten(recall.host)
    columns = {**recall.columns, "visited": torch.zeros_like(recall.columns["visited"])}
    return recall._replace(columns=columns, host=host)


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
