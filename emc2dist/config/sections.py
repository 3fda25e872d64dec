"""The sections of a spec. Unit and range stand under each field."""

import re
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, field_validator, model_validator
from pydantic_core import PydanticCustomError

from emc2dist.config import backbones, paths

Norm = Literal["batch", "sync_batch", "group", "none", "own"]
Precision = Literal["float32", "tf32", "bf16", "float64"]

REFUSED = "refused"
"""Type of the errors whose message is our own."""
HIDDEN = "hidden"
"""Type of the errors whose value no message may repeat."""

# The largest values are far beyond any use: a slip of the hand is told before anything is made of it.
PositiveInt = Annotated[int, Field(ge=1, le=2**31)]
SmallInt = Annotated[int, Field(ge=0, le=65_536)]
SmallPositiveInt = Annotated[int, Field(ge=1, le=65_536)]
PositiveFloat = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(gt=0, le=1e7, allow_inf_nan=False)]
Aspect = Annotated[float, Field(ge=0.01, le=100)]
Strength = Annotated[float, Field(ge=0, le=100)]


def _refuse_credentials(url: str) -> str:
    """A spec is kept beside the run and shown in logs, so a secret in a URL must not get into it."""
    scheme, _, rest = url.partition("://")
    if rest and "@" in rest.split("/")[0]:
        raise PydanticCustomError(
            HIDDEN,
            "the {scheme} URL holds credentials; leave them out, they come from the AWS chain "
            "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws, or the machine's role)",
            {"scheme": scheme},
        )
    return url


def _on_disk(text: str) -> str:
    return _path(text, remote=False)


def _anywhere(text: str) -> str:
    return _path(text, remote=True)


def _path(text: str, *, remote: bool) -> str:
    _refuse_credentials(text)
    try:
        paths.check(text, remote=remote)
    except ValueError as error:
        raise _refusal(str(error)) from None
    return text


def _written_out(text: str) -> str:
    try:
        paths.refuse_stand_ins(text)
    except ValueError as error:
        raise _refusal(str(error)) from None
    return text


def _of_a_server(url: str) -> str:
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return url
    except ValueError:  # of the port, or of brackets
        pass
    written = (
        f"; write http://{url} or https://{url}" if url and "://" not in url else ", as in https://s3.example.org:9000"
    )
    raise _refusal(f"is no URL of a server{written}")


def _refusal(message: str) -> PydanticCustomError:
    """Told with the key and the value, unlike a ValueError."""
    return PydanticCustomError(REFUSED, "{message}", {"message": message})


DiskPath = Annotated[str, AfterValidator(_on_disk)]
AnyPath = Annotated[str, AfterValidator(_anywhere)]
Word = Annotated[str, AfterValidator(_written_out)]
"""A name that is somebody else's."""
Url = Annotated[str, AfterValidator(_refuse_credentials), AfterValidator(_written_out)]

Endpoint = Annotated[Url, AfterValidator(_of_a_server)]


def _loaders(value: Any) -> Any:
    if value == "auto" or (type(value) is int and 0 <= value <= 1024):
        return value
    raise _refusal("use auto, or a whole number from 0 to 1024")


def _on_device(value: Any) -> Any:
    if value == "auto" or type(value) is bool:
        return value
    raise _refusal("use auto, true or false")


def _frozen(value: Any) -> Any:
    if value is None or value == "backbone" or (type(value) is int and 1 <= value <= 1024):
        return value
    raise _refusal("use backbone, or how many stages, from 1 on, or null")


# Not pydantic's own: of a union it tells what each of its kinds would take.
Loaders = Annotated[int | Literal["auto"], PlainValidator(_loaders)]
OnDevice = Annotated[bool | Literal["auto"], PlainValidator(_on_device)]
Frozen = Annotated[int | Literal["backbone"] | None, PlainValidator(_frozen)]


