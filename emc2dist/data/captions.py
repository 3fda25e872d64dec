"""Images with what is said of them, opened: a set of images, and in its folder `captions` theirs.

An image is a query and its captions are the documents that answer it (`emc2dist.data.texts.pairs`). Equal captions are
one, so that a caption may be that of several images. Images are asked for by their index, as any others are.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from emc2dist.config import S3, Data
from emc2dist.data.encoded import Traffic
from emc2dist.data.images import Images, open_images
from emc2dist.data.texts.manifest import pairs_manifest_at
from emc2dist.data.texts.pairs import Pairs, read_split
from emc2dist.errors import DataError


class ChosenImages:
    """Some images of a set, in its order; implements `emc2dist.data.images.Images`."""

    def __init__(self, images: Images, rows: NDArray[np.int64]) -> None:
        """Begin; `rows` int64 [n], ascending, are those of `images` that are chosen."""
        self._images, self._rows = images, rows

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def remarks(self) -> Sequence[str]:
        """Those of the whole set."""
        return self._images.remarks

    @property
    def classes(self) -> list[str]:
        """Names of the classes of the whole set."""
        return self._images.classes

    @property
    def traffic(self) -> Traffic:
        """What this object has asked for so far."""
        return self._images.traffic

    @property
    def fingerprint(self) -> str:
        """What tells these images from others: their number, and what tells the whole set."""
        return f"{len(self)} of {self._images.fingerprint}"

    @property
    def blocks(self) -> NDArray[np.int64]:
        """Chosen images of each run that lies together, int64 [G]."""
        counts = np.diff(np.searchsorted(self._rows, np.cumsum(self._images.blocks)), prepend=0)
        return counts[counts > 0]

    def unlabelled(self) -> str | None:
        """Why no image has a label; None where some of the set have."""
        return self._images.unlabelled()

    def get(self, indices: NDArray[np.int64]) -> list[Tensor]:
        """The images, uint8 [3, H, W] each, in the order asked. Raises as those of the set do."""
        return self._images.get(self._rows[indices])

    def labels(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Class of each image, [n]; -1 where it has none. Raises as those of the set do."""
        return self._images.labels(self._rows[indices])

    def duplicates(self) -> NDArray[np.int64]:
        """The group of images of the very same content that each is of, int64 [N]; -1 where it is of none."""
        return self._images.duplicates()[self._rows]

    def names(self, indices: NDArray[np.int64]) -> list[str | None]:
        """The file that each image came from, as its set calls it; None where that is not told."""
        return self._images.names(self._rows[indices])


def open_captions(data: Data, split: str, s3: S3 | None = None) -> Pairs[Images] | None:
    """The images of a split of `data.path` that have captions, and the captions of that split and of several.

    None where no image of the split has one, but of `train` some have to. `data.limit` keeps the first so many images
    of `train`.

    Raises:
        DataError: there is no set of images, or it has no captions, or they are others' or damaged.
        StorageError: it cannot be read.
    """
    folder, manifest = pairs_manifest_at(data, s3)
    found = read_split(folder, manifest, split, data.limit, corpus=False)
    if found is None:
        return None
    images = open_images(data.model_copy(update={"limit": None}), split, s3)
    name = found.table["split"][int(found.queries[0])].as_py()
    if images is None or manifest.images.get(name) != images.fingerprint:
        raise DataError(
            f"{folder}: are captions of other images than those of split {split} of {data.path}; ingest the set again"
        )
    rows = found.table["row"].take(found.queries).to_numpy()
    queries = images if len(rows) == len(images) else ChosenImages(images, rows)
    remarks = [remark for remark in images.remarks if remark not in found.remarks]
    found.remarks.extend(remarks)
    return found.pairs(queries, [images.fingerprint])
