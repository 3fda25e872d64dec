"""The results of a run, finished or running: its evaluation, and its backbone."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path, PurePath
from typing import Any

from safetensors.torch import save

from emc2dist import files
from emc2dist.config import S3, Data, dump, given_keys, parse
from emc2dist.data.images import Images, open_images, open_labelled
from emc2dist.errors import NonFiniteError, SpecError
from emc2dist.run.folder import RunFolder
from emc2dist.run.loaded import LoadedCheckpoint
from emc2dist.terminal import Progress, say
from emc2dist.towers.encoder import backbone_state_dict, not_torchvisions
from emc2dist.train.evaluation import Evaluation

_HEEDED = (
    "data.path",
    "data.limit",
    "data.cache_dir",
    "data.cache_mib",
    "eval.voters",
    "eval.asked",
    "eval.neighbours",
)


def evaluate(run: str | Path, overrides: Sequence[str] = (), *, s3: S3 | None = None) -> dict[str, Any]:
    """kNN accuracy and linear probe of the newest checkpoint, on all images of the run's data.

    `overrides` are KEY=VALUE, of the run's spec: `data.path=PATH` where the data have moved. What `s3` was given goes
    before what the run's spec says, for the run folder and for the data.

    Raises:
        SpecError: an override is none of the spec's, or is of no use here.
        RunError: there is no run or no whole checkpoint. DataError: the data is gone or has no labels.
        NonFiniteError: the run has diverged.
    """
    newest = LoadedCheckpoint.newest(RunFolder.open(run, s3))
    spec = parse(dump(newest.spec), overrides, source=str(newest.place)) if overrides else newest.spec
    _refuse_unheeded(overrides)
    s3 = spec.s3.overridden(s3)
    train = open_images(spec.data, "train", s3)
    assert train is not None, "open_images raises where there are no training images"
    evaluation = Evaluation(spec, open_labelled(spec.data, spec.eval, train, s3), whole=True)
    remarks = newest.on_other_images(spec.data, train) + _on_limit(newest.spec.data, train, spec.data)
    remarks += [*train.remarks, *evaluation.remarks]
    for remark in remarks:
        say(remark)
    with closing(Progress(evaluation.images, unit="image")) as progress:
        bank, queries = evaluation.represent(newest.encoder, newest.device, progress.add)
    if not (bank.isfinite().all() and queries.isfinite().all()):
        raise NonFiniteError(f"{newest.place}: its encoder's representations are not finite; the run has diverged")
    say("encoded; now the kNN vote and the linear probe")
    return {
        "checkpoint": str(newest.place),
        "data": spec.data.path,
        "bank": len(bank),
        "queries": len(queries),
        "neighbours": evaluation.neighbours,
        "knn_accuracy": evaluation.knn_accuracy(bank, queries),
        "linear_probe_accuracy": evaluation.linear_probe(bank, queries),
        "remarks": [*newest.remarks, *remarks],
    }


def _refuse_unheeded(overrides: Sequence[str]) -> None:
    """Raise SpecError where an override would be read by nobody here."""
    for key in given_keys(overrides):
        if key not in _HEEDED and not key.startswith("s3."):
            raise SpecError(
                f"{key}: is for training; all labelled images vote and are asked about here, once. Leave it out; what "
                f"can be set is {', '.join(_HEEDED)} and s3"
            )


def _on_limit(own: Data, train: Images, data: Data) -> list[str]:
    """A remark where the limit of a run's own data holds for other data too."""
    if data.path == own.path or not data.limit == own.limit == len(train):
        return []
    return [f"data.limit: no more than the first {data.limit:,} training images are taken, as in the run"]


def export(run: str | Path, out: str | Path, *, s3: S3 | None = None) -> dict[str, Any]:
    """Write the newest checkpoint's backbone as safetensors.

    A ResNet's keys are torchvision's (no `fc`); those of conv4 are of `emc2dist.towers.encoder.Conv4`. What a model has
    to be like to give the same representations is in `remarks`, where it is not torchvision's own.

    Raises:
        RunError: there is no run or no whole checkpoint. StorageError: `out`, on disk or S3, cannot be written.
        SpecError: `out` is named as a file of another format.
    """
    folder, place = RunFolder.open(run, s3), files.at(out, s3)
    files.refuse_folder(out)
    suffix = PurePath(place.name).suffix
    if suffix not in ("", ".safetensors"):
        raise SpecError(f"{out}: would be no {suffix}, for safetensors is what is written; call it *.safetensors")
    place.entry() if place.remote else files.writable(out)  # before anything is read
    newest = LoadedCheckpoint.newest(folder)
    spec = newest.spec
    metadata = {"backbone": spec.encoder.backbone, "stem": spec.encoder.stem, "norm": spec.encoder.norm}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in backbone_state_dict(newest.encoder).items()}
    place.write(save(tensors, metadata))
    remarks = not_torchvisions(spec.encoder)
    for remark in remarks:
        say(remark)
    return {"checkpoint": str(newest.place), "out": str(place), **metadata, "remarks": [*newest.remarks, *remarks]}