class Section(BaseModel):
    """Strict, and without keys that it does not know."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, protected_namespaces=()
    )

    @field_validator("*")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        if _unwritable(value):
            raise _refusal("holds a control character, or a byte that is not UTF-8; a spec is text")
        return value


def _unwritable(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_unwritable(one) for item in value.items() for one in item)
    if isinstance(value, tuple):
        return any(map(_unwritable, value))
    return isinstance(value, str) and re.search(r"[\0-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", value) is not None


BUILT_IN = {
    "digits": "scikit-learn's digits",
    "omniglot": "the package's Omniglot",
    "omniglot-small": "five alphabets of the package's Omniglot",
}
"""Values of `data.path` that are no paths, and what they are: sets of images with nothing to download."""


class Data(Section):
    """Where the images come from, or the pairs of texts, or of images with their captions."""

    kind: Literal["images", "captions", "pairs", "texts"] = "images"
    """`captions`: images with what is said of them, a folder that `emc2dist ingest --captions` wrote
    (docs/captions.md). `pairs`: of texts, queries and the documents that answer them (docs/texts.md). `texts`: its
    documents alone, of which random views are each other's positives, as of images."""
    path: AnyPath = "digits"
    """A Parquet file, or a folder of them, on disk or `s3://bucket/...`; or a set that comes with the package: `digits`
    (scikit-learn's 1,797 handwritten digits), `omniglot` (32,459 drawings of 1,623 characters), `omniglot-small` (2,720
    of 136)."""
    limit: Annotated[int, Field(ge=1, le=2**48)] | None = None
    """Use only the first so many training images; all of them by default."""
    cache_dir: DiskPath = "~/.cache/emc2dist"
    """Folder on every machine's own disk for what is fetched or unpacked; its processes share it."""
    cache_mib: PositiveInt = 16_384
    """Mebibytes that `cache_dir` may hold. Sets that `emc2dist ingest` wrote to a local disk need none."""
    decoded_mib: Annotated[int, Field(ge=0, le=2**31)] = 0
    """Mebibytes of decoded pixels to keep in `cache_dir`, besides `cache_mib`, so that an image that finds room is
    decoded once; 0: none."""
    shrink: bool = False
    """Whether images whose shorter side is longer than any random crop needs (docs/data.md) are resized to it when they
    are decoded. It changes their views a little, so a run does not go on with another one."""
    on_device: OnDevice = "auto"
    """Whether decoded pixels stay on the worker's device, where its views are made, once they have been there: a step
    then sends each view's parameters alone. `auto`: on a GPU that makes the views (`views.made_on`), if the set, by 32
    of its images, takes at most an eighth of the memory that is free when the worker starts. `true`: on any device, if
    it takes at most half of that; else it is refused. No image may be longer than four views (docs/data.md)."""
    shuffle: Literal["auto", "full", "block"] = "auto"
    """Order of an epoch. `full`: any order is as likely. `block`: few row groups at a time, see docs/data.md. `auto`:
    `block` on S3, `full` on disk."""
    negatives: Annotated[int, Field(ge=0, le=1024)] = 0
    """Of pairs: documents that the set names as negatives of a query, so many of each encoded in every step with its
    document, candidates of all; drawn anew where more are named. For negatives: in_batch."""
    window: PositiveInt = 16_384
    """Rows that shuffle: block mixes: a row comes at most so many places later than its block."""
    per_class: Annotated[int, Field(ge=2, le=2**16)] | None = None
    """K: batches are made of groups of K images of one class (P x K batches, docs/data.md); an epoch still takes each
    image once. None: whatever comes."""
    loaders: Loaders = "auto"
    """Processes per worker that decode, and make views where `views.made_on` leaves that to the CPU; 0 does it on a
    thread of the worker. `auto`: 0 for a set in memory. Else, of a worker's cores (`resources.worker_cpus`, or its
    share of the machine's), all but one beside a GPU, or a quarter (what `threads` leaves, if given) where it trains on
    them; half as many where views are made on the device; at most 16."""
    prefetch: Annotated[int, Field(ge=1, le=1024)] = 2
    """Batches that are made ahead of the step that needs them."""


