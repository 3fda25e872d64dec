"""What comes out of a finished or a running run: its evaluation, and its backbone."""

import os
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from emc2dist.config import S3, Spec
from emc2dist.data.images import open_images, open_voters
from emc2dist.errors import DataError, RunError
from emc2dist.files import Place
from emc2dist.service.runs import RunFolder
from emc2dist.terminal import Progress, say
from emc2dist.train import checkpoint
from emc2dist.train.evaluate import Evaluation
from emc2dist.vision.encoder import Encoder, backbone_state_dict


def evaluate(run: str | Path, *, data_path: str | None = None, s3: S3 | None = None) -> dict[str, Any]:
    """kNN accuracy and linear probe of the newest checkpoint, on all images of the run's data (or of `data_path`).

    `s3` says how a run folder on S3 is reached; the data is reached as the run's spec says.

    Raises:
        RunError: there is no run or no whole checkpoint. DataError: the data is gone or has no labels.
    """
    place, encoder, spec = _newest(run, s3)
    data = spec.data if data_path is None else spec.data.model_copy(update={"path": data_path})
    train, test = open_images(data, "train", spec.s3), open_images(data, "test", spec.s3)
    if train is None:
        raise DataError(f"{data.path}: holds no training images; the probe is fitted on them")
    device = torch.device("cuda" if torch.cuda.is_available() and spec.device != "cpu" else "cpu")
    voters = open_voters(data, spec.eval.voters, train, spec.s3)
    evaluation = Evaluation(spec, voters, test, whole=True)
    with closing(Progress(evaluation.images, unit="image")) as progress:
        bank, queries = evaluation.represent(encoder.to(device), device, progress.add)
    say("encoded; now the kNN vote and the linear probe")
    return {
        "checkpoint": str(place),
        "bank": len(bank),
        "queries": len(queries),
        "knn_accuracy": evaluation.knn_accuracy(bank, queries),
        "linear_probe_accuracy": evaluation.linear_probe(bank, queries),
    }


def export(run: str | Path, out: str | Path, *, s3: S3 | None = None) -> dict[str, Any]:
    """Write the newest checkpoint's backbone as safetensors, keys as torchvision names them (no `fc`).

    Raises:
        RunError: there is no run or no whole checkpoint, or `out` cannot be written.
    """
    place, encoder, spec = _newest(run, s3)
    path = Path(out)
    metadata = {"backbone": spec.encoder.backbone, "stem": spec.encoder.stem, "norm": spec.encoder.norm}
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file({k: v.contiguous() for k, v in backbone_state_dict(encoder).items()}, draft, metadata)
        draft.replace(path)
    except OSError as error:
        raise RunError(f"{out}: cannot be written ({error.strerror}); name a file in a folder that exists") from error
    return {"checkpoint": str(place), "out": str(path), **metadata}


def _newest(run: str | Path, s3: S3 | None) -> tuple[Place, Encoder, Spec]:
    """The newest whole checkpoint: its folder, its encoder and its spec."""
    problems = []
    for place in RunFolder.open(run, s3).checkpoints():
        try:
            return place, *_load(place)
        except RunError as error:  # the newest one may still be on its way here
            problems.append(str(error))
    raise RunError("; ".join(problems) or f"{run}: holds no checkpoint yet; train for at least one epoch")


def _load(place: Place) -> tuple[Encoder, Spec]:
    with tempfile.TemporaryDirectory(prefix="emc2-checkpoint-") as folder:
        if place.remote:
            say(f"fetching {place}")
        path = place.fetch(Path(folder), ("manifest.json", "trainer.pt"))
        spec = checkpoint.read_manifest(path).parsed_spec()
        state = checkpoint.load_trainer(path, torch.device("cpu"))
    encoder = Encoder(spec.encoder)
    if spec.precision == "float64":
        encoder.double()
    encoder.load_state_dict(state["encoder"])
    return encoder, spec
