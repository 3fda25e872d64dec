"""The model of a run, for those who use it elsewhere.

    safetensors            the backbone, under its library's own key names; of captions both towers      backbone.py
    onnx                   the whole encoder of images, pixels in, representation and feature out         onnx.py
    huggingface            a folder for a hub: weights, config.json, and a model card of the run           hub.py
    sentence-transformers  the whole encoder of texts, as that library loads it, with a model card       texts.py

Who exports names a run, whose newest checkpoint it is, or one of its checkpoints.
"""

from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

from emc2dist import files
from emc2dist.config import S3, Spec
from emc2dist.errors import SpecError
from emc2dist.files import Place
from emc2dist.run.exports import backbone, hub, onnx, texts
from emc2dist.run.folder import RunFolder, refuse_runs_own, run_of
from emc2dist.run.loaded import LoadedCheckpoint

FORMATS = ("safetensors", "onnx", "huggingface", "sentence-transformers")
"""What can be written."""
_SUFFIXES = {"safetensors": ".safetensors", "onnx": ".onnx"}
"""Of those that are a file; the others are folders."""

Written = dict[str, Any]
"""What was written, by name, `remarks` among it."""


def export(run: str | Path, out: str | Path, *, form: str = FORMATS[0], s3: S3 | None = None) -> Written:
    """Write a checkpoint's model in one of `FORMATS` to `out`, on disk or S3, whole or not at all.

    `s3` goes before what the run's spec says.

    Raises:
        RunError: there is no run or no whole checkpoint, or what was written gives other numbers than the encoder.
        StorageError: `out` cannot be written, or is a run's own. SpecError: `out` is named as a file of another format,
        or the format is of other runs, or wants a package that is not installed.
    """
    folder, _ = run_of(run, s3)
    spec = folder.spec()
    _refuse_other_runs(run, spec, form)
    refuse_runs_own(out)
    place = files.at(out, s3)
    if form in _SUFFIXES:
        _refuse_other_endings(out, place, form)
        place.entry() if place.remote else files.writable(out)  # before anything is read
    else:
        files.refuse_used(place)
    newest = LoadedCheckpoint.at(run, s3)
    written = _writer(form, folder, spec)(newest, place)
    return (
        {"checkpoint": str(newest.place), "out": str(place)}
        | written
        | {"remarks": newest.remarks + written["remarks"]}
    )


def _writer(form: str, folder: RunFolder, spec: Spec) -> Callable[[LoadedCheckpoint, Place], Written]:
    """What writes a format of such a run."""
    if form == "onnx":
        return onnx.write
    if form == "huggingface":
        return lambda newest, place: hub.write(newest, folder, place)
    if form == "sentence-transformers":
        return lambda newest, place: texts.write_folder(newest, folder, place)
    if not spec.of_texts:
        return backbone.write
    return texts.write_towers if spec.of_images else texts.write_file


def _refuse_other_runs(run: object, spec: Spec, form: str) -> None:
    """Raise SpecError where a format is not of such runs, or cannot be written here."""
    if form == "onnx":
        onnx.refuse_unwritable()
    only_images, only_texts = spec.of_images and not spec.of_texts, spec.of_texts and not spec.of_images
    if form in ("onnx", "huggingface") and not only_images:
        others = "sentence-transformers" if only_texts else "safetensors"
        raise SpecError(f"{run}: is over {spec.data.kind}; --format {form} is of images alone, give {others}")
    if form == "sentence-transformers":
        if spec.of_images:
            raise SpecError(f"{run}: is over images; --format {form} is of texts, leave it out")
        texts.refuse_other_backbones(spec, run)


def _refuse_other_endings(out: object, place: Place, form: str) -> None:
    files.refuse_folder(str(out))
    suffix = PurePath(place.name).suffix
    if suffix not in ("", _SUFFIXES[form]):
        raise SpecError(f"{out}: would be no {suffix}, for {form} is what is written; call it *{_SUFFIXES[form]}")