class Views(Section):
    """How one view is drawn from an image. A probability of 0 leaves a transform out."""

    count: Annotated[int, Field(ge=1, le=256)] = 2
    """Views per image or text, V, at least 2. Every sample has one chain per view. Either side of a
    pair has one."""
    size: Annotated[int, Field(ge=1, le=4096)] = 32
    """Side of a view, pixels."""
    crop: tuple[Annotated[float, Field(ge=1e-6)], PositiveFloat] = (0.2, 1.0)
    """Share of the image's area that a random resized crop keeps, [low, high]."""
    aspect: tuple[Aspect, Aspect] = (0.75, 4 / 3)
    """Aspect ratio of the crop, [low, high]."""
    flip: Probability = 0.5
    """Probability of a horizontal flip."""
    jitter: tuple[Strength, Strength, Strength, Annotated[float, Field(ge=0, le=0.5)]] = (
        0.4, 0.4, 0.4, 0.1,
    )  # fmt: skip
    """Strength of the colour jitter: brightness, contrast, saturation, hue."""
    jitter_probability: Probability = 0.8
    """Probability of the colour jitter."""
    grey: Probability = 0.2
    """Probability of dropping the colour."""
    blur: Probability = 0.0
    """Probability of a Gaussian blur (sigma 0.1 to 2.0 pixels, kernel about a tenth of the side)."""
    solarise: Probability = 0.0
    """Probability that levels from 128 on are inverted, last of all, as in BYOL."""
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Largest rotation, degrees either way."""
    transform: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$", max_length=200)] | None = None
    """MODULE:NAME, a callable of one's own that makes a view, uint8 [3, size, size], of an image, uint8 [3, H, W], in
    the place of all above but `count` and `size` (docs/data.md). Views are then made on the CPU. None: those above."""
    made_on: Literal["auto", "cpu", "device"] = "auto"
    """Where views are made. `cpu`: where images are decoded. `device`: by the batch on the worker's device, to which
    decoded images are sent, whole or, where they are longer than four views, as crops. `auto`: on the device if it is a
    GPU. A pixel may differ by a level or so between the two, so a run does not go on with another one."""

    @model_validator(mode="after")
    def _one_transform(self) -> Self:
        if self.transform is None:
            return self
        default = {name: field.default for name, field in type(self).model_fields.items()}
        for name in ("crop", "aspect", "flip", "jitter", "jitter_probability", "grey", "blur", "solarise", "rotate"):
            if getattr(self, name) != default[name]:
                raise ValueError(f"views.{name}: is not read beside views.transform; leave it out")
        if self.made_on == "device":
            raise ValueError("views.made_on: device, but views.transform works where images are decoded; give cpu")
        return self


TEXT_BACKBONES = ("bag", "mini")
"""Backbones of text that begin from nothing."""
TRANSFORMERS = "transformers:"
"""Begins the backbone that a folder holds, for the library transformers to read."""


class Encoder(Section):
    """Backbone and projector."""

    backbone: str = "resnet18"
    """`conv4` (four convolutions, 0.39 million parameters), any of torchvision's classification models, or timm:NAME,
    one of timm's (docs/backbones.md). Of texts `bag` (mean of embeddings), `mini` (a small transformer), or
    transformers:FOLDER, a model that the library transformers reads. Of captions it is that of the images, and
    `text.tower` theirs. Dropout and stochastic depth are off: a feature is a function of its image."""
    stem: Literal["imagenet", "cifar", "own"] = "cifar"
    """Of ResNets `imagenet`: 7x7 stride 2 and max-pool; `cifar`: 3x3 stride 1 and no pool, for images of 64 pixels or
    less. conv4 has no other than `cifar`, and the others have their `own`, by default."""
    norm: Norm = "group"
    """Normalisation layers in the stead of BatchNorm. `batch` couples the samples of a worker's batch; `sync_batch`
    needs GPUs; `none` is of ResNets and conv4. `own`, by default, where there is no BatchNorm: what the model has (a
    LayerNorm) looks at one image alone."""
    hidden: SmallInt = 0
    """Width of the projector's hidden layer; 0 makes the projector linear."""
    projector: bool = True
    """Whether there is one. Without, the representation itself, brought to unit length, is the feature, and `features`
    has to be its width."""
    features: SmallPositiveInt = 128
    """Width of the projector's output, D."""
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    """With one, a follower encodes all keys (positives, draws, what is cached), without gradient: a second encoder
    that goes 1 - momentum of the way to the trained one after every update. 0.99 to 0.999. None: no follower."""

    weights: AnyPath | None = None
    """What the encoder begins with: a .safetensors file of a backbone, as `emc2dist export` writes it or as
    torchvision and timm publish it, or a run folder, whose newest checkpoint is taken; on disk or S3
    (docs/backbones.md). None: random weights. A run that resumes reads it no more."""
    freeze: Frozen = None
    """What of the backbone stays as it is: `backbone`, or how many of its first stages (docs/backbones.md). None:
    nothing."""

    @model_validator(mode="before")
    @classmethod
    def _with_own_parts(cls, given: Any) -> Any:
        return {**backbones.own_parts(given.get("backbone")), **given} if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _is_a_backbone(self) -> Self:
        of_text = self.backbone in TEXT_BACKBONES or self.backbone.startswith(TRANSFORMERS)
        if not (of_text or backbones.is_image(self.backbone)):
            raise ValueError(backbones.unknown(self.backbone, TEXT_BACKBONES))
        if not self.projector and self.hidden:
            raise ValueError(
                f"encoder.hidden: {self.hidden} is of the projector, and encoder.projector is false; leave one out"
            )
        if self.freeze is not None and not self.projector and self.freeze == "backbone":
            raise ValueError("encoder.freeze: backbone, but without a projector nothing else learns; leave it out")
        if of_text and self.norm == "own":
            raise ValueError("encoder.norm: own is of images; leave it out, or give none")
        misfit = None if of_text else backbones.misfit(self.backbone, self.stem, self.norm)
        if misfit is not None:
            raise ValueError(misfit)
        return self


