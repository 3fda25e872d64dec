"""Sets that come as raw pixels: STL-10's binary files and CIFAR's Python batches. Each image is written as PNG.

    stl10   train_X.bin, train_y.bin, test_X.bin, test_y.bin, unlabeled_X.bin, as many as there are; class_names.txt.
            Labels in the files are 1-based, in the written set 0-based.
    cifar   CIFAR-10's data_batch_1 to 5, test_batch and batches.meta, or CIFAR-100's train, test and meta (fine labels)

A pickle can run any code. The batches are therefore read by an unpickler that makes numpy arrays, and refuses what
makes anything else.
"""

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy._core.multiarray import _reconstruct
from numpy._core.numeric import _frombuffer  # type: ignore[attr-defined]
from numpy.typing import NDArray
from PIL import Image

from emc2dist.data.columns import check_labels
from emc2dist.data.ingest.source import Samples, Source, Split, listing_digest, read_range
from emc2dist.errors import DataError, StorageError
from emc2dist.files import entry_of, pointers

OTHER_CIFAR = "CIFAR's version for C or MATLAB; its python version is read: fetch that"
"""What is wrong with a folder of which `is_other_cifar` is true."""
_STL10_SHAPE = (3, 96, 96)
_STL10_BYTES = 3 * 96 * 96
_CIFAR_SHAPE = (3, 32, 32)
_CIFAR10 = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
_CIFAR100 = {"train": ["train"], "test": ["test"]}


def is_stl10(folder: Path) -> bool:
    """Whether the folder holds STL-10's binary files."""
    return any(folder.glob("*_X.bin"))


def is_other_cifar(folder: Path) -> bool:
    """Whether the folder holds CIFAR's batches as they are for C or for MATLAB."""
    return any((folder / name).is_file() for name in ("batches.meta.txt", "fine_label_names.txt", "batches.meta.mat"))


def is_cifar(folder: Path) -> bool:
    """Whether the folder holds CIFAR's batches."""
    return _is_cifar100(folder) or (folder / "batches.meta").is_file()


class Stl10(Source):
    """STL-10's binary files.

    Raises:
        DataError: a file has a size that no such file has, or labels that fit neither images nor classes; names it.
    """

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.remarks = []
        self.splits: dict[str, Split] = {}
        self.classes = _lines(root / "class_names.txt")
        self._images: list[tuple[str, int]] = []  # of each position: the split it is in, and its number there
        files = [file for file in sorted(root.glob("*_X.bin")) if not file.name.startswith(".")]
        if not files:
            raise DataError(f"{root}: no *_X.bin files; give the folder with STL-10's binary files")
        for file in files:
            self._add(file)
        self.digest = listing_digest(map(entry_of, sorted(root.glob("*.bin"))))

    def _add(self, file: Path) -> None:
        name, size = file.name.removesuffix("_X.bin"), file.stat().st_size
        pointers.refuse(file)
        if size == 0 or size % _STL10_BYTES:
            raise DataError(f"{file}: {size} bytes are no whole number of 96x96 images; fetch STL-10 again")
        first, count = len(self._images), size // _STL10_BYTES
        self._images += [(name, number) for number in range(count)]
        labels = self._labels(file.with_name(f"{name}_y.bin"), count)
        self.splits[name] = Split(np.arange(first, first + count), labels, self.classes)

    def _labels(self, file: Path, count: int) -> NDArray[np.int64] | None:
        if not file.is_file():
            return None
        labels = np.fromfile(file, np.uint8).astype(np.int64) - 1
        if len(labels) != count:
            raise DataError(f"{file}: {len(labels)} labels for {count} images; fetch STL-10 again")
        check_labels(labels, self.classes, lambda n: f"{file}, image {n}")
        return labels

    def samples(self, positions: NDArray[np.int64]) -> Samples:
        """The images at some positions, in that order."""
        return _Stl10Samples(self.root, [self._images[position] for position in positions], self.digest)


@dataclass(frozen=True)
class _Stl10Samples(Samples):
    root: str
    images: list[tuple[str, int]]
    source: str

    def __len__(self) -> int:
        return len(self.images)

    def digest(self) -> str:
        return self.source

    def path(self, k: int) -> str:
        split, number = self.images[k]
        return f"{split}/{number:06}.png"

    def read(self, k: int) -> bytes:
        split, number = self.images[k]
        file = Path(self.root, f"{split}_X.bin")
        pixels = np.frombuffer(read_range(file, number * _STL10_BYTES, _STL10_BYTES), np.uint8).reshape(_STL10_SHAPE)
        return png(pixels.transpose(2, 1, 0))  # each channel is stored column by column


