"""Folders of image files.

    imagefolder   classes and splits by the folders that images lie in (`layout`). Classes are numbered in the order of
                  their sorted names, as torchvision's ImageFolder numbers them
    classes       every folder of the root is a class, one split `train`
    flat          images at any depth, one split `train`, no labels

The labels of a split whose images lie in no folders of classes are looked for in text files beside them, as in
Tiny-ImageNet's val_annotations.txt, ImageNet's LOC_val_solution.csv or Hugging Face's metadata.csv (`annotations`).

Images are known by their extension. Hidden files and folders, and those of file systems and their tools, are passed
over, and counted; links are followed. Where --split names folders of the root, what lies in none that tells a split is
left out. An image is written as the very bytes of its file.
"""

import os
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from emc2dist import files
from emc2dist.data.catalogue import PARTITION, list_set, on_sets
from emc2dist.data.ingest import said
from emc2dist.data.ingest.annotations import PARQUET, TABLES, TEXTS, Annotations, is_of_all
from emc2dist.data.ingest.layout import Remark, Where, arrange, masks_among, told_splits
from emc2dist.data.ingest.pixels import OTHER_CIFAR, is_cifar, is_other_cifar, is_stl10
from emc2dist.data.ingest.source import (
    EXTENSIONS,
    PACKED,
    Samples,
    Source,
    Split,
    escaped,
    extension,
    hidden,
    hidden_by,
    instead,
    instead_by_content,
    listing_digest,
    passed_over,
    printable,
    some,
    unread,
)
from emc2dist.data.splits import alone, is_of_split, split_of, tells_split
from emc2dist.data.texts.advice import as_texts
from emc2dist.errors import DataError, StorageError
from emc2dist.files import Entry

_FEW = 5  # classes, or folders, that are compared with each other
_SETS = (".parquet", ".tar")
_OF_TARS = (
    "{} .cls files tell labels in tars alone: give the tars that they were unpacked from, for shards that are unpacked "
    "into one folder overwrite each other's files; or write labels.csv"
)
_BEGINS = re.compile(rb"\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a|RIFF.{4}WEBP", re.DOTALL)
_HEAD = 12  # bytes that tell
MAX_BYTES = 2**30
"""A file larger than this is no image, and is not read into memory to find out."""


