"""Mined negatives of a run over pairs, for those who train elsewhere: what the chains of its queries hold.

A chain holds a document that its query took for near when it was last visited; its *age* is the steps since. Scores are
cosines by the newest encoder, so a stale negative shows by its score. A document that is judged to answer its query is
never one. Each format is JSONL:

    st         anchor, positive, negative, score, age, margin     a line for each positive with each negative
    tevatron   query_id, query, positive_passages, negative_passages: docid, title, text, score, and age
    flag       query, pos, neg, pos_scores, neg_scores, neg_ages

`score` is of query and negative, in [-1, 1]; `margin` what the positive's is above it.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from emc2dist import files
from emc2dist.config import S3
from emc2dist.core.contrast import contrast_for
from emc2dist.data.texts.pairs import Pairs, Texts
from emc2dist.errors import RunError, SpecError
from emc2dist.run.folder import RunFolder, refuse_runs_own
from emc2dist.run.loaded import LoadedCheckpoint
from emc2dist.run.scratch import temporary
from emc2dist.run.texts import Encoding, training_set, where
from emc2dist.terminal import Progress, say

MOST_PER_QUERY = 100
_DIGITS = 6  # of a cosine; float32 has no more
_QUERIES = 4_096  # whose texts are held, and encoded, at once


@dataclass(frozen=True)
class Held:
    """Which documents the chains of queries hold: M of them, queries ascending, of each what was visited last first."""

    query: NDArray[np.int64]
    """[M]"""
    document: NDArray[np.int64]
    """[M], none twice for a query, and none that answers it."""
    age: NDArray[np.int64]
    """[M]: steps from the chain's last visit to the newest checkpoint."""
    judged: int
    """How many were left out because they answer their query."""

    @classmethod
    def of(cls, newest: LoadedCheckpoint, pairs: Pairs, folder: RunFolder | None = None, most: int = 1) -> "Held":
        """Those of a checkpoint, at most `most` for a query; from older ones in its run's `folder` too, if given.

        Raises:
            RunError: the run keeps no chains of queries.
        """
        what = next((what for what in contrast_for(newest.spec).denominators if what.anchors == "query"), None)
        table = {} if what is None else newest.table(what.name)
        if what is None or "state" not in table:
            raise RunError(f"{newest.spec.method} keeps no chains, so it has no carried negatives")
        tables = [table, *(newest.older(folder, what.name) if folder is not None else ())]
        queries, parts = len(pairs.queries), []
        for table in tables:
            query, chain = np.nonzero(table["visited"][:queries])
            age = newest.manifest.step - table["visited_at"][query, chain].astype(np.int64)
            parts.append((query, table["state"][query, chain] - queries, age))
        query, document, age = map(np.concatenate, zip(*parts, strict=True))
        pair = query * len(pairs.documents) + document
        once = np.sort(np.unique(pair, return_index=True)[1])
        answers = np.isin(pair[once], pairs.relevance @ [len(pairs.documents), 1])
        kept = once[~answers]
        kept = kept[query[kept].argsort(kind="stable")]
        kept = kept[np.arange(len(kept)) - np.searchsorted(query[kept], query[kept]) < most]
        return cls(query[kept], document[kept], age[kept], int(answers.sum()))

    def of_queries(self, queries: NDArray[np.int64]) -> "Held":
        """What the chains of some of the queries hold."""
        chosen = np.isin(self.query, queries)
        return Held(self.query[chosen], self.document[chosen], self.age[chosen], self.judged)


class Passage(NamedTuple):
    """A document beside a query."""

    id: str
    text: str
    score: float
    """Cosine of the two."""
    age: int | None
    """Steps since it was found; None of a positive."""

    def told(self) -> dict[str, Any]:
        """As Tevatron has it."""
        found = {"docid": self.id, "title": "", "text": self.text, "score": self.score}
        return found if self.age is None else found | {"age": self.age}


class Mined(NamedTuple):
    """A query with the documents that answer it, and at least one that its chains hold."""

    id: str
    text: str
    positives: list[Passage]
    negatives: list[Passage]


def mined(pairs: Pairs, held: Held, encoding: Encoding) -> Iterator[Mined]:
    """Each query of which something is held, in order, scored by the encoder. Memory is that of 4,096 queries."""
    queries = np.unique(held.query)
    for asked in np.split(queries, range(_QUERIES, len(queries), _QUERIES)):
        texts, ids = told_queries(pairs, asked)
        features = encoding.of_rows(pairs.queries, asked)
        answers = pairs.relevance[np.isin(pairs.relevance[:, 0], asked)]
        chosen = held.of_queries(asked)
        others = np.stack([chosen.query, chosen.document], axis=1)
        positives = _passages(answers, [None] * len(answers), asked, features, pairs, encoding)
        negatives = _passages(others, chosen.age.tolist(), asked, features, pairs, encoding)
        yield from map(Mined, ids, texts, positives, negatives)


def told_queries(pairs: Pairs, rows: NDArray[np.int64]) -> tuple[list[str], list[str]]:
    """The texts and the ids of queries by their rows; of an image both are its number."""
    if isinstance(pairs.queries, Texts):
        return pairs.queries.get(rows), pairs.queries.ids(rows)
    named = [f"image {row}" for row in rows]
    return named, named


def _passages(
    rows: NDArray[np.int64], ages: Sequence[int | None], asked: NDArray[np.int64], features: NDArray[np.float32],
    pairs: Pairs, encoding: Encoding,
) -> list[list[Passage]]:  # fmt: skip
    """Passages of each query of `asked` [Q], whose features are [Q, D]; of rows [M, 2] of a query and a document."""
    documents, place = np.unique(rows[:, 1], return_inverse=True)
    texts, ids = pairs.documents.get(documents), pairs.documents.ids(documents)
    query = asked.searchsorted(rows[:, 0])
    cosines = np.einsum("md,md->m", features[query], encoding.features(texts, "document")[place])
    found: list[list[Passage]] = [[] for _ in asked]
    for of, row, cosine, age in zip(query, place, cosines.tolist(), ages, strict=True):
        found[of].append(Passage(ids[row], texts[row], round(cosine, _DIGITS), age))
    return found


