"""From a gathered batch and what is remembered of it to a loss: one small class for each objective.

A contrast takes the features of one worker's anchors and the gathered ones, and returns the loss to differentiate,
what to remember, and diagnostics. The weights come from `emc2dist.core`; here the candidates are put together, and
carried or chosen samples are encoded again where they need a gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from emc2dist.config import Spec
from emc2dist.core.candidates import BatchScores, Choice, batch_scores, choose
from emc2dist.core.chain import Sweep, sweep
from emc2dist.core.objectives import estimator_loss, in_batch_weights, loss_estimate, moving_average_weights
from emc2dist.core.scores import standing_scores
from emc2dist.store import Rows
from emc2dist.train.memory import Recall

Encode = Callable[[Tensor], Tensor]
"""int64 [m] dataset indices without repeats -> features [m, D] of one fresh view of each, with gradient."""


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

    @property
    def own_index(self) -> Tensor:
        """int64 [b], dataset index of the worker's samples."""
        return self.index[self.first_slot : self.first_slot + self.features.shape[1]]

    @property
    def anchors(self) -> Tensor:
        """[V * b, D]"""
        return self.features.flatten(0, 1)


class Outcome(NamedTuple):
    """What a contrast found."""

    loss: Tensor
    """Scalar; its gradient is the estimate."""
    writes: dict[str, Rows]
    """What to remember."""
    facts: dict[str, Tensor]
    """Diagnostics of this worker's batch, scalars without gradient."""


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
        scores = _scores(batch, self.spec.temperature)
        candidates = scores.candidates(*_nothing(scores))
        weights, positive = in_batch_weights(candidates, with_positive=self.spec.objective == "simclr")
        return Outcome(
            estimator_loss(candidates, weights, positive), {}, {"loss": loss_estimate(candidates, self.samples)}
        )


class MovingAverage:
    """SogCLR: each anchor remembers a moving average of its denominator."""

    def __init__(self, spec: Spec, samples: int) -> None:
        self.spec, self.samples = spec, samples

    def __call__(self, batch: Batch, recall: Recall, encode: Encode) -> Outcome:
        """See `Contrast`."""
        scores = _scores(batch, self.spec.temperature)
        candidates = scores.candidates(*_nothing(scores))
        visited = recall.chain["visited"]
        weights, log_partition = moving_average_weights(
            candidates, recall.chain["log_partition"], visited, self.spec.moving_average
        )
        columns = {"log_partition": log_partition.float(), "visited": torch.ones_like(visited)}
        facts = {"loss": loss_estimate(candidates, self.samples), "visited_ratio": visited.double().mean()}
        return Outcome(estimator_loss(candidates, weights), {"chain": _chain_rows(batch, columns)}, facts)


