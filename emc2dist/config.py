"""The spec of a run: one YAML file, strict, dumped resolved beside every run.

Precedence: default < file < `key=value` on the command line. Nothing is guessed: an unknown key, a wrong type or a
value out of range is a `SpecError` that names the key, the value, what is allowed, and the nearest valid key.
Unit and range stand under each field. This module imports no torch and no ray, so `emc2dist validate` is instant.

    spec = load("jobs/cifar10.yaml", ["data.path=../shared/data/cifar10", "lr=1e-3"])
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import ErrorDetails

from emc2dist.errors import SpecError

Objective = Literal["emc2", "simclr", "dcl", "sogclr"]
Kernel = Literal["mh", "isir"]
Carried = Literal["reencode", "cached"]
Norm = Literal["batch", "sync_batch", "group", "none"]
Precision = Literal["float32", "bf16", "float64"]

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, protected_namespaces=()
    )


class Data(_Section):
    """Where the images come from."""

    path: str = "digits"
    """`digits` (scikit-learn's 1,797 handwritten digits, nothing to download), a Parquet file, or a folder of them;
    on disk, or `s3://bucket/...`."""
    limit: PositiveInt | None = None
    """Use only the first so many training images; all of them by default."""
    cache_dir: str = "~/.cache/emc2dist"
    """Folder on every machine's own disk for what is fetched or unpacked; its processes share it."""
    cache_mib: PositiveInt = 16_384
    """Mebibytes that `cache_dir` may hold. Sets that `emc2dist ingest` wrote to a local disk need none."""
    shuffle: Literal["auto", "full", "block"] = "auto"
    """Order of an epoch. `full`: any order is as likely. `block`: few row groups at a time, see docs/data.md. `auto`:
    `block` on S3, `full` on disk."""
    window: PositiveInt = 16_384
    """Rows that shuffle: block mixes: a row comes at most so many places later than its block."""
    loaders: Annotated[int, Field(ge=0)] = 0
    """Processes per worker that decode and augment; 0 does it on a thread of the worker."""
    prefetch: PositiveInt = 2
    """Batches that are made ahead of the step that needs them."""


class Views(_Section):
    """How one view is drawn from an image. A probability of 0 leaves a transform out."""

    count: Annotated[int, Field(ge=2)] = 2
    """Views per image, V. Every sample has one chain per view."""
    size: PositiveInt = 32
    """Side of a view, pixels."""
    crop: tuple[PositiveFloat, PositiveFloat] = (0.2, 1.0)
    """Share of the image's area that a random resized crop keeps, [low, high]."""
    aspect: tuple[PositiveFloat, PositiveFloat] = (0.75, 4 / 3)
    """Aspect ratio of the crop, [low, high]."""
    flip: Probability = 0.5
    """Probability of a horizontal flip."""
    jitter: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, Annotated[float, Field(ge=0, le=0.5)]] = (
        0.4, 0.4, 0.4, 0.1,
    )  # fmt: skip
    """Strength of the colour jitter: brightness, contrast, saturation, hue."""
    jitter_probability: Probability = 0.8
    """Probability of the colour jitter."""
    grey: Probability = 0.2
    """Probability of dropping the colour."""
    blur: Probability = 0.0
    """Probability of a Gaussian blur (sigma 0.1 to 2.0 pixels, kernel about a tenth of the side)."""
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Largest rotation, degrees either way."""


class Encoder(_Section):
    """Backbone and projector."""

    backbone: str = "resnet18"
    """Any torchvision classification model whose head is `fc` (the ResNet family)."""
    stem: Literal["imagenet", "cifar"] = "cifar"
    """`imagenet`: 7x7 stride 2 and max-pool; `cifar`: 3x3 stride 1 and no pool, for images of 64 pixels or less."""
    norm: Norm = "group"
    """Normalisation layers. `batch` couples the samples of a worker's batch; `sync_batch` needs GPUs."""
    hidden: Annotated[int, Field(ge=0)] = 0
    """Width of the projector's hidden layer; 0 makes the projector linear."""
    features: PositiveInt = 128
    """Width of the projector's output, D."""


class Optimiser(_Section):
    """How parameters are moved."""

    name: Literal["adam", "adamw", "sgd", "lars"] = "adamw"
    """`lars` scales each layer's step by trust * |w| / |g|; biases and norms are excluded."""
    weight_decay: NonNegativeFloat = 1e-4
    """Weight decay; biases and norms are excluded."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of sgd and lars."""
    trust: PositiveFloat = 1e-3
    """LARS trust coefficient."""
    warmup_epochs: NonNegativeFloat = 1.0
    """Epochs of linear warm-up from 0; then cosine to 0."""
    clip_norm: PositiveFloat | None = None
    """Largest gradient norm; longer gradients are scaled down to it. None: not clipped."""
    accumulate: PositiveInt = 1
    """Micro-batches per optimiser update. Each contrasts batch_size / accumulate samples with its own sweep."""


