"""What every kind of source offers: images by position, with their labels, in named splits.

A `Source` lives in the process that leads. It holds names, sizes and labels, never images. For each file to be written
it hands out `Samples`: as much as a worker process needs to read some images, small and picklable.
"""

import hashlib
import os
import re
import shlex
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emc2dist.errors import DataError, StorageError
from emc2dist.files import Entry

_OF_SYSTEMS = ("@eaDir", "__MACOSX", "lost+found", "$RECYCLE.BIN", "System Volume Information")
EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".jp2",
     ".tga", ".ppm", ".pgm", ".pbm", ".pnm")
)  # fmt: skip
"""Of files that are taken for images, in lower case."""
PACKED = (".tar", ".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
"""Extensions of what holds files and has to be unpacked."""
_UNPACKERS = {".gz": "gunzip", ".tgz": "gunzip", ".bz2": "bunzip2", ".xz": "unxz", ".zst": "unzstd"}
"""Commands that leave a .tar of a tar that was compressed."""
_PART = re.compile(  # of a file that was cut: x.tar.part00, x.zip.001, x.tar.gz.aa as `split` has them, x.part1
    rf"(?P<begin>(?P<whole>.+?({'|'.join(map(re.escape, PACKED))}))[._-]?(part[._-]?)?)(\d{{1,4}}|[a-z]{{2}}|aa[a-z])"
    r"|(?P<named>(?P<other>.+?)[._-]part[._-]?)(\d{1,4}|[a-z]{2})",
    re.IGNORECASE,
)
_OF_ZIP = re.compile(r"\.z\d\d+$", re.IGNORECASE)  # beside the last part, which is x.zip
_BEGINS = {
    b"PK\x03\x04": "zip",
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf": "7z",
    b"Rar!": "rar",
}
"""Formats of archives by their first bytes."""
_TAR = slice(257, 262)  # where a tar says `ustar`
_OF_MANY = re.compile(r"-\d+-of-\d+$")  # after the extension, as TensorFlow writes it, which often leaves that out
_AS_FILES = "write each image as a file into train/CLASS/, and give the folder that train/ lies in"
_AS_PNG = f"with PIL.Image.fromarray(ARRAY).save(PNG), {_AS_FILES}"
_INSTEAD = {
    ".pq": "Parquet is known by its name: call it *.parquet",
    ".arrow": "write it as Parquet: each such file with datasets.Dataset.from_file(ARROW).to_parquet(FILE)",
    ".feather": "write it as Parquet, as with pandas.read_feather(FILE).to_parquet(OTHER)",
    **dict.fromkeys((".npy", ".npz"), f"arrays of numpy (numpy.load): {_AS_PNG}"),
    ".mat": f"arrays of MATLAB (scipy.io.loadmat, or h5py from version 7.3 on): {_AS_PNG}",
    **dict.fromkeys((".h5", ".hdf5"), f"arrays in HDF5 (h5py): {_AS_PNG}"),
    **dict.fromkeys((".pkl", ".pickle", ".pt", ".pth"), f"arrays that were pickled: {_AS_PNG}"),
    **dict.fromkeys(
        (".idx3-ubyte", ".idx1-ubyte"), f"arrays of MNIST's kind (torchvision.datasets.MNIST reads them): {_AS_PNG}"
    ),
    **dict.fromkeys(
        (".tfrecord", ".tfrecords", ".tfrec", "-of-", ".lmdb", ".mdb", ".beton"),
        f"records of another loader: {_AS_FILES}",
    ),
    **dict.fromkeys(
        (".nii", ".nrrd", ".mha", ".mhd"),
        f"volumes (nibabel.load or SimpleITK.ReadImage): of each slice make an array from 0 to 255, and {_AS_PNG}",
    ),
    **dict.fromkeys((".svs", ".ndpi", ".mrxs"), f"whole slides (openslide): cut them into tiles, and {_AS_FILES}"),
    **dict.fromkeys(
        (".mp4", ".avi", ".mov", ".mkv", ".webm"), f"videos (ffmpeg -i FILE %06d.jpg writes frames): {_AS_FILES}"
    ),
    **dict.fromkeys(
        (".csv", ".tsv", ".jsonl"),
        "a table is none of images: give the folder that they lie in; if it holds their addresses, fetch them, as "
        "img2dataset does, and give what that writes; if it holds their pixels (pandas.read_csv), make an array of "
        f"each row, and {_AS_PNG}",
    ),
}
_UNREAD = (
    ".heic", ".heif", ".hif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".dcm", ".exr",
    ".svg",
)  # fmt: skip
_SHOWN = 3  # kinds of files that were passed over
_NAMED = 5  # classes, and what else a message names


class Samples(ABC):
    """Some images of a source, 0 <= k < len. Can be pickled into another process."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def path(self, k: int) -> str | None:
        """The name that the image is known by, kept beside its bytes; None where the source gives none."""

    def where(self, k: int) -> str:
        """Where the image is found, from the source's folder on: for messages."""
        return self.path(k) or ""

    @abstractmethod
    def digest(self) -> str:
        """Of what they are read from, as it was listed: other content, another digest."""

    @abstractmethod
    def read(self, k: int) -> bytes:
        """The image as an image file's bytes.

        Raises:
            DataError: this image cannot be had; others of the source can.
            StorageError: the source cannot be reached, or is no longer what it was when it was listed.
        """


@dataclass(frozen=True)
class Split:
    """Images of a source that belong together."""

    positions: NDArray[np.int64]
    """Where they stand in the source, [n]."""
    labels: NDArray[np.int64] | None
    """Class of each, [n], -1 where it has none; None where the split has no labels."""
    classes: list[str] = field(default_factory=list)
    """Names of the classes; empty where the split names none."""
    remarks: list[str] = field(default_factory=list)
    """What a person should know of how this split was read."""


class Source(ABC):
    """A set of images, listed once."""

    root: str
    """What `Samples.where` starts from: a folder, or an s3:// URI."""
    splits: Mapping[str, Split]
    """By the source's own names, read when one is asked for. A source that has no splits has one, `train`."""
    digest: str
    """Of the names, sizes and tags of its files: another content, another digest."""
    remarks: list[str]
    """What a person should know of how the source was read."""
    has_captions = False
    """Whether it is a set that has captions, which `captions` gives where they are called `auto`."""

    def check(self, positions: NDArray[np.int64]) -> None:  # noqa: B027
        """Raise DataError where the listing tells that some of these images cannot be read."""

    def count(self, split: str) -> int | None:
        """Images of a split; None where it would have to be opened to know."""
        return len(self.splits[split].positions)

    @abstractmethod
    def samples(self, positions: NDArray[np.int64]) -> Samples:
        """The images at some positions, in that order."""

    def captions(
        self, positions: NDArray[np.int64], name: str, refuse: Callable[[str, str], None]
    ) -> tuple[list[list[Any]], list[str]]:
        """What is said of the images at some positions, a list of texts of each, and remarks.

        Args:
            positions: int64 [n], of one split.
            name: what captions are called (docs/captions.md); `auto`: what custom calls so.
            refuse: is told where one stands that is of no image.

        Raises:
            DataError: nothing is called so.
        """
        raise DataError(
            f"{self.root}: --captions {name}: captions are read from tar shards, Parquet and tables beside a folder of "
            "images; write one of these"
        )


def passed_over(others: "Counter[str]") -> list[str]:
    """Remarks on files that are no images, and on images of kinds that are not read, counted by extension."""
    photos = Counter({kind: others[kind] for kind in _UNREAD if others[kind]})
    rest, said = others - photos, "were passed over"
    remarks = [f"{photos.total()} images that Pillow cannot read {said} ({_most(photos)}); write them as JPEG"]
    return remarks * bool(photos) + [f"{rest.total()} files that are no images {said} ({_most(rest)})"] * bool(rest)


def unread(others: "Counter[str]") -> int:
    """How many files are images of kinds that are not read, by their extensions."""
    return sum(others[kind] for kind in _UNREAD)


def instead(name: str) -> str | None:
    """What would help where a file is given that holds images and is read by no kind; None where nothing is known."""
    kind = extension(name)
    return _of_packed(name, kind) if kind in PACKED else _INSTEAD.get(kind) or _of_parts(name)


def _of_packed(name: str, kind: str) -> str:
    """What would help where a file is packed, by what it holds where its name tells that."""
    inner = extension(os.path.splitext(name)[0])
    if kind in _UNPACKERS and (inner == ".tar" or kind == ".tgz"):
        return (
            f"unpack {name} first, unless it is a shard of WebDataset: of that make a .tar (`{_UNPACKERS[kind]} "
            f"{shlex.quote(name)}`), which is read as it is, for shards that are unpacked into one folder overwrite "
            "each other's files"
        )
    return f"unpack {name} first" + (f", and then: {_INSTEAD[inner]}" if inner in _INSTEAD else "")


def _of_parts(name: str) -> str | None:
    """What would help where a file is one part of several that an archive was cut into; None where none is known."""
    if _OF_ZIP.search(name):
        whole = f"{name.rpartition('.')[0]}.zip"
        return f"a part of {whole}: join all, as with `zip -s 0 {shlex.quote(whole)} --out whole.zip`, and unpack that"
    part = _PART.fullmatch(name)
    if part is None:
        return None
    begin, whole = part["begin"] or part["named"], part["whole"] or part["other"]
    joined = f"cat {shlex.quote(begin)}* > {shlex.quote(whole)}"
    return f"a part of {whole}: join all in their order, as with `{joined}`, and unpack that"


def instead_by_content(file: Path) -> str | None:
    """The same by a file's first bytes, where its name tells nothing."""
    try:
        with file.open("rb") as opened:
            head = opened.read(_TAR.stop)
    except OSError:  # it is not needed
        return None
    name = printable(file.name)
    if head.startswith(b"PAR1"):
        return f"{name} begins as Parquet, which is known by its name: call it *.parquet"
    packed = next((kind for begin, kind in _BEGINS.items() if head.startswith(begin)), None)
    packed = "tar" if head[_TAR] == b"ustar" else packed
    return f"{name} begins as {packed}: unpack it, joined with its other parts if it is one" if packed else None


def extension(name: str) -> str:
    """What the end of a file's name tells of its kind, in lower case: `.png`, nothing where it tells none.

    Of `x.tfrecord-00000-of-00010` .tfrecord, of `train-00000-of-00010` -of-, of `train-images-idx3-ubyte` .idx3-ubyte,
    of `x.nii.gz`, which is read as it is, .nii.
    """
    whole = _OF_MANY.sub("", name)
    known = whole.lower().replace("-idx", ".idx").replace(".nii.gz", ".nii")
    kind = os.path.splitext(known)[1]
    return kind or "-of-" * (whole != name)


def hidden_by(path: str) -> str | None:
    """What hides a file: the first part of its path that is hidden or a file system's own, as `.git/`; None if none."""
    *folders, name = path.split("/")
    for folder in folders:
        if (folder.startswith(".") and folder not in (".", "..")) or folder in _OF_SYSTEMS:
            return f"{folder}/"
    if name.startswith("._"):  # what macOS keeps of a file
        return "._*"
    return name if name.startswith(".") else None


def hidden(files: "Counter[str]") -> list[str]:
    """A remark on hidden files, counted by what hides them, if there are any."""
    return [f"{files.total()} hidden files were passed over ({_most(files)})"] if files.total() else []


def some(names: Sequence[str]) -> str:
    """The first few of some names, for a message."""
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def _most(files: "Counter[str]") -> str:
    return ", ".join(f"{printable(what) or 'no extension'} {count}" for what, count in files.most_common(_SHOWN))


def listing_digest(listed: Iterable[Entry]) -> str:
    """SHA-256 of the names, sizes and tags of files, hexadecimal."""
    digest = hashlib.sha256()
    for name, size, tag in listed:
        digest.update(f"{name}\0{size}\0{tag}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def read_range(file: Path, start: int, size: int) -> bytes:
    """`size` bytes of a file from `start`. Raises StorageError where they are not there, or no longer."""
    try:
        with file.open("rb", buffering=0) as opened:
            content = os.pread(opened.fileno(), size, start)
    except OSError as error:
        raise StorageError(f"{file}: cannot be read ({error.strerror}); bring it back, then run again") from error
    if len(content) != size:
        raise StorageError(f"{file}: truncated while it was read; run again when it is whole")
    return content


def escaped(names: Iterable[str]) -> list[str]:
    """A remark on names that are written otherwise than they are, see `printable`, if there are any."""
    odd = [name for name in names if not name.isprintable()]
    if not odd:
        return []
    return [
        f"{len(odd)} images have names that are not UTF-8, or hold characters that are not seen, and were written "
        f"escaped, as {printable(odd[0])}; name them anew, as with `convmv -f GBK -t UTF-8 -r --notest FOLDER`, to "
        "have them as they were meant"
    ]


def printable(name: str) -> str:
    """A file's name as proper Unicode on one line: bytes that are none are escaped, and so are control characters."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
