"""BM25: what words alone find, which a learnt representation has to beat.

A document's score is a sum over the words w of a query (Robertson and Zaragoza 2009, "The Probabilistic Relevance
Framework: BM25 and Beyond", equation 3.15; the logarithm with 1 added, as Lucene has it, is never negative):

    ln(1 + (N - n + 1/2) / (n + 1/2)) * c (k1 + 1) / (c + k1 (1 - b + b l))

of N documents n have w; w stands c times in this one, which is l times as long as the mean one.
"""

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from emc2dist.evaluate.retrieval import MOST_SCORES, ranked

_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_WORD = re.compile(r"[a-z0-9]+")
_UNSPACED = (  # scripts without blanks between words, those that Lucene's CJKAnalyzer takes by bigrams, and like ones
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Burmese, Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"  # kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)


def words(text: str) -> list[str]:
    """Runs of letters, with their marks, and digits in lower case and NFKC; camelCase and snake_case are split. What is
    in no such run is left out. Of a run in a script without blanks between words each two characters that follow each
    other are a word, and a run of one is.
    """
    text = _HUMP.sub(" ", text)
    if text.isascii():
        return _WORD.findall(text.lower())
    found = []
    for unspaced, run in _words_of_any_script().findall(unicodedata.normalize("NFKC", text).lower()):
        found += [unspaced[n : n + 2] for n in range(max(1, len(unspaced) - 1))] if unspaced else [run]
    return found


@cache
def _words_of_any_script() -> re.Pattern[str]:
    """Runs in a script without blanks, or else others; `\\w` has no marks, which are of a word as letters are."""
    marks = "".join(one for one in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(one).startswith("M"))
    letter, unspaced, spaced = r"[^\W_]", f"(?=[{_UNSPACED}])", f"(?![{_UNSPACED}])"
    runs = (f"{which}{letter}(?:{which}(?:{letter}|[{marks}]))*" for which in (unspaced, spaced))
    return re.compile("|".join(f"({run})" for run in runs))


class Bm25:
    """An index of N documents by their words, which takes about 100 bytes for each word of each document.

    Args:
        documents: their texts, one at least.
        k1: from 0, only whether a document has a word counts, up to 3, nearly how often.
        b: from 0, lengths do not count, to 1.
    """

    def __init__(self, documents: Sequence[str], k1: float = 1.2, b: float = 0.75) -> None:
        numbers: dict[str, int] = {}
        rows, columns, counts = [], [], []
        for row, text in enumerate(documents):
            for word, count in Counter(words(text)).items():
                rows.append(row)
                columns.append(numbers.setdefault(word, len(numbers)))
                counts.append(count)
        document, word_of, c = (np.array(part, np.int64) for part in (rows, columns, counts))
        lengths, n = np.bincount(document, c, minlength=len(documents)), np.bincount(word_of)
        rarity = np.log1p((len(documents) - n + 0.5) / (n + 0.5))[word_of]
        weights = rarity * c * (k1 + 1) / (c + k1 * (1 - b + b * lengths[document] / lengths.mean()))
        order, ends = word_of.argsort(kind="stable"), n.cumsum()
        held = zip(np.split(document[order], ends)[:-1], np.split(weights[order], ends)[:-1], strict=True)
        self._documents = len(documents)
        self._postings = dict(zip(numbers, held, strict=True))  # documents that have a word, and what it weighs there

    def search(self, queries: Sequence[str], k: int) -> Tensor:
        """Rows of the `k` best documents of each query, the best first: int64 [Q, min(k, N)]; -1: no other has a word.

        A word that a query repeats counts once; where scores are equal the lower row comes first. Memory is that of the
        answer and of `MOST_SCORES`, or of one query's scores.
        """
        step = max(1, MOST_SCORES // self._documents)
        found = [torch.zeros(0, min(k, self._documents), dtype=torch.int64)]
        for first in range(0, len(queries), step):
            scores, rows = ranked(self._scores(queries[first : first + step]), k)
            found.append(rows.masked_fill(scores == 0, -1))
        return torch.cat(found)

    def _scores(self, queries: Sequence[str]) -> Tensor:
        """float64 [q, N]."""
        scores = np.zeros((len(queries), self._documents))
        for line, query in zip(scores, queries, strict=True):
            for word in sorted(self._postings.keys() & words(query)):  # in one order, for sums depend on it
                documents, weights = self._postings[word]
                line[documents] += weights
        return torch.from_numpy(scores)
