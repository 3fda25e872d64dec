"""The certificate of a spec with its untrained encoder, or of a run with that of its newest checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from emc2dist import files
from emc2dist.config import Spec, dump, given_keys, load, parse, parse_s3
from emc2dist.data.images import open_images
from emc2dist.errors import SpecError
from emc2dist.run.folder import RunFolder
from emc2dist.run.loaded import LoadedCheckpoint
from emc2dist.terminal import say
from emc2dist.towers.encoder import Encoder
from emc2dist.train.certificate import (
    SECONDS,
    VIEWS,
    Row,
    certificates,
    choose,
    most_of_a_class,
    samples_for,
    untrained,
)
from emc2dist.train.frozen import freeze
from emc2dist.train.sets import columns_of

_HEEDED = (
    "objective",
    "negatives",
    "temperature",
    "temperature_end",
    "batch_size",
    "optimiser.accumulate",
    "seed",
    "views",
    "data.path",
    "data.limit",
    "data.per_class",
    "data.cache_dir",
    "data.cache_mib",
    "data.loaders",
)


@dataclass(frozen=True)
class Certificate:
    """What was certified, and what came of it."""

    of: str
    """The spec's file, or the checkpoint."""
    spec: Spec
    trained_steps: int | None
    """Of the encoder; None: untrained."""
    images: int
    """In the training split."""
    views: int
    """M, of each of those that were frozen."""
    rows: list[Row]
    remarks: list[str]
    """Said already."""


def certify(
    subject: str | Path,
    overrides: Sequence[str] = (),
    *,
    samples: int | None = None,
    views: int = VIEWS,
    seconds: float = SECONDS,
    steps: int | None = None,
) -> Certificate:
    """Certify a spec's file, or a run's folder; `overrides` are KEY=VALUE, of a run those that the contrast reads.

    Raises:
        SpecError: an override is of no use here; or `samples` or `views` do not fit the batch.
        RunError: there is no run or no whole checkpoint. DataError: the data is gone, or less than a batch.
        NonFiniteError: the run has diverged.
    """
    found = _Subject.of_spec(subject, overrides) if _is_spec(subject) else _Subject.of_run(subject, overrides)
    spec = found.spec
    images = open_images(spec.data, "train", spec.s3)
    assert images is not None, "open_images raises where there are no training images"
    chosen = samples_for(spec, images, samples, views)
    remarks = [*found.remarks, *images.remarks]
    remarks += found.newest.on_other_images(spec.data, images) if found.newest is not None else []
    if found.encoder.training:
        remarks.append(f"encoder.norm: {spec.encoder.norm} has seen nothing yet; it takes the views that are encoded")
    columns, of_columns = columns_of(spec, images)
    remarks += of_columns
    for remark in remarks:
        say(remark)
    say(f"{chosen:,} of {len(images):,} training images, each in {views} random views")
    index = choose(images, chosen, spec.seed, most_of_a_class(spec, chosen))
    features = freeze(spec, found.encoder, found.device, images, index, views)
    known = {name: torch.from_numpy(values[index]) for name, values in columns.items()}
    rows = certificates(spec, features, known, seconds, steps, found.encoder.learnt)
    newest = found.newest
    remarks = [*(newest.remarks if newest else []), *remarks]
    trained = newest.manifest.step if newest else None
    return Certificate(found.name, spec, trained, len(images), views, rows, remarks)


@dataclass(frozen=True)
class _Subject:
    """Whose certificate it is."""

    name: str
    spec: Spec
    encoder: Encoder
    device: torch.device
    newest: LoadedCheckpoint | None
    remarks: list[str]

    @classmethod
    def of_spec(cls, path: str | Path, overrides: Sequence[str]) -> "_Subject":
        spec = load(path, overrides)
        _refuse_pairs(spec)
        available = torch.cuda.is_available()
        if spec.device == "cuda" and not available:
            raise SpecError("device: cuda, but this machine has no GPU that torch can use; certify with device=cpu")
        device = torch.device("cuda" if available and spec.device != "cpu" else "cpu")
        remarks = [f"start_from: {spec.start_from} is not taken up here; certify that run"] if spec.start_from else []
        return cls(str(path), spec, untrained(spec, device), device, None, remarks)

    @classmethod
    def of_run(cls, path: str | Path, overrides: Sequence[str]) -> "_Subject":
        s3 = parse_s3([override for override in overrides if override.startswith("s3.")])
        _refuse_unheeded(overrides)
        newest = LoadedCheckpoint.newest(RunFolder.open(path, s3))
        _refuse_pairs(newest.spec)
        spec = parse(dump(newest.spec), overrides, source=str(newest.place)) if overrides else newest.spec
        return cls(str(newest.place), spec, newest.encoder, newest.device, newest, [])


def _refuse_pairs(spec: Spec) -> None:
    """Raise SpecError where a spec is over pairs."""
    if spec.of_texts:
        raise SpecError(
            f"data.kind: {spec.data.kind}: `certify` is of images so far; docs/pairs.md tells what was certified"
        )


def _is_spec(subject: str | Path) -> bool:
    if files.is_remote(str(subject)):
        return False
    path = files.local(subject)
    return path.suffix in (".yaml", ".yml") if not path.exists() else not path.is_dir()


def _refuse_unheeded(overrides: Sequence[str]) -> None:
    """Raise SpecError where an override would be read by nobody here, or is the run's own."""
    for key in given_keys(overrides):
        if not any(f"{key}.".startswith(f"{heeded}.") for heeded in (*_HEEDED, "s3")):
            raise SpecError(
                f"{key}: is for training, and what is trained is the run's own encoder. Leave it out; what can "
                f"be set is {', '.join(_HEEDED)} and s3"
            )