class Eval(_Section):
    """kNN accuracy on the representation, while training."""

    every: Annotated[int, Field(ge=0)] = 1
    """Epochs between evaluations; 0: only before the first and after the last epoch."""
    voters: str = "train"
    """Split whose labelled images vote; another one where the training images have no labels."""
    neighbours: PositiveInt = 20
    """k of kNN (cosine)."""
    bank: PositiveInt = 10_000
    """Most labelled training images that vote."""
    queries: PositiveInt = 2_000
    """Most test images that are asked."""


class Checkpoint(_Section):
    """What is kept to resume from."""

    every: PositiveInt = 1
    """Epochs between checkpoints."""
    keep: PositiveInt = 2
    """Newest checkpoints to keep."""


class Store(_Section):
    """The shards that hold chains and cached features."""

    feature_dtype: Literal["float16", "float32"] = "float16"
    """Type of a cached feature."""
    timeout_s: PositiveFloat = 60.0
    """Seconds to wait for a shard before the step fails."""


class S3(_Section):
    """How S3 is reached, wherever a path begins with `s3://`.

    Credentials come from the ordinary AWS chain (environment, ~/.aws, the machine's role), never from a spec.
    """

    endpoint: str | None = None
    """URL of a server other than AWS, as in https://s3.example.org:9000; AWS_ENDPOINT_URL sets it too."""
    region: str | None = None
    """Region, as in eu-central-1; AWS_DEFAULT_REGION and ~/.aws/config set it too."""
    attempts: PositiveInt = 6
    """Times that a request is tried. The pauses between are random, up to 0.2, 0.4, 0.8 ... 10 s."""
    timeout_s: PositiveFloat = 30.0
    """Seconds to wait for a connection, and for an answer, in one attempt."""

    @model_validator(mode="after")
    def _holds_no_secret(self) -> Self:
        _refuse_credentials("s3.endpoint", self.endpoint or "")
        return self


def _refuse_credentials(key: str, url: str) -> None:
    """A spec is kept beside the run and shown in logs, so a secret in a URL must not get into it."""
    scheme, _, rest = url.partition("://")
    if rest and "@" in rest.split("/")[0]:
        raise ValueError(
            f"{key}: the {scheme} URL holds credentials; leave them out, they come from the AWS chain "
            "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws, or the machine's role)"
        )


class Spec(_Section):
    """One training run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    """Names the run and its folder: the same name resumes. Letters, digits, '.', '_' and '-'."""
    run_dir: str = "runs"
    """Folder that holds the run folders; on disk, or `s3://bucket/...`."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Everything random derives from it."""
    objective: Objective = "emc2"
    """`emc2`, or a baseline: `simclr` (in-batch InfoNCE), `dcl` (the same without the positive), `sogclr`."""
    kernel: Kernel = "mh"
    """`mh`: a Metropolis-Hastings sweep over the batch; `isir`: iterated sampling importance resampling."""
    temperature: PositiveFloat = 0.2
    """Scores are cosine similarities divided by it."""
    burn_in_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of an `mh` sweep's valid proposals that is dropped."""
    cache_proposals: Annotated[int, Field(ge=0)] = 0
    """K: rows of the feature cache to which a chain may move before its sweep, by delayed acceptance. 0: none."""
    carried: Carried = "reencode"
    """`reencode`: carried negatives are encoded again and get a gradient; `cached`: the stored feature stands in."""
    moving_average: Annotated[float, Field(gt=0, le=1)] = 0.1
    """SogCLR's weight of the newest estimate, gamma."""
    epochs: PositiveInt
    """Passes over the dataset."""
    batch_size: Annotated[int, Field(ge=2)]
    """Samples per optimiser update over all workers; each sample brings `views.count` anchors."""
    workers: PositiveInt = 1
    """Data-parallel training processes."""
    shards: PositiveInt = 1
    """Actors that hold the chain store."""
    lr: PositiveFloat
    """Peak learning rate, used as it stands (not scaled by the batch)."""
    precision: Precision = "float32"
    """`bf16` runs the encoder under autocast; `float64` is for proofs."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` trains on GPUs where the cluster has one for every worker."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of a worker; 0: the machine's cores divided among the workers."""
    restarts: Annotated[int, Field(ge=0)] = 3
    """Times the workers may be lost and started again from the newest checkpoint."""
    log_every: PositiveInt = 10
    """Steps between rows of metrics."""
    data: Data = Data()
    views: Views = Views()
    encoder: Encoder = Encoder()
    optimiser: Optimiser = Optimiser()
    eval: Eval = Eval()
    checkpoint: Checkpoint = Checkpoint()
    store: Store = Store()
    s3: S3 = S3()

    @property
    def micro_batch_size(self) -> int:
        """Samples of one sweep over all workers, B."""
        return self.batch_size // self.optimiser.accumulate

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        _refuse_credentials("data.path", self.data.path)
        _refuse_credentials("run_dir", self.run_dir)
        parts = self.workers * self.optimiser.accumulate
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size: {self.batch_size} does not divide among workers x optimiser.accumulate = {parts}; "
                f"use a multiple of {parts}"
            )
        if self.micro_batch_size < 2:
            raise ValueError(
                f"batch_size: {self.batch_size} leaves micro-batches of one sample, which has no negatives; "
                f"use at least {2 * self.optimiser.accumulate}"
            )
        if self.cache_proposals and self.objective != "emc2":
            raise ValueError(f"cache_proposals: {self.cache_proposals} needs objective: emc2, got {self.objective}")
        for key, (low, high) in (("views.crop", self.views.crop), ("views.aspect", self.views.aspect)):
            if low > high:
                raise ValueError(f"{key}: [{low}, {high}] is not an ascending pair")
        if self.views.crop[1] > 1:
            raise ValueError(f"views.crop: {self.views.crop[1]} is more than the whole image; allowed up to 1")
        if self.encoder.norm == "sync_batch" and self.device == "cpu":
            raise ValueError("encoder.norm: sync_batch needs GPUs; use batch, group or none on device: cpu")
        return self


