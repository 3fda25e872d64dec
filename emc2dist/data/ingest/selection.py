"""Which images of a source are written: splits and classes, under which names, in which order.

    --split SOURCE=NAME    takes that split of the source, as NAME; several under one NAME are put end to end
    --classes LIST         keeps the images of these classes; the others' numbers close up, in the order they had

Without --split, all splits are taken, under the names that `emc2dist.data.splits` gives them. Labels keep the source's
order of classes: for folders, that of the sorted names. Splits that name their classes otherwise are matched by name.
"""

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from importlib import resources
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from emc2dist import files
from emc2dist.data.columns import on_joined, on_spelling
from emc2dist.data.ingest.source import Source, Split
from emc2dist.data.splits import EVALUATED, is_plain, series, split_of, tells_split
from emc2dist.errors import DataError, SpecError, StorageError
from emc2dist.files import pointers

PINNED = {"imagenet100": "imagenet100.txt"}
"""Class lists that come with emc2dist. imagenet100: the 100 classes of Tian, Krishnan and Isola, Contrastive Multiview
Coding, as in imagenet100.txt of github.com/HobbitLong/CMC at commit bc687a26; names are WordNet ids."""


class Selection(NamedTuple):
    """What is written."""

    classes: list[str]
    splits: dict[str, Split]
    """By the names they are written under."""
    remarks: list[str]
    """What was joined or dropped, and what cannot be evaluated."""


def read_classes(name: str) -> list[str]:
    """A class list: a pinned one by its name, or a text file with one class name per line.

    Raises:
        DataError: there is no such list or file, or it names nothing, or a class twice.
    """
    if name in PINNED:
        text = (resources.files(__package__) / "classes" / PINNED[name]).read_text()
    else:
        try:
            text = pointers.text(files.local(name))
        except StorageError as error:
            raise DataError(f"--classes: {error}; give {' or '.join(PINNED)}, or a text file") from error
    names = [unicodedata.normalize("NFC", line.strip()) for line in text.splitlines() if line.strip()]
    twice = [one for one, times in Counter(names).items() if times > 1]
    if twice or not names:
        raise DataError(f"{name}: {f'names {twice[0]} twice' if twice else 'names no class'}; correct the list")
    return names


def select(source: Source, splits: Sequence[str], wanted: list[str] | None, *, labels: bool = True) -> Selection:
    """The classes and the splits to write; only the labels of these are read, and none without `labels`.

    Raises:
        DataError: the source has no such split or class, or nothing is left, or labels are on a part only.
        SpecError: a `--split` is not written SOURCE or SOURCE=NAME.
    """
    chosen = _chosen(source, splits, labels)
    parts = {member: source.splits[member] for members in chosen.values() for member in members}
    empty = [member for member, part in parts.items() if not len(part.positions)]
    if splits and empty:
        raise DataError(f"{source.root}: split {empty[0]} has no images; leave it out")
    chosen = {name: kept for name, members in chosen.items() if (kept := [m for m in members if m not in empty])}
    parts = {member: part for member, part in parts.items() if member not in empty}
    if not labels:
        parts = {member: Split(part.positions, None) for member, part in parts.items()}
    remarks = _unasked(source, parts) if splits else []
    remarks += [f"split {member} has no rows and was left out" for member in empty]
    for name, members in chosen.items():
        guessed = [one for one in members if tells_split(one) and split_of(one) == name and not is_plain(one)]
        remarks += [f"{member}/ is taken for {name}" for member in guessed]
        remarks += dict.fromkeys(f"{name}: {told}" for member in members for told in source.splits[member].remarks)
    remarks += [f"{', '.join(members)} are written as {name}" for name, members in chosen.items() if len(members) > 1]
    classes, parts, told = _united(parts)
    kept = classes if wanted is None else _kept(source, classes, wanted)
    told += [f"{len(kept)} of {len(classes)} classes are taken, by --classes"] if len(kept) < len(classes) else []
    written = {}
    for name, members in chosen.items():
        renumbered = [_filtered(source, member, parts[member], classes, kept, wanted is not None) for member in members]
        written[name] = _joined(source, members, renumbered)
        if not len(written[name].positions):
            raise DataError(f"{source.root}: no images of the listed classes in split {', '.join(members)}")
        if wanted is not None:
            told += _left_out(name, [parts[member] for member in members], classes, kept)
    if "train" not in written:
        best = min(parts, key=lambda name: tells_split(name) and split_of(name) in EVALUATED)
        remarks.append(f"no split `train`, which a run needs: name one with --split {best}=train")
    return Selection(kept, written, remarks + told + (_on_labels(kept, written) if labels else []))


