"""Tar shards as WebDataset writes them.

`n01440764/17.jpg` is an image, and its label stands in `n01440764/17.cls` (a whole number, or the name of a class) or
in `n01440764/17.json` under `label`. Captions stand in `17.txt`, or in `17.json` under `caption`. A member whose last
extension is an image's is an image, whatever dots come before: `cat 2.0 (clean).jpg`. But beside `17.jpg`, `17.seg.png`
is another field of that sample where other samples have one too, and is passed over. Where a sample has one image and
one label, they belong together whatever is added to their names: `17.input.jpg`, `17.output.cls`. Names of classes that
labels number stand one per line in `classes.txt` beside the shards. The names of these tell the splits
(`emc2dist.data.splits`); folders in them that tell others are refused.

The headers of each shard are read once, from first to last; from then on an image is a range of bytes of its shard.
"""

import json
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from emc2dist import files
from emc2dist.data.columns import check_labels
from emc2dist.data.ingest import said
from emc2dist.data.ingest.folder import MAX_BYTES
from emc2dist.data.ingest.layout import companions, masks_among, parts_among
from emc2dist.data.ingest.source import (
    EXTENSIONS,
    Samples,
    Source,
    Split,
    escaped,
    hidden,
    hidden_by,
    instead,
    listing_digest,
    passed_over,
    printable,
    read_range,
    some,
)
from emc2dist.data.splits import (
    COLUMNS,
    alone,
    by_split,
    is_of_split,
    left_out,
    missing,
    one_writing,
    series,
    split_of,
    tells_split,
    together,
)
from emc2dist.errors import DataError
from emc2dist.files import Entry, entry_of, pointers

CLASSES = "classes.txt"
_IMAGES = frozenset(extension.removeprefix(".") for extension in EXTENSIONS)
_LABELS = ("cls", "json")
_LONGEST_LABEL = 2**20  # bytes
_A_FIELD = re.compile(r"\.[A-Za-z_]\w*\.\w+")  # as in .seg.png; where samples share it, it is none of a file's name
_BLOCK = 512  # bytes; a tar ends with blocks of zeros
_PIECE = 2**20


class _Image(NamedTuple):
    """An image of a shard."""

    shard: str
    name: str
    start: int
    """Byte of the shard at which it begins."""
    size: int
    """Bytes."""
    label: int | str | None = None