class Folder(Source):
    """Image files below a folder, read as one of the `kinds` above.

    Raises:
        DataError: no images there, or their places say two things at once; names one of them.
    """

    def __init__(self, root: Path, kind: str, splits: Sequence[str] = (), *, labels: bool = True) -> None:
        self.root = str(root)
        listing = Listing(root)
        beside = _beside(listing.images, splits) if kind == "imagefolder" else []
        left = set(beside)
        self._images = [image for image in listing.images if image not in left]
        self._tables = listing.texts + listing.sets[".parquet"]
        self._said: dict[str, tuple[Mapping[str, list[Any]], list[str]]] = {}
        self._names = [image.name for image in self._images]
        if not self._names:
            others = "".join(f" ({remark})" for remark in hidden(listing.hidden) + listing.passed_over())
            raise DataError(f"{root}: no images{others}; {_help(root, listing)}")
        self.digest = listing_digest(self._images)
        inside = {folder for image in self._names for folder in image.split("/")[:-1]}
        self.remarks, self._on_split = alone(root, inside), dict[str, list[str]]()
        if beside:
            example = printable(beside[0].name)
            self.remarks.append(f"{len(beside)} images in no folder of a split were left out, such as {example}")
        places = self._arranged(kind, labels)
        names = [image.name for image in listing.images]
        tables = [*listing.texts, *filter(is_of_all, listing.sets[PARQUET])]
        self._annotations = Annotations(root, tables, names, labels=labels and kind == "imagefolder")
        asked = {text.partition("=")[0] for text in splits} or {place.split for place in places}
        self.splits = self._labelled(places, asked)
        split_of_image = {name: place.split for name, place in zip(self._names, places, strict=True)}
        labelled = all(split.labels is not None for name, split in self.splits.items() if name in asked)
        self.remarks += self._annotations.remarks(split_of_image, labelled=labelled)
        listing.others.subtract(extension(name) for name in self._annotations.told)
        passed = hidden(listing.hidden) + listing.passed_over() + _on_bare(listing.bare) + escaped(self._names)
        unpacked = listing.others[".cls"] if labels and kind == "imagefolder" else 0
        self.remarks = passed + [_OF_TARS.format(unpacked)] * bool(unpacked) + self.remarks
        self.remarks += _on_classes(self._names, places)

    def _arranged(self, kind: str, labels: bool) -> list[Where]:
        folders = [_folders(name) for name in self._names]
        if kind == "flat":
            self._refuse_merged(folders)
            return [Where("train", None)] * len(folders)
        if kind == "classes":
            if () in folders:
                bare = printable(self._names[folders.index(())])
                raise DataError(f"{self.root}: {bare} lies in no folder of a class; move it into one")
            return [Where("train", found[0]) for found in folders]
        places, remarks = self._by_folders(folders, labels)
        for split, told in remarks:
            (self.remarks if split is None else self._on_split.setdefault(split, [])).append(told)
        return places

    def _by_folders(self, folders: list[tuple[str, ...]], labels: bool) -> tuple[list[Where], list[Remark]]:
        masked = masks_among(self._names)
        if masked:
            image, mask = map(printable, masked)
            raise DataError(
                f"{self.root}: {mask} looks like the mask of {image}, and so do more; move the masks elsewhere, or "
                "take them for images with --kind classes (labels by folders) or --kind flat (no labels, no splits)"
            )
        try:
            return arrange(folders, labels=labels)
        except DataError as error:
            raise DataError(f"{self.root}: {error}") from error

    def _refuse_merged(self, folders: list[tuple[str, ...]]) -> None:
        """Raise DataError where splits are made one that `--no-labels` keeps apart; where it does not, say so."""
        told = told_splits(folders)
        counted = ", ".join(f"{name}/ ({count} images)" for name, count in sorted(told.items()))
        what = f"--kind flat takes all images for training, and folders tell splits: {counted}"
        try:
            kept = {split_of(place.split) for place in self._by_folders(folders, False)[0]} if told else set()
        except DataError:
            kept = set()
        if len(kept) > 1 and all(map(is_of_split, told)):
            raise DataError(
                f"{self.root}: {what}; give --no-labels instead, which keeps the splits, or as the source the folder "
                "that is to train"
            )
        self.remarks += [what] if told else []

    def _labelled(self, places: list[Where], asked: set[str]) -> dict[str, Split]:
        members: dict[str, list[int]] = {}
        for position, place in enumerate(places):
            members.setdefault(place.split, []).append(position)
        known = {place.kind for place in places if place.kind is not None} or None
        kinds = dict[str, Sequence[str | None] | None]()
        for split in sorted(members, key=lambda name: (split_of(name) != "train", name)):
            try:
                kinds[split] = self._kinds(split, members[split], places, known)
            except DataError:
                if split in asked:
                    raise
                kinds[split] = None  # nobody will look
            if known is None and kinds[split] is not None:
                known = {kind for kind in kinds[split] or () if kind is not None}
                self.remarks.append(f"{len(known)} classes, by these labels: {some(sorted(known))}")
        named = {kind for told in kinds.values() for kind in told or () if kind is not None}
        classes = sorted((known or set()) | named)
        number: dict[str | None, int] = {name: label for label, name in enumerate(classes)}
        splits = {}
        for split in sorted(members):
            told = kinds[split]
            labels = None if told is None else np.array([number.get(kind, -1) for kind in told], np.int64)
            on_split = self._on_split.get(split, [])
            splits[split] = Split(np.array(members[split], np.int64), labels, classes, on_split)
        return splits

    def _kinds(
        self, split: str, members: list[int], places: list[Where], known: set[str] | None
    ) -> Sequence[str | None] | None:
        """The class of each image of a split, None where it is withheld; None where nothing tells any. Adds remarks."""
        names = [self._names[position] for position in members]
        kinds = [kind for position in members if (kind := places[position].kind) is not None]
        if len(kinds) == len(members):
            self._annotations.check(split, dict(zip(names, kinds, strict=True)))
            return kinds
        found, remarks = self._annotations.read(split, names, known)
        self._on_split.setdefault(split, []).extend(remarks)
        return found

    def check(self, positions: NDArray[np.int64]) -> None:
        """Raise DataError where some of these images are links that lead nowhere."""
        odd = [f"{self.root}/{self._names[n]}" for n in positions if self._images[n].size < 0]
        lost = [(file, why) for file in odd if (why := files.leads_nowhere(file))]
        if lost:
            file, why = map(printable, lost[0])
            raise DataError(
                f"{file}: {why}, as {len(lost)} of {len(positions)} images are; bring back what they lead to, or leave "
                "them out with --skip-unreadable"
            )

    def samples(self, positions: NDArray[np.int64]) -> Samples:
        """The images at some positions, in that order."""
        return _Files(self.root, [self._images[position] for position in positions])

    @override
    def captions(
        self, positions: NDArray[np.int64], name: str, refuse: Callable[[str, str], None]
    ) -> tuple[list[list[Any]], list[str]]:
        if name not in self._said:  # one table may tell of several splits
            found, used, remarks = said.of_tables(Path(self.root), self._tables, self._names, name, refuse)
            self._said[name] = found, remarks
            wrong = f"{len(used)} tables ({', '.join(map(printable, used))}) were not read"  # of labels it was said
            self.remarks = [remark for remark in self.remarks if not remark.startswith(wrong)]
        found, remarks = self._said[name]
        return [found.get(self._names[position], []) for position in positions], remarks


