"""Splits by name: what a file's or a folder's name tells.

A word tells the split wherever it stands by itself, in capitals or not: `train-00000-of-00005.parquet`,
`SET-test.parquet`, `imagenet-val-0000.tar`, `val2017`, `testset_1`, `trainA`. The words are those of Hugging Face
`datasets`, and `unlabeled`.
"""

import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

from emc2dist.errors import DataError

EVALUATED = ("test", "validation")
"""Splits that are asked about in evaluation, the first that has labels."""
COLUMNS = ("split", "splits", "set", "subset", "dataset", "partition", "usage", "phase")
"""Headings of columns that tell splits, in lower case."""

_WORDS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
    "unlabeled": ("unlabeled", "unlabelled"),
}
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words}
_TOKEN = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")  # of trainA: train and A
_OF_A_SPLIT = re.compile(r"(?:set|data|images|split)$")
_SHARD = re.compile(r"(.*?)(\d+)(?:-of-(\d+))?\D*")  # its last number counts
_NUMBERS = re.compile(r"(?<![A-Za-z0-9])[0-9a-f]*[0-9][0-9a-f]{3,}(?![A-Za-z0-9])|[\W\d_]+")  # hexadecimal ones too


@lru_cache(2**12)
def split_of(name: str) -> str | None:
    """The split that a name tells, one of train, validation, test and unlabeled; None where it tells none.

    Raises:
        DataError: it tells two.
    """
    told = [_SPLIT_OF[word] for each in words(name) if (word := _OF_A_SPLIT.sub("", each)) in _SPLIT_OF]
    others = [split for split in told if split != told[0]]
    if others:
        raise DataError(f"{name}: its name tells two splits, {told[0]} and {others[0]}; rename it so that it tells one")
    return told[0] if told else None


def is_plain(name: str) -> bool:
    """Whether a name is that of a split and nothing more, but for digits."""
    return name.lower().rstrip("0123456789_-") in _SPLIT_OF


def words(name: str) -> list[str]:
    """The words of a name, in lower case: of `trainA_1`, train and a."""
    return [token.lower() for token in _TOKEN.findall(name)]


def tells_split(name: str) -> bool:
    """Whether a name tells a split, and one alone."""
    try:
        return split_of(name) is not None
    except DataError:
        return False


def is_of_split(name: str) -> bool:
    """Whether a name is a split's and says no more than of what: `val2017`, `train_images`; not `test tube`."""
    return tells_split(name) and all(len(w) == 1 or _OF_A_SPLIT.sub("", w) in ("", *_SPLIT_OF) for w in words(name))


def series(name: str) -> str:
    """What the parts of one whole have in common: a name without its numbers. Of `train_0` and `train_1`: train."""
    return _NUMBERS.sub("", name).lower()


def by_split(files: Iterable[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The files of each split, in order, train first; and those that belong to none.

    Files that tell no split train where none is called train.
    """
    found: dict[str | None, list[str]] = {}
    for file in sorted(files):
        found.setdefault(split_of(file), []).append(file)
    others = found.pop(None, [])
    if "train" not in found and others:
        found, others = {"train": others, **found}, []
    ordered = ("train", *EVALUATED, "unlabeled")
    return {split: found[split] for split in ordered if split in found}, others


def together(found: Mapping[str, list[str]]) -> list[str]:
    """Remarks on splits whose files are called by different names, as `train-0.tar` and `train_masks-0.tar` are."""
    remarks = []
    for split, files in found.items():
        first = {series(file): file for file in reversed(files) if split_of(file) == split}
        if len(first) > 1:
            shown = ", ".join(sorted(first.values())[:3]) + (", ..." if len(first) > 3 else "")
            remarks.append(f"{split}: files of {len(first)} series are taken together ({shown})")
    return remarks


def alone(path: object, inside: Iterable[str] = ()) -> list[str]:
    """A remark on what is given by itself, a file or a folder, where its own name tells another split than train and
    no name `inside` tells any: all of it trains.
    """
    name = os.path.basename(os.path.abspath(str(path)))
    if not tells_split(name) or split_of(name) == "train" or any(map(tells_split, inside)):
        return []
    return [f"{name}: all of it trains, though its name tells {split_of(name)}: names in what is given tell splits"]


def missing(files: Iterable[str]) -> list[str]:
    """Remarks on shards of which not all are there: by their names, NAME-00003-of-00005, or of most of the numbers from
    the first to the last.
    """
    shards: dict[tuple[str, int, str | None], dict[int, str]] = {}
    for file in files:
        if told := _SHARD.fullmatch(file):
            prefix, number, total = told.groups()
            shards.setdefault((prefix, len(number), total), {})[int(number)] = file
    remarks = []
    for (prefix, _, total), found in shards.items():
        first, last = min(found), max(found)
        whole = int(total) if total else last - first + 1
        if len(found) < whole and (total or 2 * len(found) > whole):
            which = f"{prefix}*-of-{total}" if total else f"from {found[first]} to {found[last]}"
            remarks.append(f"{len(found)} of {whole} files {which} are there: is the set whole?")
    return remarks


def one_writing(where: object, files: Iterable[str]) -> None:
    """Raise DataError where shards are those of two writings, NAME-00000-of-00002 beside NAME-00000-of-00003."""
    totals: dict[str, dict[str, str]] = {}
    for file in sorted(files):
        if (told := _SHARD.fullmatch(file)) and told[3]:
            totals.setdefault(told[1], {}).setdefault(told[3], file)
    for of_each in totals.values():
        if len(of_each) > 1:
            one, other, *_ = of_each.values()
            raise DataError(
                f"{where}: {one} and {other} are of two writings of the same images, in {' and in '.join(of_each)} "
                "files; keep the files of one"
            )


def left_out(files: list[str]) -> list[str]:
    """A remark on files that belong to no split, if there are any."""
    if not files:
        return []
    shown = ", ".join(files[:3]) + (", ..." if len(files) > 3 else "")
    return [
        f"{len(files)} files belong to no split and were left out ({shown}): their names tell none, others' tell train"
    ]
