"""What a run over texts keeps of its model beside the weights, so that it is whole by itself.

RUN/model/tokenizer.json    makes the tokens: of the set, or of the folder of a transformers model
RUN/model/config.json       and what transformers may make a tokenizer of: of such a folder alone

Weights are in the checkpoints. Each checkpoint's manifest has the SHA-256 of these files, so that a run never goes on,
and is never used, with others.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from emc2dist import files
from emc2dist.config import Spec
from emc2dist.config.sections import TRANSFORMERS
from emc2dist.data.texts.manifest import TOKENIZER
from emc2dist.data.texts.pairs import load_tokenizer
from emc2dist.data.texts.tokenizer import vocabulary_size
from emc2dist.errors import RunError, SpecError
from emc2dist.files import Place

CONFIG = "config.json"


@dataclass(frozen=True)
class ModelFiles:
    """The files, and where they were found."""

    place: str
    content: Mapping[str, bytes]
    """By name; `tokenizer.json` is there."""

    @classmethod
    def of(cls, spec: Spec, kept: Place | None = None) -> "ModelFiles | None":
        """Those that a run of `spec` is to keep; None over images.

        Where the folder of its backbone is gone, those that the run keeps at `kept`, if it does.

        Raises:
            SpecError, RunError: the folder, or what is kept, lacks one, or the folder's tokenizer has tokens that its
                model has no embeddings of. DataError, StorageError: the set lacks one.
        """
        backbone = spec.text_backbone
        if backbone is None:
            return None
        if not backbone.startswith(TRANSFORMERS):
            return cls(spec.data.path, {TOKENIZER: load_tokenizer(spec.data, spec.s3).encode()})
        folder = files.local(backbone.removeprefix(TRANSFORMERS))
        if kept is not None and not folder.exists() and kept.entries():
            return cls.kept(kept)
        from emc2dist.towers.text import pretrained_files, pretrained_vocabulary

        found = cls(str(folder), pretrained_files(folder))
        where = f"encoder.backbone: {folder / TOKENIZER}"
        tokens, embeddings = vocabulary_size(found.tokenizer, where), pretrained_vocabulary(str(folder))
        if tokens > embeddings:
            raise SpecError(
                f"encoder.backbone: {folder}: its {TOKENIZER} has {tokens:,} tokens, and its model embeddings of "
                f"{embeddings:,}; give the tokenizer that the model was trained with"
            )
        return found

    @classmethod
    def kept(cls, place: Place) -> "ModelFiles":
        """Those of a run, RUN/model. Raises RunError where there are none."""
        content = {entry.name: (place / entry.name).read() for entry in place.entries()}
        if TOKENIZER not in content:
            raise RunError(f"{place / TOKENIZER}: is missing; put it back, or train the run anew under another name")
        return cls(str(place), content)

    def keep(self, place: Place) -> None:
        """Write them to `place`, in the stead of what is there."""
        for entry in place.entries():
            if entry.name not in self.content:
                (place / entry.name).remove()
        for name, content in self.content.items():
            (place / name).write(content)

    @property
    def tokenizer(self) -> str:
        """The JSON of what makes the tokens. Raises RunError where it is no text."""
        return self._text(TOKENIZER)

    @property
    def config(self) -> str | None:
        """The JSON that transformers builds the model of, None where the spec describes it. Raises as `tokenizer`."""
        return self._text(CONFIG) if CONFIG in self.content else None

    @property
    def sha256(self) -> dict[str, str]:
        """SHA-256 of each file, hexadecimal, by name."""
        return {name: hashlib.sha256(content).hexdigest() for name, content in sorted(self.content.items())}

    def refuse_unlike(self, sha256: Mapping[str, str], whose: object) -> None:
        """Raise RunError where these are not the files of `whose`, whose SHA-256 are given."""
        mine = self.sha256
        if other := sorted(name for name in {*mine, *sha256} if mine.get(name) != sha256.get(name)):
            raise RunError(
                f"{self.place}: {', '.join(other)}: not as in {whose}, where the run would read texts another way; put "
                "back what was there, or give the run a new name"
            )

    def _text(self, name: str) -> str:
        try:
            return self.content[name].decode()
        except UnicodeDecodeError as error:
            raise RunError(f"{self.place}: {name}: is no UTF-8 ({error}); put back what was there") from None
