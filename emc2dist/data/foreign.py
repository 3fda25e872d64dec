"""Parquet files that others wrote: read within bounds, and with errors that name the file."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from emc2dist.errors import DataError, StorageError
from emc2dist.files import Entry, Place
from emc2dist.files.pointers import pointer_at

MAGIC = b"PAR1"
"""At both ends of a Parquet file."""
MOST_TEXT = 2**30
"""Bytes of texts that are read of one row group at once."""
_BUFFER_BYTES = 2**24  # of a column that is read piece by piece: a request to S3 each


@contextmanager
def opened(
    place: Place, entry: Entry, metadata: pq.FileMetaData | None = None, *, group: int | None = None
) -> Iterator[pq.ParquetFile]:
    """Open a file; what is raised on reading it in the `with` names it. `metadata` is its footer, if read before.

    To read one row `group` by batches: messages name it, and it takes the memory of a batch, not of a column.

    Raises:
        DataError: it is no Parquet file, or is damaged.
        StorageError: it cannot be reached, has changed, or takes more memory than there is.
    """
    whole = group is None
    if metadata is None and (what := pointer_at(place, entry)):
        raise DataError(f"{place}: {what}")
    with (
        _naming(str(place) if whole else f"{place}, row group {group}"),
        _saying_what_is_cut(place, entry),
        pq.ParquetFile(
            place.open(entry),
            metadata=metadata,
            pre_buffer=whole,
            buffer_size=0 if whole else _BUFFER_BYTES,
            page_checksum_verification=True,
        ) as file,
    ):
        if metadata is None:
            _check_rows(place, entry, file.metadata)
        yield file


@contextmanager
def _saying_what_is_cut(place: Place, entry: Entry) -> Iterator[None]:
    """Raise DataError in place of pyarrow's error where the file begins as Parquet does and does not end so."""
    try:
        yield
    except pa.ArrowInvalid as error:
        size = min(len(MAGIC), entry.size)
        first, last = (place.read_range(start, size, entry.tag) for start in (0, entry.size - size))
        if first == MAGIC != last:
            raise DataError(f"{place}: truncated: it begins as Parquet and does not end so; fetch it again") from error
        raise


def _check_rows(place: Place, entry: Entry, metadata: pq.FileMetaData) -> None:
    """Numbers of rows are what others allocate by: refuse those that cannot be."""
    counts = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    if min(counts, default=0) < 0 or sum(counts) != metadata.num_rows or metadata.num_rows > entry.size:
        raise DataError(
            f"{place}: its footer speaks of {metadata.num_rows} rows, of {sum(counts)} in {len(counts)} row groups, "
            f"in a file of {entry.size} bytes: damaged; write it again or leave it out"
        )


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Turn what pyarrow raises into an error that names the file."""
    try:
        yield
    except MemoryError as error:  # pyarrow's own is one as well
        raise StorageError(
            f"{what}: reading it takes more memory than there is ({_line(error)}); give it more, or write the "
            "file again with smaller row groups"
        ) from error
    except pa.ArrowException as error:
        raise DataError(f"{what}: not a valid Parquet file ({_line(error)}); write it again or leave it out") from error
    except (OSError, ValueError, OverflowError) as error:  # of bytes that are not what the footer says, or not UTF-8
        raise DataError(f"{what}: cannot be read ({_line(error)}); check that it is whole") from error


def _line(error: BaseException) -> str:
    """What pyarrow says over several lines, in one."""
    return " ".join(str(error).split())


def read_texts(place: Place, entry: Entry, column: str, group: int, rows: int) -> list[str | None]:
    """The texts of a column, as in `image.path`, in one row group of so many rows; None where there is none.

    Raises:
        DataError: the file is damaged, or the texts take more than `MOST_TEXT` bytes. StorageError: see `opened`.
    """
    with opened(place, entry, group=group) as file:
        chunks = (file.metadata.row_group(group).column(number) for number in range(file.metadata.num_columns))
        here = next((chunk for chunk in chunks if chunk.path_in_schema == column), None)
        if here is None or here.physical_type != "BYTE_ARRAY":
            return [None] * rows
        if here.total_uncompressed_size > MOST_TEXT:
            raise DataError(
                f"{place}, row group {group}: column {column} takes more than {MOST_TEXT} bytes; shorten it"
            )
        found = file.read_row_group(group, columns=[column], use_threads=False).column(0).combine_chunks()
    for name in column.split(".")[1:]:
        found = pc.struct_field(found, name)
    return found.cast(pa.large_string()).to_pylist() if len(found) == rows else [None] * rows
