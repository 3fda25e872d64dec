"""How well a run's newest encoder orders pairs of sentences as people did: semantic textual similarity.

A source is a table (Parquet, JSONL, CSV, TSV) with columns `sentence1`, `sentence2` and `score`, which orders the pairs
of a `task`; without that column all are one task, `all`. Pairs go through by the thousand, and what is kept of one is
two cosines, a score and its task.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from math import isfinite, sqrt
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from emc2dist import files
from emc2dist.config import S3
from emc2dist.data.texts.records import Record, fields_of, is_table, plain, records_of
from emc2dist.errors import DataError, RunError
from emc2dist.evaluate.bm25 import words
from emc2dist.evaluate.similarity import cosines, spearman
from emc2dist.run.folder import RunFolder
from emc2dist.run.loaded import LoadedCheckpoint
from emc2dist.run.texts import Encoding
from emc2dist.terminal import say

_COLUMNS = ("sentence1", "sentence2", "score")
_AT_ONCE = 1_024  # pairs in memory
MOST_PAIRS = 10_000_000
"""That are measured; of more there is no rank correlation here."""


def evaluate_similarity(
    run: str | Path, source: str | Path, *, side: str = "query", split: str | None = None, s3: S3 | None = None
) -> dict[str, Any]:
    """Spearman's correlation of cosines with the scores of each task, and the mean over tasks, by feature and by words.

    Each under `spearman_TASK` and `spearman_mean`; nan of a task with one score alone. `words` are cosines of counts of
    words, which need no encoder.

    Args:
        run: the folder of a run over texts.
        source: a file on this machine.
        side: whose prompt and length the sentences are given: `query` or `document`.
        split: of a table with such a column the one that is measured; None: `test`.
        s3: goes before what the run's spec says.

    Raises:
        DataError: a column is missing, a sentence is no text or a score no number; or no pair is of the split, or there
            are more than `MOST_PAIRS`. RunError: the run is over images, or has no checkpoint. NonFiniteError: it has
            diverged. StorageError: the source cannot be read.
    """
    folder = RunFolder.open(run, s3)
    if not folder.spec().of_texts:
        raise RunError(f"{run}: is over images, and encodes no sentences; give a run with data.kind: pairs or texts")
    pairs = _pairs_of(files.local(source), split)
    newest = LoadedCheckpoint.newest(folder)
    encoding, found, tasks = Encoding.of(newest), list[Any](), list[str]()
    while some := list(islice(pairs, _AT_ONCE)):
        one, other, scores, of_task = zip(*some, strict=True)
        features = (torch.from_numpy(encoding.features(texts, side)) for texts in (one, other))
        found.append([cosines(*features), list(map(_word_cosine, one, other)), scores])
        tasks += of_task
        if len(tasks) > MOST_PAIRS:
            raise DataError(f"{source}: has more than {MOST_PAIRS:,} pairs; give a part of them")
    if not tasks:
        raise DataError(f"{source}: has no pair{'' if split is None else f' of split {split}'}; name another split")
    say(f"{len(tasks):,} pairs of {len(set(tasks)):,} tasks")
    by_feature, by_words, gold = np.concatenate([np.array(part, np.float64) for part in found], axis=1)
    return {
        "checkpoint": str(newest.place),
        "data": str(source),
        "pairs": len(tasks),
        "feature": _told(spearman(by_feature, gold, tasks)),
        "words": _told(spearman(by_words, gold, tasks)),
        "remarks": newest.remarks,
    }


def _told(of_tasks: dict[str, float]) -> dict[str, float]:
    told = {f"spearman_{task}": value for task, value in of_tasks.items()}
    return told | {"spearman_mean": float(np.mean(list(of_tasks.values())))}


def _pairs_of(file: Path, split: str | None) -> Iterator[tuple[str, str, float, str]]:
    """Two sentences, their score and their task, of each row of a split. Raises as `evaluate_similarity` does."""
    if not is_table(file.name):
        raise DataError(f"{file}: is no table; give Parquet, JSONL, CSV or TSV with {', '.join(_COLUMNS)}")
    names = list(fields_of(file))
    for name in (*_COLUMNS, *(() if split is None else ("split",))):
        if name not in names:
            raise DataError(f"{file}: has no column {name!r}, but {plain(', '.join(names))}; call one so")
    asked = (split or "test") if "split" in names else None
    for record in records_of(file, _refuse):
        if asked is None or record.values.get("split") == asked:
            yield _pair_of(record)


def _pair_of(record: Record) -> tuple[str, str, float, str]:
    one, other, score = (record.values.get(name) for name in _COLUMNS)
    for text in (one, other):
        if not isinstance(text, str) or not text.strip():
            _refuse(record.where, "a sentence is no text")
    try:
        value = float(score)  # type: ignore[arg-type]  # None and lists raise
    except (TypeError, ValueError):
        value = float("nan")
    if not isfinite(value):
        _refuse(record.where, f"score {score!r} is no number")
    return str(one), str(other), value, str(record.values.get("task") or "all")


def _word_cosine(one: str, other: str) -> float:
    """Cosine of the counts of words of two texts, in [0, 1]; 0 where one has none."""
    counts = Counter(words(one)), Counter(words(other))
    product = sum(count * counts[1][word] for word, count in counts[0].items())
    length = sqrt(_square(counts[0].values()) * _square(counts[1].values()))
    return product / length if length else 0.0


def _square(numbers: Iterable[int]) -> int:
    return sum(number * number for number in numbers)


def _refuse(place: str, what: str) -> NoReturn:
    raise DataError(f"{place}: {plain(what)}; correct it, or leave it out of the file")
