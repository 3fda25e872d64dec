"""The text backbones: tokens in, one representation of each text out.

    tokens int32 [n, L], 0 is padding, t > 0 the tokenizer's token t - 1  ->  representation float [n, R]

    Bag         mean of the tokens' embeddings: knows no order; seconds on a CPU
    Mini        a small transformer that starts from nothing
    Pretrained  a model that transformers reads from a folder, or builds of its config.json for weights to come

Each has `width`, which is R. Padding follows the text, and never counts: neither how much of it there is nor which
other texts stand in the batch changes a representation, but for rounding. On a CPU the columns that are padding in all
texts are cut off first; a GPU takes them along, for the host would have to wait until it knew which they are (for
`Pretrained` it does once a batch all the same: transformers asks whether there is any padding). There is no dropout
anywhere, so that a text has one representation, in training too.

`pooling` is how the vectors of a text's tokens become one: `mean`, `cls` (the first token's) or `last` (the last's).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from emc2dist.errors import SpecError

Pooling = Literal["mean", "cls", "last"]

LARGEST_TOKENIZER = 2**27
"""Bytes of a tokenizer.json; those of a quarter of a million tokens take some 17 million."""
_CONFIG, _TOKENIZER = "config.json", "tokenizer.json"
_OF_TOKENIZERS = (
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt",
    "sentencepiece.bpe.model", "spiece.model",
)  # fmt: skip
"""Further files of a model's folder that transformers may make its tokenizer of."""
_ASKED: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
_DEVIATION = 0.02  # of embeddings at first, as BERT's: from torch's 1 a bag learns many times slower
_SHOWN_CHARACTERS = 200  # of another library's message


class Bag(nn.Module):
    """Mean of the embeddings of a text's tokens, of which there are `vocabulary`; 0 of a text without any."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.embeddings = nn.EmbeddingBag(vocabulary + 1, width, mode="mean", padding_idx=0)
        nn.init.normal_(self.embeddings.weight, std=_DEVIATION)

    @override
    def forward(self, tokens: Tensor) -> Tensor:
        """Representations [n, width] of tokens int32 [n, L]."""
        return self.embeddings(tokens)


class Mini(nn.Module):
    """A pre-norm transformer of `layers` blocks with learnt positions (Vaswani et al. 2017; Xiong et al. 2020).

    A text without tokens is read as one token, the padding.

    Args:
        vocabulary: number of the tokenizer's tokens.
        width: R; a multiple of `heads`.
        layers: number of blocks, each attention and an MLP of 4 * `width` units.
        heads: attention heads of a block.
        length: most columns of tokens.
        pooling: how the vectors of a text's tokens become one.
    """

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, length: int, pooling: Pooling) -> None:
        super().__init__()
        self.width, self._pooling = width, pooling
        self.embeddings = nn.Embedding(vocabulary + 1, width)
        self.positions = nn.Parameter(torch.empty(length, width))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for table in (self.embeddings.weight, self.positions):
            nn.init.normal_(table, std=_DEVIATION)

    @override
    def forward(self, tokens: Tensor) -> Tensor:
        """Representations [n, width] of tokens int32 [n, L]. Raises ValueError where L is above `length`."""
        if tokens.shape[1] > len(self.positions):
            raise ValueError(f"texts of {tokens.shape[1]} tokens; there are positions for {len(self.positions)}")
        tokens = _without_padding(tokens)
        counts = _counts(tokens)
        hidden = self.embeddings(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            hidden = block(hidden, counts[:, None, None])
        return _pooled(self.norm(hidden), counts, self._pooling)


class _Block(nn.Module):
    """Attention and an MLP, each behind a norm and added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    @override
    def forward(self, hidden: Tensor, counts: Tensor) -> Tensor:
        """Of hidden [n, L, width] and which tokens count, bool [n, 1, 1, L]."""
        joint = self.query_key_value(self.attention_norm(hidden))
        query, key, value = joint.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=counts)
        hidden = hidden + self.output(attended.transpose(1, 2).flatten(2))
        return hidden + self.mlp(self.mlp_norm(hidden))


