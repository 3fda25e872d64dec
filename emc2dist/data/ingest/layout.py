"""Where an image belongs, by the folders it lies in: its split and its class.

    CLASS/**/image                   one split, `train`
    SPLIT/CLASS/**/image             splits are folders whose names tell them (`emc2dist.data.splits`): train, val2017
    CLASS/SPLIT/**/image             the same the other way round
    SPLIT/image, image               no labels

A folder that everything lies in (`images/`) is no class, nor is one that a whole split lies in though training has
classes and none of that name. Folders that are called as those of images or of masks (`images/` beside `masks/`), or as
parts of one whole (`part_1/`, `part_2/`), and images called as masks of others, are refused, as is whatever can be read
in two ways, as `DOMAIN/CLASS/image`, where most outer folders hold the same ones. Names only: nothing is read here.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from emc2dist.data.splits import is_of_split, series, split_of, tells_split, words
from emc2dist.errors import DataError

_NO_CLASS = re.compile(
    "(jpe?g|png|rgb|raw|left|right|original)?(images?|imgs?)(bit)?|rgb|masks|annotations?|labels|trimaps?"
    "|ground_?truths?|gt(fine|coarse)?|segmentations?(class|object)?(aug|raw)?"
)
"""Folders that a set for segmentation or detection has, called without numbers."""
_PARTS = frozenset(
    ("image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "part", "batch", "chunk", "shard",
     "fold", "archive")
)  # fmt: skip
"""Words in the names of folders that, where only numbers or single letters differ, are parts of one whole."""
_A_MASK = re.compile(r"(.+?)[ _-]?(masks?|seg|segmentation|gt|ground_?truth|labels?|trimap)([ _-]?\d+)?", re.IGNORECASE)
_SHOWN = 3  # folders that a message names
_MANY = 1 / 3  # of all images: below that, masks are an accident of names

Folders = tuple[str, ...]
"""The folders that an image lies in, the outermost first."""


class Where(NamedTuple):
    """Where an image belongs."""

    split: str
    """The name of its split's folder; `train` where there is none."""
    kind: str | None
    """Name of its class."""


class Remark(NamedTuple):
    """What was guessed."""

    split: str | None
    """Of which split, by the name of its folder; None where it is of all."""
    text: str


def arrange(folders: Sequence[Folders], *, labels: bool = True) -> tuple[list[Where], list[Remark]]:
    """Split and class of each image, and what was guessed. Without `labels` the splits alone, and no class.

    Raises:
        DataError: some images lie in folders of splits or classes and others do not; names two of them.
    """
    _refuse_companions(folders)
    inner, passed = _unwrapped(list(folders))
    splits, inner, level = _by_split(inner)
    groups = {split: [n for n, one in enumerate(splits) if one == split] for split in dict.fromkeys(splits)}
    remarks = [Remark(None, f"everything lies in {passed}, which is taken for no class")] if passed else []
    places: list[Where] = [Where(split, None) for split in splits]
    if not labels:
        return places, remarks
    if level:
        _refuse_sets(splits, inner)
    remarks += _on_classes(splits, inner)
    heads = {split: {inner[n][:1] for n in members} for split, members in groups.items()}
    for split, members in groups.items():
        known = {head for other in heads if other != split and len(heads[other]) > 1 for head in heads[other]}
        kinds, remark = _kinds([inner[n] for n in members], {head[0] for head in known if head})
        remarks += [Remark(split, remark)] if remark else []
        for n, kind in zip(members, kinds, strict=True):
            places[n] = Where(split, kind)
    return places, remarks


def told_splits(folders: Iterable[Folders]) -> "Counter[str]":
    """How many images lie in each folder that tells a split, where one tells another than train."""
    named = (next(filter(is_of_split, one), None) or next(filter(tells_split, one), None) for one in folders)
    told = Counter(name for name in named if name)
    return told if any(split_of(name) != "train" for name in told) else Counter()


def masks_among(names: Sequence[str]) -> tuple[str, str] | None:
    """An image and its mask, by their names, where many images have one beside them; `names` have their folders."""
    called = [(told[1], name) for name in names if (told := _A_MASK.fullmatch(name.rpartition(".")[0]))]
    if len(called) < _MANY * len(names):
        return None
    images = {name.rpartition(".")[0]: name for name in names}
    masks = [(images[stem], name) for stem, name in called if stem in images]
    return masks[0] if len(masks) >= _MANY * len(names) else None


