"""What a record says of a query and its documents, by the names of its values.

query, positive_passages, negative_passages    Tevatron: passages are objects with docid, title and text
query, pos, neg                                FlagEmbedding: lists of texts
a column of `QUERIES` and one of `DOCUMENTS`   a pair; with negative, negative_1, ... a triplet or longer
anchor, positive, negative, score, age, margin    `emc2dist negatives`: the last three are not read
text, with title, an id or split or without    a document by itself
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emc2dist.data.splits import is_plain, split_of
from emc2dist.data.texts.collection import Example, Passage
from emc2dist.data.texts.records import plain, shown_names
from emc2dist.errors import DataError, SpecError

QUERIES = ("anchor", "query", "question", "sentence1", "docstring")
"""Names of columns of queries, in lower case, as those below."""
DOCUMENTS = ("positive", "document", "code", "answer", "sentence2", "text")
SCORES = ("score", "relevance")
SPLIT = "split"
TEXT = "text"
IDS = ("_id", "id", "docid", "doc_id", "query_id", "qid")
_OF_MINED = ("score", "age", "margin")
"""What `emc2dist negatives` tells beside anchor, positive and negative: none says what belongs together."""
_OF_TEXTS = frozenset((TEXT, "title", SPLIT, *IDS))  # what a table of texts alone holds
_GRADES = ("label", "labels", "gold_label", "is_duplicate", "target", "quality", "similarity", "similarity_score")
"""Names of columns that may say whether a pair belongs together, or how much."""
_FEW = 5  # values of a column that may be verdicts
_SHOWN_CHARACTERS = 40  # of a value
_NEGATIVE = re.compile(r"negative(_\d+)?", re.IGNORECASE)
_LONGEST_SPLIT = 100  # characters of a name
_ROLES = ("query", "document", "negative", "score", "split", "unread")


@dataclass(frozen=True)
class Columns:
    """Which value of a record is what."""

    query: str
    document: str
    negatives: tuple[str, ...]
    score: str | None
    split: str | None
    left: tuple[str, ...]
    """What was chosen not to be read."""

    def example(self, values: Mapping[str, Any]) -> Example:
        """What a record says."""
        negatives = [Passage(values[name]) for name in self.negatives if values.get(name)]
        score = 1 if self.score is None else values.get(self.score)
        positives = [Passage(values.get(self.document))]
        return Example(Passage(values.get(self.query)), positives, negatives, score, told_split(values, self.split))

    def unused(self, names: Iterable[str]) -> list[str]:
        """Those names that are nothing."""
        return [n for n in names if n not in (self.query, self.document, *self.negatives, self.score, self.split)]


def is_tevatron(names: Iterable[str]) -> bool:
    """Whether records are Tevatron's, by the names of their values."""
    return {"query", "positive_passages"} <= set(names)


def is_flag(names: Iterable[str]) -> bool:
    """Whether records are FlagEmbedding's, likewise."""
    return {"query", "pos"} <= set(names)


def may_be_pairs(names: Iterable[str]) -> bool:
    """Whether records with such values could be pairs, as these or as columns, ambiguous ones too."""
    lower = {name.lower() for name in names}
    return is_tevatron(lower) or is_flag(lower) or bool(lower & set(QUERIES) and lower & set(DOCUMENTS))


def are_texts(names: Iterable[str]) -> bool:
    """Whether records with such values, and no others, are documents by themselves."""
    every = set(names)
    return TEXT in every and every <= _OF_TEXTS


def of_tevatron(values: Mapping[str, Any]) -> Example:
    """What a record of Tevatron says."""
    query = Passage(values["query"], values.get("query_id"))
    positives, negatives = (_listed(values.get(name), _passage) for name in ("positive_passages", "negative_passages"))
    return Example(query, positives, negatives, split=told_split(values, SPLIT))


def of_flag(values: Mapping[str, Any]) -> Example:
    """What a record of FlagEmbedding says."""
    positives, negatives = (_listed(values.get(name), Passage) for name in ("pos", "neg"))
    return Example(Passage(values["query"]), positives, negatives, split=told_split(values, SPLIT))


def titled(values: Mapping[str, Any]) -> Any:
    """A document's title and text with a blank between, or the one that is there."""
    parts = [values.get(name) for name in ("title", "text")]
    told = [part for part in parts if part not in (None, "")]
    return " ".join(told) if all(isinstance(part, str) for part in told) and told else values.get("text")


def told_split(values: Mapping[str, Any], column: str | None) -> str | None:
    """The split that a record tells, by the name that all sets have for it; None where it tells none."""
    told = values.get(column) if column else None
    name = plain(str(told)[:_LONGEST_SPLIT].strip())
    if told is None or not name:
        return None
    return split_of(name) if is_plain(name) else name