class Pretrained(nn.Module):
    """A model of transformers and the pooling of its last hidden states, by `pretrained` or `described`.

    Args:
        model: takes `input_ids` and `attention_mask` and gives `last_hidden_state`; without dropout. Its own pooler,
            which nothing reads and which would have no gradient, is taken off.
        pooling: how the vectors of a text's tokens become one.
    """

    def __init__(self, model: Any, pooling: Pooling) -> None:
        super().__init__()
        self.model, self._pooling = model, pooling
        self.remarks: list[str] = []
        """What a person should know of how it was read."""
        if getattr(model, "pooler", None) is not None:
            model.pooler = None
            self.remarks.append("encoder.backbone: the model's own pooler is taken off; text.pooling stands for it")
        pad = getattr(model.config, "pad_token_id", None)
        # A model without padding of its own reads any token there, for the mask hides it.
        self._pad = pad if pad is not None and pad >= 0 else 0
        with torch.no_grad():  # models differ in what their configs call it
            self.width: int = self(torch.ones(1, 1, dtype=torch.int32)).shape[1]

    @override
    def forward(self, tokens: Tensor) -> Tensor:
        """Representations [n, width] of tokens int32 [n, L]; a text without tokens is read as one, the padding."""
        tokens = _without_padding(tokens)
        counts = _counts(tokens)
        numbers = torch.where(tokens > 0, tokens - 1, self._pad).long()
        hidden = self.model(input_ids=numbers, attention_mask=counts.long()).last_hidden_state
        return _pooled(hidden, counts, self._pooling)


def pretrained(path: str | Path, pooling: Pooling, length: int) -> Pretrained:
    """The model in a folder, in float32, without dropout and without a pooler, for texts of `length` tokens.

    Nothing is fetched, no code of the folder is run and no pickle is opened.

    Raises:
        SpecError: transformers is not installed; the folder is no model of it, or lacks some of its weights, or has
            them as pickles alone; the model has a decoder, or takes fewer than `length` tokens.
    """
    folder = Path(path)
    _refuse_other_folders(folder)
    transformers = _transformers()
    with _reading(folder, transformers):
        config = transformers.AutoConfig.from_pretrained(folder, **_ASKED)
    if config.is_encoder_decoder:
        raise SpecError(f"encoder.backbone: {folder}: {config.model_type} has a decoder too; give an encoder")
    off = _without_dropout(config)
    with _reading(folder, transformers):
        model, info = transformers.AutoModel.from_pretrained(
            folder, config=config, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **_ASKED
        )
        made = Pretrained(model, pooling)
    if lacking := sorted(key for key in info["missing_keys"] if not key.startswith("pooler.")):
        raise SpecError(
            f"encoder.backbone: {folder}: lacks {len(lacking)} of its weights, such as {lacking[0]}; save the whole "
            "model again"
        )
    _refuse_short_models(folder, model, length)
    if off:
        made.remarks.append(f"encoder.backbone: dropout is off: {', '.join(off)} of config.json are taken for 0")
    if unused := sorted(info["unexpected_keys"]):
        made.remarks.append(f"encoder.backbone: {len(unused)} weights of {folder} are not used, such as {unused[0]}")
    return made


def described(config: str, pooling: Pooling) -> Pretrained:
    """The model that a config.json describes, as `pretrained` makes it, but for its weights, which are random.

    Raises:
        SpecError: transformers is not installed, or builds no model of that.
    """
    transformers = _transformers()
    with TemporaryDirectory(prefix="emc2-model-") as scratch:
        file = Path(scratch) / _CONFIG  # transformers reads no config from memory
        file.write_text(config, encoding="utf-8")
        with _reading(file, transformers):
            read = transformers.AutoConfig.from_pretrained(scratch, **_ASKED)
            _without_dropout(read)
            model = transformers.AutoModel.from_config(read, dtype=torch.float32, trust_remote_code=False)
            return Pretrained(model.eval(), pooling)


def pretrained_files(path: str | Path) -> dict[str, bytes]:
    """Files of a model's folder that say what it is and how it reads texts, by name; its weights apart.

    They are config.json, tokenizer.json and what else transformers may make its tokenizer of.

    Raises:
        SpecError: one of the first two is not there, or one cannot be read or has more than `LARGEST_TOKENIZER` bytes.
    """
    folder = Path(path)
    _refuse_other_folders(folder)
    further = [name for name in (_CONFIG, *_OF_TOKENIZERS) if (folder / name).is_file()]
    return {_TOKENIZER: pretrained_tokenizer(folder).encode()} | {name: _bounded(folder / name) for name in further}


def pretrained_tokenizer(path: str | Path) -> str:
    """The tokenizer.json of a model's folder, as text.

    Raises:
        SpecError: there is none, or it is no UTF-8 or has more than `LARGEST_TOKENIZER` bytes.
    """
    file = Path(path) / _TOKENIZER
    try:
        return _bounded(file).decode()
    except UnicodeDecodeError as error:
        raise SpecError(f"encoder.backbone: {file}: is no UTF-8 ({error}); save the tokenizer again") from None


