"""Tokens of texts: a byte-level BPE trained on a set (Sennrich et al. 2016), and views by any tokenizer.

A text is brought to NFKC, parted where camelCase begins a word, and lower-cased; then runs of letters (32 at most),
digits (3) and other signs (8) are words by themselves, and blanks are dropped: `maxPool2d` and `max_pool` share words
with `max pool`. Every byte is a token, so no text is without tokens or holds an unknown one; `[MASK]` is no text's.
"""

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from emc2dist.data.texts.manifest import TOKENIZER
from emc2dist.errors import DataError, SpecError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

MASK = "[MASK]"
"""A token for what masks parts of a text."""
LEAST_VOCABULARY, MOST_VOCABULARY = 512, 2**20
"""Bounds of the size of a vocabulary: a token for each byte, and some words; and a table that can be trained."""
_CAMEL = r"(?<=[\p{Ll}\p{N}])(?=\p{Lu})|(?<=\p{Lu})(?=\p{Lu}\p{Ll}{2})"  # IDs is one word, HTTPServer two
_WORD = r"[\p{L}\p{M}]{1,32}|\p{N}{1,3}|[^\s\p{L}\p{M}\p{N}]{1,8}"
_CHARACTERS = 64  # of a text, for each token of a view: what follows is not looked at


def check_vocabulary(vocabulary: int) -> None:
    """Raise SpecError where no tokenizer of so many tokens can be trained, or the package `tokenizers` is missing."""
    if not LEAST_VOCABULARY <= vocabulary <= MOST_VOCABULARY:
        raise SpecError(f"--vocabulary {vocabulary}: give {LEAST_VOCABULARY} to {MOST_VOCABULARY}")
    _library()


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> str:
    """The JSON of a tokenizer of at most `vocabulary` tokens; the same for the same texts, whatever their order.

    Raises as `check_vocabulary` does.
    """
    check_vocabulary(vocabulary)
    library = _library()
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = library.Tokenizer(models.BPE())
    parted = normalizers.Replace(library.Regex(_CAMEL), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), parted, normalizers.Lowercase()])
    words = pre_tokenizers.Split(library.Regex(_WORD), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[MASK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str()


def vocabulary_size(tokenizer_json: str, where: str = TOKENIZER) -> int:
    """One more than the highest number of a tokenizer's tokens, those that were added to it too; 0 without any.

    Raises DataError, which begins with `where` it stands, if it is none.
    """
    return max(_tokenizer(tokenizer_json, where).get_vocab().values(), default=-1) + 1


class TokenView:
    """Texts as tokens of fixed length L: 0 is padding, t > 0 the tokenizer's token t - 1. Deterministic, picklable.

    What a tokenizer adds to every text (as `[CLS]`) it adds here, within L; what is longer is truncated. A text that
    spells a special token is text. Of prompt and text together no more than 64 L characters are looked at.
    """

    def __init__(self, tokenizer_json: str, length: int, prompt: str = "") -> None:
        self._json, self._length, self._prompt = tokenizer_json, length, prompt
        self._tokenizer = _tokenizer(tokenizer_json)
        added = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        if length <= added:
            raise SpecError(f"text: a length of {length} has no room for text: its tokenizer adds {added} tokens")
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(length)
        self._tokenizer.encode_special_tokens = True

    def __reduce__(self) -> tuple[type["TokenView"], tuple[Any, ...]]:
        return TokenView, (self._json, self._length, self._prompt)

    def __call__(self, texts: Sequence[str], seeds: NDArray[np.int64]) -> "Tensor":
        """Views int32 [V, n, L] of n texts, V as many as `seeds` [V, n] has rows: all equal, for none is random."""
        return self.tokens(texts).expand(len(seeds), -1, -1).contiguous()

    def tokens(self, texts: Sequence[str]) -> "Tensor":
        """The one view of each of n texts, int32 [n, L]."""
        import torch  # late: an ingest, which trains a tokenizer, does without

        most = _CHARACTERS * self._length
        tokens = np.zeros((len(texts), self._length), np.int32)
        for row, encoding in enumerate(self._tokenizer.encode_batch_fast([(self._prompt + t)[:most] for t in texts])):
            tokens[row, : len(encoding.ids)] = np.array(encoding.ids, np.int32) + 1
        return torch.from_numpy(tokens)


def token_of(tokenizer_json: str, name: str) -> int | None:
    """The number of a token that is called so; None where there is none."""
    number: int | None = _tokenizer(tokenizer_json).token_to_id(name)
    return number


def _library() -> Any:
    """The package `tokenizers`, in this process on one thread: processes are as many as cores already."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import tokenizers
    except ImportError as error:
        raise SpecError(f"texts: need the package tokenizers ({error}); pip install 'emc2dist[text]'") from error
    return tokenizers


def _tokenizer(tokenizer_json: str, where: str = TOKENIZER) -> "Tokenizer":
    library = _library()
    try:
        return library.Tokenizer.from_str(tokenizer_json)
    except Exception as error:  # the library raises no narrower one
        raise DataError(f"{where}: is no tokenizer ({error}); give one that the package tokenizers reads") from error
