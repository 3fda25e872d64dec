"""From a gathered batch and what is remembered of it to a loss: one small class for each objective.

A contrast takes the features of one worker's anchors and the gathered ones, and returns the loss to differentiate,
what to remember, and diagnostics. The weights come from `emc2dist.core`; here the candidates are put together, and
carried or chosen samples are encoded again where they need a gradient.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from emc2dist.config import Spec
from emc2dist.core.cache import accept, propose
from emc2dist.core.candidates import BatchScores, batch_scores, locate
from emc2dist.core.chain import Sweep, sweep
from emc2dist.core.objectives import estimator_loss, in_batch_weights, loss_estimate, moving_average_weights
from emc2dist.core.scores import standing_scores, unit_scores
from emc2dist.store import Rows
from emc2dist.train.memory import CachedRows, Recall

Encode = Callable[[Tensor], Tensor]
"""int64 [m] dataset indices without repeats -> features [m, D] of one fresh view of each, with gradient."""

Fact = Tensor | tuple[Tensor, Tensor]
"""A diagnostic: a scalar, or the total of a mean and its weight."""


@dataclass(frozen=True)
class Batch:
    """One worker's part of a gathered batch."""

    step: int
    features: Tensor
    """[V, b, D], with gradient."""
    units: Tensor
    """[V, B, D], the gathered features, with gradient."""
    index: Tensor
    """int64 [B], dataset index of each slot."""
    first_slot: int
    """Slot of the worker's first sample."""
    streams: Tensor
    """int64 [V * b], one random stream per anchor."""
    temperature: float
    """Of this step; all its scores are cosines divided by it."""

    @property
    def own_index(self) -> Tensor:
        """int64 [b], dataset index of the worker's samples."""
        return self.index[self.first_slot : self.first_slot + self.features.shape[1]]

    @property
    def anchors(self) -> Tensor:
        """[V * b, D]"""
        return self.features.flatten(0, 1)

    def scores(self) -> BatchScores:
        """The anchors against the gathered batch."""
        return batch_scores(self.features, self.units, self.index, self.first_slot, self.temperature)


class Outcome(NamedTuple):
    """What a contrast found."""

    loss: Tensor
    """Scalar; its gradient is the estimate."""
    writes: dict[str, Rows]
    """What to remember."""
    facts: Mapping[str, Fact]
    """Diagnostics of this worker's batch, without gradient."""
    ages: Mapping[str, Tensor] = MappingProxyType({})
    """Steps, [A] by anchor; -1 where there is none."""


class Contrast(Protocol):
    """One objective."""

    def __call__(self, batch: Batch, recall: Recall, encode: Encode) -> Outcome:
        """Contrast a batch."""
        ...


def contrast_for(spec: Spec, samples: int) -> Contrast:
    """The contrast that `spec.objective` names, over a dataset of so many samples."""
    contrasts: dict[str, Callable[[Spec, int], Contrast]] = {
        "emc2": Emc2,
        "sogclr": MovingAverage,
        "simclr": InBatch,
        "dcl": InBatch,
    }
    return contrasts[spec.objective](spec, samples)


class InBatch:
    """InfoNCE within the batch (`simclr`), or the same without the positive in the denominator (`dcl`)."""

    def __init__(self, spec: Spec, samples: int) -> None:
        self.spec, self.samples = spec, samples

    def __call__(self, batch: Batch, recall: Recall, encode: Encode) -> Outcome:
        """See `Contrast`."""
        candidates = batch.scores().alone()
        weights, positive = in_batch_weights(candidates, with_positive=self.spec.objective == "simclr")
        facts = {"loss": loss_estimate(candidates, self.samples)}
        return Outcome(estimator_loss(candidates, weights, positive), {}, facts)


class MovingAverage:
    """SogCLR: each anchor remembers a moving average of its denominator."""

    def __init__(self, spec: Spec, samples: int) -> None:
        self.spec, self.samples = spec, samples

    def __call__(self, batch: Batch, recall: Recall, encode: Encode) -> Outcome:
        """See `Contrast`."""
        candidates = batch.scores().alone()
        visited = recall.chain["visited"]
        weights, log_partition = moving_average_weights(
            candidates, recall.chain["log_partition"], visited, self.spec.moving_average
        )
        columns = {"log_partition": log_partition.float(), "visited": torch.ones_like(visited)}
        facts = {"loss": loss_estimate(candidates, self.samples), "visited_ratio": visited.double().mean()}
        return Outcome(estimator_loss(candidates, weights), {"chain": _chain_rows(batch, columns)}, facts)


