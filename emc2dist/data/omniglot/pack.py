"""The script that made `drawings.npz` of Omniglot's original drawings, 105 x 105 pixels, black on white.

    python -m emc2dist.data.omniglot.pack FOLDER OUT

FOLDER is a Parquet set (see docs/data.md) whose splits are `train`, drawers 1 to 15 of each character, and `test`, 16
to 20, with classes called as in Greek/character01. Of each pixel of 28 x 28 the share that is ink is kept, in 16 steps.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from emc2dist.config import Data
from emc2dist.data.images import Images, open_images
from emc2dist.data.omniglot import LEVELS, OmniglotImages

SIDE = 28
_CHUNK = 1000  # drawings unpacked at once


def pack(folder: str | Path, out: str | Path) -> None:
    """Write the drawings of `folder` to the file `out`. Raises DataError where they cannot be read."""
    arrays: dict[str, NDArray] = {}
    with TemporaryDirectory() as cache:
        for split in OmniglotImages.splits:
            images = open_images(Data(path=str(folder), cache_dir=cache), split)
            assert images is not None, f"{folder} has no split {split}"
            everything = np.arange(len(images))
            arrays[f"{split}_pixels"] = _ink(images, everything)
            arrays[f"{split}_labels"] = images.labels(everything).astype(np.int16)
            arrays["classes"] = np.array([name.replace("/character", "/") for name in images.classes])
    np.savez_compressed(out, allow_pickle=False, **arrays)


def _ink(images: Images, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Shares of ink, uint8 [n, 28, 28] in 0..15, of drawings that are white where their pixels are 255."""
    parts = []
    for chunk in np.split(indices, range(_CHUNK, len(indices), _CHUNK)):
        drawings = np.stack([image[0].numpy() for image in images.get(chunk)])
        means = _means(drawings.shape[-1])
        paper = means @ drawings @ means.T
        parts.append(np.round(LEVELS * (1 - paper / 255)).astype(np.uint8))
    return np.concatenate(parts)


def _means(side: int) -> NDArray[np.float64]:
    """The matrix [28, side] that averages a line of `side` pixels over each of 28 equal parts of it.

    A part's border may lie within a pixel: of 105 pixels in 28 parts the first takes 0, 1, 2 and three quarters of 3.
    """
    edges = np.arange(SIDE + 1) * side / SIDE
    pixels = np.arange(side)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return overlap.clip(min=0) * SIDE / side


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Pack Omniglot's drawings as they come with emc2dist.")
    parser.add_argument("folder", metavar="FOLDER", help="the originals, a Parquet set of train and test")
    parser.add_argument("out", metavar="OUT", help="the .npz file to write")
    arguments = parser.parse_args()
    pack(arguments.folder, arguments.out)