class Tar(Source):
    """Tar shards of a folder, or one shard; without `labels` those in it are not even looked at, nor are captions but
    those that `captions` calls by name.

    Raises:
        DataError: a shard is truncated or no tar, a sample is ambiguous, or some samples of a split have labels and
            others have none; names shard and member.
    """

    def __init__(self, path: Path, *, labels: bool, captions: str | None = None) -> None:
        root = path.parent if path.is_file() else path
        shards, others, hidden_ones = {path.name: path}, Counter[str](), Counter[str]()
        if not path.is_file():
            shards, others, hidden_ones = _listed(path)
        if not shards:
            raise DataError(f"{path}: no *.tar files; give a folder that holds some, not compressed")
        one_writing(path, shards)
        self.root = str(root)
        self._classes = _class_names(root / CLASSES)
        self._shards = {name: entry_of(file)._replace(name=name) for name, file in shards.items()}
        self.digest = listing_digest(self._shards.values())
        members, left = ({"train": [path.name]}, []) if path.is_file() else by_split(shards)
        contents = _Contents(labels=labels, captions=captions)
        for name, file in shards.items():
            if name not in left:
                contents.add(name, file)
        self._images, self._said = contents.images(), contents.said
        if not self._images:
            found = "".join(f" ({remark})" for remark in hidden(contents.hidden) + contents.remarks())
            raise DataError(f"{path}: no images in {len(shards)} shards{found}; {contents.help()}")
        for split, names in members.items():
            self._check_folders(split, names)
        self.remarks = (
            left_out(left) + alone(path, [] if path.is_file() else shards) + together(members) + missing(shards)
        )
        self.remarks += hidden(hidden_ones + contents.hidden) + contents.remarks()
        bare = self._said.keys() - {stem for image in self._images for stem in _stems(image)}
        self.remarks += (
            [f"{len(bare)} captions of no image were passed over ({printable(min(bare)[1])}.*)"] if bare else []
        )
        self.remarks += escaped(image.name for image in self._images)
        self.remarks += (
            [f"{others.total()} files are no *.tar and were left out ({', '.join(others)})"] if others else []
        )
        beside = companions(tuple(image.name.split("/")[:-1]) for image in self._images)
        if beside:
            one, other = map(printable, beside[0])
            self.remarks.append(f"{one}/ and {other}/ lie side by side: all in them are taken for images, masks too")
        masked = masks_among([image.name for image in self._images])
        if masked:
            image, mask = map(printable, masked)
            self.remarks.append(f"{mask} looks like the mask of {image}, and so do more: all are taken for images")
        if labels and all(image.label is None for image in self._images):
            self.remarks.append(
                "labels would be .cls members, or `label` in .json: the names of folders and shards are none"
            )
            classes = [shard for names in members.values() for shard in self._like_classes(names)]
            what = f"{len(classes)} shards look like a class each, as {printable((classes or [''])[0])}"
            self.remarks += [f"{what}: if they are, unpack each into a folder of its name"] * bool(classes)
        self.splits = self._split({shard: split for split, names in members.items() for shard in names})

    def _like_classes(self, shards: list[str]) -> list[str]:
        """The shards of a split where each is called as a class, and no number of a series, or its images after it."""
        stems = {shard: Path(shard).stem for shard in shards}
        if len(shards) == 1 or parts_among(stems.values()) or not all(re.search("[A-Za-z]", s) for s in stems.values()):
            return []
        of_series = len({series(stem) for stem in stems.values()}) < len(shards)
        own = (image for image in self._images if image.shard in stems)
        named = all(posixpath.basename(image.name).startswith(stems[image.shard]) for image in own)
        return shards if named or not of_series else []

    def _check_folders(self, split: str, shards: list[str]) -> None:
        """Raise DataError where folders in the shards of a split tell others."""
        own, told = {shard: split_of(shard) or split for shard in shards}, dict[str, Counter[str]]()
        for image in self._images:
            folder = _split_folder(image.name)
            if folder and image.shard in own:
                told.setdefault(image.shard, Counter())[folder] += 1
        for shard, folders in told.items():
            if any(split_of(folder.rpartition("/")[2]) != own[shard] for folder in folders):
                counted = ", ".join(f"{printable(folder)}/ ({count} images)" for folder, count in folders.items())
                raise DataError(
                    f"{self.root}/{shard}: its folders tell other splits than {own[shard]}, as which it is read: "
                    f"{counted}; unpack it and give the folder, or write a shard for each split, called so"
                )

    def _split(self, of_shard: dict[str, str]) -> dict[str, Split]:
        positions: dict[str, list[int]] = {}
        for position, image in enumerate(self._images):
            positions.setdefault(of_shard[image.shard], []).append(position)
        return {split: Split(np.array(found), *self._labels(found)) for split, found in positions.items()}

    def _labels(self, positions: list[int]) -> tuple[NDArray[np.int64] | None, list[str], list[str]]:
        """Labels of some images, the names of the classes, and remarks on these."""
        images = [self._images[position] for position in positions]
        bare = [image for image in images if image.label is None]
        if len(bare) == len(images):
            return None, [], []
        if bare:
            raise DataError(
                f"{self._where(bare[0])}: has no label, though others have; give it a .cls or .json member, or "
                "take no labels with --no-labels"
            )
        named = [image for image in images if isinstance(image.label, str)]
        if not named:
            labels = np.array([image.label for image in images], np.int64)
            check_labels(labels, self._classes, lambda n: self._where(images[n]))
            return labels, self._classes, []
        classes = self._classes or sorted({str(image.label) for image in images})
        number: dict[Any, int] = {name: label for label, name in enumerate(classes)}
        wrong = next((image for image in images if image.label not in number), None)
        if wrong is not None:
            what = f"{CLASSES} does not name it" if self._classes else f"others are names, as {named[0].label!r}"
            raise DataError(f"{self._where(wrong)}: its label is {wrong.label!r}, and {what}; correct one of them")
        remarks = [f"{len(classes)} classes, by .cls and .json members: {some(classes)}"] * (not self._classes)
        return np.array([number[image.label] for image in images], np.int64), classes, remarks

    def _where(self, image: _Image) -> str:
        return f"{self.root}/{image.shard}, {printable(image.name)}"

    def samples(self, positions: NDArray[np.int64]) -> Samples:
        """The images at some positions, in that order."""
        images = [self._images[position] for position in positions]
        return _Members(self.root, images, {image.shard: self._shards[image.shard] for image in images})

    @override
    def captions(
        self, positions: NDArray[np.int64], name: str, refuse: Callable[[str, str], None]
    ) -> tuple[list[list[Any]], list[str]]:
        there = Counter(key for told in self._said.values() for key in told)
        first = said.TXT if name == said.AUTO and said.TXT in there else None
        key = first or said.chosen_among(self.root, there, name)
        others = [f"`{printable(other)}` of {number}" for other, number in there.items() if other != key]
        told = [f"captions that are not read: {', '.join(others)} samples"] if name == said.AUTO and others else []
        found = []
        for position in positions:
            of_image = (self._said.get(stem, {}) for stem in _stems(self._images[position]))
            found.append(next((said.texts_of(of_stem[key]) for of_stem in of_image if key in of_stem), []))
        return found, [f"captions by {'.txt members' if key == said.TXT else f'`{key}` of .json members'}", *told]


