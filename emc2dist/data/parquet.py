"""Images in Parquet, on disk or on S3, by index, as Hugging Face writes them, or nearly so (`emc2dist.data.columns`).

What there is stands in the catalogue (`emc2dist.data.catalogue`), where the bytes of an image lie is found by
`emc2dist.data.encoded`, and images are decoded anew each time. Labels are read only when asked for, and never with the
images.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from emc2dist import files
from emc2dist.config import S3
from emc2dist.data.cache import DiskCache
from emc2dist.data.catalogue import Catalogue, open_catalogue
from emc2dist.data.decode import decode
from emc2dist.data.encoded import EncodedImages, Traffic
from emc2dist.data.foreign import read_texts
from emc2dist.data.kept import cache_folder
from emc2dist.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

_MOST_THREADS = 64
_SHARE = 16  # images that are worth a thread


class ParquetImages:
    """One split of a Parquet set; implements `emc2dist.data.images.Images`.

    `limit` keeps the first so many rows. Calls may come from several threads. A pickled copy reads nothing when it is
    made, sees the same files, and shares the cache. Images are decoded on as many threads as torch uses in the process.
    """

    def __init__(self, catalogue: Catalogue, cache: DiskCache, *, limit: int | None = None) -> None:
        self.catalogue, self._encoded = catalogue, EncodedImages(catalogue, cache)
        self._length = min(catalogue.rows, limit or catalogue.rows)
        self._begin()
        self.remarks = catalogue.remarks + catalogue.on_labels

    @classmethod
    def open(
        cls,
        path: str | Path,
        split: str = "train",
        *,
        s3: S3 | None = None,
        limit: int | None = None,
        cache_dir: str | Path = "~/.cache/emc2dist",
        cache_mib: int = 16_384,
    ) -> "ParquetImages | None":
        """Open a split of the set at `path`: a file, a folder or an `s3://` URI. None where the split is not
        there, except that `train` has to be.

        `cache_dir` may hold `cache_mib` MiB of fetched and decoded images.

        Raises:
            DataError: see `emc2dist.data.catalogue.open_catalogue`. StorageError: the path cannot be read.
        """
        kept = cache_folder(cache_dir)
        catalogue = open_catalogue(files.at(path, s3), split, kept)
        cache = DiskCache(kept / "images", cache_mib * 2**20)
        return None if catalogue is None else cls(catalogue, cache, limit=limit)

    def __len__(self) -> int:
        return self._length

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_decoders"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def _begin(self) -> None:
        """What is of this process alone."""
        self._decoders = ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="decode")
        self._retries_before = files.retries()

    @property
    def classes(self) -> list[str]:
        """Names of the classes; empty where the set names none. Reads and raises as `labels` does."""
        return self.catalogue.classes

    def unlabelled(self) -> str | None:
        """Why no image has a label; None where some have. Reads as `labels` does."""
        return self.catalogue.unlabelled()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of how many they are, and of the `digests` of the files that they lie in, whatever these are called.

        Of files that were not ingested footers alone count: pixels that take as many bytes as others are not told.
        """
        files = 1 + max(group.file for group in self.catalogue.groups if group.first_index < self._length)
        return hashlib.sha256(json.dumps([self._length, self.catalogue.digests[:files]]).encode()).hexdigest()

    @property
    def blocks(self) -> NDArray[np.int64]:
        """Rows of each row group, int64 [G]; they sum up to the length."""
        ends = np.cumsum([group.rows for group in self.catalogue.groups])
        rows = np.diff(np.minimum(ends, self._length), prepend=0)
        return rows[rows > 0]

    @property
    def traffic(self) -> Traffic:
        """What this copy has asked for so far."""
        return replace(self._encoded.traffic, retries=files.retries() - self._retries_before)

    def get(self, indices: NDArray[np.int64]) -> "list[Tensor]":
        """The images, RGB uint8 [3, H, W] each, upright, in the order asked; an index may be asked for twice.

        Raises:
            DataError: an image is null or cannot be decoded; names file and row. StorageError: it cannot be reached.
            IndexError: an index is out of range.
        """
        import torch  # late: an ingest, which takes images as they stand in the files, does without

        encoded = self.encoded(indices)
        rows = list(zip(indices.tolist(), encoded, strict=True))
        threads = max(1, min(torch.get_num_threads(), _MOST_THREADS, len(rows) // _SHARE))
        shares = [rows[start::threads] for start in range(threads)]
        parts = list(map(self._decoded, shares[:1]) if threads == 1 else self._decoders.map(self._decoded, shares))
        return [parts[position % threads][position // threads] for position in range(len(rows))]

    def encoded(self, indices: NDArray[np.int64]) -> list[bytes]:
        """The images as they stand in the files, in the order asked. Raises as `get` does, but decodes nothing."""
        self._check(indices)
        found = self._encoded.read(indices)
        if None in found:
            index = int(indices[found.index(None)])
            raise DataError(
                f"{self.catalogue.where(index)}: the image is null (only its bytes are read, no file that it may "
                "name); remove the row or give it an image"
            )
        return found  # type: ignore[return-value]

    def labels(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Class of each image, [n]; -1 where it has none. The first call reads that column of all files, 8 bytes a row.

        Raises:
            DataError: there is no such column, or it holds something else than labels.
            IndexError: an index is out of range.
        """
        self._check(indices)
        return self.catalogue.labels().numbers[indices]

    def duplicates(self) -> NDArray[np.int64]:
        """The group of images with the very same bytes that each is of, [N]; -1 where it is alone.

        Raises:
            DataError: the set was not ingested, so nobody has read them all yet.
        """
        if self.catalogue.duplicates is None:
            raise DataError(
                f"{self.catalogue.places[0]}: which images are the same is known of sets that `emc2dist ingest` wrote; "
                "ingest this one"
            )
        return self.catalogue.duplicates[: len(self)]

    def names(self, indices: NDArray[np.int64]) -> list[str | None]:
        """The file that each image came from, by `path` beside its bytes; None where that is not told.

        Whole row groups of that column are read, each once a call.

        Raises:
            DataError: a file is damaged. StorageError: it cannot be reached. IndexError: an index is out of range.
        """
        self._check(indices)
        column, of_group = self.catalogue.image.removesuffix("bytes") + "path", dict[int, list[str | None]]()
        if not self.catalogue.image.endswith(".bytes"):
            return [None] * len(indices)
        found = list[str | None]()
        for index in indices.tolist():
            group = self.catalogue.group(index)
            if group.first_index not in of_group:
                of_group[group.first_index] = read_texts(*self.catalogue.file(group), column, group.number, group.rows)
            found.append(of_group[group.first_index][index - group.first_index])
        return found

    def _check(self, indices: NDArray[np.int64]) -> None:
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"indices {indices.min()}..{indices.max()} are outside 0..{len(self) - 1}")

    def _decoded(self, rows: list[tuple[int, bytes]]) -> "list[Tensor]":
        return [self._decode(index, encoded) for index, encoded in rows]

    def _decode(self, index: int, encoded: bytes) -> "Tensor":
        try:
            return decode(encoded)
        except ValueError as error:
            where = self.catalogue.where(index)
            raise DataError(f"{where}: the image cannot be decoded ({error}); remove or repair the row") from error
