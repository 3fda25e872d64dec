"""The model of a run over pairs, for those who use it elsewhere.

A *folder of sentence-transformers* (modules.json, as versions 2.3 to 6 read it) gives the run's own features: the model
of transformers and its tokenizer, Pooling, Dense and LayerNorm for the projector, Normalize. A *safetensors file* holds
the backbone alone, with what makes its tokens: metadata, and the tokenizer beside it.
"""

import json
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from emc2dist import files
from emc2dist.config import Spec
from emc2dist.config.sections import TRANSFORMERS
from emc2dist.data.texts.manifest import TOKENIZER
from emc2dist.errors import SpecError, StorageError
from emc2dist.files import Place
from emc2dist.run.exports.backbone import described
from emc2dist.run.exports.hub import CARD, card
from emc2dist.run.folder import RunFolder
from emc2dist.run.loaded import LoadedCheckpoint
from emc2dist.run.scratch import temporary
from emc2dist.terminal import say
from emc2dist.towers.images import backbone_state_dict
from emc2dist.train.model_files import CONFIG

_MODULES = "modules.json"
_LIBRARY = "sentence_transformers.models"
_POOLINGS = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "last": "pooling_mode_lasttoken"}
_USE = (
    "texts for it: prompt and text by the tokenizer beside it, at most the side's length of tokens, each the "
    "tokenizer's number + 1, 0 for padding; the projector is not in it"
)


_USE_OF_TOWERS = (
    "images for it: RGB from 0 to 1, less `mean`, by `std`; texts: prompt and text by the tokenizer beside it, each "
    "the tokenizer's number + 1, 0 for padding; emc2dist.towers.encoder.TwoTowers reads its tensors, and a feature is "
    "projector(backbone(...)) brought to unit length"
)


def refuse_other_backbones(spec: Spec, run: object) -> None:
    """Raise SpecError where sentence-transformers has no module for a run's backbone."""
    if not spec.encoder.backbone.startswith(TRANSFORMERS):
        raise SpecError(
            f"{run}: its encoder.backbone is {spec.encoder.backbone}, for which sentence-transformers has no module; "
            f"write it by `emc2dist export {run} FILE.safetensors`"
        )


