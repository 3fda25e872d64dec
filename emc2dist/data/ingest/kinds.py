"""Which kind of source lies at a path, by what is there."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from emc2dist import files
from emc2dist.config import S3
from emc2dist.data.catalogue import MANIFEST, UNFINISHED, nothing_at
from emc2dist.data.ingest.annotations import is_of_all
from emc2dist.data.ingest.folder import Folder
from emc2dist.data.ingest.parquet import ParquetSource
from emc2dist.data.ingest.pixels import Cifar, Stl10, is_cifar, is_stl10
from emc2dist.data.ingest.source import EXTENSIONS, Source, instead, instead_by_content, printable
from emc2dist.data.ingest.tar import Tar
from emc2dist.data.texts.advice import as_texts
from emc2dist.errors import DataError

KINDS = ("imagefolder", "classes", "flat", "stl10", "cifar", "tar", "parquet")
_FOLDERS = ("imagefolder", "classes", "flat")


def recognise(path: str) -> str:
    """The kind of the source at `path`, one of `KINDS`.

    Raises:
        DataError: nothing there, or a file that is no source.
    """
    if files.is_remote(path):
        return "parquet"
    place = files.local(path)
    with files.explained(path):
        if place.is_file():
            suffix = place.suffix.lower()
            if suffix in (".parquet", ".tar"):
                return suffix.removeprefix(".")
            what = instead(printable(place.name)) or instead_by_content(place)
            what = what or "give the folder that the images lie in, or a .tar or .parquet file"
            texts = as_texts(place)
            raise DataError(f"{path}: no source of images; {f'{texts}; else ' if texts else ''}{what}")
        if not place.is_dir():
            raise nothing_at(path, "give the folder or file that holds the images")
        if (place / MANIFEST).exists() or (place / UNFINISHED).exists():
            return "parquet"
        kinds = [kind for kind, holds in _SIGNS.items() if holds(place)]
        beside = next(images_below(place), None) if kinds in (["parquet"], ["tar"]) else None
        if beside and kinds == ["parquet"] and all(map(is_of_all, _found(place, ".parquet"))):  # tables of labels
            return "imagefolder"
        kinds += ["imagefolder"] if beside else []
        if len(kinds) > 1:
            also = f", with images as {beside}" if beside else ""
            raise DataError(
                f"{path}: could be read as {' or as '.join(kinds)}{also}; say which is the set: "
                f"--kind {' or --kind '.join(kinds)}"
            )
        return kinds[0] if kinds else "imagefolder"


def open_source(
    path: str,
    kind: str,
    s3: S3 | None,
    cache_dir: str,
    splits: Sequence[str] = (),
    *,
    labels: bool = True,
    captions: str | None = None,
) -> Source:
    """List the source of a given kind at `path`. `s3` and `cache_dir` are for Parquet sets. `splits`, written SOURCE or
    SOURCE=NAME, are those that will be asked for; folders of images beside them are left out. Without `labels` those of
    Parquet sets, in tars and in text files beside images are not even looked at. `captions` is what those in tars are
    called that `Source.captions` will be asked for; None: none will be.

    Raises:
        DataError: it is no such source, or holds no images; names file and row where there is one.
        StorageError: it cannot be reached.
    """
    source = _opened(path, kind, s3, cache_dir, splits, labels, captions)
    if kind not in _FOLDERS and not files.is_remote(path) and files.local(path).is_dir():
        beside = sorted(map(printable, images_below(files.local(path))))
        what = f"{len(beside)} images beside what is read as {kind} were passed over"
        source.remarks += [f"{what}, as {beside[0]}"] if beside else []
    return source


def _opened(
    path: str, kind: str, s3: S3 | None, cache_dir: str, splits: Sequence[str], labels: bool, captions: str | None
) -> Source:
    if kind == "parquet":
        return ParquetSource(path, s3, cache_dir, labels=labels)
    if files.is_remote(path):
        raise DataError(f"{path}: only Parquet sets are read from S3; copy the files to a disk first")
    place = files.local(path)
    with files.explained(path):
        if not place.exists():
            raise nothing_at(path, "give the folder or file that holds the images")
        if not place.is_dir() and kind != "tar":
            raise DataError(f"{path}: a source of kind {kind} is a folder, and this is a file")
        if kind == "tar":
            return Tar(place, labels=labels, captions=captions)
        return Folder(place, kind, splits, labels=labels) if kind in _FOLDERS else _OPEN[kind](place)


def _found(folder: Path, extension: str) -> list[str]:
    """The names of such files that a folder, or one in it that is no set of its own, holds and that are not hidden."""
    inner = [one for one in folder.iterdir() if not one.name.startswith((".", "_"))]
    files_here = [file for file in inner if file.is_file()]
    for one in inner:
        if one.is_dir() and not (one / MANIFEST).exists():
            files_here += [file for file in one.iterdir() if not file.name.startswith((".", "_"))]
    return [file.name for file in files_here if file.suffix.lower() == extension]


def images_below(folder: Path) -> Iterator[str]:
    """The names of image files below a folder that are not hidden."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if Path(name).suffix.lower() in EXTENSIONS and not name.startswith("."):
                yield os.path.relpath(os.path.join(parent, name), folder)


_SIGNS: dict[str, Callable[[Path], bool]] = {
    "stl10": is_stl10,
    "cifar": is_cifar,
    "parquet": lambda folder: bool(_found(folder, ".parquet")),
    "tar": lambda folder: bool(_found(folder, ".tar")),
}

_OPEN: dict[str, Callable[[Path], Source]] = {
    "stl10": Stl10,
    "cifar": Cifar,
}
