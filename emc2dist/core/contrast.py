"""A batch's way to its loss: the objective's denominators are estimated, then its formula is read.

Only here do an objective and its estimator meet. What is remembered comes in by anchor and goes out by anchor.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from emc2dist.config import Spec
from emc2dist.core import balance
from emc2dist.core.batch import Batch
from emc2dist.core.closing import OPEN, Closing, Guided
from emc2dist.core.columns import Schema
from emc2dist.core.denominator import Denominator, Estimate
from emc2dist.core.estimators import (
    ESTIMATORS,
    FEATURES,
    Encode,
    Estimator,
    Fact,
    Recall,
    cached_features,
    in_batch,
)
from emc2dist.core.objectives import OBJECTIVE, OBJECTIVES, Objective
from emc2dist.core.scores import cosine, positive_scores


@dataclass(frozen=True)
class Outcome:
    """What one step's contrast found."""

    loss: Tensor
    """Scalar; its gradient is the estimate."""
    remember: Mapping[str, Mapping[str, Tensor]]
    """For each denominator's table the new values of its columns, each [A], by anchor."""
    facts: Mapping[str, Fact]
    """Diagnostics of this worker's batch, without gradient."""
    ages: Mapping[str, Tensor]
    """Steps, [A] by anchor; -1 where there is none."""
    log_z: Mapping[str, Tensor]
    """For each denominator whose value the objective needs, log Z [A] as it was taken for it; constants."""
    length: Tensor
    """Scalar: the share of its length that balance leaves the gradient, see `emc2dist.core.balance`."""
    batch: Batch
    """As the objective prepared it."""


