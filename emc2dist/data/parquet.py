"""Images in Parquet files, as Hugging Face writes them: `image: struct<bytes: binary, path: string>`, `label: int64`.

Opening reads the footers alone. An index is found by arithmetic on the row counts in them:

    index -> row group (binary search in the cumulative counts) -> row in the group

The unit of reading is a row group's column of encoded bytes. The most recently used of these are kept, up to
`cache_mib`; images are decoded anew each time. Images and labels are read apart, never one with the other.

Cost: in shuffled order nearly every image of a batch lies in another row group, so where the encoded set does not fit
into `cache_mib` each image costs the reading of a whole group. Then write small row groups (some 100 rows).
"""

import io
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from emc2dist.errors import DataError


@dataclass(frozen=True)
class _Footer:
    """One file, and what its footer says."""

    file: Path
    metadata: pq.FileMetaData
    image: pa.DataType
    label: pa.DataType | None
    classes: tuple[str, ...]


@dataclass(frozen=True)
class _Group:
    """A row group: its file, its number in the file, and the file's row that it begins with."""

    footer: _Footer
    number: int
    first: int


class ParquetImages:
    """The rows of some Parquet files, in order, as images; implements `emc2dist.data.images.Images`.

    `limit` keeps the first so many rows; `cache_mib` bounds the encoded bytes held, in MiB, except that the row group
    in use is always held. Calls may come from several threads. A pickled copy reads no footers and starts with an
    empty cache.

    Raises:
        DataError: a file cannot be read, is not Parquet, or lacks the `image` column; the files' columns differ; or
            there are no rows.
    """

    _labels: NDArray[np.int64] | None

    def __init__(self, files: Sequence[str | Path], *, limit: int | None = None, cache_mib: int = 1024) -> None:
        footers = [_read_footer(Path(file)) for file in files]
        _check_alike(footers)
        self._groups, counts = _row_groups(footers)
        self._ends = np.cumsum(counts, dtype=np.int64)  # of each group, as an index
        self._cache_bytes = cache_mib * 2**20
        rows = int(self._ends[-1]) if counts else 0
        if rows == 0:
            raise DataError(f"{', '.join(map(str, files)) or 'no files'}: no rows; give Parquet files that hold images")
        self._length = rows if limit is None else min(limit, rows)
        self.classes = list(footers[0].classes)
        self.labelled = footers[0].label is not None
        self._forget()

    def __len__(self) -> int:
        return self._length

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_lock", "_cache", "_labels")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def get(self, indices: NDArray[np.int64]) -> list[Tensor]:
        """The images, RGB uint8 [3, H, W] each, upright, in the order asked; an index may be asked for twice.

        Raises:
            DataError: an image is null or cannot be decoded; names file and row.
            IndexError: an index is out of range.
        """
        self._check(indices)
        groups = np.searchsorted(self._ends, indices, side="right")
        images: dict[int, Tensor] = {}
        for position in np.argsort(groups, kind="stable"):  # group by group, so that a group is read once
            images[position] = self._decode(int(groups[position]), int(indices[position]))
        return [images[position] for position in range(len(indices))]

    def labels(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The `label` column at the indices, [n]. The first call reads that column of all files, 8 bytes a row.

        Raises:
            DataError: there is no such column, or a label is null.
            IndexError: an index is out of range.
        """
        if not self.labelled:
            file = self._groups[0].footer.file
            raise DataError(f"{file}: no `label` column; add one of type int64, or do without labels")
        self._check(indices)
        if self._labels is None:
            self._labels = np.concatenate([_read_labels(group) for group in self._groups])
        return self._labels[indices]

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._cache: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        self._labels = None

    def _check(self, indices: NDArray[np.int64]) -> None:
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"indices {indices.min()}..{indices.max()} are outside 0..{len(self) - 1}")

    def _decode(self, number: int, index: int) -> Tensor:
        group, encoded = self._groups[number], self._encoded(number)
        row = index - int(self._ends[number]) + len(encoded)
        value = encoded[row].as_py()
        where = f"{group.footer.file}, row {group.first + row}"
        if value is None:
            raise DataError(f"{where}: the image is null; remove the row or give it an image")
        try:
            return decode(value)
        except Exception as error:  # Pillow's plugins raise whatever they like on damaged bytes
            raise DataError(f"{where}: the image cannot be decoded ({error}); remove or repair the row") from error

    def _encoded(self, number: int) -> pa.ChunkedArray:
        """Encoded bytes of a row group's images, from the cache where it holds them."""
        with self._lock:
            if number in self._cache:
                self._cache.move_to_end(number)
                return self._cache[number]
            encoded = pc.struct_field(_read_column(self._groups[number], "image.bytes"), "bytes")
            held = encoded.nbytes + sum(other.nbytes for other in self._cache.values())
            while held > self._cache_bytes and self._cache:
                _, oldest = self._cache.popitem(last=False)
                held -= oldest.nbytes
            self._cache[number] = encoded
            return encoded


def decode(encoded: bytes) -> Tensor:
    """Any image file that Pillow reads -> RGB uint8 [3, H, W], turned as its EXIF orientation says.

    Alpha is dropped; greys of 16 bits are scaled to 8. Raises whatever Pillow raises on bytes that are no image.
    """
    with Image.open(io.BytesIO(encoded)) as opened:
        image: Image.Image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion clips at 255
            image = Image.fromarray(np.clip(np.asarray(image) // 257, 0, 255).astype(np.uint8))
        if image.mode == "P":
            image = image.convert("RGBA")  # straight to RGB, Pillow warns of palettes with transparency
        pixels = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Turn what pyarrow raises into a DataError that names the file."""
    try:
        yield
    except pa.ArrowException as error:
        raise DataError(f"{file}: not a valid Parquet file ({error}); write it again or leave it out") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error}); check that it is there and whole") from error


def _read_footer(file: Path) -> _Footer:
    with _naming(file), pq.ParquetFile(file) as opened:
        metadata, schema = opened.metadata, opened.schema_arrow
    image = schema.field("image").type if "image" in schema.names else pa.null()
    if not (
        pa.types.is_struct(image) and image.get_field_index("bytes") >= 0 and _is_binary(image.field("bytes").type)
    ):
        raise DataError(
            f"{file}: no column `image` of type struct<bytes: binary>, but {', '.join(schema.names) or 'no columns'}; "
            "write the images as Hugging Face datasets does"
        )
    label = schema.field("label").type if "label" in schema.names else None
    if label is not None and not pa.types.is_integer(label):
        raise DataError(f"{file}: column `label` has type {label}; write it as int64")
    names = (schema.metadata or {}).get(b"classes", b"").decode()
    return _Footer(file, metadata, image, label, tuple(names.split(",")) if names else ())


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _check_alike(footers: list[_Footer]) -> None:
    for footer in footers[1:]:
        for what in ("image", "label", "classes"):
            here, first = getattr(footer, what), getattr(footers[0], what)
            if here != first:
                raise DataError(
                    f"{footer.file}: {what} is {here}, but {first} in {footers[0].file}; "
                    "files of one set need the same columns and classes"
                )


def _row_groups(footers: list[_Footer]) -> tuple[list[_Group], list[int]]:
    """Every row group of every file, in order, and its number of rows."""
    groups, counts = [], []
    for footer in footers:
        first = 0
        for number in range(footer.metadata.num_row_groups):
            groups.append(_Group(footer, number, first))
            counts.append(footer.metadata.row_group(number).num_rows)
            first += counts[-1]
    return groups, counts


def _read_column(group: _Group, column: str) -> pa.ChunkedArray:
    footer = group.footer
    with _naming(footer.file), pq.ParquetFile(footer.file, metadata=footer.metadata) as opened:
        return opened.read_row_group(group.number, columns=[column], use_threads=False).column(0)


def _read_labels(group: _Group) -> NDArray[np.int64]:
    column = _read_column(group, "label")
    if column.null_count:
        row = group.first + pc.index(pc.is_null(column), True).as_py()
        raise DataError(f"{group.footer.file}, row {row}: the label is null; give every row a label or remove it")
    return column.to_numpy().astype(np.int64)
