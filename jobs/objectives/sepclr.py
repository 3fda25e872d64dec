"""Pictures for jobs/objectives/sepclr.yaml: drawings of characters, half of them with a handwritten digit in a corner.

    python jobs/objectives/sepclr.py FOLDER

Writes two Parquet sets of the same pictures, 28 x 28. FOLDER/by-digit: the label is the digit, and 10 where there is
none, the background. FOLDER/by-drawing: it is the alphabet that the character is of. Drawings are Omniglot's small set,
digits scikit-learn's, either's training images in the training split and test images in the other.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from emc2dist.data.digits import DigitsImages
from emc2dist.data.ingest.pixels import png
from emc2dist.data.omniglot import SMALL, SmallOmniglotImages

NO_DIGIT = 10
SIDE = 18  # of a digit, which is 8 x 8 by itself


def pictures(split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """uint8 [n, 28, 28], the digit in each or `NO_DIGIT`, and the drawing's alphabet."""
    rng = np.random.default_rng(0)
    drawings, digits = SmallOmniglotImages(split), DigitsImages(split)
    index = np.arange(len(drawings))
    pixels = np.stack([drawing[0].numpy() for drawing in drawings.get(index)])
    chosen = rng.integers(len(digits), size=len(index))
    label = np.where(index % 2 == 0, digits.labels(chosen), NO_DIGIT)
    names = [drawings.classes[number].partition("/")[0] for number in drawings.labels(index)]
    for row in index[label != NO_DIGIT]:
        (digit,) = digits.get(chosen[[row]])
        drawn = np.asarray(Image.fromarray(digit[0].numpy()).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        corner = pixels[row, -SIDE:, -SIDE:]
        np.maximum(corner, drawn, out=corner)
    return pixels, label, np.array([SMALL.index(name) for name in names])


def write(folder: Path) -> None:
    """Both sets."""
    for split in ("train", "test"):
        pixels, digit, alphabet = pictures(split)
        for name, label in (("by-digit", digit), ("by-drawing", alphabet)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            image = pa.array([{"bytes": png(one)} for one in pixels], pa.struct([("bytes", pa.binary())]))
            pq.write_table(pa.table({"image": image, "label": label}), folder / name / f"{split}.parquet")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
