"""What a run is trained on and judged by, by `data.kind`: images, images with captions, pairs of texts, or texts.

images     a sample is an image, an anchor a view of it; kNN tells how good the encoder is
captions   a sample is an image with one of its captions; how well they find each other tells it
pairs      a sample is a query with one of its documents; how well queries find theirs tells it
texts      a sample is a document, an anchor a view of it; the queries tell it as of pairs
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emc2dist.config import Spec, changed
from emc2dist.config.sections import TRANSFORMERS
from emc2dist.core.batch import judged_pairs
from emc2dist.core.contrast import columns_for, contrast_for
from emc2dist.core.objectives.debcse import LENGTH, WORDS
from emc2dist.data.captions import open_captions
from emc2dist.data.images import Images, known_of_each, open_images, open_labelled
from emc2dist.data.sampler import EpochOrder, Order, PairOrder
from emc2dist.data.texts.documents import Documents, open_documents
from emc2dist.data.texts.guide import open_guide
from emc2dist.data.texts.loader import TextLoader
from emc2dist.data.texts.manifest import pairs_manifest_at
from emc2dist.data.texts.pairs import Pairs, open_pairs
from emc2dist.data.texts.tokenizer import TokenView
from emc2dist.errors import DataError, SpecError
from emc2dist.metrics import Row
from emc2dist.towers.encoder import Encoder
from emc2dist.towers.views import PlainView
from emc2dist.train.evaluation import Evaluation
from emc2dist.train.model_files import ModelFiles
from emc2dist.train.retrieval import PlainViews, RetrievalEvaluation
from emc2dist.train.step import Loader
from emc2dist.train.surface import surface_of
from emc2dist.train.texts import RandomTokens
from emc2dist.train.views import view_loader

_OF_WORDS = {LENGTH, *WORDS}  # columns that texts have

TrainingSet = Images | Pairs | Documents


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
    if spec.text_backbone is None or spec.text_backbone.startswith(TRANSFORMERS):
        return spec
    given, tokens = spec.text.vocabulary, pairs_manifest_at(spec.data, spec.s3)[1].vocabulary
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
    elif spec.data.kind == "captions":
        opened = open_captions(spec.data, "train", spec.s3)
    elif spec.data.kind == "texts":
        opened = open_documents(spec.data, spec.s3)
    else:
        opened = open_images(spec.data, "train", spec.s3)
    assert opened is not None, "raised where there is nothing to train on"
    return opened


def judge_of(spec: Spec, train: TrainingSet, model: ModelFiles | None = None) -> tuple[Judge | None, list[str]]:
    """What judges the encoder while it is trained, None where nothing can, and what a person should know of it.

    `model` as in `token_views`.
    """
    if isinstance(train, Pairs | Documents):
        return RetrievalEvaluation.of(spec, plain_views(spec, model))
    return Evaluation.of(spec, open_labelled(spec.data, spec.eval, train, spec.s3))


def loaders_of(
    spec: Spec,
    train: TrainingSet,
    device: torch.device,
    *,
    model: ModelFiles | None = None,
    cores: int | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Loader]:
    """The loader of each side; `tell` is told in a line how views are made, `cores` are the worker's.

    `model` as in `token_views`.

    Raises:
        SpecError: a length has no room for a token, or `data.on_device: true` cannot be.
    """
    if isinstance(train, Documents):
        tell("views: spans of tokens, made by a thread of the worker")
        return {"x": TextLoader(train.texts, RandomTokens(tokenizer_of(spec, model), spec.text))}
    if not isinstance(train, Pairs):
        return {"x": view_loader(spec, train, device, cores=cores, tell=tell)}
    views = token_views(spec, model)
    documents = TextLoader(train.documents, views["document"])
    if spec.of_images:
        return {"query": view_loader(spec, train.queries, device, cores=cores, tell=tell), "document": documents}
    tell("views: tokens, made by a thread of the worker")
    return {"query": TextLoader(train.queries, views["query"]), "document": documents}


def tokenizer_of(spec: Spec, model: ModelFiles | None = None) -> str:
    """The tokenizer, JSON: the backbone's own, or the set's; `model` as in `token_views`."""
    model = model or ModelFiles.of(spec)
    assert model is not None, "the spec is over texts"
    return model.tokenizer


def token_views(spec: Spec, model: ModelFiles | None = None) -> dict[str, TokenView]:
    """What makes tokens of the texts of each side that has texts.

    `model` is what the run keeps of its model; None: it is read where a new run would read it, and raises as
    `ModelFiles.of` does. SpecError also where a length has no room for a token.
    """
    tokenizer, text = tokenizer_of(spec, model), spec.text
    views = {"document": TokenView(tokenizer, text.document_length, text.document_prompt)}
    if not spec.of_images:
        views["query"] = TokenView(tokenizer, text.query_length, text.query_prompt)
    return views


def plain_views(spec: Spec, model: ModelFiles | None = None) -> dict[str, PlainViews]:
    """What makes the one view of each query and document by which they are judged.

    `model`, and what is raised, as in `token_views`.
    """
    views: dict[str, PlainViews] = {side: view.tokens for side, view in token_views(spec, model).items()}
    if spec.of_images:
        view = PlainView(spec.views.size)
        views["query"] = lambda images: torch.stack([view(image) for image in images])
    return views


def order_of(spec: Spec, train: TrainingSet) -> Order:
    """The order of the samples.

    Raises DataError if the batch or the draws are more than the data, SpecError if judged pairs have no draws.
    """
    if isinstance(train, Pairs):
        return _order_of_pairs(spec, train)
    draws, what = spec.negatives.draws, "texts" if isinstance(train, Documents) else "images"
    if draws > len(train):
        raise DataError(f"negatives.draws: {draws} is more than the {len(train)} training {what}; use fewer")
    parts = spec.optimiser.accumulate
    if isinstance(train, Documents):
        return EpochOrder(len(train), spec.batch_size, spec.seed, parts=parts)
    return EpochOrder(
        len(train),
        spec.batch_size,
        spec.seed,
        parts=parts,
        blocks=train.blocks if spec.data.shuffle == "block" else None,
        window=spec.data.window,
        labels=train.labels(np.arange(len(train))) if spec.data.per_class else None,
        per_class=spec.data.per_class or 1,
    )


def _order_of_pairs(spec: Spec, train: Pairs) -> PairOrder:
    draws, directions = spec.negatives.draws, contrast_for(spec).objective.denominators
    sides = {"query": len(train.queries), "document": len(train.documents)}
    side = min((what.keys for what in directions), key=sides.__getitem__)
    if draws > sides[side]:
        raise DataError(f"negatives.draws: {draws} is more than there are, {sides[side]:,} (side {side}); use fewer")
    if not train.is_bijection and not draws and spec.negatives.name != "in_batch":
        raise SpecError(
            f"negatives.draws: 0, but documents are judged here ({_relation_of(train)}), so that a batch brings "
            "popular ones often and others never, and is no sample of them: draws alone are candidates; give "
            f"negatives.draws, say {min(spec.micro_batch_size, sides[side])}, or negatives: in_batch, which takes the "
            "batch as it comes"
        )
    within = [what.name for what in directions if what.anchors == what.keys]
    if not train.is_bijection and within and spec.negatives.name != "in_batch":
        raise SpecError(
            f"objective.directions: {', '.join(within)} are of pairs of which each document has one query; documents "
            f"are judged here ({_relation_of(train)}), so give forward or both, or negatives: in_batch, which takes "
            "the batch as it comes"
        )
    if spec.batch_size > len(train.queries):
        what = "images with captions" if spec.of_images else "queries"
        raise DataError(
            f"batch_size: {spec.batch_size} is more than the {len(train.queries)} training {what}; use fewer"
        )
    queries = EpochOrder(
        len(train.queries),
        spec.batch_size,
        spec.seed,
        parts=spec.optimiser.accumulate,
        blocks=train.queries.blocks if spec.of_images and spec.data.shuffle == "block" else None,
        window=spec.data.window,
    )
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
    samples, what = len(train), "texts" if isinstance(train, Documents) else "images"
    if isinstance(train, Pairs):
        samples, what = len(train.queries), "images" if spec.of_images else "queries"
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
    columns, remarks = dict[str, NDArray[np.int64]](), list[str]()
    wanted = columns_for(spec)
    of_words, others = {*wanted} & _OF_WORDS, {*wanted} - _OF_WORDS
    if not isinstance(train, Pairs | Documents):
        if of_words:
            raise SpecError(f"{wanted[of_words.pop()]}: reads words, and images have none; give another objective")
        columns, remarks = known_of_each(train, wanted)
    elif others:
        raise SpecError(f"{wanted[others.pop()]}: needs labels, and texts have none; give another objective")
    elif of_words:
        columns = surface_of([train.queries, train.documents] if isinstance(train, Pairs) else [train.texts])
    reason = contrast_for(spec).objective.unfit(columns, spec.encoder.features)
    if reason is not None:
        raise SpecError(reason)
    return columns, remarks


def guide_of(spec: Spec, train: TrainingSet) -> Tensor | None:
    """What `guide` of `emc2dist.core.batch.Batch` is, on the CPU; None where the spec has none.

    Raises as `emc2dist.data.texts.guide.open_guide` does.
    """
    if spec.negatives.guide is None:
        return None
    assert isinstance(train, Pairs), "the spec refuses a guide of anything else"
    return torch.from_numpy(open_guide(spec.negatives.guide, train, spec.s3))


def grades_of(spec: Spec, train: TrainingSet) -> tuple[Tensor, Tensor] | None:
    """What `grades` of `emc2dist.core.batch.Batch` is, on the CPU; None where the objective reads none.

    Raises SpecError where all scores are the same, and so tell nothing.
    """
    if spec.objective.name != "sycl" or not isinstance(train, Pairs):
        return None
    if train.scores.min() == train.scores.max() and not len(train.negatives):
        raise SpecError(
            f"objective: sycl: reads grades, and all {len(train.scores):,} judged pairs of {spec.data.path} have score "
            f"{train.scores[0]}; give a set with several scores, or infonce"
        )
    query, document = torch.from_numpy(train.relevance).T
    return query * len(train) + len(train.queries) + document, torch.from_numpy(train.scores).float()


def judged_of(train: TrainingSet) -> Tensor | None:
    """What `judged` of `emc2dist.core.batch.Batch` is of a set, on the CPU."""
    if not isinstance(train, Pairs):
        return None
    return judged_pairs(torch.from_numpy(train.relevance), len(train.queries), len(train))
