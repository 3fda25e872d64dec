"""The documents that a run's chains of queries carry: are they hard, and are they answers that nobody has judged?

One sample of 256 queries, the same for all runs on the same pairs, is encoded with what answers them and what their
chains hold by the newest checkpoint's encoder. The first 12 are shown, and all of them give the similarities. Beside
them stand uniform pairs: the same queries with 256 documents.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emc2dist.data.texts.pairs import Pairs
from emc2dist.data.texts.records import plain
from emc2dist.errors import RunError
from emc2dist.plotting import Picture
from emc2dist.report.chains import draw_similarities
from emc2dist.report.runs import ReportedRun
from emc2dist.run.negatives import Held, Mined, mined
from emc2dist.run.texts import TextEncoding, training_set

_SAMPLED, _SHOWN = 256, 12
_CHARACTERS = 200  # of a text on the page
HEADING = ("query", "answer", "cosine", "carried negative", "cosine", "age, steps")


@dataclass(frozen=True)
class TextChains:
    """The chains of queries in a checkpoint: a sample of them, with what answers and what they hold."""

    mined: Sequence[Mined]
    """Of each of at most 256 queries; the first 12 are those to show."""
    held: float
    """Share of all queries whose chain holds a document."""
    between: NDArray[np.floating]
    """Cosines of the same queries with documents drawn at random that do not answer them."""

    @classmethod
    def of(cls, run: ReportedRun) -> "TextChains":
        """The chains of the run's newest checkpoint.

        Raises:
            RunError: there is no checkpoint, or it has no chains of queries, or none was visited.
            NonFiniteError: its encoder has diverged. DataError, StorageError: the texts are gone or have changed.
        """
        newest = run.newest
        pairs = training_set(newest, run.spec.data.path, run.spec.s3.overridden(run.s3))
        held = Held.of(newest, pairs)
        order = np.random.default_rng(0).permutation(len(pairs.queries))
        queries = order[np.isin(order, held.query)][:_SAMPLED]
        if not len(queries):
            raise RunError("no chain of a query has been visited yet")
        encoding = TextEncoding.of(newest)
        found = list(mined(pairs, held.of_queries(queries), encoding))  # queries ascending
        shown = [found[place] for place in queries.argsort().argsort()]
        return cls(shown, len(np.unique(held.query)) / len(order), _uniform(pairs, queries, encoding))

    @property
    def carried(self) -> NDArray[np.floating]:
        """Cosines of the sampled queries with what their chains hold."""
        return np.array([negative.score for one in self.mined for negative in one.negatives])

    @property
    def hardness(self) -> float:
        """Mean of `carried`."""
        return float(self.carried.mean())

    @property
    def hardness_of_chance(self) -> float:
        """Mean of `between`."""
        return float(self.between.mean())

    @property
    def above(self) -> float:
        """Share of `carried` that are above the query's best answer."""
        best = [max(answer.score for answer in one.positives) for one in self.mined for _ in one.negatives]
        return float((self.carried > best).mean())

    def numbers(self) -> dict[str, float | None]:
        """A run's chains in the table on top of the page."""
        return {
            "carried negatives above the answer, share": self.above,
            "cosine of anchors and carried negatives, mean": self.hardness,
            "the same of uniform pairs": self.hardness_of_chance,
        }

    def told(self, step: int) -> str:
        """The numbers of a checkpoint after `step` steps, in words."""
        answers = np.mean([max(answer.score for answer in one.positives) for one in self.mined])
        return (
            f"At step {step:,}, the chains of {self.held:.1%} of the queries hold a document. The cosine of a query "
            f"and its carried negative is {self.hardness:.2f} on average, with its best answer {answers:.2f}, of "
            f"uniform pairs {self.hardness_of_chance:.2f}. {self.above:.1%} of the carried negatives are nearer than "
            "the answer: where the encoder is good, look among them for answers that nobody has judged."
        )

    def draw(self, name: str, colour: str) -> list[Picture]:
        """The similarities, in the run's colour; `name` begins the file's name."""
        return [draw_similarities(self.carried, self.between, len(self.mined), f"{name}-similarity", colour)]

    def table(self) -> Sequence[Sequence[str]]:
        """Rows under `HEADING` of the first queries, with their best answer; texts are cut to 200 characters."""
        rows = []
        for one in self.mined[:_SHOWN]:
            answer, negative = max(one.positives, key=lambda passage: passage.score), one.negatives[0]
            numbers = f"{answer.score:.2f}", f"{negative.score:.2f}"
            texts = _cut(one.text), _cut(answer.text), _cut(negative.text)
            rows.append((texts[0], texts[1], numbers[0], texts[2], numbers[1], str(negative.age)))
        return rows


def _uniform(pairs: Pairs, queries: NDArray[np.int64], encoding: TextEncoding) -> NDArray[np.floating]:
    """`TextChains.between`."""
    documents = np.random.default_rng(1).permutation(len(pairs.documents))[:_SAMPLED]
    features = encoding.features(pairs.queries.get(queries), "query")
    others = encoding.features(pairs.documents.get(documents), "document")
    pair = queries[:, None] * len(pairs.documents) + documents
    return (features @ others.T)[~np.isin(pair, pairs.relevance @ [len(pairs.documents), 1])]


def _cut(text: str) -> str:
    """The beginning of a text, on one line, whose signs can all be seen."""
    line = plain(" ".join(text[: 4 * _CHARACTERS].split()))
    return line if len(line) <= _CHARACTERS else f"{line[: _CHARACTERS - 1]}…"
