"""A folder for a hub of models, as Hugging Face has it: weights, config.json, and a model card made of the run.

    model.safetensors   the backbone, as `emc2dist.run.exports.backbone` writes it
    config.json         what it is built of; of timm's models as `timm.create_model("local-dir:FOLDER")` reads it
    README.md           the model card: data, objective, negatives, measures, versions; the licence is left to its owner

The card tells no path of the machine or bucket that the run had its data and checkpoints in, only their last names.
"""

import json
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

from emc2dist import files
from emc2dist.config.backbones import TIMM
from emc2dist.files import Place
from emc2dist.run.exports.backbone import described, serialised
from emc2dist.run.folder import RunFolder
from emc2dist.run.loaded import LoadedCheckpoint
from emc2dist.run.scratch import temporary
from emc2dist.terminal import say
from emc2dist.towers.images import not_its_own

CARD = "README.md"
_MEASURES = {
    "knn_accuracy": "kNN accuracy, of the representation",
    "knn_per_class": "the same, as a mean over classes",
    "probe_accuracy": "linear probe (ridge regression), of the representation",
    "knn_untrained": "kNN accuracy of the untrained encoder",
    "knn_pixels": "kNN accuracy of raw pixels",
    "ndcg_at_10": "nDCG@10",
    "ndcg_untrained": "nDCG@10 of the untrained encoder",
    "ndcg_bm25": "nDCG@10 of BM25",
    "effective_rank": "effective rank of the features",
}


def write(newest: LoadedCheckpoint, run: RunFolder, folder: Place) -> dict[str, Any]:
    """Write the folder, README.md last; returns its files, and remarks, which were said."""
    told, remarks = described(newest), not_its_own(newest.spec.encoder, newest.spec.views.size)
    with temporary("emc2-export-") as scratch, files.explained(scratch):
        draft = Path(scratch)
        (draft / "model.safetensors").write_bytes(serialised(newest, told))
        (draft / "config.json").write_text(json.dumps(_config(told), indent=1) + "\n", encoding="utf-8")
        (draft / CARD).write_text(card(newest, run, told, remarks), encoding="utf-8")
        names = files.move_all(draft, folder, last=CARD)
    remarks = [*remarks, f"{folder / CARD}: names no licence; write the one that your data and weights may have"]
    for remark in remarks:
        say(remark)
    return {"files": names, "remarks": remarks}


def card(newest: LoadedCheckpoint, run: RunFolder, told: dict[str, Any] | None, remarks: list[str]) -> str:
    """The model card, Markdown with YAML before it; `told` of a backbone of images, None of texts."""
    from jinja2 import Environment, StrictUndefined

    spec = newest.spec
    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined
    )
    template = environment.from_string((resources.files(__package__) / "card.md.j2").read_text(encoding="utf-8"))
    summary = run.summary() or {}
    return template.render(
        spec=spec,
        told=told,
        remarks=remarks,
        step=newest.manifest.step,
        samples=newest.manifest.samples,
        data=_last_name(spec.data.path),
        timm=spec.encoder.backbone.removeprefix(TIMM) if spec.encoder.backbone.startswith(TIMM) else None,
        objective=_written(spec.objective.name, spec.objective.options()),
        negatives=_written(spec.negatives.name, spec.negatives.options()),
        measures={name: summary[key] for key, name in _MEASURES.items() if summary.get(key) is not None},
        versions={name: version for name, version in run.versions().items() if version},
    )


def _config(told: dict[str, Any]) -> dict[str, Any]:
    """config.json: ours, or timm's."""
    if not told["backbone"].startswith(TIMM):
        return told
    size = told["size"]
    pixels = {"input_size": [3, size, size], "mean": told["mean"], "std": told["std"], "num_classes": 0}
    return {
        "architecture": told["backbone"].removeprefix(TIMM),
        "num_classes": 0,
        "num_features": told["width"],
        "pretrained_cfg": pixels,
        "norm": told["norm"],
    }


def _written(name: str, options: dict[str, Any]) -> str:
    """A name with its options, as a spec has them."""
    given = ", ".join(f"{key}: {value}" for key, value in options.items() if key != "name" and value is not None)
    return f"{name} ({given})" if given else name


def _last_name(path: str) -> str:
    return PurePosixPath(path.rstrip("/")).name or path
