"""What a source tells, gathered: each text once, with its split, and which documents answer which query.

Equal queries of one split are one, and so are equal documents. A query that stands in two splits is one in each; a
document that does is of all splits where one of them is trained on, else of the first: what is held out stays so.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from emc2dist.data.splits import split_of, tells_split
from emc2dist.data.texts import records
from emc2dist.data.texts.manifest import MOST_BYTES
from emc2dist.errors import DataError

LONGEST_TEXT = 2**20
"""Bytes of a text, UTF-8."""
MOST_SPLITS = 64
_LONGEST_ID = 2**10  # bytes
_SCORES = np.iinfo(np.int16)
_UNREAD = "; or take all for answers: --columns unread=COLUMN"
_SHOWN = 5  # dropped rows that a remark names
_SHOWN_CHARACTERS = 80  # of a value


class Passage(NamedTuple):
    """A text as a source gives it."""

    text: Any
    """A string, if all is well."""
    id: Any = None
    """A string or a whole number; None where the source gives none."""


class Example(NamedTuple):
    """What a row tells of one query."""

    query: Passage
    positives: Sequence[Passage]
    negatives: Sequence[Passage]
    """Become documents that are judged not to answer the query."""
    score: Any = 1
    """Of the positives: a whole number, or text that is one; more than 0 where they answer the query."""
    split: str | None = None
    """None: that of the file."""


class Unusable(Exception):
    """What is wrong with a row."""


@dataclass
class Side:
    """Texts of one side, each once, in the order that they came in."""

    what: str
    """What one of them is, as in `query`."""
    ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    rows: dict[tuple[str, str], int] = field(default_factory=dict)
    """By the text and what it is told apart by besides: a query by its split, a document by nothing, ""."""
    of_id: dict[tuple[str, str], str] = field(default_factory=dict)
    """The text of each id, likewise."""
    bytes: int = 0
    """Of all texts, UTF-8."""
    unnamed: int = 0
    """Texts without an id that came in again."""
    aliases: set[tuple[str, str]] = field(default_factory=set)
    """Ids of texts that came in before by another one."""
    several: set[int] = field(default_factory=set)
    """Rows of texts that stand in several splits."""

    @property
    def repeated(self) -> int:
        """Texts that came in again, other than by their id."""
        return self.unnamed + len(self.aliases)

    @property
    def wordless(self) -> int:
        """Texts without a letter or digit of any script."""
        return sum(not any(map(str.isalnum, text)) for text in self.texts)

    def claim(self, among: str, passage: Passage) -> str:
        """The text of a passage, whose id is no other text's from now on. Raises Unusable."""
        text = _checked(passage.text, self.what)
        if passage.id is not None:
            name = _named(passage.id)
            if self.of_id.setdefault((among, name), text) != text:
                raise Unusable(f"the id {shown(name)} stands for another {self.what} already")
        return text

    def add(self, among: str, passage: Passage, split: str) -> int:
        """The row of a passage that was claimed, added where it is new."""
        name = f"{self.what[0]}{len(self.texts)}" if passage.id is None else _named(passage.id)
        row = self.rows.setdefault((among, passage.text), len(self.texts))
        if row == len(self.texts):
            self.ids.append(name)
            self.texts.append(passage.text)
            self.splits.append(split)
            self.bytes += len(passage.text.encode())
            return row
        if passage.id is None:
            self.unnamed += 1
        elif self.ids[row] != name:
            self.aliases.add((among, name))
        first = self.splits[row]
        if first not in ("", split):
            self.several.add(row)
            if not split or _trains(split) or _trains(first):
                self.splits[row] = ""
        return row


class Refusals:
    """Rows that cannot be used: each raises DataError, or with `skip` is dropped."""

    def __init__(self, *, skip: bool) -> None:
        self._skip = skip
        self.dropped = 0
        """Rows that were dropped."""
        self._examples: list[str] = []

    def refuse(self, where: str, what: str) -> None:
        """Raise DataError of a row that cannot be used, or count it as dropped."""
        if not self._skip:
            records.stop(where, what)
        self.dropped += 1
        if len(self._examples) < _SHOWN:
            self._examples.append(f"{where}: {what}")

    @property
    def told(self) -> str:
        """What a remark says of the rows after their number."""
        return f"rows were dropped ({'; '.join(self._examples)}{'; ...' * (self.dropped > _SHOWN)})"


