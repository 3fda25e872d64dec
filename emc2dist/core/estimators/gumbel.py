"""Negatives drawn from the feature cache by Gumbel-max: what EMC^2 is compared with (Yau et al. 2024; after Lindgren
et al., Efficient Training of Retrieval Models Using Negative Cache, NeurIPS 2021).

A visit scores the batch and its draws afresh and K rows of the cache (by default all) as they stand there, without
gradient. Of the softmax over all of them

    the batch and the draws have their shares, each with its own gradient;
    the rest is one row's, drawn from the rows by their softmax: the largest of score + Gumbel noise.

The mean over that draw is the gradient of log Z over the whole pool, so with all rows at hand it is that over the whole
dataset, with less variance than one draw from everything would leave. The drawn row's view is encoded again, with
gradient to both sides (`carried: reencode`), or its cached feature stands in (`cached`).

Biased by the age of the cache: rows are drawn, and weigh, by features of as many steps ago as they are old. A chain's
stale features only propose, and fresh ones decide. `negatives.draws: M` renews M rows a step beside the batch's (the
paper's rho is M / N). Noise belongs to the anchor's stream, so any number of workers draws the same.

What it costs is reading and scoring K rows in every step: K D numbers to every worker, and V b K D products.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from emc2dist.core.batch import Batch
from emc2dist.core.columns import Schema
from emc2dist.core.denominator import Denominator, Estimate
from emc2dist.core.estimators.base import (
    ALL_ROWS,
    CachedRows,
    Encode,
    Estimator,
    Fact,
    Recall,
    Visit,
    cached_features,
    rows_as_candidates,
)
from emc2dist.core.streams import gumbels
from emc2dist.core.transfer import to_device

_ROW = 8  # lane of an anchor's random stream; chains use 0 to 7
_NOISE_ELEMENTS = 1 << 22  # Gumbel variates held at once


@dataclass(frozen=True)
class Gumbel(Estimator):
    """log Z over the batch, the draws and the cache, one of whose rows is drawn for each anchor."""

    rows: int | None = None
    """K, drawn uniformly in every step; None: all."""
    carried: Literal["reencode", "cached"] = "reencode"
    feature_dtype: Literal["float16", "float32"] = "float16"

    @property
    @override
    def cache_proposals(self) -> int:
        return ALL_ROWS if self.rows is None else self.rows

    @override
    def tables(self, what: Denominator, views: int, width: int) -> Schema:
        return cached_features(self.feature_dtype, width)

    @override
    def estimate(self, what: Denominator, batch: Batch, recall: Recall, encode: Encode) -> Visit:
        streams = batch.streams_of(what.anchors)
        assert streams is not None, "rows are drawn"
        rows = recall.proposed
        assert rows is not None
        fresh = what.candidates(batch)
        with torch.no_grad():
            cached = rows_as_candidates(what, batch, rows, fresh)
            row = drawn_row(cached.scores, streams)
            log_total = torch.cat([fresh.scores, cached.scores], 1).logsumexp(1)
            stale, there = cached.scores.gather(1, row).squeeze(1), cached.scores.amax(1) > -torch.inf
            weights = torch.cat([fresh.scores, cached.scores.logsumexp(1, keepdim=True)], 1) - log_total.unsqueeze(1)
        row = row.squeeze(1)
        keys = rows.feature[row].to(stale.dtype).unsqueeze(0)
        if self.carried == "reencode":
            keys = _encoded_again(what, batch, rows, row, there, encode, keys)
        score = what.score_each(batch, keys, rows.index[row]).masked_fill(~there, -torch.inf)
        scores = torch.cat([fresh.scores, score.unsqueeze(1)], 1)
        # Where all are closed the share is NaN; and what is closed after all, by a fresh feature, has none.
        weights = weights.exp().masked_fill(scores.detach() == -torch.inf, 0)
        others, number = batch.others(what.keys), fresh.number + cached.number
        value = log_total - number.log() + math.log(others)
        index = torch.cat([fresh.samples.expand(len(row), -1), rows.index[row].unsqueeze(1)], 1)
        alone = (self.carried == "cached" or batch.sides[what.keys].keys is not None) and not what.constant
        one_sided = torch.cat([fresh.one_sided, torch.full_like(fresh.one_sided[:1], alone)]).unsqueeze(0)
        closed = what.closed(batch, scores.detach())
        estimate = Estimate(value, scores, weights, index, one_sided, closed, what.values, count=others)
        ages = torch.where(there, batch.step - rows.written_at[row], -1)
        return Visit(estimate, facts=_facts(weights, score.detach() - stale, ages), ages={"feature_age": ages})


def drawn_row(scores: Tensor, streams: Tensor) -> Tensor:
    """int64 [A, 1]: for each anchor one of K rows by the softmax of `scores` [A, K]; any where all are -inf."""
    block = max(1, _NOISE_ELEMENTS // max(1, scores.shape[1]))
    parts = zip(scores.split(block), streams.split(block), strict=True)
    drawn = [(some.double() + gumbels(noise, some.shape[1], lane=_ROW)).argmax(1) for some, noise in parts]
    return torch.cat(drawn).unsqueeze(1)


def _encoded_again(
    what: Denominator, batch: Batch, rows: CachedRows, row: Tensor, there: Tensor, encode: Encode, keys: Tensor
) -> Tensor:
    """[1, A, D]: the view whose cached feature was drawn, encoded today; `keys` where none was."""
    number = rows.number(row, batch.views)
    samples, numbers, known = torch.stack([rows.index[row], number, there.long()]).cpu()  # waits for a GPU
    (anchors,) = known.nonzero(as_tuple=True)
    if not len(anchors):
        return keys
    again = encode(what.keys, samples[anchors], numbers[anchors].unsqueeze(0))
    (anchors,) = to_device([anchors], again.device)
    return keys.index_copy(1, anchors, again.to(keys.dtype))


def _facts(weights: Tensor, errors: Tensor, ages: Tensor) -> dict[str, Fact]:
    known, weights = ages >= 0, weights.double()
    errors = errors.double().where(known & errors.isfinite(), 0)
    return {
        "cached_weight_ratio": (weights[:, -1].sum(), weights.sum()),
        "feature_age_steps": ((ages * known).sum(), known.sum()),
        "stale_score_rms_error": (errors.square().sum(), known.sum()),
    }
