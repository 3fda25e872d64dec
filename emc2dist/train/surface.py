"""What texts look like, as columns: their lengths, and hashes by which the words that two share are estimated.

    J(a, c) = |words of both| / |words of either|  =  P(min over a's words of h = min over c's words of h)

for a random hash h (minwise hashing, Broder 1997). Of each of 32 minima the lowest byte is kept (Li & König, WWW 2010).
"""

from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from emc2dist.core.objectives.debcse import LENGTH, WORDS
from emc2dist.data.texts.pairs import Texts
from emc2dist.evaluate.bm25 import words

_AT_ONCE = 4_096  # texts in memory
_HASHES = 8 * len(WORDS)


def surface_of(sides: list[Texts]) -> dict[str, NDArray[np.int64]]:
    """The columns of `emc2dist.core.objectives.debcse` of the texts of all sides, one after the other."""
    factors = np.random.default_rng(0).integers(0, 2**64, _HASHES, np.uint64) | np.uint64(1)
    lengths, minima = list[int](), list[NDArray[np.uint8]]()
    for texts in sides:
        for rows in np.split(np.arange(len(texts)), range(_AT_ONCE, len(texts), _AT_ONCE)):
            for text in texts.get(rows):
                found = words(text)
                lengths.append(len(found) or -1)
                minima.append(_minima(found, factors))
    bytes_of = np.stack(minima).reshape(-1, len(WORDS), 8).view(np.int64)[..., 0]
    columns = {name: np.ascontiguousarray(bytes_of[:, number]) for number, name in enumerate(WORDS)}
    return {LENGTH: np.array(lengths, np.int64), **columns}


def _minima(found: list[str], factors: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """A byte of the least hash of these words, for each of the hashes; 0 without words."""
    if not found:
        return np.zeros(_HASHES, np.uint8)
    of_words = np.array([crc32(word.encode()) for word in set(found)], np.uint64)
    mixed = (of_words[:, None] + np.uint64(1)) * factors  # modulo 2^64
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return ((mixed ^ (mixed >> np.uint64(32))).min(0) & np.uint64(255)).astype(np.uint8)