def _bounded(file: Path) -> bytes:
    """A file of a model's folder. Raises SpecError where it cannot be read, or is too large."""
    try:
        with file.open("rb") as stream:
            data = stream.read(LARGEST_TOKENIZER + 1)
    except OSError as error:
        raise SpecError(
            f"encoder.backbone: {file}: cannot be read ({error.strerror}); save the fast tokenizer there, by "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        ) from error
    if len(data) > LARGEST_TOKENIZER:
        raise SpecError(f"encoder.backbone: {file}: more than {LARGEST_TOKENIZER:,} bytes; give that of a tokenizer")
    return data


def pretrained_vocabulary(path: str | Path) -> int:
    """The number of tokens that the model in a folder has embeddings of, by its config.json.

    Raises:
        SpecError: transformers is not installed; the folder is no model of it, or no model of text.
    """
    folder, transformers = Path(path), _transformers()
    with _reading(folder, transformers):
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return int(config.get_text_config().vocab_size)


def _counts(tokens: Tensor) -> Tensor:
    """Which tokens count, bool [n, L]: those that are no padding, and the first, that no text is without any."""
    counts = tokens > 0
    counts[:, 0] = True
    return counts


def _without_padding(tokens: Tensor) -> Tensor:
    """The columns [n, 1..L] in which a text has a token, on a CPU; elsewhere all."""
    if tokens.device.type != "cpu":
        return tokens
    return tokens[:, : max(1, int((tokens > 0).any(0).sum()))]


def _pooled(hidden: Tensor, counts: Tensor, pooling: Pooling) -> Tensor:
    """One vector [n, R] of the vectors [n, L, R] of a text's tokens, and of which of them count, bool [n, L]."""
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), counts.sum(1) - 1]
    return (hidden * counts[:, :, None]).sum(1) / counts.sum(1, keepdim=True)


def _transformers() -> Any:
    """The library; torchvision first, which it imports and which not every machine can import by itself."""
    try:
        import transformers
    except ModuleNotFoundError:
        raise SpecError(
            "encoder.backbone: transformers, which reads such a folder, is not installed; pip install 'emc2dist[text]'"
        ) from None
    from emc2dist.towers import _torchvision  # noqa: F401

    return transformers


@contextmanager
def _reading(folder: Path, transformers: Any) -> Iterator[None]:
    """Inside, transformers draws no bars and warns of nothing, and whatever it cannot read is a SpecError."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except Exception as error:  # each model, and each format beneath, has errors of its own
        reason = " ".join(str(error).split())[:_SHOWN_CHARACTERS]
        raise SpecError(
            f"encoder.backbone: {folder}: transformers cannot read it ({type(error).__name__}: {reason}); give a "
            "folder that AutoModel.save_pretrained wrote"
        ) from error
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _refuse_other_folders(folder: Path) -> None:
    """Raises SpecError where there is no model, or none that can be opened without running what is in it."""
    if not (folder / _CONFIG).is_file():
        raise SpecError(
            f"encoder.backbone: {folder}: has no config.json; give bag, mini or a folder that "
            "AutoModel.save_pretrained wrote"
        )
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(file.name for ending in ("*.bin", "*.pt", "*.pth") for file in folder.glob(ending))
    found = f"only pickled weights, which can run code ({pickles[0]})" if pickles else "no weights"
    raise SpecError(
        f"encoder.backbone: {folder}: has {found}; save the model as safetensors, by "
        "AutoModel.from_pretrained(FOLDER).save_pretrained(FOLDER)"
    )


def _refuse_short_models(folder: Path, model: Any, length: int) -> None:
    """Raises SpecError where the model has fewer than `length` positions."""
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is None:  # computed, not looked up
        return
    tables = [module for name, module in model.named_modules() if name.endswith("position_embeddings")]
    # RoBERTa's kind counts positions from the one after the number of its padding.
    longest -= max(
        (table.padding_idx + 1 for table in tables if getattr(table, "padding_idx", None) is not None), default=0
    )
    if longest < length:
        raise SpecError(
            f"encoder.backbone: {folder}: takes {longest} tokens, fewer than {length}; set text.query_length and "
            f"text.document_length to {longest} or less"
        )


def _without_dropout(config: Any) -> list[str]:
    """Sets every probability of dropout in a config to 0; the names of those that were not."""
    off = [
        name for name, value in config.to_dict().items() if "drop" in name and isinstance(value, float) and value > 0
    ]
    for name in off:
        setattr(config, name, 0.0)
    return off
