"""What a run begins with, seen by its driver: `encoder.weights` and `start_from`, checked before anything starts.

A run folder that either names may go on being trained, so workers are told the checkpoint that was its newest when the
run began (`pinned`). What a run began with is kept in its checkpoints as SHA-256: a resumed run reads none of it any
more, and takes no other (`refuse_other`).
"""

from collections.abc import Sequence
from pathlib import Path

from emc2dist import files
from emc2dist.config import Spec, changed, differences, leaves
from emc2dist.config.backbones import CONV4, RESNETS
from emc2dist.config.pairs import is_text
from emc2dist.errors import RunError, SpecError, StorageError, StorageUnreachable
from emc2dist.files import Place
from emc2dist.run.checkpoints import spec_of
from emc2dist.run.folder import RunFolder
from emc2dist.run.scratch import temporary
from emc2dist.store import Layout
from emc2dist.towers.encoder import ImageEncoder
from emc2dist.towers.optim import build_optimiser
from emc2dist.towers.stages import depths, freeze
from emc2dist.train import checkpoint
from emc2dist.train.loop import encoder_for
from emc2dist.train.memory import schema_for
from emc2dist.train.model_files import ModelFiles
from emc2dist.train.sets import TrainingSet
from emc2dist.train.weights import file_of, fingerprint, load_weights

_KEYS = ("encoder.weights", "start_from")
_OF_ENCODER = ("data.kind", "text", "encoder", "optimiser.name", "optimiser.layer_decay")
"""What has to be equal for a run to go on with another's encoder and optimiser."""
_OF_MEMORY = ("objective", "negatives", "views.count", "encoder.features")
"""What the schema of the memory comes from."""


def pinned(spec: Spec) -> Spec:
    """The spec with a run folder, where it begins with one, made the newest checkpoint in it.

    Raises:
        SpecError, RunError: there is none. StorageError: it cannot be read.
    """
    pins = dict[str, str]()
    if spec.encoder.weights is not None:
        pins["encoder.weights"] = str(file_of(files.at(spec.encoder.weights, spec.s3)))
    if spec.start_from is not None:
        pins["start_from"] = str(_newest(spec)[0])
    return changed(spec, pins, source="encoder.weights") if pins else spec


def check(spec: Spec, train: TrainingSet, model: ModelFiles | None = None) -> list[str]:
    """See that a run can begin as its spec says; returns remarks on how it does.

    The encoder is built for it, but for backbones of texts and those that are known to build: conv4 and ResNets.

    Raises:
        SpecError: the backbone cannot be built, or the weights do not fit. RunError: the other run's memory, data or
            encoder do not. StorageError: something cannot be read.
    """
    plain = spec.encoder.backbone in (CONV4, *RESNETS) or is_text(spec.encoder.backbone)
    if plain and spec.start_from is spec.encoder.weights is spec.encoder.freeze is None:
        return []
    encoder = encoder_for(spec, model.config if model else None)
    remarks = list(encoder.remarks) if isinstance(encoder, ImageEncoder) else []
    remarks += load_weights(encoder.described, spec).remarks
    freeze(encoder.described, spec.encoder.freeze)
    if spec.encoder.freeze is not None:
        parameters = list(encoder.parameters())
        still = sum(parameter.numel() for parameter in parameters if not parameter.requires_grad)
        whole = sum(parameter.numel() for parameter in parameters)
        remarks.append(f"encoder.freeze: {spec.encoder.freeze}: {still:,} of {whole:,} parameters stay as they are")
    if spec.start_from is not None:
        place, manifest, passed = _newest(spec)
        _refuse_unlike(spec, place, manifest, train, model)
        with temporary("emc2-start-") as folder:
            path = checkpoint.fetch(place, Path(folder), layout=None)
            optimiser = build_optimiser(encoder, spec.optimiser, spec.lr, depths(encoder))
            checkpoint.restore_trainer(path, encoder, optimiser, own_groups=True)
        remarks.append(
            f"start_from: {place}: encoder, optimiser, chains and cache are those of its step {manifest.step:,}"
        )
        remarks += passed
        if manifest.parsed_spec().seed == spec.seed:
            remarks.append(
                f"seed: {spec.seed} is also that of start_from, so that this run takes batches and views that it took "
                "already; another seed would take others"
            )
    return remarks