@dataclass(frozen=True)
class _Members(Samples):
    root: str
    images: list[_Image]
    shards: dict[str, Entry]

    def __len__(self) -> int:
        return len(self.images)

    def digest(self) -> str:
        return listing_digest(self.shards[image.shard]._replace(name=repr(image)) for image in self.images)

    def path(self, k: int) -> str:
        return printable(self.images[k].name)

    def where(self, k: int) -> str:
        return f"{self.images[k].shard}, {self.path(k)}"

    def read(self, k: int) -> bytes:
        image = self.images[k]
        if image.size > MAX_BYTES:
            raise DataError(f"more than {MAX_BYTES} bytes, which no image has")
        return read_range(Path(self.root, image.shard), image.start, image.size)


def _listed(folder: Path) -> tuple[dict[str, Path], "Counter[str]", "Counter[str]"]:
    """The shards of a folder and of the folders in it, by their names from it on; other files, by kind; and shards that
    are hidden, by what hides them.
    """
    found, others, hidden_ones = {}, Counter[str](), Counter[str]()
    for file in sorted([*folder.iterdir(), *folder.glob("*/*.tar")]):
        name = file.relative_to(folder).as_posix()
        if file.suffix.lower() == ".tar" and not hidden_by(name):
            files.refuse_lost(file)
        if not file.is_file():
            continue
        if what := hidden_by(name):
            hidden_ones[what] += ".tar" in file.name.lower()
        elif file.suffix.lower() == ".tar":
            found[name] = file
        elif name != CLASSES and file.suffix.lower() not in EXTENSIONS:  # images are counted wherever they lie
            others["".join(file.suffixes[-2:])] += 1
    return found, others, +hidden_ones