def companions(folders: Iterable[Folders]) -> list[tuple[str, str]]:
    """Folders that are called as one of images or masks, one of each folder that holds such, and another beside it."""
    beside: dict[Folders, set[str]] = {}
    for one in set(folders):
        for level, name in enumerate(one):
            beside.setdefault(one[:level], set()).add(name)
    found = []
    for parent, names in sorted(beside.items()):
        named = sorted(name for name in names if _NO_CLASS.fullmatch(series(name)))
        if named and len(names) > 1 and parts_among(names) != sorted(names):
            own = next((name for name in named if "im" in name.lower()), named[0])
            other = next(name for name in sorted(names) if name != own)
            found.append(("/".join((*parent, own)), "/".join((*parent, other))))
    return found


def _refuse_companions(folders: Sequence[Folders]) -> None:
    """Raise DataError where folders of images or masks stand among others, as if they were classes."""
    found = companions(folders)
    if not found:
        return
    own, other = found[0]
    so_in = f", as in {len(found)} folders in all" if len(found) > 1 else ""
    what = f"{own}/ is called as what holds images, or what belongs to them, and not as a class, but {other}/ "
    if not tells_split(other.rpartition("/")[2]):
        raise DataError(
            f"{what}lies beside it{so_in}; give the folder with the images alone, or take every folder for a class "
            "with --kind classes, or all images without labels and splits with --kind flat"
        )
    *parent, _ = own.split("/")
    named = _named_splits(one[len(parent) :] for one in folders if one[: len(parent)] == tuple(parent))
    meant = f"give {'/'.join(parent)}/ alone, if it is a set of its own, with {named}"
    meant = meant if parent else f"name the splits that are meant: {named}"
    moved = f"all {len(found)}" if len(found) > 1 else f"{own}/"
    raise DataError(f"{what}lies beside it and tells a split{so_in}; {meant}; or move {moved} elsewhere")


def parts_among(called: Iterable[str]) -> list[str]:
    """The names that are those of parts of one whole, if there are such."""
    wholes: dict[tuple[str, ...], list[str]] = {}
    for name in sorted(called):
        wholes.setdefault(tuple(word for word in words(name) if len(word) > 1), []).append(name)
    return next((names for whole, names in wholes.items() if len(names) > 1 and _PARTS.intersection(whole)), [])


def _refuse_parts(classes: set[str]) -> None:
    """Raise DataError where folders, each taken for a class, are called as parts of one whole."""
    parts = parts_among(classes)
    if parts:
        raise DataError(
            f"{parts[0]}/ and {parts[1]}/ are called as parts of one whole, and not as classes; move their images into "
            "one folder, beside which a table may tell the classes, or take every folder for a class with --kind "
            "classes, or no labels with --no-labels"
        )


def _on_classes(splits: list[str], folders: list[Folders]) -> list[Remark]:
    """Where images of a class lie in several folders: which of these names the class is then a guess.

    Raises:
        DataError: a folder in that of a class is called as another class.
    """
    remarks = []
    for split in dict.fromkeys(splits):
        own = {found for found, one in zip(folders, splits, strict=True) if one == split and found}
        classes, deeper = Counter(found[0] for found in own), sorted(found for found in own if len(found) > 1)
        again = next((found for found in deeper if any(name in classes for name in set(found) - {found[0]})), None)
        if again and len(classes) > 1:
            raise DataError(
                f"{'/'.join(again)}/ lies in {again[0]}/, and is called as a class of its own; give the folder that "
                "holds the classes alone, or take every folder for a class with --kind classes"
            )
        if len(classes) > 1 and max(classes.values()) > 1:
            told = f"{len(classes)} classes by the outer folders, in which images lie in {len(deeper)} folders"
            told += f" ({'/'.join(deeper[0])}/)"
            inner = _in_most(deeper, len(classes))
            if inner:
                alike = f"{len(inner)} names of inner folders ({_some(inner)}) are in most of {len(classes)} outer ones"
                if len(set(splits)) == 1:
                    raise DataError(
                        f"{alike} ({_some(sorted(classes))}), and either could be the classes; if the inner ones are, "
                        "move the images of each class into one folder; if the outer ones are, give the folder that "
                        "holds them with --kind classes; or take no labels with --no-labels"
                    )
                told += f"; {alike}: if those are the classes, move the images of each class into one folder"
            else:
                told += "; if the inner ones are the classes, move each up one level"
            remarks.append(Remark(split, told))
    return remarks


