"""Pairs of texts (`data.kind: pairs`): how they become tokens, and what of a spec is for images alone."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from emc2dist.config.sections import Data, Eval, Section, SmallPositiveInt, Views, Word

if TYPE_CHECKING:
    from emc2dist.config.spec import Spec

TEXT_BACKBONES = ("bag", "mini")
"""Backbones of text that begin from nothing."""
TRANSFORMERS = "transformers:"
"""Begins the backbone that a folder holds, for the library transformers to read."""

Length = Annotated[int, Field(ge=1, le=32_768)]
_MOST_BYTES = 2**36  # of a worker's tokens of a step, and of the embeddings


class Text(Section):
    """Texts and their towers, which both sides of pairs share."""

    query_length: Length = 32
    """Tokens of a query; what is longer is cut off."""
    document_length: Length = 128
    """Tokens of a document."""
    query_prompt: Annotated[Word, Field(max_length=1000)] = ""
    """Put before each query, as in 'query: '."""
    document_prompt: Annotated[Word, Field(max_length=1000)] = ""
    """Put before each document."""
    pooling: Literal["mean", "cls", "last"] = "mean"
    """How the vectors of a text's tokens become one: their mean, the first one's or the last one's. Of mini and of a
    folder."""
    width: SmallPositiveInt = 128
    """Width of bag's embeddings, and of mini."""
    layers: Annotated[int, Field(ge=1, le=256)] = 2
    """Blocks of mini."""
    heads: Annotated[int, Field(ge=1, le=1024)] = 4
    """Attention heads of mini; they divide `width`."""
    vocabulary: Annotated[int, Field(ge=1, le=2**24)] | None = None
    """Tokens of the set's tokenizer, for bag and mini. None: as many as the set says when the run begins."""


def is_text(backbone: str) -> bool:
    """Whether a backbone is one of text."""
    return backbone in TEXT_BACKBONES or backbone.startswith(TRANSFORMERS)


def misfit_of_kind(spec: "Spec") -> str | None:
    """Why a spec does not go with its `data.kind`, the key named, and what to do; None: it does."""
    backbone = spec.encoder.backbone
    if spec.data.kind == "pairs":
        return _misfit_of_pairs(spec)
    if is_text(backbone):
        return f"encoder.backbone: {backbone} is of texts, and data.kind is images; give data.kind=pairs"
    if spec.text != Text():
        return f"text.{_changed(spec.text, Text())}: is of texts, and data.kind is images; leave it out"
    if spec.objective.options().get("directions") is not None:
        return "objective.directions: are of pairs, and data.kind is images; leave it out"
    if spec.data.negatives:
        return f"data.negatives: {spec.data.negatives} are of pairs, and data.kind is images; leave it out"
    if spec.views.count < 2:
        return f"views.count: {spec.views.count} view of an image has no other to be its positive; give 2 or more"
    return None


_READ_DATA = ("kind", "path", "limit", "negatives", "prefetch")
_READ_TEXT = ("query_length", "document_length", "query_prompt", "document_prompt")  # by every backbone, and these by:
_READ_BY = {
    "bag": ("width", "vocabulary"),
    "mini": ("width", "vocabulary", "layers", "heads", "pooling"),
    TRANSFORMERS: ("pooling",),
}


def _misfit_of_pairs(spec: "Spec") -> str | None:
    negatives, options, encoder = spec.negatives, spec.negatives.options(), spec.encoder
    images = (
        ("views", spec.views, Views(count=1), ()),
        ("data", spec.data, Data(), _READ_DATA),
        ("eval", spec.eval, Eval(), ("every", "asked", "queries", "bank")),
    )
    for name, section, default, read in images:
        key = _changed(section, default, but=read)
        if key is not None:
            return f"{name}.{key}: is of images, and data.kind is pairs; leave it out"
    both = options.get("cache_proposals") or options.get("carried") == "cached"
    refusals = {
        f"encoder.backbone: {encoder.backbone} is of images, and data.kind is pairs; give bag, mini or "
        f"{TRANSFORMERS}FOLDER": not is_text(encoder.backbone),
        f"encoder.norm: {encoder.norm} couples texts of a batch; leave it out, or give none":
            encoder.norm in ("batch", "sync_batch"),
        f"encoder.stem: {encoder.stem} is of images; leave it out": encoder.stem != "cifar",
        f"objective: {spec.objective.name} is of views of one thing, and data.kind is pairs; give infonce or dcl":
            not spec.objective.paired,
        f"negatives: {negatives.name} is of images so far; give in_batch, chain or moving_average":
            negatives.name in ("gumbel", "queue"),
        f"data.negatives: {spec.data.negatives} that a set names are no sample of its documents, and negatives: "
        f"{negatives.name} wants one; give negatives=in_batch":
            spec.data.negatives > 0 and negatives.name != "in_batch",
        "negatives.balance: push has queries pushed twice for documents that nobody pushes; leave it out":
            options.get("balance") == "push",
        "negatives.close: labels are of images; give duplicates, or leave it out": "label" in negatives.close,
        "negatives: cache_proposals and carried: cached are of documents alone; give objective.directions=forward":
            bool(both) and spec.objective.options().get("directions") == "both",
        "encoder.momentum: a follower's keys are of images so far; leave it out": encoder.momentum is not None,
        "cuda_graphs: true records passes over images; leave it out": spec.cuda_graphs,
        "compile: true is of images so far; leave it out": spec.compile,
    }  # fmt: skip
    return next((what for what, found in refusals.items() if found), None) or _misfit_of_text(spec)


def _misfit_of_text(spec: "Spec") -> str | None:
    text, name = spec.text, spec.encoder.backbone
    key = _changed(text, Text(), but=(*_READ_TEXT, *_READ_BY[TRANSFORMERS if name.startswith(TRANSFORMERS) else name]))
    if key is not None:
        return f"text.{key}: is not read by encoder.backbone: {name}; leave it out"
    if name == "mini" and text.width % text.heads:
        return f"text.heads: {text.heads} does not divide text.width: {text.width}; give one that does"
    samples = spec.micro_batch_size // spec.workers
    of_side = samples * (1 + spec.data.negatives) + spec.negatives.draws // spec.workers
    tokens = 4 * (text.query_length + text.document_length) * of_side  # int32
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
