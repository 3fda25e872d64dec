"""A run as the report reads it: its folder's files, and its newest checkpoint and images where there are any."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from emc2dist.config import S3, Spec, dump, parse
from emc2dist.data.images import Images, open_images
from emc2dist.errors import DataError, RunError
from emc2dist.run.folder import RunFolder
from emc2dist.run.loaded import LoadedCheckpoint
from emc2dist.terminal import say
from emc2dist.train.sets import open_training_set

MOST_RUNS = 10
"""As many as there are colours."""


@dataclass(frozen=True)
class ReportedRun:
    """A run of a report. What has to be opened is opened when it is first asked for."""

    label: str
    """The run's name; its folder where another run here has the same name."""
    folder: RunFolder
    spec: Spec
    rows: list[dict[str, Any]]
    remarks: list[str] = field(default_factory=list)
    """What checkpoints were passed over, once one has been opened, and what has become of its images; said."""
    s3: S3 | None = None
    """What the command says of how S3 is reached."""

    @classmethod
    def open_all(cls, runs: Sequence[str | Path], s3: S3 | None, overrides: Sequence[str] = ()) -> "list[ReportedRun]":
        """The runs, in the order given, by their specs with other values of some keys.

        Raises:
            RunError: one is not a run, or there are none or too many for one report. SpecError: a spec is damaged.
        """
        if not 1 <= len(runs) <= MOST_RUNS:
            raise RunError(f"a report takes 1 to {MOST_RUNS} run folders, got {len(runs)}")
        folders = [RunFolder.open(run, s3) for run in runs]
        specs = [folder.spec() for folder in folders]
        if overrides:
            specs = [parse(dump(spec), overrides, source=str(run)) for spec, run in zip(specs, runs, strict=True)]
        names = [spec.name for spec in specs]
        labels = [name if names.count(name) == 1 else str(run) for name, run in zip(names, runs, strict=True)]
        return [
            cls(label, folder, spec, folder.rows(), s3=s3)
            for label, folder, spec in zip(labels, folders, specs, strict=True)
        ]

    @cached_property
    def newest(self) -> LoadedCheckpoint:
        """The newest checkpoint. Raises RunError where there is none."""
        newest = LoadedCheckpoint.newest(self.folder)
        self.remarks.extend(newest.remarks)
        return newest

    def images(self, split: str) -> Images | None:
        """A split of the run's data; raises what `open_images` does."""
        return open_images(self.spec.data, split, self.spec.s3.overridden(self.s3))

    def remark_on_change(self) -> None:
        """Say, and keep, what has become of the training images, beside which held-out ones lie."""
        train = open_training_set(self.spec.model_copy(update={"s3": self.spec.s3.overridden(self.s3)}))
        change = self.newest.manifest.change(train)
        if change:
            remark = f"{self.spec.data.path}: now holds {change} that {self.label} was trained on"
            self.remarks.append(remark)
            say(remark)

    def trained_on(self) -> Images:
        """The training images, those that the checkpoint knows of. Raises DataError where they have changed."""
        images = self.images("train")
        assert images is not None, "open_images raises where there are no training images"
        change = self.newest.manifest.change(images)
        if change:
            raise DataError(f"{self.spec.data.path}: now holds {change} that the run was trained on")
        return images


def names_of(images: Images, index: np.ndarray) -> list[str]:
    """The class of each image at `index`, by name where the set names its classes; the images have labels."""
    names = {-1: "no label", **dict(enumerate(images.classes))}
    return [names.get(label, str(label)) for label in images.labels(index).tolist()]