class _Contents:
    """What shards hold: images in order, and what else there was."""

    def __init__(self, *, labels: bool, captions: str | None) -> None:
        self._labels = _LABELS if labels else ()
        """Extensions of members that may tell some."""
        self._captions = captions
        self._tellers = () if captions is None else (said.TXT, "json")
        """Extensions of members that may tell captions."""
        self.said: dict[tuple[str, str], dict[str, Any]] = {}
        """By shard and name without extension what may be captions, by what they are called."""
        self._shards: list[tuple[str, dict[str, list[_Image]], dict[str, int | str]]] = []
        self._others, self._fields, self._splits = Counter[str](), Counter[str](), Counter[str]()
        self._bare, self._again = list[str](), 0
        self._examples: dict[str, tuple[str, str]] = {}
        """Of other members, by extension, the first: its shard and name."""
        self.hidden = Counter[str]()

    def add(self, name: str, shard: Path) -> None:
        """Read the headers and labels of a shard."""
        images: dict[str, tarfile.TarInfo] = {}
        labels: dict[str, int | str] = {}
        told_by: dict[str, str] = {}
        for member in _members(shard):
            if what := hidden_by(member.name):
                self.hidden[what] += 1
                continue
            stem, _, extension = member.name.rpartition(".")
            if extension.lower() in _IMAGES and not member.issparse():
                self._again += member.name in images
                images[member.name] = member
            elif extension.lower() in (*self._labels, *self._tellers) and member.isreg():
                told = _told(shard, member, extension.lower())
                self._keep_said(name, stem, told)
                if extension.lower() not in self._labels:
                    continue
                self._splits.update(key for key in told if key.lower() in COLUMNS and tells_split(str(told[key])))
                label = _label(shard, member, told.get("label", ...))
                if label is not None:
                    if labels.setdefault(stem, label) != label:
                        raise _two_labels(shard, (told_by[stem], labels[stem]), (member.name, label))
                    told_by.setdefault(stem, member.name)
            else:
                kind = f".{extension}".lower() if stem else ""
                self._others[kind] += 1
                self._examples.setdefault(kind, (str(shard), member.name))
        samples: dict[str, list[_Image]] = {}
        for member in images.values():
            if member.isreg() or self._found(member, images):
                image = _Image(name, member.name, member.offset_data, member.size)
                samples.setdefault(_key(member.name), []).append(image)
        self._shards.append((str(shard), samples, labels))

    def _keep_said(self, shard: str, stem: str, told: Mapping[str, Any]) -> None:
        """Keep what a member tells that may be captions."""
        if self._captions is None:
            return
        auto = self._captions == said.AUTO
        kept = {
            key: value
            for key, value in told.items()
            if (key == said.TXT or key.lower() in said.CUSTOM if auto else key == self._captions)
        }
        if kept:
            self.said.setdefault((shard, stem), {}).update(kept)

    def _found(self, link: tarfile.TarInfo, images: dict[str, tarfile.TarInfo]) -> bool:
        """Whether a link leads to an image of its shard; its bytes are then that image's."""
        folder = "" if link.islnk() else link.name.rpartition("/")[0]
        target = images.get(posixpath.normpath(posixpath.join(folder, link.linkname)))
        if target is None or not target.isreg():
            self._others["link"] += 1
            return False
        link.offset_data, link.size = target.offset_data, target.size
        return True

    def images(self) -> list[_Image]:
        """The images of all shards. Raises DataError where a sample has several that could be meant."""
        fields = Counter(
            _field(key, image)
            for _, samples, _ in self._shards
            for key, members in samples.items()
            for image in members
        )
        shared = {field for field, count in fields.items() if count > 1 and _A_FIELD.fullmatch(field)}
        return [image for shard in self._shards for image in self._of_shard(*shard, shared)]

    def _of_shard(
        self, shard: str, samples: dict[str, list[_Image]], labels: dict[str, int | str], shared: set[str]
    ) -> Iterator[_Image]:
        used, of_key = set[str](), dict[str, list[str]]()
        for stem in labels:
            if _A_FIELD.fullmatch(f"{stem.removeprefix(_key(stem))}.cls"):
                of_key.setdefault(_key(stem), []).append(stem)
        for key, members in samples.items():
            plain = [image for image in members if _field(key, image).count(".") == 1]
            further = [image for image in members if _field(key, image) in shared]
            if len(plain) > 1:
                raise DataError(
                    f"{shard}, {plain[1].name}: a second image of its sample, beside {plain[0].name}; keep one"
                )
            if not plain and len(further) > 1:
                raise DataError(
                    f"{shard}, {further[1].name}: a second image of its sample, beside {further[0].name}; write shards "
                    "with those images alone that are to be trained on"
                )
            passed = further if plain else []
            self._fields.update(_field(key, image) for image in passed)
            for image in members:
                if image not in passed:
                    own = image.name.rpartition(".")[0]
                    stem = own if own in labels else key
                    field = _field(key, image)
                    is_whole = field.count(".") == 1 or _A_FIELD.fullmatch(field)
                    if stem not in labels and is_whole and len(members) - len(passed) == 1:
                        stem = _only(shard, image.name, of_key.get(key, []), labels) or stem
                    used.add(stem)
                    yield image._replace(label=labels.get(stem))
        self._bare += sorted(labels.keys() - used)

    def remarks(self) -> list[str]:
        """What was passed over."""
        fields = ", ".join(sorted(self._fields))
        found = [f"{self._fields.total()} further images of samples were passed over ({fields})"] if fields else []
        found += [f"{self._again} images stand twice under one name, and the later ones count"] if self._again else []
        bare = f"{len(self._bare)} labels of no image were passed over"
        found += [f"{bare} ({printable(self._bare[0])}.*)"] if self._bare else []
        found += [
            f"`{printable(key)}` of {count} .json members was not read: only names of shards tell splits"
            for key, count in self._splits.items()
        ]
        return found + passed_over(self._others)

    def help(self) -> str:
        """What would help where there are no images."""
        for shard, name in self._examples.values():
            if name.lower().endswith(".parquet") or instead(name):
                return f"unpack {shard} into a folder of its own, and give that: it holds {printable(name)}"
        return "WebDataset names them KEY.jpg, KEY.png, ..."


