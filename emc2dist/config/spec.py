"""The spec of one training run, and what may differ between a run and its resumption."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from emc2dist.config import backbones
from emc2dist.config.negatives import Negatives
from emc2dist.config.objectives import Objective
from emc2dist.config.pairs import Text, misfit_of_kind
from emc2dist.config.paths import is_remote
from emc2dist.config.presets import expanded, title
from emc2dist.config.sections import (
    S3,
    TRANSFORMERS,
    AnyPath,
    Checkpoint,
    Data,
    Encoder,
    Eval,
    Launch,
    Optimiser,
    PositiveFloat,
    PositiveInt,
    Precision,
    Resources,
    Section,
    SmallInt,
    SmallPositiveInt,
    Store,
    Views,
    Watch,
)  # fmt: skip

_MOST_PIXELS = 2**36  # bytes
_MOST_PAIRS = 2**27  # of views, for all anchors of a worker
_OF_PAIRS = ("captions", "pairs")  # kinds of data
Temperature = Annotated[float, Field(ge=1e-6, le=1e6)]


class Spec(Section):
    """One training run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    """Names the run and its folder: the same name resumes. Letters, digits, '.', '_' and '-'."""
    run_dir: AnyPath = "runs"
    """Folder that holds the run folders; on disk, or `s3://bucket/...`."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Everything random derives from it."""
    objective: Objective
    """What is minimised, by name: dcl, infonce ... (`emc2dist.config.objectives`). emc2, isogclr, moco, sogclr and
    simclr name the negatives too. By default emc2."""
    negatives: Negatives
    """How the objective's denominators are estimated: chain, gumbel, in_batch, moving_average, queue
    (`emc2dist.config.negatives`)."""
    temperature: Temperature = 0.2
    """Scores are cosine similarities divided by it."""
    temperature_end: Temperature | None = None
    """Where a cosine takes the temperature, from `temperature`, over the run; None: it stays."""
    temperature_period: PositiveFloat | None = None
    """Epochs in which the cosine goes to `temperature_end` and back; None: it goes there once, by the run's end."""
    epochs: Annotated[int, Field(ge=1, le=10**6)]
    """Passes over the dataset."""
    batch_size: Annotated[int, Field(ge=2, le=2**24)]
    """Samples per optimiser update over all workers; each sample brings `views.count` anchors."""
    encode_chunk: PositiveInt | None = None
    """Most images that a worker encodes at a time, views counted: memory is that of so many, at the price of encoding
    each a second time; gradients stay those of the whole batch. None: all at once."""
    workers: SmallPositiveInt = 1
    """Data-parallel training processes."""
    min_workers: PositiveInt | None = None
    """Fewest with which the run goes on where there is no room for `workers`; by default it waits for all of them. The
    batch stays what it is: fewer workers take more of it each."""
    shards: SmallPositiveInt = 1
    """Actors that hold the chain store."""
    lr: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
    """Peak learning rate, used as it stands (not scaled by the batch)."""
    precision: Precision = "float32"
    """`float32` in full; `tf32` lets a GPU's convolutions round what they multiply to TF32, of three digits, and is
    `float32` elsewhere; `bf16` runs the encoder under autocast; `float64` is for proofs."""
    deterministic: bool = False
    """Whether a GPU may use only algorithms that give the same bits every time, at the price of speed
    (docs/performance.md). A CPU does so in any case."""
    compile: bool = False
    """Whether `torch.compile` makes code of the encoder that is trained, in the first steps of every start; it needs a
    C++ compiler, and on a GPU Triton and a C compiler. Numbers differ in their last places, so a run does not go on
    with another one (docs/performance.md)."""
    cuda_graphs: bool = False
    """Whether the encoder's passes over a batch are recorded as CUDA graphs and replayed in every step, which spares
    the host most launches: for steps that are short on the GPU. Of one worker, on a GPU (docs/performance.md)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` trains on GPUs where the cluster has one for every worker. A run that would go on elsewhere than where it
    trained so far is refused with `auto`, for its numbers would differ; `cpu` or `cuda` says that it is meant.
    What it trains on is said when it begins; of several GPUs, CUDA_VISIBLE_DEVICES chooses."""
    threads: SmallInt = 0
    """CPU threads of a worker; 0: the CPUs that may be used on its machine (those that Slurm, taskset or a container
    allots, where they are fewer than there are), divided among the workers there."""
    restarts: SmallInt = 3
    """Times the workers may be lost and started again from the newest checkpoint."""
    log_every: PositiveInt = 10
    """Steps between rows of metrics."""
    start_from: AnyPath | None = None
    """A run folder, on disk or S3, with whose encoder, optimiser, chains and cache this run begins, at step 0 of its
    own schedule: to train longer, or on under other values (docs/backbones.md). None: with nothing learnt."""
    data: Data = Data()
    views: Views = Views()
    text: Text = Text()
    encoder: Encoder = Encoder()
    optimiser: Optimiser = Optimiser()
    eval: Eval = Eval()
    checkpoint: Checkpoint = Checkpoint()
    store: Store = Store()
    s3: S3 = S3()
    resources: Resources = Resources()
    watch: Watch = Watch()
    launch: Launch = Launch()

    @property
    def of_texts(self) -> bool:
        """Whether it is of texts, as pairs, by themselves, or as captions."""
        return self.data.kind != "images"

    @property
    def of_images(self) -> bool:
        """Whether it is of images, by themselves or with captions."""
        return self.data.kind in ("images", "captions")

    @property
    def of_pairs(self) -> bool:
        """Whether its samples are pairs: of two texts, or of an image and a caption."""
        return self.data.kind in _OF_PAIRS

    @property
    def text_backbone(self) -> str | None:
        """The backbone of what encodes its texts; None where it has none."""
        if self.data.kind == "images":
            return None
        return self.text.tower if self.data.kind == "captions" else self.encoder.backbone

    @property
    def micro_batch_size(self) -> int:
        """Samples of one sweep over all workers, B."""
        return self.batch_size // self.optimiser.accumulate

    def fitting(self, places: int) -> int | None:
        """The most workers, `min_workers` to `workers`, that so many places hold and that share the batch evenly."""
        fewest = self.workers if self.min_workers is None else self.min_workers
        for workers in range(min(places, self.workers), fewest - 1, -1):
            if self.batch_size % (workers * self.optimiser.accumulate) == self.negatives.draws % workers == 0:
                return workers
        return None

    @property
    def method(self) -> str:
        """The objective and its negatives, by the name that people know them."""
        return title(self.objective.name, self.negatives.name)

    @model_validator(mode="before")
    @classmethod
    def _expand_presets(cls, given: Any) -> Any:
        return _with_one_view(expanded(given)) if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        misfit = misfit_of_kind(self)
        if misfit is not None:
            raise ValueError(misfit)
        refusal = self.objective.refusal(self.negatives)
        if refusal is not None:
            raise ValueError(refusal)
        parts = self.workers * self.optimiser.accumulate
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size: {self.batch_size} does not divide among workers x optimiser.accumulate = {parts}; "
                f"use a multiple of {parts}"
            )
        if self.negatives.draws % self.workers:
            raise ValueError(
                f"negatives.draws: {self.negatives.draws} does not divide among {self.workers} workers; "
                f"use a multiple of {self.workers}"
            )
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers: {self.min_workers} is more than workers: {self.workers}")
        if self.micro_batch_size < 2:
            raise ValueError(
                f"batch_size: {self.batch_size} leaves micro-batches of one sample, which has no negatives; "
                f"use at least {2 * self.optimiser.accumulate}"
            )
        if self.data.per_class is not None:
            self._refuse_batches_by_class(self.data.per_class)
        anchors = self.views.count * self.micro_batch_size
        if self.objective.name == "supremix" and anchors**2 * (anchors // self.workers) > _MOST_PAIRS:
            raise ValueError(
                f"objective: supremix mixes any two of the {anchors} views of a batch for every anchor, which are too "
                "many; use a smaller batch_size, optimiser.accumulate, or more workers"
            )
        views = self.views.count * (self.batch_size // parts) + self.negatives.draws // self.workers
        pixels = 3 * self.views.size**2 * views
        if pixels > _MOST_PIXELS:
            raise ValueError(
                f"batch_size: {self.batch_size} with views.count: {self.views.count} and views.size: {self.views.size} "
                f"gives a worker {pixels / 2**30:.0f} GiB of pixels a step; use a smaller one, more workers, or "
                "optimiser.accumulate"
            )
        if self.workers > 1 and self.resources.worker_gpus < 1 and self.device != "cpu":
            raise ValueError(
                f"resources.worker_gpus: {self.resources.worker_gpus:g} would put several of the {self.workers} "
                "workers on one GPU, and NCCL takes no two ranks there; use 1, or workers: 1, or device: cpu"
            )
        if self.resources.accelerator is not None and self.device == "cpu":
            raise ValueError(
                f"resources.accelerator: {self.resources.accelerator} is a GPU, and device is cpu; leave one of them "
                "out"
            )
        if self.watch.tensorboard and is_remote(self.run_dir):
            raise ValueError(f"watch.tensorboard: true needs a run_dir on disk, got {self.run_dir}")
        if self.temperature_period is not None and self.temperature_end is None:
            raise ValueError(
                f"temperature_period: {self.temperature_period} needs temperature_end, the other bound of the cosine"
            )
        misfit = backbones.size_misfit(self.encoder.backbone, self.views.size)
        if misfit is not None:
            raise ValueError(misfit)
        for key, (low, high) in (("views.crop", self.views.crop), ("views.aspect", self.views.aspect)):
            if low > high:
                raise ValueError(f"{key}: [{low}, {high}] is not an ascending pair")
        if self.data.shrink and self.views.transform is not None:
            raise ValueError("data.shrink: true goes by views.crop, in whose place views.transform is; give false")
        if self.views.crop[1] > 1:
            raise ValueError(f"views.crop: {self.views.crop[1]} is more than the whole image; allowed up to 1")
        if self.encode_chunk is not None and self.encoder.norm in ("batch", "sync_batch"):
            raise ValueError(
                f"encode_chunk: {self.encode_chunk} would give encoder.norm: {self.encoder.norm} the statistics of a "
                "chunk, not of the batch; use group or none, or optimiser.accumulate"
            )
        if self.data.on_device is True and self.views.made_on == "cpu":
            raise ValueError(
                "data.on_device: true needs views that are made there, and views.made_on is cpu; give "
                "views.made_on=device, or data.on_device=auto"
            )
        if self.compile and self.encoder.norm == "sync_batch":
            raise ValueError(
                "compile: true cannot be of encoder.norm: sync_batch, whose workers talk to each other within the "
                "encoder; use batch, group or none, or leave compile out"
            )
        if self.compile and self.deterministic:
            raise ValueError(
                "compile: true chooses a GPU's code by the clock, so that its bits may differ from one start to the "
                "next; leave out compile or deterministic"
            )
        self._refuse_two_beginnings()
        self._refuse_what_does_not_combine()
        if self.cuda_graphs:
            self._refuse_what_cannot_be_recorded()
        if self.encoder.norm == "sync_batch" and self.device == "cpu":
            raise ValueError("encoder.norm: sync_batch needs GPUs; use batch, group or none on device: cpu")
        return self

    def _refuse_two_beginnings(self) -> None:
        encoder, begins = self.encoder, "encoder.weights or start_from"
        if self.start_from is not None and encoder.weights is not None:
            raise ValueError(
                f"encoder.weights: {encoder.weights}, but start_from: {self.start_from} brings the encoder; give one"
            )
        is_random = self.start_from is None and encoder.weights is None
        if encoder.freeze is not None and is_random and not encoder.backbone.startswith(TRANSFORMERS):
            raise ValueError(f"encoder.freeze: {encoder.freeze} would leave random weights as they are; give {begins}")

    def _refuse_what_does_not_combine(self) -> None:
        """Objectives and negatives, with each other and with a follower."""
        follows, negatives = self.encoder.momentum is not None, self.negatives
        if negatives.name == "queue" and not follows:
            raise ValueError(
                "negatives: queue needs encoder.momentum: features run away together from keys that the encoder itself "
                "has just made (docs/draws.md); give encoder.momentum=0.99, or objective=moco, or other negatives"
            )
        if negatives.name == "gumbel" and negatives.carried == "cached" and not follows:
            raise ValueError(
                "negatives.carried: cached would have old features alone push an anchor, from which features run away "
                "together (docs/draws.md); give encoder.momentum=0.99, by which they are hardly old, or reencode"
            )
        if follows and self.encoder.norm == "batch":
            raise ValueError(
                "encoder.momentum: a follower must be the same on all workers, and with encoder.norm: batch each has "
                "running statistics of its own; use group, none or sync_batch"
            )
        if follows and negatives.balance is not None:
            raise ValueError(
                f"negatives.balance: {negatives.balance} has nothing to balance with encoder.momentum, whose keys get "
                "no gradient, positives no more than negatives; leave it out"
            )
        if follows and not self.objective.followed:
            raise ValueError(
                f"encoder.momentum: objective: {self.objective.name} gives gradients to keys of the batch, and a "
                "follower's get none; leave it out, or take dcl, dclw, infonce or rgcl"
            )
        if self.objective.learns and self.encode_chunk is not None:
            raise ValueError(
                f"encode_chunk: {self.encode_chunk} goes backward in parts, and objective: {self.objective.name} has "
                "parameters of its own that get their gradient before the first; leave it out, or use "
                "optimiser.accumulate"
            )
        misfit = self.objective.misfit(self)
        if misfit is not None:
            raise ValueError(misfit)

    def _refuse_batches_by_class(self, size: int) -> None:
        if self.micro_batch_size % size or self.micro_batch_size == size:
            raise ValueError(
                f"data.per_class: {size} images of each class do not make a batch of {self.micro_batch_size} of two "
                "classes or more; batch_size / optimiser.accumulate has to be a multiple of it, and larger"
            )
        if self.data.shuffle == "block":
            raise ValueError(
                f"data.per_class: {size} images of a class lie in different blocks, which data.shuffle: block keeps "
                "together; use data.shuffle=full, or leave one of the two out"
            )
        if self.negatives.name != "in_batch" and "label" not in self.negatives.close:
            raise ValueError(
                f"data.per_class: {size} brings an anchor more of its own class than a uniform draw would, and "
                f"negatives: {self.negatives.name} takes the batch for one; give negatives.close=[label], by which the "
                "own class is no candidate, or use negatives: in_batch"
            )

    def _refuse_what_cannot_be_recorded(self) -> None:
        others = {
            f"workers: {self.workers}, which reduce gradients within the backward": self.workers > 1,
            f"optimiser.accumulate: {self.optimiser.accumulate}, whose gradients would be written over":
                self.optimiser.accumulate > 1,
            f"encode_chunk: {self.encode_chunk}, whose passes are several": self.encode_chunk is not None,
            f"objective: {self.objective.name}, which learns something beside the encoder": self.objective.learns,
            "compile: true, which launches fewer kernels already": self.compile,
            "device: cpu, which has none": self.device == "cpu",
        }  # fmt: skip
        for what, found in others.items():
            if found:
                raise ValueError(f"cuda_graphs: true does not go with {what}; leave one of the two out")


def _with_one_view(given: dict[str, Any]) -> dict[str, Any]:
    """The keys of a spec; of pairs, each side of which has one view, with `views.count` where there is none."""
    data = given.get("data")
    if isinstance(data, dict) and data.get("kind") in _OF_PAIRS:
        views = given.get("views", {})
        return {**given, "views": {"count": 1, **views} if isinstance(views, dict) else views}
    return given


# Keys that may differ between a run and its resumption: they move work around, not the result. What a run began with
# may lie elsewhere by then, or be gone: `emc2dist.run.beginning`.
OPERATIONAL = frozenset(
    {"run_dir", "encode_chunk", "workers", "min_workers", "shards", "threads", "restarts", "log_every", "eval",
     "checkpoint", "s3", "resources", "watch", "launch", "store.timeout_s", "data.path", "data.cache_dir",
     "data.cache_mib", "data.decoded_mib", "data.on_device", "data.loaders", "data.prefetch", "encoder.weights",
     "start_from"}
)  # fmt: skip

# A GPU's numbers are not a CPU's. This one may differ only knowingly, as `emc2dist.run.driver` sees to.
_KNOWINGLY = frozenset({"device"})


def differences(old: Spec, new: Spec) -> list[str]:
    """Keys whose values differ and may not, as lines `key: old -> new`."""
    before, after = dict(leaves(old.model_dump())), dict(leaves(new.model_dump()))
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in before
        if before[key] != after.get(key) and not ({key, key.split(".")[0]} & (OPERATIONAL | _KNOWINGLY))
    ]


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested sections, under keys as in `data.limit`."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
