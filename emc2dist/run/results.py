"""The results of a run, finished or running: its evaluation, and its backbone."""

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path, PurePath
from typing import Any

from safetensors.torch import save
from torch import Tensor

from emc2dist import files
from emc2dist.config import S3, Data, Spec, dump, given_keys, parse
from emc2dist.config.backbones import TIMM
from emc2dist.data.images import Images, open_images, open_labelled
from emc2dist.errors import NonFiniteError, SpecError
from emc2dist.files import Place
from emc2dist.run import text_models
from emc2dist.run.captions import evaluate_captions
from emc2dist.run.folder import refuse_runs_own, run_of
from emc2dist.run.loaded import LoadedCheckpoint
from emc2dist.run.texts import evaluate_pairs
from emc2dist.terminal import Progress, say
from emc2dist.towers.encoder import ImageEncoder
from emc2dist.towers.images import backbone_state_dict, not_its_own
from emc2dist.train.evaluation import Evaluation
from emc2dist.train.measures import MOST_IN_PAIRS, all_measures

_HEEDED = (
    "data.path",
    "data.limit",
    "data.cache_dir",
    "data.cache_mib",
    "eval.voters",
    "eval.asked",
    "eval.neighbours",
)
_HEEDED_OF_PAIRS = ("data.path", "data.limit", "eval.asked")
_HEEDED_OF_CAPTIONS = (*_HEEDED_OF_PAIRS, "eval.prompts")


FORMATS = ("safetensors", "sentence-transformers")
"""Of what `export` writes; the second is of runs over pairs."""
_USE = (
    "images for it: RGB from 0 to 1, less `mean`, by `std` (README.md, The encoder elsewhere); neither projector nor "
    "head is in it: model.set_submodule(head, torch.nn.Identity()) before it is loaded, `head` as in its metadata, or "
    "load with strict=False"
)


def evaluate(run: str | Path, overrides: Sequence[str] = (), *, s3: S3 | None = None) -> dict[str, Any]:
    """All measures (`emc2dist.train.measures`) of a checkpoint, a run's newest, on all images of the run's data.

    Of the representation, and of the feature, by these names. Of a run over pairs, `evaluate_pairs`, and over
    images with captions, `evaluate_captions`.

    `overrides` are KEY=VALUE, of the run's spec: `data.path=PATH` where the data have moved. What `s3` was given goes
    before what the run's spec says, for the run folder and for the data.

    Raises:
        SpecError: an override is none of the spec's, or is of no use here.
        RunError: there is no run or no whole checkpoint. DataError: the data is gone or has no labels.
        NonFiniteError: the run has diverged.
    """
    newest = LoadedCheckpoint.at(run, s3)
    spec = parse(dump(newest.spec), overrides, source=str(newest.place)) if overrides else newest.spec
    _refuse_unheeded(overrides, spec)
    s3 = spec.s3.overridden(s3)
    if spec.of_texts:
        measured = evaluate_captions if spec.of_images else evaluate_pairs
        return measured(newest, spec.model_copy(update={"s3": s3}))
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
    pair = evaluation.pair(newest.encoder, newest.device, MOST_IN_PAIRS).to(newest.device)
    say("encoded; now the measures of it")
    return {
        "checkpoint": str(newest.place),
        "data": spec.data.path,
        "bank": len(bank),
        "queries": len(queries),
        "neighbours": evaluation.neighbours,
        **all_measures(evaluation, newest.encoder, bank, queries, pair),
        "remarks": [*newest.remarks, *remarks],
    }


def _refuse_unheeded(overrides: Sequence[str], spec: Spec) -> None:
    """Raise SpecError where an override would be read by nobody here."""
    heeded: tuple[str, ...] = _HEEDED
    what = "all labelled images vote and are asked about"
    if spec.of_texts:
        heeded, what = _HEEDED_OF_PAIRS, "all queries are asked among all documents"
    if spec.data.kind == "captions":
        heeded, what = _HEEDED_OF_CAPTIONS, "all images and captions of a split are asked for each other"
    for key in given_keys(overrides):
        if key not in heeded and not key.startswith("s3."):
            raise SpecError(
                f"{key}: is for training; {what} here, once. Leave it out; what can be set is {', '.join(heeded)} "
                "and s3"
            )