def ordered(split: Split, seed: int | None) -> Split:
    """The split in a random order that follows from `seed` and the number of images; as it is where that is None."""
    if seed is None:
        return split
    order = np.random.default_rng(seed).permutation(len(split.positions))
    return Split(split.positions[order], None if split.labels is None else split.labels[order])


def _unasked(source: Source, asked: Collection[str]) -> list[str]:
    """A remark on the splits that --split does not name, if there are any."""
    left = {name: source.count(name) for name in source.splits if name not in asked}
    counted = ", ".join(name if count is None else f"{name} ({count} images)" for name, count in left.items())
    return [f"{len(left)} splits that were not asked for were left out: {counted}"] * bool(left)


def _chosen(source: Source, splits: Sequence[str], labels: bool) -> dict[str, list[str]]:
    """Splits of the source, by the name that they are written under."""
    chosen: dict[str, list[str]] = {}
    for text in splits or source.splits:
        name, equals, new = text.partition("=")
        if name not in list(source.splits):  # a mapping takes what goes wrong on opening for "not there"
            raise DataError(f"{source.root}: has no split {name!r}; it has {', '.join(source.splits)}")
        new = new if equals else split_of(name) or name
        if not re.fullmatch(r"[A-Za-z]\w*", new, re.ASCII):
            raise SpecError(
                f"--split {text}: {new!r} is no name for a split; use letters, digits and _. No "
                "images are drawn for a split: where there are none to test on, evaluation asks about every tenth voter"
            )
        members = chosen.setdefault(new, [])
        if name in members:
            raise SpecError(f"--split {text}: {name} is taken twice")
        members.append(name)
    if not splits:
        for new, members in chosen.items():
            _check_one_series(source, new, members, labels)
    return chosen


def _check_one_series(source: Source, new: str, members: list[str], labels: bool) -> None:
    """Raise DataError where splits of one name are no parts of one whole, as `train` and `train_masks`."""
    if len({series(name) for name in members}) == 1:
        return
    best = next((name for name in members if is_plain(name)), members[0])
    meant = [name for name in source.splits if name not in members or name == best]
    alike = len({source.splits[name].labels is None for name in members}) == 1
    together = f", or put them together with {' '.join(f'--split {name}={new}' for name in members)}"
    raise DataError(
        f"{source.root}: {' and '.join(members)} could each be the split {new}; name those that are meant, as in "
        f"{' '.join(f'--split {name}' for name in meant)}{together if alike or not labels else ''}"
    )


def _united(parts: dict[str, Split]) -> tuple[list[str], dict[str, Split], list[str]]:
    """One list of classes for all splits, these with labels by its numbers, and a remark where their lists differed."""
    labelled = {member: bool(part.classes) for member, part in parts.items() if part.labels is not None}
    if len(set(labelled.values())) == 2:
        named, bare = ([member for member, names in labelled.items() if names == wanted] for wanted in (True, False))
        raise DataError(
            f"split {named[0]} names its classes, split {bare[0]} only numbers them: which is which cannot be told; "
            "give both the same kind of labels, or write them apart with --split, or without labels with --no-labels"
        )
    lists = [part.classes for part in parts.values() if part.labels is not None and part.classes]
    classes = lists[0] if lists else []
    if all(one == classes for one in lists):
        return classes, parts, []
    names = {name for one in lists for name in one}
    is_sorted = all(one == sorted(one) for one in lists)
    classes = sorted(names) if is_sorted else list(dict.fromkeys(name for one in lists for name in one))
    number = {name: label for label, name in enumerate(classes)}
    united = {}
    for member, part in parts.items():
        renumbered = np.array([*(number[name] for name in part.classes), -1])  # the last one: label -1
        labels = renumbered[part.labels] if part.labels is not None and part.classes else part.labels
        united[member] = Split(part.positions, labels, classes)
    return classes, united, [f"splits list other classes: matched by name, {len(classes)} in all"]


