"""Random views of a text, made from its tokens: for texts that have no other positive than themselves.

    tokens of a text [T], a stream  ->  a contiguous span  ->  tokens deleted  ->  tokens masked  ->  int32 [L]

Independent crops with deletion are Contriever's views (Izacard et al. 2022, section 3.2), deletion alone is one of
ConSERT's (Yan et al. 2021); the whole text twice, which SimCSE tells apart by dropout, is `crop=(1, 1)`.

A view is a function of its stream and its text alone, whatever batch it stands in. Nothing that is left out takes
another's random numbers: without deletion the same stream gives the same crop.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emc2dist.core.streams import uniforms

_CROP, _DELETE, _MASK = range(3)  # lanes of a view's stream


class TextViews:
    """Views of texts: a picklable callable without state. Tokens are numbered from 1, for 0 is padding.

    Args:
        length: L, columns of a view. A span that is longer is drawn with as many tokens as there is room for.
        crop: least and greatest share of the text that a span takes, uniform between them, in (0, 1]. It is rounded to
            whole tokens, one at least.
        delete: probability with which a token of the span is left out, in [0, 1). The last one left always stays.
        mask: probability with which a token that stays becomes `mask_id`, in [0, 1].
        mask_id: the token of the mask.
        begin, end: tokens before and after each view's own, as [CLS] and [SEP]; 0: none.

    Raises:
        ValueError: a value is out of its range, or there is no room for a token.
    """

    def __init__(
        self,
        length: int,
        *,
        crop: tuple[float, float] = (1.0, 1.0),
        delete: float = 0.0,
        mask: float = 0.0,
        mask_id: int = 0,
        begin: int = 0,
        end: int = 0,
    ) -> None:
        if not 0 < crop[0] <= crop[1] <= 1:
            raise ValueError(f"crop: got {crop}; give a least and a greatest share, in (0, 1]")
        if not 0 <= delete < 1:
            raise ValueError(f"delete: got {delete}; give a probability below 1")
        if not 0 <= mask <= 1 or (mask > 0 and mask_id < 1):
            raise ValueError(f"mask: got {mask} with mask_id {mask_id}; give a probability and a token above 0")
        self._crop, self._delete, self._mask, self._mask_id = crop, delete, mask, mask_id
        self._length, self._begin, self._end = length, begin, end
        self._room = length - (begin > 0) - (end > 0)
        if self._room < 1:
            raise ValueError(f"length: got {length}; give room for a token of the text, and for `begin` and `end`")

    def __call__(self, tokens: Sequence[NDArray[np.int32]], streams: NDArray[np.int64]) -> Tensor:
        """Views int32 [V, n, L] of n texts by their streams [V, n]; texts are int32 [T] each, without padding."""
        of_streams = torch.from_numpy(streams)
        spans, inside = self._spans(tokens, of_streams)
        chance = self._uniforms(of_streams, _DELETE)
        best = np.where(inside, chance, 0).max(-1, keepdims=True)
        kept = inside & (chance >= np.minimum(self._delete, best))
        spans = np.where(self._uniforms(of_streams, _MASK) < self._mask, np.int32(self._mask_id), spans)
        order = np.argsort(~kept, axis=-1, kind="stable")
        views = np.zeros((*streams.shape, self._length), np.int32)
        first = int(self._begin > 0)
        views[..., first : first + self._room] = np.take_along_axis(np.where(kept, spans, 0), order, -1)
        if self._begin:
            views[..., 0] = self._begin
        if self._end:
            np.put_along_axis(views, first + kept.sum(-1, keepdims=True), self._end, -1)
        return torch.from_numpy(views)

    def _spans(
        self, tokens: Sequence[NDArray[np.int32]], streams: Tensor
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """The span of each view [V, n, room], and which of its places have a token."""
        lengths = np.array([len(text) for text in tokens], np.int64)
        begins = lengths.cumsum() - lengths
        share, place = uniforms(streams, 2, lane=_CROP).unbind(-1)
        low, high = self._crop
        sizes = np.rint(lengths * (low + (high - low) * share.numpy())).astype(np.int64)
        sizes = np.minimum(sizes.clip(1, self._room), lengths)
        first = begins + (place.numpy() * (lengths - sizes + 1)).astype(np.int64)
        columns = np.arange(self._room)
        inside = columns < sizes[..., None]
        joined = np.concatenate([*tokens, np.zeros(1, np.int32)])
        return joined[np.where(inside, first[..., None] + columns, -1)], inside

    def _uniforms(self, streams: Tensor, lane: int) -> NDArray[np.float64]:
        return uniforms(streams, self._room, lane=lane).numpy()