def _on_limit(own: Data, train: Images, data: Data) -> list[str]:
    """A remark where the limit of a run's own data holds for other data too."""
    if data.path == own.path or not data.limit == own.limit == len(train):
        return []
    return [f"data.limit: no more than the first {data.limit:,} training images are taken, as in the run"]


def export(run: str | Path, out: str | Path, *, form: str = FORMATS[0], s3: S3 | None = None) -> dict[str, Any]:
    """Write a checkpoint's backbone as safetensors; or, of a run over pairs, the whole encoder as a folder.
    Of images with captions the file holds both towers, with their projectors.

    Args:
        run: a run folder, whose newest checkpoint it is, or one of its checkpoints.
        out: the file or the folder, on disk or S3.
        form: one of `FORMATS`.
        s3: goes before what the run's spec says.

    Of pairs see `emc2dist.run.text_models`.

    Keys are torchvision's or timm's (no head); those of conv4 are of `emc2dist.towers.images.Conv4`. What a model has
    to be like to give the same representations is in `remarks`, where it is not its library's own; what images have to
    be like, in the file's metadata and in what is returned: `mean` and `std` of RGB from 0 to 1, `size` as trained on.

    Raises:
        RunError: there is no run or no whole checkpoint. StorageError: `out`, on disk or S3, cannot be written.
        SpecError: `out` is named as a file of another format, or the format is of other runs.
    """
    folder, _ = run_of(run, s3)
    place, of_texts = files.at(out, s3), folder.spec().of_texts
    refuse_runs_own(out)
    if form == FORMATS[1] and folder.spec().of_images:
        raise SpecError(f"{run}: is over images; --format {form} is of texts, leave it out")
    if form == FORMATS[1]:
        text_models.refuse_other_backbones(folder.spec(), run)
        newest = LoadedCheckpoint.at(run, s3)
        return _exported(newest, place, text_models.write_folder(newest, place))
    files.refuse_folder(out)
    suffix = PurePath(place.name).suffix
    if suffix not in ("", ".safetensors"):
        raise SpecError(f"{out}: would be no {suffix}, for safetensors is what is written; call it *.safetensors")
    place.entry() if place.remote else files.writable(out)  # before anything is read
    newest = LoadedCheckpoint.at(run, s3)
    spec = newest.spec
    told = _told(newest) if spec.of_images else {}
    if of_texts:
        write = text_models.write_towers if spec.of_images else text_models.write_file
        return _exported(newest, place, write(newest, str(out), spec.s3.overridden(s3), told))
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in told.items()}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in backbone_state_dict(newest.tower("image")).items()}
    place.write(save(tensors, metadata))
    remarks = not_its_own(spec.encoder, spec.views.size)
    for remark in remarks:
        say(remark)
    say(_USE)
    return _exported(newest, place, told | {"remarks": remarks})


def _told(newest: LoadedCheckpoint) -> dict[str, Any]:
    """What a backbone of images is built of, and what images it takes."""
    spec, tower = newest.spec, newest.tower("image")
    assert isinstance(tower, ImageEncoder)
    return {
        "backbone": spec.encoder.backbone,
        "head": _head_of(tower, spec.encoder.backbone),
        "stem": spec.encoder.stem,
        "norm": spec.encoder.norm,
        "width": tower.width,
        "size": spec.views.size,
        "mean": _from_0_to_1(tower.mean),
        "std": _from_0_to_1(tower.std),
    }


def _head_of(encoder: ImageEncoder, backbone: str) -> str:
    """Name of the layer that was taken off; empty where the library leaves it out itself, or has none."""
    return "" if backbone.startswith(TIMM) else next(iter(encoder.heads), "")


def _exported(newest: LoadedCheckpoint, place: Place, told: dict[str, Any]) -> dict[str, Any]:
    return {"checkpoint": str(newest.place), "out": str(place)} | told | {"remarks": newest.remarks + told["remarks"]}


def _from_0_to_1(pixels: Tensor) -> list[float]:
    return [round(value / 255, 6) for value in pixels.flatten().tolist()]