def _two_labels(shard: Path, one: tuple[str, int | str], other: tuple[str, int | str]) -> DataError:
    """What to raise where two members, each with the label that it tells, tell others of one image."""
    told = " and ".join(f"{printable(member)} tells label {label!r}" for member, label in (one, other))
    if one[0] == other[0]:
        return DataError(f"{shard}: {told}, for it stands twice in it; keep one, or take no labels with --no-labels")
    return DataError(
        f"{shard}: {told}, and labels are told once; leave the members of one kind out of the tars, or take no labels "
        "with --no-labels"
    )


def _stems(image: _Image) -> list[tuple[str, str]]:
    """The shard, and names without extension that the members of an image's sample may have."""
    return [(image.shard, stem) for stem in (image.name.rpartition(".")[0], _key(image.name))]


def _only(shard: str, image: str, stems: list[str], labels: dict[str, int | str]) -> str | None:
    """The one name of a label that a sample's image can have, if any. Raises DataError where two tell others."""
    if len({labels[stem] for stem in stems}) > 1:
        raise DataError(
            f"{shard}, {image}: {stems[0]}.* and {stems[1]}.* tell labels of its sample; call the right one KEY.cls"
        )
    return stems[0] if stems else None


def _split_folder(name: str) -> str | None:
    """The folder of a member that is called as a split, with those above it; None where there is none."""
    folders = name.split("/")[:-1]
    level = next((level for level, folder in enumerate(folders, 1) if is_of_split(folder)), 0)
    return "/".join(folders[:level]) or None


def _key(name: str) -> str:
    """What the members of a sample share: their name up to its first dot."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _field(key: str, image: _Image) -> str:
    return image.name[len(key) :]


def _members(shard: Path) -> Iterator[tarfile.TarInfo]:
    """The files and links of a shard."""
    pointers.refuse(shard)
    try:
        with tarfile.open(shard, "r:") as opened:
            for member in opened:
                if member.isreg() or member.islnk() or member.issym():
                    yield member
                opened.members.clear()  # type: ignore[attr-defined]  # or tarfile keeps them all
            end = opened.offset
    except tarfile.TarError as error:
        raise DataError(
            f"{shard}: not a whole tar ({error}); fetch it again, or unpack it if it is compressed"
        ) from error
    with files.explained(shard), shard.open("rb") as content:
        content.seek(end)
        rest = content.read(_BLOCK)
        if rest != bytes(_BLOCK):  # tarfile takes any end for a good one
            raise DataError(f"{shard}: truncated or damaged after byte {end}; fetch it again")
        while rest:
            if rest.strip(b"\0"):
                raise DataError(
                    f"{shard}: more follows after its end at byte {end}, as where tars were put one after the other; "
                    "give them one by one, or join them with `tar --concatenate`"
                )
            rest = content.read(_PIECE)


def _told(shard: Path, member: tarfile.TarInfo, extension: str) -> dict[str, Any]:
    """What a .json member holds, or a .cls member as its `label`, a .txt member as `txt`."""
    content = read_range(shard, member.offset_data, min(member.size, _LONGEST_LABEL + 1))
    if extension == said.TXT:
        return {said.TXT: content.decode(errors="surrogateescape").strip()}
    try:
        if extension == "cls":
            text = content.decode().strip()
            return {"label": int(text) if re.fullmatch(r"-?\d{1,18}", text) else text}
        told = json.loads(content)
        if isinstance(told, dict):
            return told
    except (ValueError, RecursionError):
        pass
    what = "text" if extension == "cls" else "a JSON object"
    raise DataError(f"{shard}, {member.name}: not {what}: {content[:40]!r}; correct it")


def _label(shard: Path, member: tarfile.TarInfo, value: Any) -> int | str | None:
    """The label that a member tells as `value`; None where that is `...`, for it tells none."""
    if value is None or value is ...:
        return None if value is ... else -1
    if not isinstance(value, int | str) or isinstance(value, bool) or value == "":
        raise DataError(
            f"{shard}, {member.name}: label {value!r} is neither a whole number nor a name; write that of its class"
        )
    return value


def _class_names(file: Path) -> list[str]:
    return [line.strip() for line in pointers.text(file).splitlines() if line.strip()] if file.is_file() else []
