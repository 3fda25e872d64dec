"""Texts, as pairs, by themselves, or as captions (`data.kind`): how they become tokens, and what of a spec is for other
kinds of data.
"""

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from emc2dist.config.sections import (
    TEXT_BACKBONES,
    TRANSFORMERS,
    Data,
    Eval,
    Section,
    SmallPositiveInt,
    Views,
    Word,
)

if TYPE_CHECKING:
    from emc2dist.config.spec import Spec

Length = Annotated[int, Field(ge=1, le=32_768)]
Share = Annotated[float, Field(gt=0, le=1)]
_MOST_BYTES = 2**36  # of a worker's tokens of a step, and of the embeddings


class Text(Section):
    """How texts become tokens, and the towers of texts, which both sides of pairs share."""

    tower: Word = "mini"
    """Of captions: the backbone of their tower, `bag`, `mini` or transformers:FOLDER, as `encoder.backbone` is of texts
    by themselves. Its projector is like that of the images."""
    query_length: Length = 32
    """Tokens of a query; what is longer is cut off."""
    document_length: Length = 128
    """Tokens of a document, or of a caption."""
    query_prompt: Annotated[Word, Field(max_length=1000)] = ""
    """Put before each query, as in 'query: '."""
    document_prompt: Annotated[Word, Field(max_length=1000)] = ""
    """Put before each document, or caption."""
    pooling: Literal["mean", "cls", "last"] = "mean"
    """How the vectors of a text's tokens become one: their mean, the first one's or the last one's. Of mini and of a
    folder."""
    width: SmallPositiveInt = 128
    """Width of bag's embeddings, and of mini."""
    layers: Annotated[int, Field(ge=1, le=256)] = 2
    """Blocks of mini."""
    heads: Annotated[int, Field(ge=1, le=1024)] = 4
    """Attention heads of mini; they divide `width`."""
    chunk: Length = 256
    """Tokens of a document from the beginning, of which views are made. This and those below are of kind texts."""
    crop: tuple[Share, Share] = (1.0, 1.0)
    """Share of a document that a view takes, [low, high]: as many tokens that follow each other."""
    delete: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability with which a view leaves a token out."""
    mask: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability with which a token of a view is masked."""
    vocabulary: Annotated[int, Field(ge=1, le=2**24)] | None = None
    """Tokens of the set's tokenizer, for bag and mini. None: as many as the set says when the run begins."""

    @field_validator("tower")
    @classmethod
    def _is_of_text(cls, tower: str) -> str:
        if not is_text(tower):
            raise ValueError(f"text.tower: {tower!r} is none of texts; give {_GIVE}")
        return tower

    @model_validator(mode="after")
    def _crop_ascends(self) -> Self:
        if self.crop[0] > self.crop[1]:
            raise ValueError(f"text.crop: [{self.crop[0]}, {self.crop[1]}] is not an ascending pair")
        return self


def is_text(backbone: str) -> bool:
    """Whether a backbone is one of text."""
    return backbone in TEXT_BACKBONES or backbone.startswith(TRANSFORMERS)


def misfit_of_kind(spec: "Spec") -> str | None:
    """Why a spec does not go with its `data.kind`, the key named, and what to do; None: it does."""
    backbone, kind = spec.encoder.backbone, spec.data.kind
    if kind != "captions" and spec.text.tower != Text().tower:
        return f"text.tower: {spec.text.tower} is of captions, and data.kind is {kind}; give encoder.backbone"
    if not spec.of_images:
        of_kind = _misfit_of_pairs if spec.of_pairs else _misfit_of_views
        return _misfit_of_texts(spec) or of_kind(spec) or _misfit_of_text(spec)
    if is_text(backbone):
        also = f"; give text.tower={backbone}" if kind == "captions" else "; give data.kind=pairs"
        return f"encoder.backbone: {backbone} is of texts, and with data.kind: {kind} it is the images'{also}"
    if kind == "captions":
        return _misfit_of_captions(spec) or _misfit_of_pairs(spec) or _misfit_of_text(spec)
    if spec.eval.prompts != Eval().prompts:
        return "eval.prompts: are of captions, and data.kind is images; leave them out"
    if spec.text != Text():
        return f"text.{_changed(spec.text, Text())}: is of texts, and data.kind is images; leave it out"
    return _misfit_of_views(spec)


