"""The documents that a run's chains of queries carry: are they hard, and are they answers that nobody has judged?

One sample of 256 queries, the same for all runs on the same pairs, is encoded with what answers them and what their
chains hold by the newest checkpoint's encoder. The first 12 are shown, and all of them give the similarities. Beside
them stand uniform pairs: the same queries with 256 documents. Of images with captions the images are the queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from emc2dist.data.texts.pairs import Pairs
from emc2dist.data.texts.records import plain
from emc2dist.errors import RunError
from emc2dist.plotting import FONT, GREY, Picture, label, new_figure, render
from emc2dist.report.chains import draw_similarities
from emc2dist.report.runs import ReportedRun
from emc2dist.run.negatives import Held, Mined, mined
from emc2dist.run.texts import Encoding, training_set

_SAMPLED, _SHOWN, _COLUMNS = 256, 12, 4
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
    images: Sequence[Tensor] = ()
    """The queries to show where they are images, uint8 [3, H, W] each; else none."""

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
        encoding = Encoding.of(newest)
        found = list(mined(pairs, held.of_queries(queries), encoding))  # queries ascending
        shown = [found[place] for place in queries.argsort().argsort()]
        images = pairs.queries.get(queries[:_SHOWN]) if run.spec.of_images else ()
        return cls(shown, len(np.unique(held.query)) / len(order), _uniform(pairs, queries, encoding), images)

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
        """The similarities, in the run's colour, and the first images where queries are some; `name` begins the names
        of the files.
        """
        similarities = draw_similarities(self.carried, self.between, len(self.mined), f"{name}-similarity", colour)
        return [similarities, *([_draw_images(self, f"{name}-images")] if self.images else [])]

    def table(self) -> Sequence[Sequence[str]]:
        """Rows under `HEADING` of the first queries, with their best answer; texts are cut to 200 characters."""
        rows = []
        for one in self.mined[:_SHOWN]:
            answer, negative = max(one.positives, key=lambda passage: passage.score), one.negatives[0]
            numbers = f"{answer.score:.2f}", f"{negative.score:.2f}"
            texts = _cut(one.text), _cut(answer.text), _cut(negative.text)
            rows.append((texts[0], texts[1], numbers[0], texts[2], numbers[1], str(negative.age)))
        return rows


def _uniform(pairs: Pairs, queries: NDArray[np.int64], encoding: Encoding) -> NDArray[np.floating]:
    """`TextChains.between`."""
    documents = np.random.default_rng(1).permutation(len(pairs.documents))[:_SAMPLED]
    features = encoding.of_rows(pairs.queries, queries)
    others = encoding.features(pairs.documents.get(documents), "document")
    pair = queries[:, None] * len(pairs.documents) + documents
    return (features @ others.T)[~np.isin(pair, pairs.relevance @ [len(pairs.documents), 1])]


def _draw_images(chains: TextChains, name: str) -> Picture:
    """The first images, each above its best caption and the one that its chain holds."""
    figure = new_figure(1.7 * _COLUMNS, 2.0 * -(-len(chains.images) // _COLUMNS))
    grid = figure.subplots(-(-len(chains.images) // _COLUMNS), _COLUMNS, squeeze=False).flatten()
    told = []
    for axes in grid:
        axes.axis("off")
    for axes, image, one in zip(grid, chains.images, chains.mined, strict=False):
        answer, negative = max(one.positives, key=lambda passage: passage.score), one.negatives[0]
        axes.imshow(
            image.permute(1, 2, 0).numpy(), interpolation="nearest" if max(image.shape) < 200 else "antialiased"
        )
        axes.set_title(f"{label(_cut(answer.text), 22)} {answer.score:.2f}", fontsize=FONT - 2, pad=3)
        held = f"{label(_cut(negative.text), 22)} {negative.score:.2f}"
        axes.text(0.5, -0.04, held, fontsize=FONT - 2, color=GREY, ha="center", va="top", transform=axes.transAxes)
        told.append(f"{_cut(answer.text)} {answer.score:.2f}, carried {_cut(negative.text)} {negative.score:.2f}")
    caption = "Above an image its best caption, below in grey the one that its chain holds, each with their cosine."
    alt = f"Images with their captions and carried negatives. {'; '.join(told)}."
    return Picture(name, "Images and captions", caption, alt, render(figure))


def _cut(text: str) -> str:
    """The beginning of a text, on one line, whose signs can all be seen."""
    line = plain(" ".join(text[: 4 * _CHARACTERS].split()))
    return line if len(line) <= _CHARACTERS else f"{line[: _CHARACTERS - 1]}…"