@dataclass(frozen=True)
class Carried:
    """The carried states of A chains, and how they score today."""

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
        return Carried(torch.where(where, state, self.state), torch.where(where, score, self.score), self.fresh | where)


class Emc2:
    """EMC^2: negatives from chains that outlive the batch (algorithm.md sections 2, 3 and 5).

    1. Carried states are scored: from the batch where they are in it, else from their cached features.
    2. With K > 0 cache proposals, chains may move by delayed acceptance (`emc2dist.core.cache`).
    3. The sweep. `isir` weighs every candidate, so with `carried: reencode` all carried states are encoded again
       before it; `mh` needs only those that end up with weight, which are encoded again after it.
    4. The loss weighs the scores, fresh ones with gradient to both sides. With `carried: cached` cached features
       stand in, with gradient to the anchor alone.
    """

    def __init__(self, spec: Spec, samples: int) -> None:
        self.spec, self.samples = spec, samples

    def __call__(self, batch: Batch, recall: Recall, encode: Encode) -> Outcome:
        """See `Contrast`."""
        scores = batch.scores()
        scorer = _Scorer(batch, scores, encode, self.spec)
        carried = self._recalled(batch, scores, recall)
        facts: dict[str, Fact] = {}
        if self.spec.cache_proposals:
            carried, moved = self._move(batch, recall, carried, scorer)
            facts["cache_moves_ratio"] = moved.double().mean()
        if self.spec.kernel == "isir" and self.spec.carried == "reencode":
            carried = scorer.refresh(carried, carried.exists)
        candidates = scores.candidates(carried.state, carried.score)
        visit = sweep(
            candidates.batch,
            candidates.carried,
            kernel=self.spec.kernel,
            burn_in_fraction=self.spec.burn_in_fraction,
            streams=batch.streams,
        )
        if self.spec.kernel == "mh" and self.spec.carried == "reencode":
            carried = scorer.refresh(carried, carried.exists & (visit.carried_weight > 0))
            candidates = scores.candidates(carried.state, carried.score)
        ages = _ages(batch, recall)
        facts |= self._facts(visit) | {f"{name}_steps": _known(age) for name, age in ages.items()}
        facts |= {
            "visited_ratio": recall.chain["visited"].double().mean(),
            "loss": loss_estimate(candidates, self.samples),
            "reencoded_images": torch.tensor(float(len(scorer.index)), device=batch.index.device),
        }
        writes = self._writes(batch, visit, carried.state, scorer)
        return Outcome(estimator_loss(candidates, visit.weights), writes, facts, ages)

    def _recalled(self, batch: Batch, scores: BatchScores, recall: Recall) -> Carried:
        assert recall.carried is not None
        state, visited = recall.chain["state"], recall.chain["visited"]
        score, here = scores.find(state)
        cached = self._cached_scores(batch, recall.carried)
        return Carried(state, torch.where(visited, torch.where(here, score, cached), -torch.inf), visited & here)

    def _cached_scores(self, batch: Batch, rows: CachedRows) -> Tensor:
        """[A]: one cached row per anchor; -inf where it holds no feature. Gradient to the anchor alone."""
        features = rows.feature.to(batch.features.dtype).unsqueeze(1)
        scores = standing_scores(batch.anchors, features, batch.temperature, self.spec.views.count)
        return scores.masked_fill(~rows.present, -torch.inf)

    def _move(self, batch: Batch, recall: Recall, carried: Carried, scorer: "_Scorer") -> tuple[Carried, Tensor]:
        """Delayed acceptance of one of the K cache rows by each chain; also which chains moved, bool [A]."""
        assert recall.carried is not None
        assert recall.cache is not None
        rows = recall.cache
        with torch.no_grad():
            keys = rows.feature.to(batch.features.dtype).unsqueeze(0)
            stale = unit_scores(batch.anchors, keys, batch.temperature) + math.log(self.spec.views.count)
            own = batch.own_index.repeat(batch.features.shape[0])
            is_carried = (rows.index == carried.state.unsqueeze(1)) & carried.exists.unsqueeze(1)
            closed = ~rows.present | (rows.index == own.unsqueeze(1)) | is_carried
            stale_carried = self._cached_scores(batch, recall.carried).masked_fill(~carried.exists, -torch.inf)
            proposal = propose(stale.masked_fill(closed, -torch.inf), stale_carried, batch.streams)
        carried = scorer.refresh(carried, carried.exists & proposal.moves)
        state = rows.index[proposal.row]
        score = scorer.score(state, proposal.moves)
        moved = accept(proposal, score.detach(), carried.score.detach(), batch.streams)
        return carried.replaced(moved, state, score), moved

    def _writes(self, batch: Batch, visit: Sweep, state: Tensor, scorer: "_Scorer") -> dict[str, Rows]:
        samples = torch.cat([batch.index.expand(len(state), -1), state.unsqueeze(1)], 1)
        moved = samples.gather(1, visit.state.unsqueeze(1)).squeeze(1)
        columns = {
            "state": moved,
            # A chain that had no proposal and no state still has none.
            "visited": visit.weights.sum(1) > 0,
            "visited_at": torch.full_like(moved, batch.step, dtype=torch.int32),
        }
        index = torch.cat([batch.own_index, scorer.index])
        features = torch.cat([batch.features[-1], scorer.features])
        return {"chain": _chain_rows(batch, columns), "feature": self._feature_rows(index, features, batch.step)}

    def _feature_rows(self, index: Tensor, features: Tensor, step: int) -> Rows:
        dtype = torch.float16 if self.spec.store.feature_dtype == "float16" else torch.float32
        columns = {
            "feature": features.detach().to(dtype),
            "present": torch.ones_like(index, dtype=torch.bool),
            "written_at": torch.full_like(index, step, dtype=torch.int32),
        }
        return Rows(_numpy(index), {name: _numpy(column) for name, column in columns.items()})

    def _facts(self, visit: Sweep) -> dict[str, Fact]:
        valid = visit.proposals.double()
        return {
            "acceptance_rate": ((visit.acceptance_rate * valid).sum(), valid.sum()),
            "carried_weight_ratio": visit.carried_weight.double().mean(),
            "effective_sample_size": visit.effective_sample_size.double().mean(),
            "distinct_negatives": visit.distinct.double().mean(),
        }