def _misfit_of_views(spec: "Spec") -> str | None:
    """What images and texts by themselves cannot do, whose positives are views of one thing."""
    kind = spec.data.kind
    if spec.objective.options().get("directions") is not None:
        return f"objective.directions: are of pairs, and data.kind is {kind}; leave it out"
    if spec.negatives.guide is not None:
        return f"negatives.guide: is of pairs, and data.kind is {kind}; leave it out"
    if spec.data.negatives:
        return f"data.negatives: {spec.data.negatives} are of pairs, and data.kind is {kind}; leave it out"
    if spec.views.count < 2:
        return f"views.count: {spec.views.count} view has no other to be its positive; give 2 or more"
    return None


_READ_DATA = ("kind", "path", "limit", "negatives", "prefetch")
_READ_TEXT = ("query_length", "document_length", "query_prompt", "document_prompt")  # by every backbone, and these by:
_OF_CAPTIONS = ("tower", "document_length", "document_prompt")  # what is read in their stead
_GIVE = f"bag, mini or {TRANSFORMERS}FOLDER"
_READ_BY = {
    "bag": ("width", "vocabulary"),
    "mini": ("width", "vocabulary", "layers", "heads", "pooling"),
    TRANSFORMERS: ("pooling",),
}
_OF_VIEWS = ("chunk", "crop", "delete", "mask")  # of texts by themselves


def _misfit_of_texts(spec: "Spec") -> str | None:
    """What neither pairs nor texts by themselves can do."""
    encoder, kind, negatives = spec.encoder, spec.data.kind, spec.negatives
    images = (
        ("views", spec.views, Views(), ("count",)),
        ("data", spec.data, Data(), _READ_DATA),
        ("eval", spec.eval, Eval(), ("every", "asked", "queries", "bank")),
    )
    for name, section, default, read in images:
        key = _changed(section, default, but=read)
        if key is not None:
            return f"{name}.{key}: is of images, and data.kind is {kind}; leave it out"
    refusals = {
        f"encoder.backbone: {encoder.backbone} is of images, and data.kind is {kind}; give {_GIVE}":
            not is_text(encoder.backbone),
        f"encoder.norm: {encoder.norm} couples texts of a batch; leave it out, or give none":
            encoder.norm in ("batch", "sync_batch"),
        f"encoder.stem: {encoder.stem} is of images; leave it out": encoder.stem != "cifar",
        f"negatives.close: {', '.join(negatives.close)}: texts have no labels, and equal ones of a side are one "
        "already; leave it out": bool(negatives.close),
        "cuda_graphs: true records passes over images; leave it out": spec.cuda_graphs,
        "compile: true is of images so far; leave it out": spec.compile,
    }  # fmt: skip
    return next((what for what, found in refusals.items() if found), None)


def _misfit_of_captions(spec: "Spec") -> str | None:
    """What images with captions cannot do, that pairs of texts need not be told."""
    negatives, norm = spec.negatives, spec.encoder.norm
    key = _changed(spec.eval, Eval(), but=("every", "asked", "queries", "bank", "prompts"))
    refusals = {
        f"eval.{key}: is of images by themselves, and data.kind is captions; leave it out": key is not None,
        f"encoder.norm: {norm} couples samples of a batch, of which chains keep features; give group or none":
            norm in ("batch", "sync_batch"),
        f"negatives.close: {', '.join(negatives.close)}: captions have no labels, and equal ones are one already; "
        "leave it out": bool(negatives.close),
        f"data.per_class: {spec.data.per_class}: is of images by themselves; leave it out":
            spec.data.per_class is not None,
        f"data.negatives: {spec.data.negatives}: are of pairs of texts; leave it out": spec.data.negatives > 0,
        "negatives.guide: is of pairs of texts; leave it out": negatives.guide is not None,
        "objective: debcse reads words on both sides, and one is of images; give infonce or dcl":
            spec.objective.name == "debcse",
        "cuda_graphs: true records passes of one tower, and captions have their own; leave it out": spec.cuda_graphs,
        "compile: true is of images by themselves so far; leave it out": spec.compile,
    }  # fmt: skip
    return next((what for what, found in refusals.items() if found), None)


