"""What a run is trained on and judged by, of either kind (`data.kind`): images, or pairs of texts.

images   a sample is an image, an anchor a view of it; kNN tells how good the encoder is
pairs    a sample is a query with one of its documents; how well queries find theirs tells it
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from emc2dist.config import Spec, changed
from emc2dist.config.pairs import TRANSFORMERS
from emc2dist.core.contrast import columns_for, contrast_for
from emc2dist.data.images import Images, known_of_each, open_images, open_labelled
from emc2dist.data.sampler import EpochOrder, Order, PairOrder
from emc2dist.data.texts.loader import TextLoader
from emc2dist.data.texts.manifest import TOKENIZER, vocabulary_of
from emc2dist.data.texts.pairs import Pairs, load_tokenizer, open_pairs
from emc2dist.data.texts.tokenizer import TokenView, vocabulary_size
from emc2dist.errors import DataError, SpecError
from emc2dist.metrics import Row
from emc2dist.towers.encoder import Encoder
from emc2dist.train.evaluation import Evaluation
from emc2dist.train.retrieval import RetrievalEvaluation
from emc2dist.train.step import Loader
from emc2dist.train.views import view_loader

TrainingSet = Images | Pairs


class Judge(Protocol):
    """What tells how good an encoder is."""

    @property
    def neighbours(self) -> int | None:
        """k of kNN; None where none vote."""

    def measured(self, encoder: Encoder, device: torch.device) -> Row:
        """Measures of an encoder on its device; ranks share the work, and each has them."""

    def baseline(self) -> Row:
        """The same without any encoder: what it has to beat."""


def settled(spec: Spec) -> Spec:
    """The spec with what the set alone can tell: of texts the vocabulary.

    Raises:
        SpecError: `text.vocabulary` is less than the set's, or the set's takes too much room. Else as
            `open_training_set`.
    """
    if spec.data.kind != "pairs" or spec.encoder.backbone.startswith(TRANSFORMERS):
        return spec
    given, tokens = spec.text.vocabulary, vocabulary_of(spec.data.path, spec.s3)
    if given is not None and given < tokens:
        raise SpecError(
            f"text.vocabulary: {given:,} is less than the {tokens:,} tokens of {spec.data.path}; leave it out"
        )
    return changed(spec, {"text.vocabulary": given or tokens}, source=spec.data.path)


def open_training_set(spec: Spec) -> TrainingSet:
    """What is trained on.

    Raises:
        DataError: there is none, or one of the other kind. StorageError: it cannot be read.
    """
    opened: TrainingSet | None
    if spec.data.kind == "pairs":
        opened = open_pairs(spec.data, "train", spec.s3)
    else:
        opened = open_images(spec.data, "train", spec.s3)
    assert opened is not None, "raised where there is nothing to train on"
    return opened


def judge_of(spec: Spec, train: TrainingSet) -> tuple[Judge | None, list[str]]:
    """What judges the encoder while it is trained, None where nothing can, and what a person should know of it."""
    if isinstance(train, Pairs):
        return RetrievalEvaluation.of(spec, train)
    return Evaluation.of(spec, open_labelled(spec.data, spec.eval, train, spec.s3))


def loaders_of(
    spec: Spec,
    train: TrainingSet,
    device: torch.device,
    *,
    cores: int | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Loader]:
    """The loader of each side; `tell` is told in a line how views are made, `cores` are the worker's.

    Raises:
        SpecError: a length has no room for a token, or `data.on_device: true` cannot be.
    """
    if not isinstance(train, Pairs):
        return {"x": view_loader(spec, train, device, cores=cores, tell=tell)}
    views = token_views(spec)
    tell("views: tokens, made by a thread of the worker")
    return {
        "query": TextLoader(train.queries, views["query"]),
        "document": TextLoader(train.documents, views["document"]),
    }


def token_views(spec: Spec) -> dict[str, TokenView]:
    """What makes tokens of the texts of each side.

    Raises:
        SpecError: a folder's tokenizer has tokens that its model has no embeddings of, or a length has no room for a
            token. DataError: a tokenizer is none. StorageError: it cannot be read.
    """
    backbone, text = spec.encoder.backbone, spec.text
    if backbone.startswith(TRANSFORMERS):
        tokenizer = _tokenizer_of_folder(backbone.removeprefix(TRANSFORMERS))
    else:
        tokenizer = load_tokenizer(spec.data, spec.s3)
    return {
        "query": TokenView(tokenizer, text.query_length, text.query_prompt),
        "document": TokenView(tokenizer, text.document_length, text.document_prompt),
    }


def _tokenizer_of_folder(folder: str) -> str:
    from emc2dist.towers.text import pretrained_tokenizer, pretrained_vocabulary

    tokenizer, embeddings = pretrained_tokenizer(folder), pretrained_vocabulary(folder)
    tokens = vocabulary_size(tokenizer, f"encoder.backbone: {folder}/{TOKENIZER}")
    if tokens > embeddings:
        raise SpecError(
            f"encoder.backbone: {folder}: its {TOKENIZER} has {tokens:,} tokens, and its model embeddings of "
            f"{embeddings:,}; give the tokenizer that the model was trained with"
        )
    return tokenizer


def order_of(spec: Spec, train: TrainingSet) -> Order:
    """The order of the samples.

    Raises DataError if the batch or the draws are more than the data, SpecError if judged pairs have no draws.
    """
    if isinstance(train, Pairs):
        return _order_of_pairs(spec, train)
    draws = spec.negatives.draws
    if draws > len(train):
        raise DataError(f"negatives.draws: {draws} is more than the {len(train)} training images; use fewer")
    return EpochOrder(
        len(train),
        spec.batch_size,
        spec.seed,
        parts=spec.optimiser.accumulate,
        blocks=train.blocks if spec.data.shuffle == "block" else None,
        window=spec.data.window,
        labels=train.labels(np.arange(len(train))) if spec.data.per_class else None,
        per_class=spec.data.per_class or 1,
    )


def _order_of_pairs(spec: Spec, train: Pairs) -> PairOrder:
    draws, fewest = spec.negatives.draws, min(len(train.queries), len(train.documents))
    directions = contrast_for(spec).objective.denominators
    if draws > fewest:
        raise DataError(f"negatives.draws: {draws} is more than the {fewest:,} texts of a side; use fewer")
    if not train.is_bijection and not draws and spec.negatives.name != "in_batch":
        raise SpecError(
            f"negatives.draws: 0, but documents are judged here ({_relation_of(train)}), so that a batch brings "
            "popular ones often and others never, and is no sample of them: draws alone are candidates; give "
            f"negatives.draws, say {min(spec.micro_batch_size, fewest)}, or negatives: in_batch, which takes the batch "
            "as it comes"
        )
    if not train.is_bijection and len(directions) > 1:
        raise SpecError(
            "objective.directions: both is of pairs of which each document has one query; documents are judged here "
            f"({_relation_of(train)}), so give forward"
        )
    if spec.batch_size > len(train.queries):
        raise DataError(
            f"batch_size: {spec.batch_size} is more than the {len(train.queries)} training queries; use fewer"
        )
    queries = EpochOrder(len(train.queries), spec.batch_size, spec.seed, parts=spec.optimiser.accumulate)
    named = spec.data.negatives
    if named and not len(train.negatives):
        raise DataError(
            f"data.negatives: {named}, but {spec.data.path} names no negatives of its training queries; leave it out, "
            "or ingest a set that does (docs/texts.md)"
        )
    return PairOrder(queries, train.relevance, len(train.documents), train.negatives, named)


def _relation_of(train: Pairs) -> str:
    """How far a set is from a query for each document."""
    queries, documents, pairs = len(train.queries), len(train.documents), len(train.relevance)
    unasked = documents - len(np.unique(train.relevance[:, 1]))
    return f"{pairs:,} pairs of {queries:,} queries and {documents:,} documents, {unasked:,} of which answer none"


def left_over(spec: Spec, train: TrainingSet) -> list[str]:
    """A remark where the batch does not divide the samples."""
    samples, what = (len(train.queries), "queries") if isinstance(train, Pairs) else (len(train), "images")
    over = samples % spec.batch_size
    if not over:
        return []
    rest = "others each time" if spec.epochs > 1 else "and there is one epoch"
    return [
        f"{over:,} of {samples:,} training {what} are left out of each epoch, {rest}: batch_size: "
        f"{spec.batch_size} does not divide them"
    ]


def columns_of(spec: Spec, train: TrainingSet) -> tuple[dict[str, NDArray[np.int64]], list[str]]:
    """What is known of every entity, int64 [N] by name, and remarks.

    Raises SpecError where the objective cannot do with it, DataError where what is asked for is not known.
    """
    wanted = columns_for(spec)
    columns, remarks = _known_of_texts(train, wanted) if isinstance(train, Pairs) else known_of_each(train, wanted)
    reason = contrast_for(spec).objective.unfit(columns, spec.encoder.features)
    if reason is not None:
        raise SpecError(reason)
    return columns, remarks


def _known_of_texts(train: Pairs, wanted: Mapping[str, str]) -> tuple[dict[str, NDArray[np.int64]], list[str]]:
    if "duplicates" not in wanted:
        return {}, []
    groups = [side.duplicates() for side in (train.queries, train.documents)]
    queries, documents = groups
    apart = np.where(documents >= 0, documents + queries.max(initial=-1) + 1, -1)
    number = sum(int((group >= 0).sum()) for group in groups)
    return {"duplicates": np.concatenate([queries, apart])}, [f"negatives.close: {number:,} texts are duplicates"]


def judged_of(train: TrainingSet) -> NDArray[np.int64] | None:
    """What `judged` of `emc2dist.core.batch.Batch` is of a set; None where each query has a document to itself."""
    if not isinstance(train, Pairs) or train.is_bijection:
        return None
    entities, queries = len(train), len(train.queries)
    query, document = train.relevance[:, 0], train.relevance[:, 1] + queries
    return np.sort(np.concatenate([query * entities + document, document * entities + query]))


def remarks_of(train: TrainingSet) -> Sequence[str]:
    """What a person should know of how the set was found, with numbers."""
    return train.remarks