class Optimiser(Section):
    """How parameters are moved."""

    name: Literal["adam", "adamw", "sgd", "lars"] = "adamw"
    """`lars` scales each layer's step by trust * |w| / |g|; biases and norms are excluded."""
    weight_decay: NonNegativeFloat = 1e-4
    """Weight decay; biases and norms are excluded."""
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Momentum of sgd and lars; None: 0.9. The others take none."""
    trust: PositiveFloat | None = None
    """LARS trust coefficient; None: 1e-3. The others take none."""
    warmup_epochs: NonNegativeFloat = 1.0
    """Epochs of linear warm-up from 0; then cosine to 0."""
    clip_norm: PositiveFloat | None = None
    """Largest gradient norm; longer gradients are scaled down to it. None: not clipped."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """What the learning rate is multiplied by from one stage of the encoder to the one below it (docs/backbones.md);
    0.65 to 0.9 are usual. None: all learn at one rate."""
    accumulate: SmallPositiveInt = 1
    """Micro-batches per optimiser update. Each contrasts batch_size / accumulate samples with its own sweep."""

    @model_validator(mode="after")
    def _is_read(self) -> Self:
        takers = {"momentum": ("sgd", "lars"), "trust": ("lars",)}
        for key, names in takers.items():
            if getattr(self, key) is not None and self.name not in names:
                raise ValueError(
                    f"optimiser.{key}: {getattr(self, key)} is of {' and '.join(names)}; optimiser.name: {self.name} "
                    "takes none, so leave it out"
                )
        return self


class Eval(Section):
    """kNN accuracy on the representation, while training; of pairs how well queries find their documents, of
    captions how well these and their images find each other."""

    every: Annotated[int, Field(ge=0)] = 1
    """Epochs between evaluations; 0: only before the first and after the last epoch."""
    voters: Word = "train"
    """Split whose labelled images vote; another one where the training images have no labels."""
    asked: Word | None = None
    """Split whose labelled images, or queries, or images with captions, are asked about; None: `test`, else
    `validation`, whichever has some first; where neither has labels, every tenth voter."""
    neighbours: PositiveInt = 20
    """k of kNN (cosine); fewer, which is said, where fewer vote."""
    bank: PositiveInt = 10_000
    """Most labelled training images that vote; of pairs, most documents, or captions, that are searched while
    training, those that answer among them."""
    queries: PositiveInt = 2_000
    """Most images, or queries, that are asked about."""
    prompts: Annotated[tuple[Word, ...], Field(min_length=1, max_length=1000)] = ("{}",)
    """Of captions: texts of which `evaluate` makes a vector of each class, its name in the place of {}, their mean."""

    @field_validator("prompts")
    @classmethod
    def _name_classes(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        bare = next((prompt for prompt in prompts if "{}" not in prompt), None)
        if bare is not None:
            raise _refusal(f"{bare!r} has no place for a class; write {{}} there, as in 'a picture of {{}}'")
        return prompts


class Checkpoint(Section):
    """What is kept to resume from."""

    every: PositiveInt = 1
    """Epochs between checkpoints."""
    minutes: PositiveFloat | None = None
    """Minutes after which one is made within an epoch too; None: only at the ends of epochs."""
    keep: PositiveInt = 2
    """Newest checkpoints to keep. With 1 there is none before it, should it be damaged."""


class Store(Section):
    """The shards that hold chains and cached features."""

    timeout_s: Seconds = 60.0
    """Seconds to wait for a shard before the step fails."""


class S3(Section):
    """How S3 is reached, wherever a path begins with `s3://`.

    Credentials come from the ordinary AWS chain (environment, ~/.aws, the machine's role), never from a spec.
    """

    endpoint: Endpoint | None = None
    """URL of a server other than AWS, as in https://s3.example.org:9000; AWS_ENDPOINT_URL, and endpoint_url in
    ~/.aws/config, set it too."""
    region: Word | None = None
    """Region, as in eu-central-1; AWS_DEFAULT_REGION, AWS_REGION and ~/.aws/config set it too."""
    attempts: Annotated[int, Field(ge=1, le=1000)] = 6
    """Times that a request is tried. The pauses between are random, up to 0.2, 0.4, 0.8 ... 10 s."""
    timeout_s: Seconds = 30.0
    """Seconds to wait for a connection, and for an answer, in one attempt."""

    def overridden(self, said: "S3 | None") -> "S3":
        """With the keys that `said` was given, as those of a command go before those of a spec."""
        return self if said is None else self.model_copy(update=said.model_dump(exclude_unset=True))


class Resources(Section):
    """What a run asks of the cluster for each of its parts. Labels are those that `ray start --labels` gives a node."""

    worker_cpus: NonNegativeFloat | None = None
    """CPUs of a worker; by default 1, and none beside a GPU."""
    worker_gpus: Annotated[float, Field(gt=0, le=1)] = 1.0
    """GPUs of a worker that trains on GPUs; less than 1 shares one, of runs of one worker, as trials may be."""
    accelerator: Word | None = None
    """A worker's GPU by Ray's name, as in A10G, L4 or H100, without which nothing starts; any, or none, by default."""
    worker_labels: dict[str, Word] = {}
    """Labels of the nodes that workers may run on, as in {ray.io/market-type: spot}."""
    shard_mib: PositiveInt | None = None
    """Memory of a shard, mebibytes; by default what its rows take. Set, it is checked before anything starts."""
    shard_labels: dict[str, Word] = {}
    """Labels of the nodes that shards may run on, as in {ray.io/market-type: on-demand}."""
    driver_cpus: NonNegativeFloat = 0.0
    """CPUs of a submitted run's driver; 0: it asks for none and runs on the head."""
    wait_s: Seconds = 3600.0
    """Seconds that a run which has lost nodes waits for others, before it ends and can be resumed."""
    start_s: Seconds = 300.0
    """Seconds that shards and workers have to start, before it counts as a loss; other nodes are tried then."""


class Watch(Section):
    """Who may watch the run, beside those who read Ray's own metrics endpoint."""

    port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Port on 127.0.0.1 of the driver's machine where Prometheus finds the run; 0: any that is free; None: no port."""
    tensorboard: bool = False
    """Whether the rows of metrics are written for TensorBoard too, in the run folder, which must be on disk."""
    report: bool = True
    """Whether `emc2dist train` writes the report of a run that it finished into the run folder, if that is on disk."""
    wandb: Annotated[Word, Field(min_length=1)] | None = None
    """Project of Weights & Biases that takes the rows; needs the package `wandb`. How it is reached is for its own
    variables to say: WANDB_API_KEY, or WANDB_MODE=offline."""
    mlflow: Annotated[Word, Field(min_length=1)] | None = None
    """Experiment of MLflow that takes the rows; needs the package `mlflow`. Its own variables say where:
    MLFLOW_TRACKING_URI, a server's or a folder's, as in file:/path."""


class Launch(Section):
    """Where `emc2dist submit` starts the run, and how."""

    target: Url = "local"
    """`local`: a Ray on this machine, started where there is none; the URL of a cluster's dashboard, as in
    http://127.0.0.1:8265; `kuberay`: a cluster of its own on Kubernetes."""
    cluster: DiskPath | None = None
    """The cluster's manifest: a RayCluster of KubeRay, or what `ray up` takes. A run that its nodes can never place is
    refused; `target: kuberay` starts the run on a cluster made after it."""
    namespace: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)] = "default"
    """Namespace of `target: kuberay`."""
    retries: Annotated[int, Field(ge=0, le=1000)] = 3
    """Times that `target: kuberay` replaces a cluster whose head or driver was lost. (`restarts` is for workers.)"""
    environment: dict[str, str] = {}
    """Environment variables of driver, workers and shards; not for secrets."""
    stop_grace_s: Annotated[int, Field(ge=1, le=10**7)] = 120
    """Seconds that a run which is stopped has to write a checkpoint, before it is killed."""

    @model_validator(mode="after")
    def _leads_somewhere(self) -> Self:
        if self.target not in ("local", "kuberay") and not re.match(r"^https?://[^/\s]+/?$", self.target):
            raise ValueError(
                f"launch.target: got {self.target!r}; allowed are local, kuberay, or the URL of a cluster's dashboard "
                "as in http://127.0.0.1:8265"
            )
        if self.target == "kuberay" and self.cluster is None:
            raise ValueError(
                "launch.cluster: missing; target: kuberay needs the manifest of a RayCluster, as in "
                "cluster/kuberay/raycluster.yaml"
            )
        for name, value in self.environment.items():
            _refuse_secret(name, value)
        if "RAY_JOB_STOP_WAIT_TIME_S" in self.environment:
            raise ValueError("launch.environment.RAY_JOB_STOP_WAIT_TIME_S: is what launch.stop_grace_s says; set that")
        return self


