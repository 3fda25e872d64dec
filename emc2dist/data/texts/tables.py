"""The tables of a set of pairs or captions, and its tokenizer, made of what was gathered."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from emc2dist.data.texts.collection import Side
from emc2dist.data.texts.tokenizer import train_tokenizer, vocabulary_size
from emc2dist.terminal import say

VOCABULARY = 16_384
_MOST_TEXTS = 2**20  # that a tokenizer is trained on


def counts(splits: Iterable[str]) -> dict[str, int]:
    """How many are of each split, train first."""
    found = Counter(splits)
    return {split: found[split] for split in sorted(found, key=lambda split: (split != "train", split))}


def text_table(side: Side, order: NDArray[np.int64]) -> pa.Table:
    """A side's texts, in an order of its rows int64 [n]."""
    columns = {"id": side.ids, "text": side.texts, "split": side.splits}
    return pa.table({name: pa.array(values, pa.large_string()) for name, values in columns.items()}).take(order)


def relevance_table(scores: Mapping[tuple[int, int], int], orders: Sequence[NDArray[np.int64]]) -> pa.Table:
    """Judgements by the rows of the two tables, whose `orders` are given, in order of both."""
    rows = np.array(list(scores), np.int64).reshape(-1, 2)
    places = np.stack([np.argsort(order)[rows[:, column]] for column, order in enumerate(orders)], axis=1)
    sorted_ = np.lexsort(places.T[::-1])
    grades = np.fromiter(scores.values(), np.int16, len(scores))
    return pa.table({"query": places[sorted_, 0], "document": places[sorted_, 1], "score": grades[sorted_]})


def tokenizer_of(sides: Sequence[Side], vocabulary: int, remarks: list[str]) -> tuple[str, int]:
    """The JSON of a tokenizer that is trained on the texts of sides, and its tokens; adds to `remarks`."""
    say(f"training a tokenizer of at most {vocabulary:,} tokens")
    tokenizer = train_tokenizer(_sample(sides, remarks), vocabulary)
    tokens = vocabulary_size(tokenizer)
    if tokens < vocabulary:
        remarks.append(f"vocabulary: {tokens:,} tokens and not {vocabulary:,}, for the texts have no more words")
    return tokenizer, tokens


def _sample(sides: Sequence[Side], remarks: list[str]) -> Iterable[str]:
    """The texts that the tokenizer is trained on: those of training, or all where there are none; so many at most."""
    texts = [
        text for side in sides for text, split in zip(side.texts, side.splits, strict=True) if split in ("train", "")
    ]
    if not texts:
        texts = [text for side in sides for text in side.texts]
        remarks.append("the tokenizer is trained on the texts of all splits, for none is of training")
    if len(texts) <= _MOST_TEXTS:
        return texts
    remarks.append(f"the tokenizer is trained on {_MOST_TEXTS:,} of {len(texts):,} texts, drawn at random")
    return (texts[n] for n in np.random.default_rng(0).choice(len(texts), _MOST_TEXTS, replace=False))