def _st(one: Mined) -> Iterator[dict[str, Any]]:
    for positive in one.positives:
        for negative in one.negatives:
            yield {
                "anchor": one.text,
                "positive": positive.text,
                "negative": negative.text,
                "score": negative.score,
                "age": negative.age,
                "margin": round(positive.score - negative.score, _DIGITS),
            }


def _tevatron(one: Mined) -> Iterator[dict[str, Any]]:
    yield {
        "query_id": one.id,
        "query": one.text,
        "positive_passages": [passage.told() for passage in one.positives],
        "negative_passages": [passage.told() for passage in one.negatives],
    }


def _flag(one: Mined) -> Iterator[dict[str, Any]]:
    yield {
        "query": one.text,
        "pos": [passage.text for passage in one.positives],
        "neg": [passage.text for passage in one.negatives],
        "pos_scores": [passage.score for passage in one.positives],
        "neg_scores": [passage.score for passage in one.negatives],
        "neg_ages": [passage.age for passage in one.negatives],
    }


FORMATS: dict[str, Callable[[Mined], Iterator[dict[str, Any]]]] = {"st": _st, "tevatron": _tevatron, "flag": _flag}
"""What makes records of a query: of sentence-transformers, Tevatron, FlagEmbedding."""


def negatives(
    run: str | Path,
    out: str | Path,
    overrides: Sequence[str] = (),
    *,
    form: str = "st",
    per_query: int = 1,
    s3: S3 | None = None,
) -> dict[str, Any]:
    """Write what the chains of a run hold as JSONL at `out`, on disk or S3, whole or not at all.

    Args:
        run: a run folder.
        out: the file.
        overrides: `data.path=PATH` where the set has moved; nothing else is read.
        form: a key of `FORMATS`.
        per_query: most negatives of a query, 1 to 100. A chain holds one at a time: those beyond are what the run's
            older checkpoints hold.
        s3: goes before what the run's spec says.

    Returns:
        Counts, and means over the negatives: `score`, `margin` to the best-scored positive, `age` in steps;
        `above_positive` is how many score above that, which may be answers that nobody has judged.

    Raises:
        SpecError: an override is not read here, `per_query` is out of range, or `out` is named as a file of another
        format. RunError: the run is over images, keeps no chains of queries, or has visited none; or there is no
        checkpoint. DataError: its set is gone.
        NonFiniteError: it has diverged. StorageError: `out` cannot be written.
    """
    if not 1 <= per_query <= MOST_PER_QUERY:
        raise SpecError(f"--per-query {per_query}: give 1 to {MOST_PER_QUERY}")
    if PurePath(str(out)).suffix not in ("", ".jsonl") or str(out) == "-":
        raise SpecError(f"{out}: JSONL is what is written, and to a file; call it *.jsonl")
    folder, place = RunFolder.open(run, s3), files.at(out, s3)
    files.refuse_folder(out)
    refuse_runs_own(out)
    place.entry() if place.remote else files.writable(out)  # before anything is read
    if folder.spec().data.kind != "pairs":
        kind = folder.spec().data.kind
        raise RunError(f"{run}: is over {kind}, and these are negatives of queries; give a run with data.kind: pairs")
    newest = LoadedCheckpoint.newest(folder)
    pairs = training_set(newest, where(newest.spec, overrides), newest.spec.s3.overridden(s3))
    held = Held.of(newest, pairs, folder if per_query > 1 else None, per_query)
    found = len(np.unique(held.query))
    if not found:
        raise RunError(f"{run}: no chain of a query has been visited; train it for longer")
    remarks = _remarks(held, len(pairs.queries), found, per_query)
    for remark in remarks:
        say(remark)
    score = margin = 0.0
    above = 0
    with temporary("emc2-negatives-") as scratch, closing(Progress(found, unit="query")) as progress:
        with files.explained(scratch), (Path(scratch) / "negatives.jsonl").open("w", encoding="utf-8") as file:
            for one in mined(pairs, held, Encoding.of(newest)):
                file.writelines(f"{json.dumps(record)}\n" for record in FORMATS[form](one))
                best = max(positive.score for positive in one.positives)
                score += sum(negative.score for negative in one.negatives)
                margin += sum(best - negative.score for negative in one.negatives)
                above += sum(negative.score > best for negative in one.negatives)
                progress.add()
        place.put(Path(file.name))
    count = len(held.query)
    return {
        "checkpoint": str(newest.place),
        "out": str(place),
        "format": form,
        "queries": found,
        "negatives": count,
        "score": score / count,
        "margin": margin / count,
        "above_positive": above,
        "age": float(held.age.mean()),
        "remarks": [*newest.remarks, *remarks],
    }


def _remarks(held: Held, queries: int, found: int, per_query: int) -> list[str]:
    """What a person should know of what is held, with numbers."""
    remarks = []
    if found < queries:
        remarks.append(f"{queries - found:,} of {queries:,} queries have no line: their chains hold nothing yet")
    if held.judged:
        remarks.append(f"{held.judged:,} documents that chains hold are left out, for they answer their query")
    if len(held.query) < found * per_query:
        remarks.append(
            f"--per-query {per_query}: {len(held.query):,} negatives of {found:,} queries: a chain holds one document "
            "at a time, and older checkpoints, which tell of others, are few or hold the same"
        )
    return remarks