def write_folder(newest: LoadedCheckpoint, run: RunFolder, folder: Place) -> dict[str, Any]:
    """Write the encoder as a folder that sentence-transformers loads, with a card of the run; its modules and remarks.

    Raises:
        StorageError: the folder cannot be written; then nothing is left in it.
    """
    spec, encoder = newest.spec, newest.tower("text")
    text = spec.text
    with temporary("emc2-export-") as scratch, files.explained(scratch):
        draft = Path(scratch)
        assert newest.model is not None
        assert isinstance(encoder.backbone.model, nn.Module)
        encoder.backbone.model.save_pretrained(draft)  # type: ignore[operator]  # transformers' own
        for name, content in newest.model.content.items():
            if name != CONFIG:  # the model has written its own, without dropout
                (draft / name).write_bytes(content)
        length = max(text.query_length, text.document_length)
        prompts = {"query": text.query_prompt, "document": text.document_prompt}
        _write(draft / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": False})
        told = {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"}
        _write(draft / "config_sentence_transformers.json", told)
        modules = [_pooling(encoder.width, text.pooling), *_of_projector(encoder.projector), _Module("Normalize")]
        kinds = ["Transformer", *(module.kind for module in modules)]
        paths = ["", *(f"{number}_{module.kind}" for number, module in enumerate(modules, 1))]
        for path, module in zip(paths[1:], modules, strict=True):
            module.write(draft / path)
        listed = [
            {"idx": number, "name": str(number), "path": path, "type": f"{_LIBRARY}.{kind}"}
            for number, (path, kind) in enumerate(zip(paths, kinds, strict=True))
        ]
        _write(draft / _MODULES, listed)
        (draft / CARD).write_text(card(newest, run, None, []), encoding="utf-8")
        files.move_all(draft, folder, last=_MODULES)
    remarks = ["a model that has a pooler of its own is given a new one as it is loaded, which nothing reads"]
    if text.query_length != text.document_length:
        remarks.append(
            f"text.query_length: {text.query_length} and text.document_length: {text.document_length} differ, and a "
            f"model has one there, {length}; set model.max_seq_length for the side that is cut shorter"
        )
    for remark in remarks:
        say(remark)
    return {"modules": kinds, "max_seq_length": length, "prompts": prompts, "remarks": remarks}


def write_file(newest: LoadedCheckpoint, place: Place) -> dict[str, Any]:
    """Write the backbone's tensors as safetensors, the tokenizer beside it; what metadata tell, and remarks.

    Raises:
        StorageError: one cannot be written, or another tokenizer is there.
    """
    tower = newest.tower("text")
    return _with_tokenizer(newest, place, _told(newest.spec, tower.width), backbone_state_dict(tower), _USE)


def write_towers(newest: LoadedCheckpoint, place: Place) -> dict[str, Any]:
    """Write both towers of images and captions, their projectors too, as `write_file` does.

    Names of tensors begin with `image.` or `text.`.
    """
    encoder, spec = newest.encoder, newest.spec
    told: dict[str, Any] = {
        "features": encoder.features,
        "hidden": spec.encoder.hidden,
        "image": described(newest),
        "text": _told(spec, newest.tower("text").width),
    }
    tensors = {name: tensor for name, tensor in encoder.state_dict().items() if not name.startswith("learnt.")}
    return _with_tokenizer(newest, place, told, tensors, _USE_OF_TOWERS)


def _with_tokenizer(
    newest: LoadedCheckpoint, place: Place, told: dict[str, Any], state: dict[str, Tensor], use: str
) -> dict[str, Any]:
    assert newest.model is not None
    beside = place.beside(TOKENIZER)
    tokenizer = newest.model.content[TOKENIZER]
    there = beside.entry()
    if there is not None and beside.read() != tokenizer:
        raise StorageError(f"{beside}: is another tokenizer; name a file in another folder")
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in told.items()}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
    beside.write(tokenizer)
    try:
        place.write(save(tensors, metadata))
    except BaseException:
        if there is None:
            beside.remove()
        raise
    say(use)
    return {"tokenizer": str(beside), **told, "remarks": []}


def _told(spec: Spec, width: int) -> dict[str, Any]:
    """What a backbone is built of, and what texts it takes."""
    backbone, text = spec.text_backbone, spec.text
    assert backbone is not None, "there are texts"
    told: dict[str, Any] = {
        "backbone": backbone,
        "width": width,
        "pooling": "mean" if backbone == "bag" else text.pooling,
        "document_length": text.document_length,
        "document_prompt": text.document_prompt,
    }
    if not spec.of_images:
        told |= {"query_length": text.query_length, "query_prompt": text.query_prompt}
    own = {"bag": {"vocabulary"}, "mini": {"vocabulary", "layers", "heads"}}
    return told | text.model_dump(include=own.get(backbone, set()))


class _Module(NamedTuple):
    """A module of sentence-transformers: a folder with a config, and weights where it has some."""

    kind: str
    config: dict[str, Any] = {}  # noqa: RUF012
    tensors: dict[str, Tensor] = {}  # noqa: RUF012

    def write(self, folder: Path) -> None:
        folder.mkdir()
        _write(folder / "config.json", self.config)
        if self.tensors:
            save_file(
                {name: tensor.cpu().contiguous() for name, tensor in self.tensors.items()}, folder / "model.safetensors"
            )


def _pooling(width: int, pooling: str) -> _Module:
    modes = {name: of == pooling for of, name in _POOLINGS.items()}
    others = ("max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens")
    modes |= {f"pooling_mode_{other}": False for other in others}
    return _Module("Pooling", {"word_embedding_dimension": width, **modes, "include_prompt": True})


def _of_projector(projector: nn.Module) -> list[_Module]:
    """Modules that do what the projector does."""
    parts = list(projector) if isinstance(projector, nn.Sequential) else [projector]
    parts = [part for part in parts if not isinstance(part, nn.Identity)]
    modules = []
    for part, following in zip_longest(parts, parts[1:]):
        is_cut = isinstance(following, nn.ReLU)
        if isinstance(part, nn.Linear):
            modules.append(_dense(part.weight, part.bias, is_cut))
        elif isinstance(part, nn.LayerNorm):
            width = part.weight.shape[0]
            tensors = {"norm.weight": part.weight.detach(), "norm.bias": part.bias.detach()}
            modules.append(_Module("LayerNorm", {"dimension": width}, tensors))
            if is_cut:  # there a ReLU stands behind a linear layer alone
                modules.append(_dense(torch.eye(width), torch.zeros(width), True))
    return modules


def _dense(weight: Tensor, bias: Tensor, is_cut: bool) -> _Module:
    """A linear layer, and a ReLU where it is cut at 0."""
    activation = "activation.ReLU" if is_cut else "linear.Identity"
    config = {
        "in_features": weight.shape[1],
        "out_features": weight.shape[0],
        "bias": True,
        "activation_function": f"torch.nn.modules.{activation}",
    }
    return _Module("Dense", config, {"linear.weight": weight.detach(), "linear.bias": bias.detach()})


def _write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