def columns_of(where: str, names: Iterable[str], chosen: Mapping[str, str]) -> Columns:
    """Which column is what, by its name, or as `chosen`, by what it is.

    Raises:
        DataError: there is none, or there are several for what is one.
    """
    known = list(names)
    shown = shown_names(Path(where), known)
    left = tuple(filter(None, chosen.get("unread", "").split(",")))
    if {"anchor", "positive", "negative", *_OF_MINED} <= set(known) and "score" not in chosen:
        left += tuple(name for name in _OF_MINED if name not in chosen.values())
    roles = {role: name for role, name in chosen.items() if role != "unread"}
    for role, name in (*roles.items(), *(("unread", name) for name in left)):
        if name not in known:
            raise DataError(f"{where}: --columns {role}={name}: there is no such column, but {shown}; name one of them")

    def one(role: str, meant: Iterable[str], *, needed: bool = True) -> str | None:
        found = [chosen[role]] if role in chosen else [n for n in known if n.lower() in meant and n not in taken]
        if len(found) == 1 or not (found or needed):
            taken.update(found)
            return found[0] if found else None
        what = f"{' and '.join(found)} could all be" if found else f"no column {', '.join(meant)} for"
        raise DataError(f"{where}: {what} the {role}, among {shown}; say which is with --columns {role}=COLUMN")

    taken = {*roles.values(), *left}
    query, document = one("query", QUERIES), one("document", DOCUMENTS)
    assert query is not None
    assert document is not None
    score, split = one("score", SCORES, needed=False), one("split", (SPLIT,), needed=False)
    graded = [name for name in known if name.lower() in _GRADES and name not in taken]
    if graded and score is None:
        raise DataError(f"{where}: {_may_tell(graded[0])}")
    negatives = [n for n in known if _NEGATIVE.fullmatch(n) and n not in left]
    negatives = [chosen["negative"]] if "negative" in chosen else negatives
    return Columns(query, document, tuple(negatives), score, split, left)


@dataclass(frozen=True)
class TextColumns:
    """Which value of a record is a document by itself, and which its split."""

    document: str
    split: str | None

    def passage(self, values: Mapping[str, Any]) -> Passage:
        """The document; a column `text` with its title before it, by the first id that there is."""
        text = titled(values) if self.document == TEXT else values.get(self.document)
        return Passage(text, next((values[name] for name in IDS if values.get(name) not in (None, "")), None))

    def unused(self, names: Iterable[str]) -> list[str]:
        """Those names that are nothing."""
        used = {self.document, self.split, *IDS, *(("title",) if self.document == TEXT else ())}
        return [name for name in names if name not in used]


def text_columns_of(where: str, names: Iterable[str], chosen: Mapping[str, str]) -> TextColumns:
    """Which column is what of documents by themselves, by its name, `text` before others, or as `chosen`.

    Raises:
        DataError: there is none, or there are several. SpecError: columns are chosen that they have none of.
    """
    for role in chosen:
        if role not in ("document", "split", "unread"):
            raise SpecError(f"--columns {role}={chosen[role]}: documents by themselves have no {role}; leave it out")
    known = list(names)
    shown = shown_names(Path(where), known)
    for role, name in chosen.items():
        if role != "unread" and name not in known:
            raise DataError(f"{where}: --columns {role}={name}: there is no such column, but {shown}; name one of them")
    split = chosen.get("split", SPLIT if SPLIT in known else None)
    found = [name for name in known if name.lower() in DOCUMENTS]
    found = [TEXT] if TEXT in found else found
    if "document" not in chosen and len(found) != 1:
        what = f"{' and '.join(found)} could all be" if found else f"no column {', '.join(DOCUMENTS)} for"
        raise DataError(f"{where}: {what} the document, among {shown}; say which is with --columns document=COLUMN")
    return TextColumns(chosen.get("document") or found[0], split)


class Verdicts:
    """Looks for columns that may say whether a pair belongs together, among those that nothing was chosen of: such as
    hold two to `_FEW` values, each twice or more in the mean.
    """

    def __init__(self) -> None:
        self._rows = Counter[str]()
        self._values: dict[str, set[str]] = {}

    def look(self, columns: Columns, values: Mapping[str, Any]) -> None:
        """Note a record's values; nothing where a column of scores is known."""
        for name in () if columns.score else columns.unused(values):
            value = values[name]
            if name in columns.left or value is None or not str(value).strip():
                continue
            self._rows[name] += 1
            of_name = self._values.setdefault(name, set())
            if len(of_name) <= _FEW:
                of_name.add(str(value))

    def check(self, where: str) -> None:
        """Raise DataError where there is such a column."""
        for name, found in self._values.items():
            if 2 <= len(found) <= min(_FEW, self._rows[name] // 2):
                shown = ", ".join(repr(value)[:_SHOWN_CHARACTERS] for value in sorted(found))
                told = f"{name} has {len(found)} values in {self._rows[name]:,} rows ({shown}): "
                raise DataError(f"{where}: {plain(told)}{_may_tell(name)}")


def _may_tell(name: str) -> str:
    name = plain(name)
    return (
        f"{name} may tell which pairs belong together; if it does, --columns score={name}, in whole numbers, more than "
        f"0 where they do (words have to be written as such first); if not, --columns unread={name}"
    )


def parse_columns(text: str) -> dict[str, str]:
    """What `--columns query=COL,document=COL` chooses: a column by what it is; of `unread`, which may come several
    times, all with commas between. Raises SpecError.
    """
    chosen: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        role, equals, name = part.partition("=")
        if role not in _ROLES or not equals or not name or (role in chosen and role != "unread"):
            raise SpecError(f"--columns {part}: write ROLE=COLUMN once for each role, of {', '.join(_ROLES)}")
        chosen[role] = f"{chosen[role]},{name}" if role in chosen else name
    return chosen


def _listed(given: Any, make: Any) -> list[Passage]:
    """Passages of a list, or of what stands by itself in place of one."""
    if given is None:
        return []
    return [make(one) for one in given] if isinstance(given, list) else [Passage(given)]


def _passage(given: Any) -> Passage:
    return Passage(titled(given), given.get("docid")) if isinstance(given, dict) else Passage(given)