def refuse_other(folder: RunFolder, manifest: checkpoint.Manifest, spec: Spec) -> None:
    """Raise RunError where a run that resumes is told to have begun with something else than it did."""
    given, before = dict(leaves(spec.model_dump())), dict(leaves(folder.spec().model_dump()))
    for key in _KEYS:
        path, sha256 = given[key], manifest.began.get(key)
        if (path is None) != (sha256 is None):
            began = "none" if sha256 is None else before[key]
            raise RunError(
                f"{key}: {path}, but {folder.place} began with {began}, which its checkpoints go on from; give "
                "that, or give the run a new name"
            )
        if path is None or path == before[key]:
            continue
        try:
            now = fingerprint(files.at(path, spec.s3))
        except (SpecError, StorageError):  # it is not needed any more
            continue
        if now != sha256:
            raise RunError(
                f"{key}: {path} is not what {folder.place} began with, {before[key]}; give that, or give the run a new "
                "name"
            )


def fetch(spec: Spec, layout: Layout, scratch: Path) -> Path | None:
    """A local folder with what this rank needs of the checkpoint that `start_from` names, verified; None without one.

    What has to be fetched goes into `scratch`, which is made. Raises RunError where it is not whole.
    """
    if spec.start_from is None:
        return None
    scratch.mkdir()
    place = _newest(spec)[0]
    try:
        return checkpoint.fetch(place, scratch, layout)
    except StorageUnreachable:
        raise
    except (RunError, StorageError) as error:
        raise RunError(f"start_from: {place}: {error}; begin again with a checkpoint that is whole") from error


def _newest(spec: Spec) -> tuple[Place, checkpoint.Manifest, list[str]]:
    """The checkpoint to begin with, its manifest, and remarks on newer ones that do not do.

    One within an epoch does not, for part of what was learnt by then is still to be written into its rows.
    """
    assert spec.start_from is not None
    given = files.at(spec.start_from, spec.s3)
    if (given / checkpoint.MANIFEST).entry() is not None:  # pinned
        return given, checkpoint.read_manifest(given), []
    run = RunFolder.open(spec.start_from, spec.s3)
    own, passed = run.spec(), list[str]()
    for place in run.checkpoints():
        try:
            manifest = checkpoint.verify(place, contents=False)
            spec_of(place, manifest, own)
        except StorageUnreachable:
            raise
        except (RunError, StorageError) as error:
            passed.append(f"start_from: passed over, as not whole: {place}: {error}")
            continue
        if manifest.applied == manifest.step - 1:
            return place, manifest, passed
        passed.append(f"start_from: passed over, as made within an epoch: {place}")
    told = f" ({'; '.join(passed)})" if passed else ""
    raise RunError(f"start_from: {run.place}: holds no whole checkpoint of the end of an epoch{told}; train it to one")


def _refuse_unlike(
    spec: Spec, place: Place, manifest: checkpoint.Manifest, train: TrainingSet, model: ModelFiles | None
) -> None:
    """Raise RunError where a run cannot go on with what another one had learnt by a checkpoint; names the keys."""
    change = manifest.change(train)
    if change:
        raise RunError(
            f"start_from: {place}: data.path: {spec.data.path} holds {change} of that run, whose chains and cache are "
            "of those; give its data, or encoder.weights, which takes the encoder alone"
        )
    if model:
        model.refuse_unlike(manifest.model, place)
    other = manifest.parsed_spec()
    follow = (other.encoder.momentum is None) == (spec.encoder.momentum is None)  # how slowly may differ
    unlike = _under(differences(other, spec), _OF_ENCODER, but=("encoder.momentum",) if follow else ())
    if schema_for(other) != schema_for(spec):
        unlike += _under(differences(other, spec), _OF_MEMORY)
    if unlike:
        raise RunError(
            f"start_from: {place}: {'; '.join(dict.fromkeys(unlike))}: these have to be as they were there; give the "
            "values there, or encoder.weights, which takes the encoder alone"
        )


def _under(lines: Sequence[str], keys: Sequence[str], but: Sequence[str] = ()) -> list[str]:
    """Of lines `key: old -> new` those of such keys and what lies under them."""
    named = [(line, line.partition(":")[0]) for line in lines]
    return [
        line for line, key in named if key not in but and any(key == one or key.startswith(f"{one}.") for one in keys)
    ]