# Keys that may differ between a run and its resumption: they move work around, not the result.
OPERATIONAL = frozenset(
    {"run_dir", "workers", "shards", "device", "threads", "restarts", "log_every", "eval", "checkpoint", "s3",
     "store.timeout_s", "data.path", "data.cache_dir", "data.cache_mib", "data.loaders", "data.prefetch"}
)  # fmt: skip


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, except that `1e-4` is a number, as in YAML 1.2."""

    yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}  # noqa: RUF012


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Spec:
    """Read a spec file and apply `key=value` overrides.

    Raises:
        SpecError: with one message that names the file, the key, the value and what is allowed.
    """
    path = Path(path)
    try:
        text = path.read_text()
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML spec") from error
    return parse(text, overrides, source=str(path))


def parse(text: str, overrides: Sequence[str] = (), *, source: str = "spec") -> Spec:
    """Parse the text of a spec; `source` names it in messages. Raises `SpecError`."""
    tree = _yaml(text, source)
    if not isinstance(tree, dict):
        raise SpecError(f"{source}: expected a mapping of keys to values, got {type(tree).__name__}")
    for override in overrides:
        _apply(tree, override)
    try:
        return Spec.model_validate(_tuples(tree))
    except ValidationError as error:
        raise SpecError(f"{source}: " + "; ".join(_explain(e) for e in error.errors())) from None


def parse_s3(overrides: Sequence[str]) -> S3:
    """The `s3` section alone, from words as in `s3.endpoint=URL`. Raises `SpecError`."""
    tree: dict[str, Any] = {}
    for override in overrides:
        if not override.startswith("s3."):
            raise SpecError(f"{override!r}: only keys of s3 can be set here, as in s3.endpoint=URL")
        _apply(tree, override)
    try:
        return TypeAdapter(dict[str, S3]).validate_python(tree).get("s3", S3())
    except ValidationError as error:
        raise SpecError("; ".join(_explain(e) for e in error.errors())) from None


def dump(spec: Spec) -> str:
    """The resolved spec as YAML that `parse` reads back to an equal spec."""
    return yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False)


def differences(old: Spec, new: Spec) -> list[str]:
    """Keys outside `OPERATIONAL` whose values differ, as lines `key: old -> new`."""
    before, after = dict(_leaves(old.model_dump())), dict(_leaves(new.model_dump()))
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in before
        if before[key] != after.get(key) and not ({key, key.split(".")[0]} & OPERATIONAL)
    ]


def _yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise SpecError(f"{source}: not valid YAML ({' '.join(str(error).split())})") from None


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise SpecError(f"{override!r}: an override is written key=value, as in lr=1e-3 or data.limit=512")
    *parents, leaf = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise SpecError(f"{override!r}: {parent} is a value, not a section")
    tree[leaf] = _yaml(value, override)


def _tuples(value: Any) -> Any:
    """Strict pydantic takes a tuple for a tuple; YAML has only lists."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _explain(error: ErrorDetails) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(key, list(_keys(Spec)), n=1, cutoff=0.0)
        return f"{key}: unknown key; the nearest valid key is {nearest[0]}"
    if error["type"] == "missing":
        return f"{key}: missing; give it a value"
    if error["type"] == "value_error":
        return error["msg"].removeprefix("Value error, ")
    return f"{key}: got {error['input']!r}; {error['msg'][0].lower()}{error['msg'][1:]}"


def _keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{prefix}{name}.")


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
