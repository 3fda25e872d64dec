"""Random views of texts, which are each other's positives: spans of their tokens, of which some are left out or masked.

Two crops of one document are Contriever's positives (Izacard et al., TMLR 2022).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from emc2dist.config import Text
from emc2dist.data.texts.tokenizer import TokenView, token_of
from emc2dist.errors import SpecError
from emc2dist.towers.text_views import TextViews

_MASKS = ("[MASK]", "<mask>")


class RandomTokens:
    """Texts and seeds int64 [V, n] -> views int32 [V, n, L], each by its own seed; picklable.

    Spans are of the first `text.chunk` tokens of a text. What the tokenizer puts before and after every text stands
    before and after every view.

    Raises:
        SpecError: a length has no room for a token, or there is nothing to mask with.
    """

    def __init__(self, tokenizer: str, text: Text) -> None:
        self._whole = TokenView(tokenizer, text.chunk)
        added = self._whole.tokens([""])[0]
        around = added[added > 0].tolist()
        if len(around) > 2:
            raise SpecError(f"encoder.backbone: its tokenizer adds {len(around)} tokens to a text; views know of two")
        begin, end = [*around, 0, 0][:2]
        self._before, self._after = int(begin > 0), int(end > 0)
        mask = next((token for name in _MASKS if (token := token_of(tokenizer, name)) is not None), None)
        if text.mask > 0 and mask is None:
            raise SpecError(f"text.mask: {text.mask} needs a tokenizer with {' or '.join(_MASKS)}; leave it out")
        parts = {"mask_id": 0 if mask is None else mask + 1, "begin": begin, "end": end}
        self._views = TextViews(text.document_length, crop=text.crop, delete=text.delete, mask=text.mask, **parts)

    def __call__(self, texts: Sequence[str], seeds: NDArray[np.int64]) -> Tensor:
        """Views of n texts."""
        every = self._whole.tokens(texts).numpy()
        tokens = [row[row > 0] for row in every]
        return self._views([row[self._before : len(row) - self._after] for row in tokens], seeds)