def _misfit_of_pairs(spec: "Spec") -> str | None:
    negatives, options, kind = spec.negatives, spec.negatives.options(), spec.data.kind
    key = _changed(spec.text, Text(), but=tuple(key for key in Text.model_fields if key not in _OF_VIEWS))
    both = options.get("cache_proposals") or options.get("carried") == "cached"
    refusals = {
        f"text.{key}: is of random views of a text, and data.kind is {kind}; leave it out": key is not None,
        f"views.count: {spec.views.count}, but either side of a pair has one view; leave it out": spec.views.count != 1,
        f"objective: {spec.objective.name} is of views of one thing, and data.kind is {kind}; give infonce or dcl":
            not spec.objective.paired,
        f"negatives: {negatives.name} is of images so far; give in_batch, chain or moving_average":
            negatives.name in ("gumbel", "queue"),
        f"data.negatives: {spec.data.negatives} that a set names are no sample of its documents, and negatives: "
        f"{negatives.name} wants one; give negatives=in_batch":
            spec.data.negatives > 0 and negatives.name != "in_batch",
        "negatives.balance: push has queries pushed twice for documents that nobody pushes; leave it out":
            options.get("balance") == "push",
        "negatives: cache_proposals and carried: cached are of documents alone; give objective.directions=forward":
            bool(both) and spec.objective.options().get("directions") not in (None, "forward", ("forward",)),
        "encoder.momentum: a follower's keys are of views of one thing; leave it out":
            spec.encoder.momentum is not None,
    }  # fmt: skip
    return next((what for what, found in refusals.items() if found), None)


def _misfit_of_text(spec: "Spec") -> str | None:
    """What its backbone cannot do with `text`, and what is too much."""
    text, name, of_captions = spec.text, spec.text_backbone, spec.data.kind == "captions"
    assert name is not None, "there are texts"
    by_backbone = _READ_BY[TRANSFORMERS if name.startswith(TRANSFORMERS) else name]
    key = _changed(text, Text(), but=(*(_OF_CAPTIONS if of_captions else _READ_TEXT), *by_backbone, *_OF_VIEWS))
    if key is not None:
        return f"text.{key}: is not read by {'text.tower' if of_captions else 'encoder.backbone'}: {name}; leave it out"
    if name == "mini" and text.width % text.heads:
        return f"text.heads: {text.heads} does not divide text.width: {text.width}; give one that does"
    samples = spec.micro_batch_size // spec.workers * spec.views.count
    of_side = samples * (1 + spec.data.negatives) + spec.negatives.draws // spec.workers
    length = text.document_length + (0 if of_captions else text.query_length)
    tokens = 4 * length * of_side  # int32
    if tokens > _MOST_BYTES:
        return (
            f"batch_size: {spec.batch_size} with text.query_length: {text.query_length} and text.document_length: "
            f"{text.document_length} gives a worker {tokens / 2**30:.0f} GiB of tokens a step; use a smaller one, more "
            "workers, or optimiser.accumulate"
        )
    embeddings = 4 * (text.vocabulary or 0) * text.width  # float32
    if embeddings > _MOST_BYTES:
        return (
            f"text.vocabulary: {text.vocabulary} with text.width: {text.width} takes {embeddings / 2**30:.0f} GiB of "
            "embeddings; use a smaller one"
        )
    return None


def _changed(section: Section, default: Section, but: tuple[str, ...] = ()) -> str | None:
    """The first key that has another value than by default."""
    mine, theirs = section.model_dump(), default.model_dump()
    return next((key for key in mine if key not in but and mine[key] != theirs[key]), None)