class Emc2:
    """EMC^2: negatives from chains that outlive the batch (algorithm.md sections 2, 3 and 5).

    1. The batch is scored; carried states outside it are scored from their cached features; of the K cache rows one
       is chosen per anchor by its stale score.
    2. `mh` visits the chains on those scores. What needs a gradient is encoded again: for `mh` the carried states with
       weight, for `isir` every carried state and every chosen row. Each distinct image once.
    3. `isir` visits the chains on the fresh scores. The loss weighs the fresh scores.

    With `carried: cached` carried states keep their cached features, which then get no gradient.
    """

    def __init__(self, spec: Spec, samples: int) -> None:
        self.spec, self.samples = spec, samples

    def __call__(self, batch: Batch, recall: Recall, encode: Encode) -> Outcome:
        """See `Contrast`."""
        state, visited = recall.chain["state"], recall.chain["visited"]
        scores = _scores(batch, self.spec.temperature, state, visited)
        elsewhere = visited & ~scores.carried_here
        carried, chosen = self._cached_scores(batch, recall, elsewhere), _nothing(scores)[1]
        row, choice = self._choose(batch, recall)
        needed = elsewhere & (self.spec.carried == "reencode")
        if self.spec.kernel == "mh":
            visit = self._visit(scores, carried, chosen, batch.streams)
            needed &= visit.carried_weight > 0

        again = torch.cat([state[needed], row[choice.exists]])
        distinct, place = again.unique(return_inverse=True)
        fresh = encode(distinct) if len(distinct) else batch.features.new_zeros(0, batch.features.shape[-1])
        anchors = torch.cat([batch.anchors[needed], batch.anchors[choice.exists]])
        fresh_scores = self._standing(anchors, fresh[place])
        count = int(needed.sum())
        carried = carried.masked_scatter(needed, fresh_scores[:count])
        chosen = chosen.masked_scatter(choice.exists, fresh_scores[count:] + choice.correction[choice.exists])
        if self.spec.kernel == "isir":
            visit = self._visit(scores, carried, chosen, batch.streams)

        candidates = scores.candidates(carried, chosen)
        writes = self._writes(batch, visit, row, state, distinct, fresh)
        facts = self._facts(batch, recall, visit, elsewhere) | {
            "loss": loss_estimate(candidates, self.samples),
            "reencoded_images": torch.tensor(float(len(distinct)), device=fresh.device),
        }
        return Outcome(estimator_loss(candidates, visit.weights), writes, facts)

    def _visit(self, scores: BatchScores, carried: Tensor, chosen: Tensor, streams: Tensor) -> Sweep:
        candidates = scores.candidates(carried, chosen)
        return sweep(
            candidates.proposals,
            candidates.carried,
            kernel=self.spec.kernel,
            burn_in_fraction=self.spec.burn_in_fraction,
            streams=streams,
        )

    def _cached_scores(self, batch: Batch, recall: Recall, elsewhere: Tensor) -> Tensor:
        """[A]: carried states by their cached features; -inf where there is none. Gradient to the anchor only."""
        assert recall.carried is not None
        scores = self._standing(batch.anchors, recall.carried.feature.to(batch.features.dtype))
        return torch.where(elsewhere & recall.carried.present, scores, -torch.inf)

    def _choose(self, batch: Batch, recall: Recall) -> tuple[Tensor, Choice]:
        """For each anchor the sample [A] chosen among the K cache rows by stale scores, and its correction."""
        assert recall.cache is not None
        cache, state = recall.cache, recall.chain["state"]
        if not len(cache.index):
            nothing = torch.zeros_like(state)
            return nothing, Choice(nothing, nothing.bool(), nothing.to(batch.features.dtype))
        with torch.no_grad():
            stale = batch.anchors @ cache.feature.to(batch.features.dtype).T / self.spec.temperature
        closed = ~cache.present | torch.isin(cache.index, batch.index)
        closed = closed | ((cache.index == state.unsqueeze(1)) & recall.chain["visited"].unsqueeze(1))
        choice = choose(stale.masked_fill(closed, -torch.inf), batch.streams)
        return cache.index[choice.row], choice

    def _standing(self, anchors: Tensor, features: Tensor) -> Tensor:
        """[n]: scores of one view of a sample each, standing for all its views."""
        return standing_scores(anchors, features.unsqueeze(1), self.spec.temperature, self.spec.views.count)

    def _writes(
        self, batch: Batch, visit: Sweep, row: Tensor, state: Tensor, distinct: Tensor, fresh: Tensor
    ) -> dict[str, Rows]:
        samples = torch.cat([batch.index.expand(len(state), -1), row.unsqueeze(1), state.unsqueeze(1)], 1)
        moved = samples.gather(1, visit.state.unsqueeze(1)).squeeze(1)
        columns = {
            "state": moved,
            # A chain that had no proposal and no state still has none.
            "visited": visit.weights.sum(1) > 0,
            "visited_at": torch.full_like(moved, batch.step, dtype=torch.int32),
        }
        return {
            "chain": _chain_rows(batch, columns),
            "feature": self._feature_rows(
                torch.cat([batch.own_index, distinct]), torch.cat([batch.features[-1], fresh]), batch.step
            ),
        }

    def _feature_rows(self, index: Tensor, features: Tensor, step: int) -> Rows:
        dtype = torch.float16 if self.spec.store.feature_dtype == "float16" else torch.float32
        columns = {
            "feature": features.detach().to(dtype),
            "present": torch.ones_like(index, dtype=torch.bool),
            "written_at": torch.full_like(index, step, dtype=torch.int32),
        }
        return Rows(_numpy(index), {name: _numpy(column) for name, column in columns.items()})

    def _facts(self, batch: Batch, recall: Recall, visit: Sweep, elsewhere: Tensor) -> dict[str, Tensor]:
        assert recall.carried is not None
        visited, valid = recall.chain["visited"], visit.proposals.double()
        return {
            "acceptance_rate": (visit.acceptance_rate * valid).sum() / valid.sum().clamp(min=1),
            "visited_ratio": visited.double().mean(),
            "carried_weight_ratio": visit.carried_weight.double().mean(),
            "carried_age_steps": _mean_where(batch.step - recall.chain["visited_at"], visited),
            "feature_age_steps": _mean_where(batch.step - recall.carried.written_at, elsewhere),
            "effective_sample_size": visit.effective_sample_size.double().mean(),
            "distinct_negatives": visit.distinct.double().mean(),
        }


def _scores(
    batch: Batch, temperature: float, state: Tensor | None = None, visited: Tensor | None = None
) -> BatchScores:
    if state is None or visited is None:
        state = torch.zeros(len(batch.streams), dtype=torch.int64, device=batch.index.device)
        visited = state.bool()
    return batch_scores(batch.features, batch.units, batch.index, batch.first_slot, state, visited, temperature)


def _nothing(scores: BatchScores) -> tuple[Tensor, Tensor]:
    """Scores [A] of no carried state and no chosen row."""
    nothing = torch.full_like(scores.positive, -torch.inf)
    return nothing, nothing


def _chain_rows(batch: Batch, columns: dict[str, Tensor]) -> Rows:
    """Columns [V * b] by anchor, as rows [b, V] by sample."""
    views = batch.features.shape[0]
    return Rows(_numpy(batch.own_index), {name: _numpy(c.view(views, -1).T) for name, c in columns.items()})


def _mean_where(values: Tensor, where: Tensor) -> Tensor:
    return (values * where).sum() / where.sum().clamp(min=1)


def _numpy(tensor: Tensor) -> NDArray:
    return tensor.detach().cpu().contiguous().numpy()
