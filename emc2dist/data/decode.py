"""From the bytes of an image file to pixels: plain JPEG by libjpeg-turbo directly, all else by Pillow.

Pillow uses the same library, to the same pixels, but takes five times as long over a small image: most of it is spent
in Python, finding out what the file is.
"""

import io

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

MAX_PIXELS = 2**26
"""Width times height above which an image is refused before it is unpacked: 67 million, 200 MB of pixels."""

_ORIENTATION = 0x0112  # EXIF
_JPEG = b"\xff\xd8\xff"
_MAY_BE_TURNED = (b"Exif\0\0", b"tiff:Orientation")  # EXIF, and the same in XMP


def decode(encoded: bytes) -> Tensor:
    """Any image file that Pillow reads -> RGB uint8 [3, H, W] (a view of [H, W, 3]), turned as EXIF says.

    Alpha is dropped, greys of 16 bits are scaled to 8, of an animation the first frame is taken.

    Raises:
        ValueError: the image has more than `MAX_PIXELS`. On bytes that are no image, whatever Pillow raises.
    """
    return torch.from_numpy(_decoded(encoded)[0]).permute(2, 0, 1)


def examine(encoded: bytes) -> str | None:
    """What `decode` does to the values of an image, in words; None where they are those of the file. Raises as it."""
    return _decoded(encoded)[1]


def _decoded(encoded: bytes) -> tuple[NDArray[np.uint8], str | None]:
    """Pixels [H, W, 3], and what was done to their values."""
    pixels = _plain_jpeg(encoded)
    if pixels is None:
        with Image.open(io.BytesIO(encoded)) as opened:
            _check_size(opened.width, opened.height)
            pixels = np.array(_rgb(opened))
    return pixels, None


def _plain_jpeg(encoded: bytes) -> NDArray[np.uint8] | None:
    """Pixels [H, W, 3] of a JPEG that is whole, upright and grey or YCbCr; None of anything else."""
    head = encoded[: 2**16]
    if not head.startswith(_JPEG) or any(mark in head for mark in _MAY_BE_TURNED):
        return None
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(encoded)
        if space not in ("YCbCr", "Gray"):
            return None
        _check_size(width, height)
        return simplejpeg.decode_jpeg(encoded)
    except ValueError:  # damaged: Pillow will say how
        return None


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels are more than {MAX_PIXELS}; scale it down")


def _rgb(opened: Image.Image) -> Image.Image:
    image = opened
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion clips at 255
        image = Image.fromarray(np.clip(np.asarray(image) // 257, 0, 255).astype(np.uint8))
    if image.mode == "P":
        image = image.convert("RGBA")  # straight to RGB, Pillow warns of palettes with transparency
    return image if image.mode == "RGB" else image.convert("RGB")