class Cifar(Source):
    """CIFAR's batches. They are held in memory, 184 MB.

    Raises:
        DataError: a file is no batch of CIFAR, or a pickle that makes other things than arrays; names it.
    """

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.remarks = []
        hundred = _is_cifar100(root)
        self._labels_key, names_key = ("fine_labels", "fine_label_names") if hundred else ("labels", "label_names")
        meta = root / ("meta" if hundred else "batches.meta")
        parts = _CIFAR100 if hundred else _CIFAR10
        missing = [name for names in parts.values() for name in names if not (root / name).is_file()]
        if missing:
            self.remarks.append(f"{len(missing)} of CIFAR's batches are missing ({', '.join(missing)})")
        files = {split: [root / name for name in names if name not in missing] for split, names in parts.items()}
        self.classes = _class_names(meta, names_key)
        self._paths: list[str] = []
        self._pixels = np.empty((0, *_CIFAR_SHAPE), np.uint8)
        self.splits = {split: self._split(split, found) for split, found in files.items() if found}
        if not self.splits:
            raise DataError(f"{root}: {meta.name} is there, but none of the batches; fetch CIFAR again")
        everything = [meta, *(file for found in files.values() for file in found)]
        self.digest = listing_digest(map(entry_of, everything))

    def _split(self, split: str, files: list[Path]) -> Split:
        first, labels = len(self._paths), []
        for file in files:
            pixels, found, names = self._batch(file)
            labels.append(found)
            self._pixels = np.concatenate([self._pixels, pixels])
            self._paths += [f"{split}/{name}" for name in names]
        return Split(np.arange(first, len(self._paths)), np.concatenate(labels), self.classes)

    def _batch(self, file: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[str]]:
        batch = _unpickle(file)
        pixels, labels = batch.get("data"), np.array(batch.get(self._labels_key, []))
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3 * 32 * 32,):
            raise DataError(f"{file}: no array `data` of 32x32 images; fetch CIFAR again")
        if labels.shape != (len(pixels),) or labels.dtype.kind != "i":
            raise DataError(f"{file}: {len(pixels)} images need as many whole numbers as `{self._labels_key}`")
        check_labels(labels, self.classes, lambda n: f"{file}, image {n}")
        names = [_text(name) for name in batch.get("filenames", [])]
        if len(names) != len(pixels):
            names = [f"{file.name}-{number:05}.png" for number in range(len(pixels))]
        return pixels.reshape(-1, *_CIFAR_SHAPE), labels.astype(np.int64), names

    def samples(self, positions: NDArray[np.int64]) -> Samples:
        """The images at some positions, in that order."""
        return _CifarSamples([self._paths[position] for position in positions], self._pixels[positions], self.digest)


@dataclass(frozen=True)
class _CifarSamples(Samples):
    paths: list[str]
    pixels: NDArray[np.uint8]
    source: str

    def __len__(self) -> int:
        return len(self.paths)

    def digest(self) -> str:
        return self.source

    def path(self, k: int) -> str:
        return self.paths[k]

    def read(self, k: int) -> bytes:
        return png(self.pixels[k].transpose(1, 2, 0))


def png(pixels: NDArray[np.uint8]) -> bytes:
    """An image [H, W, 3], or [H, W] of grey, as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "png")
    return buffer.getvalue()


def _lines(file: Path) -> list[str]:
    return pointers.text(file).split() if file.is_file() else []


def _is_cifar100(folder: Path) -> bool:
    return all((folder / name).is_file() for name in ("train", "test", "meta"))


def _class_names(meta: Path, key: str) -> list[str]:
    if is_other_cifar(meta.parent):
        raise DataError(f"{meta.parent}: {OTHER_CIFAR}")
    if not meta.is_file():
        raise DataError(f"{meta}: missing; it names CIFAR's classes: fetch CIFAR again")
    names = _unpickle(meta).get(key)
    if not isinstance(names, list):
        raise DataError(f"{meta}: no list `{key}`; fetch CIFAR again")
    return [_text(name) for name in names]


def _text(name: str | bytes) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)


def _latin1(text: str, _encoding: str) -> bytes:
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    """Makes numpy arrays and what pickles hold without any import: numbers, strings, lists, dicts."""

    _ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy.core.numeric", "_frombuffer"): _frombuffer,
        ("numpy._core.numeric", "_frombuffer"): _frombuffer,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _latin1,  # as Python 3 writes bytes for Python 2
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise _Forbidden(f"{module}.{name}")
        return self._ALLOWED[module, name]


class _Forbidden(Exception):
    """A pickle asks for something that CIFAR's do not hold."""


def _unpickle(file: Path) -> dict[str, Any]:
    pointers.refuse(file)
    try:
        with file.open("rb") as opened:
            content = _Unpickler(opened, encoding="bytes").load()
    except _Forbidden as error:
        raise DataError(
            f"{file}: refused: this pickle calls {error}, which no file of CIFAR does; do not trust it"
        ) from error
    except OSError as error:
        raise StorageError(f"{file}: cannot be read ({error.strerror})") from error
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to ask for
        raise DataError(f"{file}: not a pickle as CIFAR's are ({error}); fetch CIFAR again") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: holds no dict, as CIFAR's batches do; fetch CIFAR again")
    return {_text(key): value for key, value in content.items()}
