"""A run's newest whole checkpoint, opened: its encoder, and what its store remembered."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from emc2dist import files
from emc2dist.config import S3, Data, Spec
from emc2dist.data.images import Images
from emc2dist.errors import NonFiniteError, RunError, StorageError, StorageUnreachable
from emc2dist.files import Place
from emc2dist.machine import cpus
from emc2dist.run.checkpoints import spec_of
from emc2dist.run.folder import RunFolder, run_of, step_of
from emc2dist.run.scratch import temporary
from emc2dist.terminal import say
from emc2dist.towers.encoder import Encoder, Tower, TwoTowers
from emc2dist.train import arithmetic, checkpoint
from emc2dist.train.evaluation import plain_views
from emc2dist.train.loop import encoder_for
from emc2dist.train.model_files import ModelFiles


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint of a run with its encoder, in evaluation mode on `device`."""

    place: Place
    """Its folder."""
    manifest: checkpoint.Manifest
    spec: Spec
    encoder: Encoder
    device: torch.device
    """A GPU where there is one and the spec does not refuse it."""
    model: ModelFiles | None = None
    """What the run keeps of its model; None over images."""
    remarks: list[str] = field(default_factory=list)
    """What newer ones were passed over, and what is wrong with them; said already."""

    @classmethod
    def newest(cls, folder: RunFolder) -> "LoadedCheckpoint":
        """The newest checkpoint that is whole. Raises RunError where there is none."""
        problems, spec = list[str](), folder.spec()
        model = folder.model(spec)
        for place in folder.checkpoints():
            try:
                found = cls._load(place, spec, model)
                remarks = [f"passed over, as not whole: {problem}" for problem in problems]
                for remark in remarks:
                    say(remark)
                return replace(found, remarks=remarks)
            except StorageUnreachable:
                raise
            except (RunError, StorageError) as error:  # the newest one may still be on its way here
                problems.append(f"{place}: {error}")
        raise RunError("; ".join(problems) or folder.without_checkpoints())

    @classmethod
    def at(cls, path: str | Path, s3: S3 | None = None) -> "LoadedCheckpoint":
        """The checkpoint that lies at `path`; or the newest one that is whole, where a run does.

        Raises:
            RunError: neither lies there, or it is not whole.
        """
        folder, place = run_of(path, s3)
        if place is None:
            return cls.newest(folder)
        spec = folder.spec()
        try:
            return cls._load(place, spec, folder.model(spec))
        except RunError as error:
            raise RunError(f"{place}: {error}") from error

    @classmethod
    def _load(cls, place: Place, spec: Spec, model: ModelFiles | None) -> "LoadedCheckpoint":
        with temporary("emc2-checkpoint-") as folder:
            path = checkpoint.fetch(place, Path(folder), layout=None)
            manifest = checkpoint.read_manifest(files.at(path))
            spec = spec_of(place, manifest, spec)
            if model:
                model.refuse_unlike(manifest.model, place)
            encoder = encoder_for(spec, model.config if model else None)
            checkpoint.restore_trainer(path, encoder)
        device = torch.device("cuda" if torch.cuda.is_available() and spec.device != "cpu" else "cpu")
        arithmetic.settle(spec, device)
        torch.set_num_threads(min(torch.get_num_threads(), cpus()))  # torch knows nothing of a container's quota
        return cls(place, manifest, spec, encoder.to(device).eval(), device, model=model)

    def tower(self, of: Literal["image", "text"]) -> Tower:
        """The tower of images or of texts; where the encoder has one, that."""
        encoder = getattr(self.encoder, of) if isinstance(self.encoder, TwoTowers) else self.encoder
        assert isinstance(encoder, Tower)
        return encoder

    def on_other_images(self, data: Data, images: Images) -> list[str]:
        """A remark on training images, opened as `data` says, that are not those of the run."""
        own, change = self.spec.data, self.manifest.change(images)
        holds = "now holds" if (data.path, data.limit) == (own.path, own.limit) else "gives"
        return [f"{data.path}: {holds} {change} that the run was trained on"] if change else []

    def table(self, name: str) -> dict[str, NDArray]:
        """One table of the store, see `emc2dist.train.checkpoint.read_table`; shards on S3 are fetched whole."""
        with temporary("emc2-checkpoint-") as folder:
            return checkpoint.read_table(self.place, self.manifest, Path(folder), name)

    def older(self, folder: RunFolder, name: str) -> Iterator[dict[str, NDArray]]:
        """The same table of each older whole checkpoint in its run's `folder`, the newest first.

        What is passed over, as not whole, becomes a remark.
        """
        for place in folder.checkpoints():
            if step_of(place) >= self.manifest.step:
                continue
            try:
                yield replace(self, place=place, manifest=checkpoint.read_manifest(place)).table(name)
            except StorageUnreachable:
                raise
            except (RunError, StorageError) as error:
                self.remarks.append(f"passed over, as not whole: {place}: {error}")
                say(self.remarks[-1])

    @torch.no_grad()
    def features(self, images: Images, index: NDArray[np.int64]) -> NDArray[np.floating]:
        """Unit-norm features [n, D] of the plain views of the images at `index` [n].

        Raises:
            NonFiniteError: one is NaN or infinite.
        """
        views = plain_views(images, index, self.spec.views.size)
        features = torch.cat([self.encoder(chunk.to(self.device)) for chunk in views])
        if not features.isfinite().all():
            raise NonFiniteError(f"{self.place}: its encoder's features are not finite; the run has diverged")
        return features.cpu().numpy()