def _refuse_sets(splits: list[str], folders: list[Folders]) -> None:
    """Raise DataError where the outer folders, which hold those of splits, could be sets, and the inner ones classes:
    where the splits of one, or most of the outer ones, hold several of the same names.
    """
    outer = sorted({one[0] for one in folders})
    found = {(one, split) for one, split in zip(folders, splits, strict=True) if len(one) > 1}
    held = Counter(one for one, _ in found)
    again = Counter(one[0] for one, times in held.items() if times > 1)
    if len(outer) > 1 and (max(again.values(), default=0) > 1 or _in_most(held, len(outer))):
        raise DataError(
            f"{len(outer)} folders ({_some(outer)}) hold folders of splits, and in these are further ones "
            f"({_some(sorted({one[1] for one in held}))}): either could be the classes; if the inner ones are, give "
            f"one of the outer folders, or move the images of each class into one folder (train/{min(held)[1]}/); if "
            "the outer ones are, move the images out of the inner ones; or take no labels with --no-labels"
        )


def _in_most(folders: Iterable[Folders], outermost: int) -> list[str]:
    """The innermost folders that lie, by their names, in more than half of the outermost; none where it is but one."""
    outer: dict[str, set[str]] = {}
    for one in folders:
        outer.setdefault(one[-1], set()).add(one[0])
    names = sorted(name for name, found in outer.items() if 2 * len(found) > outermost)
    return names if len(names) > 1 else []


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _unwrapped(folders: list[Folders]) -> tuple[list[Folders], str]:
    """Without the outermost folders that hold everything and tell no split, and these."""
    passed = ""
    while folders and all(folders) and len({one[0] for one in folders}) == 1 and _holds_all(folders):
        passed += f"{folders[0][0]}/"
        folders = [one[1:] for one in folders]
    return folders, passed


def _holds_all(folders: list[Folders]) -> bool:
    """Whether the one outermost folder is no split: its name tells none, or the folders in it tell theirs."""
    return split_of(folders[0][0]) is None or all(len(one) > 1 and split_of(one[1]) is not None for one in folders)


def _by_split(folders: list[Folders]) -> tuple[list[str], list[Folders], int]:
    """The split of each image, by the folder that names it, its other folders, and how many of these hold that one."""
    for level in (0, 1):
        tells = [len(one) > level and split_of(one[level]) is not None for one in folders]
        if all(tells):
            return [one[level] for one in folders], [one[:level] + one[level + 1 :] for one in folders], level
        if any(tells):
            told, other = (folders[tells.index(which)][: level + 1] for which in (True, False))
            trains = any(split_of(one[level]) == "train" for one, tell in zip(folders, tells, strict=True) if tell)
            rename = "" if trains or not other else f"rename {'/'.join(other)}/ to train if it holds what is to train, "
            name = f", name the splits that are meant ({_named_splits(folders)})" if level == 0 else ""
            raise DataError(
                f"{'/'.join(told)}/ looks like a split, {'/'.join(other) or 'the folder itself'}/ like none; {rename}"
                f"move one of them{name}, or take every folder for a class with --kind classes, or all without labels "
                "and splits with --kind flat"
            )
    return ["train"] * len(folders), folders, 0


def _named_splits(folders: Iterable[Folders]) -> str:
    """The options that name the outermost folders which tell splits."""
    return " ".join(f"--split {name}" for name in sorted({one[0] for one in folders if one}) if tells_split(name))


def _kinds(folders: list[Folders], known: set[str]) -> tuple[Sequence[str | None], str]:
    """The class of each image of a split, and a remark; `known` are the classes of the other splits."""
    passed = ""
    while all(folders) and len({one[0] for one in folders}) == 1 and folders[0][0] not in known:
        passed += f"{folders[0][0]}/"
        folders = [one[1:] for one in folders]
    remark = f"all images lie in {passed}, which is taken for no class" if passed else ""
    inside = [bool(one) for one in folders]
    if len(set(inside)) == 2:
        example = "/".join(folders[inside.index(True)])
        raise DataError(
            f"some images lie in folders of their classes ({passed}{example}/), {inside.count(False)} in none; move "
            "them, or take no labels with --no-labels"
        )
    _refuse_parts({one[0] for one in folders if one})
    return [one[0] if one else None for one in folders], remark
