"""The certificate over pairs: queries and documents whose features stand still (`emc2dist.core.certify`).

Each step takes B of the queries, one of each one's documents, and M of either side that are drawn uniformly. The
batch's queries are a uniform draw, and candidates. Where every query has a document to itself (a bijection) its
documents are, too. Where documents are judged they are not: they come as often as they are judged, and those that
nobody judged never. As candidates they leave the averaged gradient far from the exact one, so of documents the draws
alone are (`emc2dist.core.batch.Side.proposes`).
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import normalize
from typing_extensions import override

from emc2dist.core.batch import Batch, Side, judged_pairs
from emc2dist.core.certify import VISIT, FrozenRun
from emc2dist.core.contrast import Contrast, Outcome
from emc2dist.core.estimators import FEATURES
from emc2dist.core.exact import exact_loss_of_pairs
from emc2dist.core.streams import fork


class FrozenPairs(FrozenRun):
    """Steps of a contrast over pairs whose features stand still; one view stands for an entity exactly."""

    def __init__(
        self,
        contrast: Contrast,
        features: Tensor,
        queries: int,
        pairs: Tensor,
        batch_size: int,
        temperature: float,
        seed: int = 0,
        columns: Mapping[str, Tensor] | None = None,
        proposes: bool | None = None,
        guide: Tensor | None = None,
    ) -> None:
        """Begin.

        Args:
            contrast: an objective with directions, and its estimator.
            features: [N, D], the queries' and then the documents'.
            queries: Q, how many of them are queries'.
            pairs: int64 [R, 2], a query and a document that is its positive, by rows of their sides; every query has
                one at least.
            batch_size: B, queries of a step.
            temperature: > 0.
            seed: of all that is drawn.
            columns: as of `Batch`, [N].
            proposes: whether the batch's documents are candidates; None: in a bijection.
            guide: as of `Batch`, [N, E].
        """
        super().__init__(contrast, features.unsqueeze(0), batch_size, temperature, seed, views=1, columns=columns)
        self._count = {"query": queries, "document": len(features) - queries}
        self._first = {"query": 0, "document": queries}
        self.pairs, self.judged = pairs, judged_pairs(pairs, queries, len(features))
        self._guide = guide
        self._proposes = self.judged is None if proposes is None else proposes

    @override
    def exact(self, steps: int = 1) -> Tensor:
        every = normalize(self.features[0] + self.shift, dim=-1)
        queries, documents = every.split(list(self._count.values()))
        contrast = self.contrast
        sides = (queries, documents, self.pairs, self.temperature)
        loss = exact_loss_of_pairs(contrast.objective, *sides, contrast.closing, self.columns, guide=self._guide)
        return torch.autograd.grad(loss, self.shift)[0]

    @override
    def outcome(self, t: int) -> Outcome:
        queries = torch.randperm(self._count["query"], generator=self._generator)[: self.batch_size]
        batch = self.visited = self._batch_of(queries, self._positives(queries), t)
        fresh: list[tuple[Tensor, Tensor]] = []

        def encode(side: str, samples: Tensor, numbers: Tensor) -> Tensor:
            features = self._features(samples)
            fresh.append((samples, features))
            return features.unsqueeze(0)

        outcome = self.contrast(batch, self._recall(queries), encode)
        self._remember(outcome, queries)
        if FEATURES in self.tables:
            for side in {what.keys for what in self.contrast.denominators}:
                of_side = batch.sides[side]
                fresh.append((batch.index_of(side), of_side.all[0]))
                if of_side.drawn_index is not None and of_side.drawn is not None:
                    fresh.append((of_side.drawn_index, of_side.drawn[0]))
            for samples, features in fresh:
                self._cache(samples, features, t, 0)
        return outcome

    @override
    def _samples_of(self, table: str, index: Tensor) -> Tensor:
        assert self.visited is not None, "its batch is made first"
        sides = {what.name: what.anchors for what in self.contrast.denominators}
        return self.visited.index_of(sides[table])

    def _batch_of(self, queries: Tensor, documents: Tensor, step: int) -> Batch:
        """The batch of queries int64 [B] and a positive of each int64 [B], both by rows of their sides."""
        sides = {
            "query": self._side("query", queries, step),
            "document": self._side("document", documents, step),
        }
        return Batch(
            queries,
            0,
            sides,
            self.temperature,
            self.features.shape[1],
            step,
            columns=self.columns,
            guide=self._guide,
            judged=self.judged,
            learnt=self.learnt,
        )

    def _side(self, name: str, rows: Tensor, step: int) -> Side:
        index = rows + self._first[name]
        features = self._features(index).unsqueeze(0)
        drawn, draws = None, self.contrast.estimator.draws
        if draws and any(what.keys == name for what in self.contrast.denominators):
            drawn = self._uniform(draws, name)
        return Side(
            features,
            features,
            drawn=None if drawn is None else self._features(drawn).unsqueeze(0),
            drawn_index=drawn,
            drawn_learn=True,
            index=index,
            streams=fork(self.seed, VISIT, step, index),
            entities=self._count[name],
            proposes=name == "query" or self._proposes,
        )

    def _positives(self, queries: Tensor) -> Tensor:
        """int64 [B]: of each query one of its documents, any as likely."""
        mine = self.pairs[:, 0] == queries.unsqueeze(1)
        chosen = torch.multinomial(mine.double(), 1, generator=self._generator).squeeze(1)
        return self.pairs[chosen, 1]

    def _features(self, index: Tensor) -> Tensor:
        """[n, D]: entities int64 [n]."""
        return self._taken(torch.zeros_like(index), index)

    @override
    def _uniform(self, count: int, side: str = "x") -> Tensor:
        return self._first[side] + torch.randperm(self._count[side], generator=self._generator)[:count]
