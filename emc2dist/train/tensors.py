"""Safetensors files of large columns, written and read a piece at a time, so that none need fit into memory twice.

The safetensors library reads what `Writer` wrote, and `columns` reads what the library wrote.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from stat import S_IMODE
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emc2dist.store import Column

_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "bool": "BOOL"}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


class Writer:
    """A new file of columns of `rows` rows each, to be written in any order; a context manager, which closes it."""

    def __init__(self, path: Path, columns: Mapping[str, Column], rows: int) -> None:
        header: dict[str, dict[str, Any]] = {}
        end = 0
        # Widest first, as the library does: every column then starts at a multiple of its item size.
        for name in sorted(columns, key=lambda name: (-np.dtype(columns[name].dtype).itemsize, name)):
            dtype, shape = columns[name]
            begin, end = end, end + rows * _row_nbytes(columns[name])
            header[name] = {"dtype": _NAMES[dtype], "shape": [rows, *shape], "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._starts = {name: 8 + len(text) + entry["data_offsets"][0] for name, entry in header.items()}
        self._columns = columns
        self._file = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)

    def write(self, start: int, values: Mapping[str, NDArray]) -> None:
        """Put rows from `start` on: [n, *shape] for each column, of its dtype."""
        for name, value in values.items():
            self._file.seek(self._starts[name] + start * _row_nbytes(self._columns[name]))
            # Not through a memory map: a full disk is then an OSError, where it would be a SIGBUS.
            self._file.write(np.ascontiguousarray(value).data)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()


@contextmanager
def as_any_file(path: Path) -> Iterator[None]:
    """Give a file that is written meanwhile the rights of any new one: the library's are for their owner alone."""
    path.touch()
    rights = S_IMODE(path.stat().st_mode)
    yield
    if S_IMODE(path.stat().st_mode) != rights:
        path.chmod(rights)


def columns(path: Path) -> dict[str, NDArray]:
    """The columns of a file, read-only; what is not asked for is not read.

    Raises:
        ValueError, LookupError, TypeError: it is no such file, or cut short.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            raise ValueError(f"a header of {size} bytes, which is more than the file has")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return {name: _column(path, 8 + size, **entry) for name, entry in header.items()}


def _column(path: Path, data: int, dtype: str, shape: list[int], data_offsets: list[int]) -> NDArray:
    if 0 in shape:
        return np.empty(shape, _DTYPES[dtype])  # nothing cannot be mapped
    return np.asarray(np.memmap(path, _DTYPES[dtype], "r", data + data_offsets[0], tuple(shape)))


def _row_nbytes(column: Column) -> int:
    return np.dtype(column.dtype).itemsize * int(np.prod(column.shape, dtype=np.int64))