_SECRET_NAME = re.compile(r"(?i)(SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|PRIVATE_?KEY|API_?KEY|ACCESS_?KEY|(^|_)AUTH$)")
_SECRET_VALUE = re.compile(
    r"-----BEGIN|\b(AKIA|ASIA)[0-9A-Z]{16}\b|\b(ghp|gho|ghs|github_pat|glpat|hf|sk|xox[abp])[-_][A-Za-z0-9_-]{16,}"
    r"|^[0-9a-fA-F]{32,}$|^eyJ[\w-]+\.[\w-]+\.|://[^/\s]*:[^/\s]*@"
    r"|^(?=\S*[a-z])(?=\S*[A-Z])(?=\S*\d)[A-Za-z0-9+/_=-]{32,}$"  # what a generator of random keys makes
)


def _refuse_secret(name: str, value: str) -> None:
    key = f"launch.environment.{name}"
    if not re.match(r"^[A-Za-z_][A-Za-z0-9_]*$", name):
        raise ValueError(f"{key}: not a name of an environment variable; use letters, digits and '_'")
    if _SECRET_NAME.search(name) or _SECRET_VALUE.search(value):
        raise ValueError(
            f"{key}: looks like a secret (its value is not shown); specs are kept beside runs and shown in logs. Leave "
            "it out and give it to the cluster: a Kubernetes Secret in the manifest's envFrom, a role of the machines, "
            "or a file that only the cluster's user can read"
        )