@dataclass(frozen=True)
class Contrast:
    """An objective over the estimates of one estimator."""

    objective: Objective
    estimator: Estimator
    closing: Closing = OPEN
    """Of all its denominators."""
    balanced: bool = True
    """False leaves the pull of positives against candidates without gradient, for studies of what that does."""
    follows: bool = False
    """Whether a follower encodes all keys, so that gradients are the anchors' alone (`Side.keys`)."""

    @property
    def denominators(self) -> Sequence[Denominator]:
        """The objective's, without what is closed."""
        return [replace(what, closing=self.closing) for what in self.objective.denominators]

    def tables(self, views: int, width: int) -> Schema:
        """What is remembered of each sample with `views` views and features `width` wide."""
        schema: Schema = {}
        for what in self.denominators:
            schema |= self.estimator.tables(what, views, width)
        if self.objective.support and FEATURES not in schema:
            schema |= cached_features("float16", width)
        remembered = self.objective.remembers(views)
        return schema | ({OBJECTIVE: dict(remembered)} if remembered else {})

    def foreseen(
        self, columns: Mapping[str, Mapping[str, Tensor]], here: Mapping[str, Tensor], step: int, views: int
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """The views of each side that are sure to be encoded again, see `Estimator.foreseen`.

        `columns` are by denominators' names; `here` are the candidates that the batch brings, int64 [n], by side.
        """
        parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for what in self.denominators:
            if what.name in columns:
                found = self.estimator.foreseen(what, columns[what.name], here[what.keys], step, views)
                parts.setdefault(what.keys, []).append(found)
        return {
            side: (torch.cat([s for s, _ in some]), torch.cat([n for _, n in some])) for side, some in parts.items()
        }

    def __call__(self, batch: Batch, recalls: Mapping[str, Recall], encode: Encode) -> Outcome:
        """Contrast a batch; `recalls` by the denominators' names, and what the objective itself recalls."""
        mine = recalls.get(OBJECTIVE, Recall({}))
        batch = self.objective.prepared(batch, mine)
        visits = {
            what.name: self.estimator.estimate(what, batch, recalls.get(what.name, Recall({})), encode)
            for what in self.denominators
        }
        estimates = {name: visit.estimate for name, visit in visits.items()}
        loss, length = self._loss(batch, estimates)
        facts: dict[str, Fact] = {}
        ages: dict[str, Tensor] = {}
        for visit in visits.values():
            facts |= visit.facts
            ages |= visit.ages
        what, estimate = self.denominators[0], next(iter(estimates.values()))
        if batch.sides[what.keys].drawn_index is not None:
            facts["drawn_weight_ratio"] = drawn_weight(what, batch, estimate)
        facts |= _false_negatives(what, batch, estimate) | self.objective.facts(batch)
        facts["loss"] = loss_estimate(what, batch, _over_all_views(what, batch, estimate))
        remember = {name: visit.remember for name, visit in visits.items() if visit.remember}
        renewed = self.objective.renewed(batch, estimates, mine)
        remember |= {OBJECTIVE: renewed} if renewed else {}
        log_z = {what.name: estimates[what.name].value.detach() for what in self.denominators if what.valued}
        return Outcome(loss, remember, facts, ages, log_z, length, batch)

    def _loss(self, batch: Batch, estimates: Mapping[str, Estimate]) -> tuple[Tensor, Tensor]:
        """The loss, balanced, and what that leaves of its gradient's length."""
        pull = balance.pull(estimates.values())
        length = torch.ones_like(pull).mean()
        balanced = self.balanced and all(side.keys is None for side in batch.sides.values())
        if balanced and (self.estimator.balance or balance.DEFAULT) == "push":
            estimates = {name: balance.pushed(estimate) for name, estimate in estimates.items()}
        elif balanced:
            anchors_too = any(what.anchors == what.keys for what in self.denominators)
            batch, length = replace(batch, pull=pull), balance.length(pull, anchors_too)
        return torch.stack(list(self.objective.terms(batch, estimates).values())).sum(), length


def contrast_for(spec: Spec) -> Contrast:
    """The contrast that a spec names."""
    options = spec.objective.options()
    if spec.of_pairs:
        options["directions"] = options["directions"] or "forward"
    objective = OBJECTIVES[spec.objective.name](**options)
    estimator = ESTIMATORS[spec.negatives.name](**spec.negatives.options())
    negatives = spec.negatives
    after = 1.0 if negatives.ceiling_after is None else negatives.ceiling_after
    bound = negatives.guide
    guide = None if bound is None else Guided(bound.share, bound.margin, bound.above)
    closing = Closing(negatives.ceiling, after, negatives.close, guide)
    return Contrast(objective, estimator, closing, follows=spec.encoder.momentum is not None)


def columns_for(spec: Spec) -> dict[str, str]:
    """The columns of the set that a spec asks for (`Batch.columns`), and each time the key that does."""
    asked: dict[str, str] = dict.fromkeys(spec.negatives.close, "negatives.close")
    asked |= {name: f"objective: {spec.objective.name}" for name in contrast_for(spec).objective.columns}
    return asked if spec.data.per_class is None else asked | {"label": "data.per_class"}


def _false_negatives(what: Denominator, batch: Batch, estimate: Estimate) -> dict[str, Fact]:
    """How many of the candidates are closed, and what those with the anchor's label weigh, where labels are."""
    closed, weights, facts = estimate.closed, estimate.weights, dict[str, Fact]()
    anchor = batch.anchor_index(what.anchors).unsqueeze(1)
    _, index = what.judged_by(batch)
    others = ~batch.is_own(what.anchors, what.keys, index.unsqueeze(0))
    if what.closing:
        facts["closed_ratio"] = closed.sum(), others.sum()
        facts["closed_anchors_ratio"] = (weights.sum(1) == 0).double().mean()
    if "label" in batch.columns:
        facts["same_label_weight_ratio"] = (weights * batch.same("label", anchor, estimate.index)).sum(), weights.sum()
        if what.closing:
            same = others & batch.same("label", anchor, index)
            facts["same_label_closed_ratio"] = (closed & same).sum(), same.sum()
    return facts


@torch.no_grad()
def _over_all_views(what: Denominator, batch: Batch, estimate: Estimate) -> Estimate:
    """The estimate, or where a denominator has views, scale or weights of its own the batch's without them."""
    plain = replace(what, views="all", scale=None, log_weight=None, similarity=cosine)
    return estimate if what == plain else in_batch(plain, batch)


def drawn_weight(what: Denominator, batch: Batch, estimate: Estimate) -> Fact:
    """The weight on draws, and the whole weight."""
    drawn = batch.sides[what.keys].drawn_index
    assert drawn is not None
    weights = estimate.weights.double()
    return weights[:, len(batch.index) : len(batch.index) + len(drawn)].sum(), weights.sum()


def loss_estimate(what: Denominator, batch: Batch, estimate: Estimate) -> Tensor:
    """The logged loss: the global loss with its denominator estimated from the batch, scaled up to N - 1 samples.

    mean_a [ -s(a, a+) + log((N - 1) / |batch|) + logsumexp_batch ]: biased low by Jensen's inequality, the less the
    larger the batch; the same for every objective, so that runs can be compared. What is closed counts as a candidate
    of weight 0, and an anchor that has no other counts as `Estimate.mean_log_z` has it. Where the batch's samples are
    no candidates the draws stand for them.
    """
    columns, _ = what.judged_by(batch)
    scores = estimate.scores.detach()[:, columns]
    is_open = scores > -torch.inf
    count = (is_open | estimate.closed).sum(1)
    scale = torch.log(batch.others(what.keys) / count.clamp(min=1).to(scores.dtype))
    log_z = torch.where(is_open.any(1), scale + scores.logsumexp(1), 0)
    return (log_z - positive_scores(batch, what.anchors, what.positive_side).detach()).mean()