def _on_labels(classes: list[str], splits: dict[str, Split]) -> list[str]:
    """Remarks on images without labels, on classes without images, and on those that no training image has."""
    train = splits.get("train")
    taught = np.unique(train.labels) if train is not None and train.labels is not None else None
    told = [split.labels for split in splits.values() if split.labels is not None]
    remarks = [] if told else ["no image has a label"]
    empty = np.setdiff1d(np.arange(len(classes)), np.concatenate(told)) if told else np.empty(0, np.int64)
    if len(empty):
        remarks.append(f"{len(empty)} of {len(classes)} classes have no image{such_as(classes, empty[0])}")
    for remarks_on in (on_joined, on_spelling) if told else ():
        remarks += remarks_on(classes, np.concatenate(told))
    for name, split in splits.items():
        labels = np.full(len(split.positions), -1) if split.labels is None else split.labels
        bare = int((labels < 0).sum())
        if bare and any(other.labels is not None for other in splits.values()):
            remarks.append(f"{name}: {bare} of {len(labels)} images have no label")
        asked = taught[taught >= 0] if taught is not None and (labels >= 0).any() else labels[:0]
        missing = np.setdiff1d(asked, labels)
        if len(missing):
            remarks.append(
                f"{name}: no image of {len(missing)} of {len(asked)} training classes{such_as(classes, missing[0])}"
            )
        strange = labels[(labels >= 0) & ~np.isin(labels, taught)] if taught is not None else labels[:0]
        if len(strange):
            kinds = np.unique(strange)
            remarks.append(
                f"{name}: {len(strange)} of {len(labels)} images are of {len(kinds)} classes that no training image "
                f"has{such_as(classes, kinds[0])}"
            )
    return remarks


def such_as(classes: list[str], label: int) -> str:
    """An example, where classes have names."""
    return f", as {classes[label]!r}" if label < len(classes) else ""


def _kept(source: Source, classes: list[str], wanted: list[str]) -> list[str]:
    """The classes of the source that are wanted, in the source's order."""
    if not classes:
        raise DataError(f"{source.root}: names no classes; leave out --classes")
    for name in wanted:
        if name not in classes:
            nearest = difflib.get_close_matches(name, classes, n=1, cutoff=0.0)[0]
            raise DataError(f"{source.root}: has no class {name!r}; the nearest is {nearest!r}: correct the class list")
    return [name for name in classes if name in set(wanted)]


def _filtered(source: Source, name: str, split: Split, classes: list[str], kept: list[str], choose: bool) -> Split:
    """The images of the classes that are kept, or all; without labels where all are withheld."""
    if not choose:
        withheld = split.labels is not None and not (split.labels >= 0).any()
        return Split(split.positions, None) if withheld else split
    if split.labels is None:
        raise DataError(f"{source.root}: split {name} has no labels to choose classes by; leave it out with --split")
    number = {one: label for label, one in enumerate(kept)}
    renumbered = np.array([*(number.get(one, -1) for one in classes), -1])  # the last one: label -1
    labels: NDArray[np.int64] = renumbered[split.labels]
    return Split(split.positions[labels >= 0], labels[labels >= 0])


def _left_out(name: str, members: list[Split], classes: list[str], kept: list[str]) -> list[str]:
    """Remarks on the images of a split that a list of classes leaves out."""
    labels = np.concatenate([member.labels for member in members if member.labels is not None])
    others = (labels >= 0) & ~np.isin(classes, kept)[labels]
    lost = {"are of other classes": others.sum(), "have no label": (labels < 0).sum()}
    return [f"{name}: {n} of {len(labels)} images {what} and were left out" for what, n in lost.items() if n]


def _joined(source: Source, names: list[str], parts: list[Split]) -> Split:
    labels = [part.labels for part in parts if part.labels is not None]
    if labels and len(labels) < len(parts):
        bare = next(name for name, part in zip(names, parts, strict=True) if part.labels is None)
        raise DataError(f"{source.root}: split {bare} has no labels, the others of {names} have; write them apart")
    return Split(np.concatenate([part.positions for part in parts]), np.concatenate(labels) if labels else None)
