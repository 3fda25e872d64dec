"""A run over pairs, of texts or of images with captions, opened: what makes features of either side by its encoder, and
how well queries find their documents.

The run keeps its tokenizer, so any texts can be read. What its chains hold are texts of the set that it was trained on:
that has to be found, where the run had it or at `data.path`, and hold what it held.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from emc2dist.config import S3, Spec, dump, given_keys, parse
from emc2dist.data.images import Images
from emc2dist.data.texts.pairs import Pairs, Texts
from emc2dist.errors import DataError, NonFiniteError, SpecError, StorageError, StorageUnreachable
from emc2dist.run.loaded import LoadedCheckpoint
from emc2dist.terminal import Progress, say
from emc2dist.towers.encoder import Encoder
from emc2dist.train.retrieval import PlainViews, RetrievalEvaluation, asked_of
from emc2dist.train.sets import open_training_set, plain_views

_CHUNK = 256  # texts or images encoded at once


@dataclass(frozen=True)
class Encoding:
    """Texts, and images that have captions, as features of an encoder."""

    newest: LoadedCheckpoint
    encoder: Encoder
    """In evaluation mode, on the checkpoint's device."""
    views: Mapping[str, PlainViews]
    """What makes views of each side, `query` and `document`."""

    @classmethod
    def of(cls, newest: LoadedCheckpoint, encoder: Encoder | None = None) -> "Encoding":
        """By a checkpoint's encoder, or another of its spec, and the tokenizer that its run keeps."""
        return cls(newest, encoder or newest.encoder, plain_views(newest.spec, newest.model))

    def of_rows(self, queries: Texts | Images, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Unit-norm features [n, D] of queries by their rows [n], of which a few are held at once.

        Raises as `features`.
        """
        parts = [np.empty((0, self.encoder.features), np.float32)]
        parts += [
            self.features(queries.get(some), "query") for some in np.split(rows, range(_CHUNK, len(rows), _CHUNK))
        ]
        return np.concatenate(parts)

    @torch.no_grad()
    def features(self, texts: Sequence[Any], side: str) -> NDArray[np.float32]:
        """Unit-norm features [n, D] of n texts, or images uint8 [3, H, W] each, of a side.

        Raises:
            NonFiniteError: one is NaN or infinite.
        """
        found = np.empty((len(texts), self.encoder.features), np.float32)
        for first in range(0, len(texts), _CHUNK):
            some = texts[first : first + _CHUNK]
            views = self.views[side](some)
            found[first : first + _CHUNK] = self.encoder(views.to(self.newest.device)).float().cpu()
        if not np.isfinite(found).all():
            raise NonFiniteError(f"{self.newest.place}: its encoder's features are not finite; the run has diverged")
        return found


def where(spec: Spec, overrides: Sequence[str]) -> str:
    """The path of the data after overrides, KEY=VALUE. Raises SpecError where one sets more than that, or S3."""
    path = parse(dump(spec), overrides).data.path if overrides else spec.data.path
    for key in given_keys(overrides):
        if key != "data.path" and not key.startswith("s3."):
            raise SpecError(f"{key}: is not read here; what can be set is data.path and s3")
    return path


def training_set(newest: LoadedCheckpoint, path: str, s3: S3) -> Pairs:
    """The pairs that a run was trained on, where it had them or else at `path`.

    Raises:
        DataError: neither holds them. StorageUnreachable: S3 does not answer.
    """
    problems = []
    for place in dict.fromkeys((newest.spec.data.path, path)):
        try:
            data = newest.spec.data.model_copy(update={"path": place})
            pairs = open_training_set(newest.spec.model_copy(update={"data": data, "s3": s3}))
        except StorageUnreachable:
            raise
        except (DataError, StorageError) as error:
            problems.append(str(error))
            continue
        assert isinstance(pairs, Pairs), "the run is over pairs"
        change = newest.manifest.change(pairs)
        if change is None:
            return pairs
        problems.append(f"{place}: now holds {change} that the run was trained on")
    raise DataError(f"{'; '.join(problems)}; the run's own set is needed: data.path=PATH says where")


def evaluate_pairs(newest: LoadedCheckpoint, spec: Spec) -> dict[str, Any]:
    """How well all queries of `eval.asked` find their documents in the whole corpus, by feature and by BM25.

    `spec` is the checkpoint's, with other data where that is asked for. Measures are those of
    `emc2dist.evaluate.retrieval`.

    Raises:
        DataError: there are no such queries. NonFiniteError: the run has diverged.
    """
    pairs, split = asked_of(spec)
    if pairs is None:
        raise DataError(
            f"{spec.data.path}: no query is of split test or validation; name the split that is asked: eval.asked=train"
        )
    evaluation = RetrievalEvaluation(spec, pairs, plain_views(newest.spec, newest.model), whole=True)
    remarks = [*on_another_set(newest, spec), *pairs.remarks]
    for remark in remarks:
        say(remark)
    with closing(Progress(evaluation.texts, unit="text")) as progress:
        feature = evaluation.all_measures(newest.encoder, newest.device, progress.add)
    say("encoded; now BM25")
    return {
        "checkpoint": str(newest.place),
        "data": spec.data.path,
        "asked": split,
        "queries": len(evaluation.queries),
        "documents": len(evaluation.documents),
        "feature": feature,
        "bm25": evaluation.bm25_measures(),
        "remarks": [*newest.remarks, *remarks],
    }


def on_another_set(newest: LoadedCheckpoint, spec: Spec) -> list[str]:
    """A remark where the set of `spec` is not the one that the run was trained on."""
    own = newest.spec.data.model_copy(update={"path": spec.data.path})
    try:
        change = newest.manifest.change(open_training_set(spec.model_copy(update={"data": own})))
    except DataError:  # it has no such split
        change = "no texts to train on, not those"
    return [f"{own.path}: holds {change} that the run was trained on, and is read by its tokenizer"] if change else []