class _Scorer:
    """Scores samples by this step's features: the batch's, or a fresh view encoded again, each distinct image once."""

    def __init__(self, batch: Batch, scores: BatchScores, encode: Encode, spec: Spec) -> None:
        self._batch, self._scores, self._encode, self._spec = batch, scores, encode, spec
        self.index = batch.index.new_zeros(0)
        """int64 [m]: samples encoded again so far."""
        self.features = batch.features.new_zeros(0, batch.features.shape[-1])
        """[m, D], with gradient."""

    def score(self, samples: Tensor, where: Tensor) -> Tensor:
        """[A]: fresh scores of one sample per anchor at `where` [A]; any elsewhere."""
        score, here = self._scores.find(samples)
        outside = where & ~here
        wanted = samples[outside]
        if not len(wanted):
            return score
        self._encode_missing(wanted)
        slot, _ = locate(wanted, self.index)
        fresh = standing_scores(
            self._batch.anchors[outside],
            self.features[slot].unsqueeze(1),
            self._batch.temperature,
            self._spec.views.count,
        )
        return score.masked_scatter(outside, fresh)

    def refresh(self, carried: Carried, where: Tensor) -> Carried:
        """Carried states at `where` [A] scored by fresh features, where they are not yet."""
        where = where & ~carried.fresh
        return carried.replaced(where, carried.state, self.score(carried.state, where))

    def _encode_missing(self, samples: Tensor) -> None:
        missing = samples.unique()
        missing = missing[~torch.isin(missing, self.index)]
        if len(missing):
            self.index = torch.cat([self.index, missing])
            self.features = torch.cat([self.features, self._encode(missing)])


def _chain_rows(batch: Batch, columns: dict[str, Tensor]) -> Rows:
    """Columns [V * b] by anchor, as rows [b, V] by sample."""
    views = batch.features.shape[0]
    return Rows(_numpy(batch.own_index), {name: _numpy(c.view(views, -1).T) for name, c in columns.items()})


def _ages(batch: Batch, recall: Recall) -> dict[str, Tensor]:
    assert recall.carried is not None
    visited = recall.chain["visited"]
    chains, features = recall.chain["visited_at"], recall.carried.written_at
    return {
        "carried_age": torch.where(visited, batch.step - chains, -1),
        "feature_age": torch.where(visited & recall.carried.present, batch.step - features, -1),
    }


def _known(ages: Tensor) -> Fact:
    known = ages >= 0
    return (ages * known).sum(), known.sum()


def _numpy(tensor: Tensor) -> NDArray:
    return tensor.detach().cpu().contiguous().numpy()