class Collection(Refusals):
    """Queries, documents and judgements."""

    def __init__(self, *, skip: bool) -> None:
        super().__init__(skip=skip)
        self.queries, self.documents = Side("query"), Side("document")
        self.scores: dict[tuple[int, int], int] = {}
        """Of each judged pair of a query's row and a document's."""
        self.notes: list[str] = []
        """Remarks of whoever reads the source."""
        self._splits: set[str] = set()
        self._rejudged = self._contrary = 0

    def document(self, where: str, passage: Passage, split: str = "") -> None:
        """Add a document, of a split or of all."""
        try:
            self.documents.claim("", passage)
        except Unusable as error:
            self.refuse(where, str(error))
            return
        self._add_document(where, passage, split)

    def example(self, where: str, example: Example, split: str) -> None:
        """Add a query and its documents, of a split."""
        split = example.split or split
        try:
            query, score = self.queries.claim(split, example.query), _whole(where, example.score, _UNREAD)
            answers = {self.documents.claim("", passage) for passage in example.positives}
            others = {self.documents.claim("", passage) for passage in example.negatives}
            if not answers:
                raise Unusable("no document that answers the query")
            if score > 0 and query in answers:
                raise Unusable("the document is the query's own text")
        except Unusable as error:
            self.refuse(where, str(error))
            return
        row = self._add_query(where, example.query, split)
        for passage in example.positives:
            self._judge(row, self._add_document(where, passage, split), score)
        self._contrary += len(answers & others)
        for passage in example.negatives:
            named = self._add_document(where, passage, split)
            if passage.text not in answers:
                self._judge(row, named, 0)

    def judgement(self, where: str, query: Passage, document: str, score: Any, split: str) -> None:
        """Add how well a document, by its id, answers a query."""
        try:
            if ("", document) not in self.documents.of_id:
                raise Unusable(f"no document has the id {shown(document)}")
            text, grade = self.queries.claim(split, query), _whole(where, score)
            answer = self.documents.of_id["", document]
            if grade > 0 and answer == text:
                raise Unusable("the document is the query's own text")
        except Unusable as error:
            self.refuse(where, str(error))
            return
        self._judge(self._add_query(where, query, split), self.documents.rows["", answer], grade)

    @property
    def remarks(self) -> list[str]:
        """What a person should know of what was gathered, with numbers."""
        asked, offered = self.queries, self.documents
        several = len(asked.texts) - len(set(asked.texts))
        scores = Counter(self.scores.values())
        counted = ", ".join(f"{scores[score]:,} of {score}" for score in sorted(scores)[-_SHOWN:])
        graded = len(self.scores) if any(score > 1 for score in scores) else 0
        shared = sum(not offered.splits[row] for row in offered.several)
        told = {
            f"queries repeat another of their split, {len(asked.texts):,} differ": asked.repeated,
            f"documents repeat another, {len(offered.texts):,} differ": offered.repeated,
            "queries stand in another split, too, and are a query of each": several,
            "documents stand in several splits and are of all": shared,
            "documents stand in several splits, none of them train, and are of the first":
                len(offered.several) - shared,
            "judgements differ from an earlier one of the same two: the highest score counts": self._rejudged,
            f"judgements have scores, the highest {counted}; each above 0 is an answer": graded,
            "negatives are positives of the same query, and count as these": self._contrary,
            "queries hold no letter and no digit, so BM25 finds nothing for them": asked.wordless,
            "documents hold no letter and no digit, so BM25 finds none of them": offered.wordless,
            self.told: self.dropped,
        }  # fmt: skip
        told_of = [f"{number:,} {what}" for what, number in told.items() if number]
        return [records.plain(remark) for remark in self.notes + told_of]

    def _add_query(self, where: str, passage: Passage, split: str) -> int:
        self._splits.add(split)
        if len(self._splits) > MOST_SPLITS:
            few = ", ".join(sorted(self._splits)[:_SHOWN])
            raise DataError(f"{where}: more than {MOST_SPLITS} splits ({few}, ...); name the column of splits, or none")
        return self.queries.add(split, passage, split)

    def _add_document(self, where: str, passage: Passage, split: str) -> int:
        if self.queries.bytes + self.documents.bytes > MOST_BYTES:
            raise DataError(f"{where}: more than {MOST_BYTES:,} bytes of text up to here; make a smaller set")
        return self.documents.add("", passage, split)

    def _judge(self, query: int, document: int, score: int) -> None:
        known = self.scores.setdefault((query, document), score)
        self._rejudged += known != score
        self.scores[query, document] = max(known, score)


def _trains(split: str) -> bool:
    return tells_split(split) and split_of(split) == "train"


def _checked(text: Any, what: str) -> str:
    if not isinstance(text, str):
        raise Unusable(f"the {what} is {'missing' if text is None else 'no text'}")
    if not text.strip():
        raise Unusable(f"the {what} is empty")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise Unusable(f"the {what} is not UTF-8") from None
    if size > LONGEST_TEXT:
        raise Unusable(f"the {what} is of {size:,} bytes, and {LONGEST_TEXT:,} are the most")
    return text


def _named(name: Any) -> str:
    """An id as text."""
    if not isinstance(name, str | int) or isinstance(name, bool):
        raise Unusable(f"the id {shown(name)} is neither text nor a whole number")
    text = str(name).encode(errors="backslashreplace")
    if len(text) > _LONGEST_ID:
        raise Unusable(f"the id {shown(name)} is of {len(text):,} bytes, and {_LONGEST_ID:,} are the most")
    return text.decode()


def _whole(where: str, score: Any, rest: str = "") -> int:
    """A score as a number. Raises Unusable; and DataError where it is a fraction, which no row is left out for: those
    that are whole would tell nothing else.
    """
    try:
        number = float(score)
    except (TypeError, ValueError, OverflowError):
        raise Unusable(f"the score {shown(score)} is no number") from None
    if math.isfinite(number) and number != int(number):
        raise DataError(
            f"{where}: the score {shown(score)} is a fraction, as similarities are; choose from which on a document "
            f"answers its query, and write 1 for those and 0 for others{rest}"
        )
    if not _SCORES.min <= number <= _SCORES.max:
        raise Unusable(f"the score {shown(score)} is no whole number from {_SCORES.min} to {_SCORES.max}")
    return int(number)


def shown(value: Any) -> str:
    """A value as a message shows it: its beginning."""
    return repr(value)[:_SHOWN_CHARACTERS]
