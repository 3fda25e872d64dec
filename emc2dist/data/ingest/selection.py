"""Which images of a source are written: splits and classes, under which names, in which order.

    --split SOURCE=NAME    takes that split of the source, as NAME; several under one NAME are put end to end
    --classes LIST         keeps the images of these classes; the others' numbers close up, in the order they had

Without --split, all splits are taken; val and valid are called validation. Labels keep the source's order of classes:
for folders, that of the sorted names.
"""

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emc2dist.data.ingest.source import Source, Split
from emc2dist.errors import DataError, SpecError

PINNED = {"imagenet100": "imagenet100.txt"}
"""Class lists that come with emc2dist. imagenet100: the 100 classes of Tian, Krishnan and Isola, Contrastive Multiview
Coding, as in imagenet100.txt of github.com/HobbitLong/CMC at commit bc687a26; names are WordNet ids."""

_USUAL = {"val": "validation", "valid": "validation", "unlabelled": "unlabeled"}


def read_classes(name: str) -> list[str]:
    """A class list: a pinned one by its name, or a text file with one class name per line.

    Raises:
        DataError: there is no such list or file, or it names nothing, or a class twice.
    """
    if name in PINNED:
        text = (resources.files(__package__) / "classes" / PINNED[name]).read_text()
    else:
        try:
            text = Path(name).expanduser().read_text()
        except OSError as error:
            known = " or ".join(PINNED)
            raise DataError(f"{name}: no class list ({error.strerror}); give {known}, or a text file") from error
    names = [line.strip() for line in text.splitlines() if line.strip()]
    twice = [one for one, times in Counter(names).items() if times > 1]
    if twice or not names:
        raise DataError(f"{name}: {f'names {twice[0]} twice' if twice else 'names no class'}; correct the list")
    return names


def select(source: Source, splits: Sequence[str], wanted: list[str] | None) -> tuple[list[str], dict[str, Split]]:
    """The classes and, by the names they are written under, the splits to write.

    Raises:
        DataError: the source has no such split or class, or nothing is left, or labels are on a part only.
        SpecError: a `--split` is not written SOURCE or SOURCE=NAME.
    """
    chosen = _chosen(source, splits)
    classes = source.classes if wanted is None else _kept(source, wanted)
    written = {}
    for name, members in chosen.items():
        parts = [_filtered(source, member, classes if wanted else None) for member in members]
        written[name] = _joined(source, members, parts)
        if not len(written[name].positions):
            raise DataError(f"{source.root}: no images of the listed classes in split {', '.join(members)}")
    return classes, written


def ordered(split: Split, seed: int | None) -> Split:
    """The split in a random order that follows from `seed` and the number of images; as it is where that is None."""
    if seed is None:
        return split
    order = np.random.default_rng(seed).permutation(len(split.positions))
    return Split(split.positions[order], None if split.labels is None else split.labels[order])


def _chosen(source: Source, splits: Sequence[str]) -> dict[str, list[str]]:
    """Splits of the source, by the name that they are written under."""
    chosen: dict[str, list[str]] = {}
    for text in splits or source.splits:
        name, equals, new = text.partition("=")
        if name not in source.splits:
            raise DataError(f"{source.root}: has no split {name!r}; it has {', '.join(source.splits)}")
        new = new if equals else _USUAL.get(name, name)
        if not re.fullmatch(r"[A-Za-z]\w*", new, re.ASCII):
            raise SpecError(f"--split {text}: {new!r} is no name for a split; use letters, digits and _")
        members = chosen.setdefault(new, [])
        if name in members:
            raise SpecError(f"--split {text}: {name} is taken twice")
        members.append(name)
    return chosen


def _kept(source: Source, wanted: list[str]) -> list[str]:
    """The classes of the source that are wanted, in the source's order."""
    if not source.classes:
        raise DataError(f"{source.root}: names no classes; leave out --classes")
    for name in wanted:
        if name not in source.classes:
            nearest = difflib.get_close_matches(name, source.classes, n=1, cutoff=0.0)[0]
            raise DataError(f"{source.root}: has no class {name!r}; the nearest is {nearest!r}: correct the class list")
    return [name for name in source.classes if name in set(wanted)]


def _filtered(source: Source, name: str, classes: list[str] | None) -> Split:
    split = source.splits[name]
    if classes is None:
        return split
    if split.labels is None:
        raise DataError(f"{source.root}: split {name} has no labels to choose classes by; leave it out with --split")
    number = {one: label for label, one in enumerate(classes)}
    renumbered = np.array([*(number.get(one, -1) for one in source.classes), -1])  # the last one: label -1
    labels: NDArray[np.int64] = renumbered[split.labels]
    return Split(split.positions[labels >= 0], labels[labels >= 0])


def _joined(source: Source, names: list[str], parts: list[Split]) -> Split:
    labels = [part.labels for part in parts if part.labels is not None]
    if labels and len(labels) < len(parts):
        bare = next(name for name, part in zip(names, parts, strict=True) if part.labels is None)
        raise DataError(f"{source.root}: split {bare} has no labels, the others of {names} have; write them apart")
    return Split(np.concatenate([part.positions for part in parts]), np.concatenate(labels) if labels else None)
