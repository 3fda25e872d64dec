"""What comes out of a finished or a running run: its evaluation, and its backbone."""

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save

from emc2dist import files
from emc2dist.config import S3
from emc2dist.data.images import Images, open_images, open_labelled
from emc2dist.errors import NonFiniteError
from emc2dist.service.newest import Newest
from emc2dist.service.runs import RunFolder
from emc2dist.terminal import Progress, say
from emc2dist.train.evaluate import Evaluation
from emc2dist.vision.encoder import backbone_state_dict


def evaluate(run: str | Path, *, data_path: str | None = None, s3: S3 | None = None) -> dict[str, Any]:
    """kNN accuracy and linear probe of the newest checkpoint, on all images of the run's data (or of `data_path`).

    What `s3` was given goes before what the run's spec says, for the run folder and for the data.

    Raises:
        RunError: there is no run or no whole checkpoint. DataError: the data is gone or has no labels.
        NonFiniteError: the run has diverged.
    """
    newest = Newest.open(RunFolder.open(run, s3))
    spec = newest.spec
    data = spec.data if data_path is None else spec.data.model_copy(update={"path": data_path})
    s3 = spec.s3.overridden(s3)
    train = open_images(data, "train", s3)
    assert train is not None, "open_images raises where there are no training images"
    evaluation = Evaluation(spec, open_labelled(data, spec.eval, train, s3), whole=True)
    remarks = [*_others(newest, train, own=data_path is None), *train.remarks, *evaluation.remarks]
    for remark in remarks:
        say(remark)
    with closing(Progress(evaluation.images, unit="image")) as progress:
        bank, queries = evaluation.represent(newest.encoder, newest.device, progress.add)
    if not (np.isfinite(bank).all() and np.isfinite(queries).all()):
        raise NonFiniteError(f"{newest.place}: its encoder's representations are not finite; the run has diverged")
    say("encoded; now the kNN vote and the linear probe")
    return {
        "checkpoint": str(newest.place),
        "bank": len(bank),
        "queries": len(queries),
        "knn_accuracy": evaluation.knn_accuracy(bank, queries),
        "linear_probe_accuracy": evaluation.linear_probe(bank, queries),
        "remarks": [*newest.remarks, *remarks],
    }


def _others(newest: Newest, train: Images, *, own: bool) -> list[str]:
    """Remarks on training images that are not those of the run (`own`: though its own data was asked for)."""
    data = newest.spec.data
    change = newest.manifest.change(train)
    if own and change:
        return [f"{data.path}: now holds {change} that the run was trained on"]
    if not own and len(train) == data.limit:
        return [f"data.limit: no more than the first {data.limit:,} training images are taken, as in the run"]
    return []


def export(run: str | Path, out: str | Path, *, s3: S3 | None = None) -> dict[str, Any]:
    """Write the newest checkpoint's backbone as safetensors, keys as torchvision names them (no `fc`).

    Raises:
        RunError: there is no run or no whole checkpoint. StorageError: `out`, on disk or S3, cannot be written.
    """
    folder, place = RunFolder.open(run, s3), files.at(out, s3)
    files.refuse_folder(out)
    place.entry() if place.remote else files.writable(out)  # before anything is read
    newest = Newest.open(folder)
    spec = newest.spec
    metadata = {"backbone": spec.encoder.backbone, "stem": spec.encoder.stem, "norm": spec.encoder.norm}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in backbone_state_dict(newest.encoder).items()}
    place.write(save(tensors, metadata))
    return {"checkpoint": str(newest.place), "out": str(place), **metadata, "remarks": newest.remarks}