@dataclass(frozen=True)
class _Files(Samples):
    root: str
    images: list[Entry]

    def __len__(self) -> int:
        return len(self.images)

    def path(self, k: int) -> str:
        return printable(self.images[k].name)

    def digest(self) -> str:
        return listing_digest(self.images)

    def read(self, k: int) -> bytes:
        file = Path(self.root, self.images[k].name)
        try:
            return _read_bounded(file)
        except OSError as error:
            if not file.parent.is_dir():  # the disk is gone, and not one image
                raise StorageError(f"{file.parent}: gone while it was read; bring it back, then run again") from error
            what = files.leads_nowhere(file) or f"cannot be read ({error.strerror or error})"
            raise DataError(printable(what)) from error


class Listing:
    """The files below a folder: `images` by their names from the folder on, sorted; `texts`, which may tell labels, by
    theirs; Parquet files and tars by extension, as `sets`; as `unnamed`, images that no extension tells; all others by
    extension, as `others`, with an example of each that is not unpacked beside it; by what hides them, files that are
    hidden; and as `bare`, folders without an image, each with how many there are that are not read.

    A link to a folder is followed, unless it leads to one that it lies in.
    """

    def __init__(self, root: Path) -> None:
        self.others, self.hidden = Counter[str](), Counter[str]()
        self.texts: list[str] = []
        self.unnamed: list[str] = []
        self.sets: dict[str, list[str]] = {extension: [] for extension in _SETS}
        self.examples: dict[str, str] = {}
        self.bare: dict[str, int] = {}
        self.images = sorted(self._images(str(root), "", ()))

    def _images(self, folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> list[Entry]:
        identity, entries = _scan(folder)
        if identity in above:
            return []
        images, before = list[Entry](), self._unread()
        for entry in entries:
            if entry.is_dir():
                name = f"{entry.name}/"
                if hidden_by(name):
                    self.hidden[name] += sum(len(names) for _, _, names in os.walk(entry.path))
                else:
                    images += self._images(entry.path, prefix + name, (*above, identity))
            elif what := hidden_by(entry.name):
                self.hidden[what] += 1
            elif Path(entry.name).suffix.lower() in EXTENSIONS and (image := _image(entry, prefix)):
                images.append(image)
            else:
                self._pass_over(entry, prefix)
        if not images:
            self.bare[prefix] = self._unread() - before
        return images

    def _pass_over(self, entry: os.DirEntry[str], prefix: str) -> None:
        kind, name = extension(entry.name), prefix + entry.name
        if kind in ("", *TEXTS, *TABLES):  # a folder of images, or a table of labels
            files.refuse_lost(entry.path)
        if kind not in (*TEXTS, *TABLES) and _begins_as_image(entry):
            self.unnamed.append(name)
            return
        self.others[kind] += 1
        if kind in _SETS or not _is_unpacked(Path(entry.path)):
            self.examples.setdefault(kind, name)
        if kind in _SETS:
            self.sets[kind].append(name)
        if kind in (*TEXTS, *TABLES) and entry.is_file():
            self.texts.append(name)

    def _unread(self) -> int:
        """How many images were passed over so far."""
        return unread(self.others) + len(self.unnamed)

    def passed_over(self) -> list[str]:
        """Remarks on files that are not read."""
        shown = some([printable(name) for name in self.unnamed])
        remark = f"{len(self.unnamed)} images whose names do not tell that they are some were passed over ({shown})"
        return [f"{remark}; call them *.jpg, *.png, ..."] * bool(self.unnamed) + passed_over(+self.others)


def _begins_as_image(entry: os.DirEntry[str]) -> bool:
    """Whether the first bytes of a file are those of PNG, JPEG, GIF or WebP."""
    try:
        if not entry.is_file():
            return False
        with open(entry.path, "rb", buffering=0) as opened:
            return _BEGINS.match(opened.read(_HEAD)) is not None
    except OSError:  # it is not needed
        return False


def _is_unpacked(file: Path) -> bool:
    """Whether what a packed file holds lies beside it, by its name."""
    inner = file.with_suffix("")
    return file.suffix.lower() in PACKED and (inner.exists() or _is_unpacked(inner))


def _beside(images: list[Entry], splits: Sequence[str]) -> list[Entry]:
    """The images in no folder of a split, where `splits`, written as --split, name such folders of the root."""
    wanted = {text.partition("=")[0] for text in splits}
    tops = [next(iter(_folders(image.name)), "") for image in images]
    if not wanted or not wanted.issubset(top for top in tops if tells_split(top)):
        return []
    return [image for image, top in zip(images, tops, strict=True) if not tells_split(top)]


def _help(root: Path, listing: Listing) -> str:
    """What would help where a folder holds no images."""
    if listing.unnamed:
        return "give the images their extensions"
    examples = sorted(listing.examples.values(), key=lambda name: (extension(name) in TABLES, name))
    for name in examples:
        above = root / name.rpartition("/")[0]
        suffix = Path(name).suffix.lower()
        if suffix == ".parquet" and "=" in above.name:
            return f"{printable(str(above))} is {PARTITION}"
        if is_other_cifar(above):
            return f"{printable(str(above))} is {OTHER_CIFAR}"
        if suffix in _SETS:
            return _to_give(root, suffix, listing.sets[suffix])
        if is_stl10(above) or is_cifar(above):
            return f"give {printable(str(above))}, which holds {printable(Path(name).name)}"
    helped = [told for name in examples if (told := instead(printable(name)) or instead_by_content(root / name))]
    texts = [told for name in examples if (told := as_texts(root / name))]
    if helped:
        return "; ".join(texts[:1] + helped[:1])
    return (
        "".join(f"{told}; else " for told in texts[:1])
        + f"give a folder that holds some ({', '.join(sorted(EXTENSIONS))})"
    )


def _to_give(root: Path, suffix: str, names: list[str]) -> str:
    """Which folder to give for some Parquet files or tars, where all lie too deep."""
    holders = _holders(names)
    given = [printable(str(root / holder)) for holder in holders]
    if len(given) > 1:
        return f"give one of {some(given)}, each of which holds *{suffix}"
    of_folder = {PurePosixPath(name).parent: PurePosixPath(name) for name in reversed(names)}
    shown = some(sorted(printable(str(name.relative_to(holders[0]))) for name in of_folder.values()))
    if holders == [PurePosixPath()]:
        sets = on_sets(list_set(files.at(root)))
        if suffix == ".parquet" and sets:
            return sets
        return f"leave out --kind or give --kind {suffix[1:]}, for it holds {shown}"
    return f"give {given[0]}, which holds {shown}"


def _holders(names: list[str]) -> list[PurePosixPath]:
    """The folders in which some files lie, or one folder below, as they are read; one alone where that can be.

    None is the folder of a split if it can be the one above, which tells the splits apart.
    """
    folder = PurePosixPath(posixpath.commonpath([name.rpartition("/")[0] for name in names]))
    depth = max(len(PurePosixPath(name).relative_to(folder).parts) for name in names)
    if depth > 2:
        return sorted({holder for name in names for holder in _holders([name])})
    return [folder.parent if depth == 1 and tells_split(folder.name) else folder]


def _read_bounded(file: Path) -> bytes:
    """The content of a file that could be an image. Raises OSError."""
    with file.open("rb") as opened:
        if os.fstat(opened.fileno()).st_size > MAX_BYTES:
            raise OSError(f"more than {MAX_BYTES} bytes, which no image has")
        return opened.read()


def _folders(name: str) -> tuple[str, ...]:
    """The folders of a file, composed: macOS writes accents as characters of their own."""
    return tuple(unicodedata.normalize("NFC", printable(name)).split("/")[:-1])


def _on_bare(folders: dict[str, int]) -> list[str]:
    """Remarks on the outermost folders without an image."""
    outermost = {name: n for name, n in sorted(folders.items()) if _above(name) not in folders}
    closed, empty = ([printable(name) for name, n in outermost.items() if bool(n) == held] for held in (True, False))
    remarks = [f"{len(closed)} folders hold no image that can be read, and so are no classes: {some(closed)}"]
    return remarks * bool(closed) + [f"{len(empty)} folders without an image: {some(empty)}"] * bool(empty)


def _on_classes(names: list[str], places: list[Where]) -> list[str]:
    """What was taken for classes, if anything was; and what of it, or else of all folders, holds the same names."""
    kinds = sorted({place.kind for place in places if place.kind is not None})
    if not kinds:
        return _on_twins(names, [name.rpartition("/")[0] for name in names])
    return [
        f"{len(kinds)} classes, by the names of folders: {some(kinds)}",
        *_on_twins(names, [p.kind for p in places]),
    ]


def _on_twins(names: list[str], within: Sequence[str | None]) -> list[str]:
    """Remarks on pairs of few classes or folders that hold the same names, as images and their masks do."""
    stems: dict[str, set[str]] = {}
    for name, one in zip(names, within, strict=True):
        if one is not None:
            stems.setdefault(one, set()).add(name.rpartition("/")[2])
    remarks = []
    for one, other in combinations(sorted(stems), 2) if len(stems) <= _FEW else ():
        alike = {_stem(name) for name in stems[one]} & {_stem(name) for name in stems[other]}
        if len(alike) == len(stems[one]) == len(stems[other]) and not stems[one] & stems[other]:
            remarks.append(
                f"{one}/ and {other}/ hold {len(alike)} files of the same names with other extensions: if one holds "
                "masks, or another rendering, give the folder with the images alone"
            )
    return remarks


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _above(folder: str) -> str:
    """The folder that a folder lies in, both with a slash at their end; of those at the root, nothing."""
    return folder[: folder.rstrip("/").rfind("/") + 1]


def _scan(folder: str) -> tuple[tuple[int, int], list[os.DirEntry[str]]]:
    """What tells a folder from all others however it is reached, and what is in it, by name."""
    try:
        status = os.stat(folder)
        with os.scandir(folder) as scan:
            entries = list(scan)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be listed ({error.strerror}); check that it may be read") from error
    return (status.st_dev, status.st_ino), sorted(entries, key=lambda entry: entry.name)


def _image(entry: os.DirEntry[str], prefix: str) -> Entry | None:
    """What is named as an image; of -1 bytes where it cannot be looked at, as a link that leads nowhere."""
    name = prefix + entry.name
    try:
        if entry.is_file():
            status = entry.stat()
            return Entry(name, status.st_size, str(status.st_mtime_ns))
        return Entry(name, -1, "") if entry.is_symlink() and not Path(entry.path).exists() else None
    except OSError:
        return Entry(name, -1, "")
