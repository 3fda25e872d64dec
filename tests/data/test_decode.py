"""Every kind of image file becomes upright sRGB, from black to white; what cannot be decoded says so.

The rows of the table in docs/data.md, "Pixels", are those of `CASES`.
"""

import contextlib
import io
import re
import resource
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import hypothesis
import numpy as np
import psutil
import pytest
import torch
from hypothesis import strategies as st
from pictures import cmyk_profile, grey_profile, png, rgb_profile, tiff
from PIL import Image, ImageCms, ImageOps

from emc2dist.data import decode as module
from emc2dist.data.decode import decode, examine

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")  # as decode.py has it, which pytest undoes

RAMP = np.linspace(0, 1, 18).reshape(3, 6)  # black to white in steps of 15
GREYS = np.rint(RAMP * 255).astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, form: str = "png", **options) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(buffer, form, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return decode(data)


def flat(image: torch.Tensor) -> list[int]:
    assert image.dtype == torch.uint8
    return image[:, 0, 0].tolist()


def stack(*bands: np.ndarray) -> np.ndarray:
    return np.stack(bands, -1)


def whole(most: int) -> np.ndarray:
    """The ramp in whole numbers from 0 to `most`."""
    return np.rint(RAMP * most).astype(np.int64)


def coarse(most: int) -> np.ndarray:
    """The greys that are left of the ramp in whole numbers from 0 to `most`."""
    return np.rint(whole(most) * 255 / most)


def srgb(light: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1."""
    light = np.clip(light, 0, 1)
    return 255 * np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def on_white(values: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return 255 + (values - 255.0) * alpha / 255


def keyed(bits: int) -> np.ndarray:
    """The greys of so many bits with the second laid on white."""
    return np.where(whole(2**bits - 1) == 1, 255, coarse(2**bits - 1))


def pnm(kind: str, values: np.ndarray, maxval: int) -> bytes:
    if kind in ("P2", "P3"):
        body = " ".join(map(str, values.ravel())).encode()
    else:
        body = values.astype(">u2" if maxval > 255 else "u1").tobytes()
    return f"{kind} {values.shape[1]} {values.shape[0]} {maxval}\n".encode() + body


def palette() -> Image.Image:
    """Of which each pixel has a colour of its own, the ramp's."""
    image = Image.fromarray(np.arange(18, dtype=np.uint8).reshape(3, 6), "P")
    image.putpalette(np.repeat(GREYS.ravel(), 3).tolist())
    return image


def two_colours() -> Image.Image:
    image = Image.fromarray(whole(1).astype(np.uint8), "P")
    image.putpalette([0, 0, 0, 255, 255, 255])
    return image


def bmp_of_16() -> tuple[bytes, np.ndarray]:
    """5 bits for red and blue, 6 for green."""
    masks = b"".join(mask.to_bytes(4, "little") for mask in (0xF800, 0x07E0, 0x001F))
    header = b"".join(size.to_bytes(4, "little") for size in (40, 6, 3)) + b"\1\0\x10\0\3\0\0\0" + bytes(20) + masks
    rows = (whole(31) << 11 | whole(63) << 5 | whole(31))[::-1].astype("<u2").tobytes()
    data = b"BM" + (66 + len(rows)).to_bytes(4, "little") + bytes(4) + b"\x42\0\0\0" + header + rows
    return data, stack(coarse(31), coarse(63), coarse(31))


def without(data: bytes, mark: bytes) -> bytes:
    """A JPEG without the segment that begins with `mark`."""
    start = data.index(mark) - 4
    return data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4]) :]


def inked(greys: np.ndarray) -> Image.Image:
    """CMYK with black ink alone."""
    ink = np.zeros_like(greys)
    return Image.fromarray(stack(ink, ink, ink, 255 - greys), "CMYK")


def ycck(greys: np.ndarray) -> bytes:
    """A JPEG whose grey stands in luma, and which says so in Adobe's marker."""
    half = np.full_like(greys, 127)
    image = Image.fromarray(stack(greys, half, half, np.zeros_like(greys)), "CMYK")
    data = encoded(image, "jpeg", quality=100, subsampling=0)
    place = data.index(b"Adobe") + 11
    return data[:place] + b"\2" + data[place + 1 :]


TURNED = b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0" + bytes(4)  # a quarter clockwise to be upright
D50_SRGB = np.array([[0.43607, 0.22249, 0.01392], [0.38515, 0.71687, 0.09708], [0.14307, 0.06061, 0.71410]])
ADOBE = np.array([[0.60974, 0.31111, 0.01947], [0.20528, 0.62567, 0.06087], [0.14919, 0.06322, 0.74457]])
P3 = np.array([[0.51512, 0.24120, -0.00105], [0.29198, 0.69225, 0.04189], [0.15710, 0.06657, 0.78407]])
COLOURS = stack(whole(100) + 90, whole(60) + 100, 180 - whole(60)).astype(np.uint8)  # within sRGB in all of these
PLAIN_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def tagged(primaries: np.ndarray, gamma: float, form: str, **options) -> tuple[bytes, np.ndarray]:
    """Colours under a profile, and what they are in sRGB."""
    light = (COLOURS / 255) ** gamma @ primaries @ np.linalg.inv(D50_SRGB)
    return encoded(COLOURS, form, icc_profile=rgb_profile(primaries, gamma), **options), srgb(light)


def turned(form: str, **options) -> tuple[bytes, np.ndarray]:
    return encoded(np.rot90(stack(GREYS, GREYS, GREYS)), form, exif=TURNED, **options), GREYS


def several(form: str, **options) -> tuple[bytes, np.ndarray]:
    image = Image.fromarray(GREYS)
    others = [Image.fromarray(GREYS[::-1].copy())]
    return encoded(image, form, save_all=True, append_images=others, **options), GREYS


ALPHA = np.full_like(GREYS, 128)
ALPHA[0], ALPHA[1] = 255, 0
WHITE = np.full_like(GREYS, 255)
LAID = on_white(GREYS, ALPHA)
KEYED = on_white(GREYS, np.where(GREYS == 15, 0, 255))
F32 = RAMP.astype(np.float32)
I16 = whole(65535).astype(np.uint16)
LINEAR = srgb(RAMP)
LAB_LIGHT = np.where(RAMP > 0.08, ((100 * RAMP + 16) / 116) ** 3, 100 * RAMP / 903.3)  # of L* from 0 to 100
BEST = {"quality": 100, "subsampling": 0}

NOISE = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
JPEGS = [
    encoded(NOISE, "jpeg"),
    encoded(NOISE, "jpeg", exif=TURNED),
    encoded(NOISE, "jpeg", icc_profile=rgb_profile(ADOBE, 2.2)),
    encoded(Image.fromarray(NOISE).convert("CMYK"), "jpeg"),
]


def cut(image: np.ndarray, form: str) -> bytes:
    data = encoded(image, form)
    return data[: len(data) * 2 // 3]


# The first cell of each row -> files, and the greys or colours that they hold; of what is refused, the words.
CASES: dict[str, list[tuple[bytes, np.ndarray | str]]] = {
    "TIFF with channels beyond the colours that are no alpha (infrared, radar): one, or of RGB of 8 bits up to three": [
        (tiff(stack(GREYS, ALPHA), t338=("H", 0)), GREYS),
        (tiff(stack(GREYS, GREYS, GREYS, ALPHA), photometric=2), GREYS),
        (tiff(stack(GREYS, GREYS, GREYS, ALPHA), photometric=2, t338=("H", 0)), GREYS),
        (tiff(stack(GREYS, GREYS, GREYS, ALPHA, ALPHA), photometric=2, t338=("H", 0, 0)), GREYS),
        (tiff(stack(GREYS, GREYS, GREYS, *[ALPHA] * 3), photometric=2, t338=("H", 0, 0, 0)), GREYS),
    ],
    "TIFF with more channels (multispectral), with one beyond greys of 16 bits, or of 64 bits": [
        (
            tiff(stack(*[I16] * 13), t338=("H", *[0] * 12)),
            "^a TIFF of 13 channels of 16 bits, which Pillow does not re",
        ),
        (tiff(stack(*[I16] * 4), ">", t338=("H", *[0] * 3)), "^a TIFF of 4 channels of 16 bits, which Pillow does not"),
        (tiff(stack(*[GREYS] * 8), t338=("H", *[0] * 7)), "8 channels of 8 bits, .*write one or three of its channels"),
        (tiff(stack(*[GREYS] * 7), photometric=2, t338=("H", *[0] * 4)), "7 channels of 8 bits"),
        (tiff(stack(I16, I16), t338=("H", 0)), "2 channels of 16 bits"),
        (tiff(RAMP, form=3), "1 channels of 64 bits"),
    ],
    "8 bits, grey, RGB or palette": [
        *((encoded(GREYS, form), GREYS) for form in ("png", "tiff", "bmp", "gif", "ppm", "jpeg2000", "tga", "pcx")),
        *((encoded(COLOURS, form), COLOURS) for form in ("png", "tiff", "bmp", "ppm", "jpeg2000", "qoi")),
        *((encoded(palette(), form), GREYS) for form in ("png", "tiff", "bmp", "gif")),
        (encoded(COLOURS, "webp", lossless=True), COLOURS),
        (encoded(Image.fromarray(stack(GREYS, GREYS, GREYS)).convert("YCbCr"), "tiff"), GREYS),
        *((encoded(GREYS, form, quality=100), GREYS) for form in ("jpeg", "avif", "mpo")),
        bmp_of_16(),
        (encoded(COLOURS, "jpeg", keep_rgb=True, quality=100), COLOURS),
        (b"\xff\xd8\xff" + encoded(GREYS, "jpeg", quality=100)[2:], GREYS),  # with a byte to fill
    ],
    "1, 2 or 4 bits": [
        *((png(whole(2**bits - 1), bits, 0), coarse(2**bits - 1)) for bits in (1, 2, 4)),
        *((tiff(whole(2**bits - 1), bits=bits), coarse(2**bits - 1)) for bits in (1, 2, 4)),
        *((encoded(Image.fromarray(GREYS).convert("1", dither=0), form), coarse(1)) for form in ("png", "gif", "bmp")),
        (encoded(two_colours(), "png", bits=1), coarse(1)),
    ],
    "white at 0 (PBM, TIFF)": [
        (tiff(whole(1), bits=1, photometric=0), 255 - coarse(1)),
        (tiff(whole(15), bits=4, photometric=0), 255 - coarse(15)),
        (tiff(GREYS, photometric=0), 255 - GREYS),
        (tiff(GREYS, ">", photometric=0, zipped=True), 255 - GREYS),
        (encoded(Image.fromarray(GREYS).convert("1", dither=0), "ppm"), coarse(1)),
        (b"P1 6 3\n" + " ".join(map(str, 1 - whole(1).ravel())).encode(), coarse(1)),
    ],
    "PGM and PPM, maxval up to 255": [
        *((pnm(kind, whole(100), 100), coarse(100)) for kind in ("P2", "P5")),
        *((pnm(kind, stack(whole(17), whole(17), whole(17)), 17), coarse(17)) for kind in ("P3", "P6")),
    ],
    "16 bits unsigned; 12 in TIFF; PGM and PPM, maxval above 255": [
        *((encoded(Image.fromarray(I16), form), GREYS) for form in ("png", "tiff", "ppm", "jpeg2000")),
        (png(stack(I16, I16, I16), 16, 2), GREYS),
        (png(stack(I16, I16, I16, WHITE * np.uint16(257)), 16, 6), GREYS),
        (png(stack(I16, WHITE * np.uint16(257)), 16, 4), GREYS),
        *((tiff(I16, order, zipped=zipped), GREYS) for order in "<>" for zipped in (False, True)),
        *((tiff(stack(I16, I16, I16), order, photometric=2), GREYS) for order in "<>"),
        (tiff(I16, photometric=0), 255 - GREYS),
        (tiff(whole(4095), bits=12), GREYS),
        *((pnm("P5", whole(most), most), GREYS) for most in (1023, 65535)),
        *((pnm("P6", stack(*[whole(most)] * 3), most), GREYS) for most in (1023, 65535)),
        (pnm("P2", whole(1023), 1023), GREYS),
    ],
    "the same, of which TIFF's MaxSampleValue, or PNG's sBIT, is for 4095, 1023, ...": [
        *((png(whole(2**bits - 1), 16, 0, (b"sBIT", bytes([bits]))), GREYS) for bits in (10, 12)),
        (png(I16 & 0xFFF0, 16, 0, (b"sBIT", b"\x0c")), I16 / 257),  # scaled up, as it should be
        (png(I16, 16, 0, (b"sBIT", b"\x0c")), GREYS),
        *((tiff(whole(most).astype(np.uint16), t281=("H", most)), GREYS) for most in (255, 1023, 4095)),
        (tiff(whole(65535).astype(np.uint16), t281=("H", 4095)), GREYS),  # which it cannot be
        (tiff(whole(40000).astype(np.uint16), t281=("H", 40000)), coarse(255) * 40000 / 65535),  # the largest there is
    ],
    "the same, no value above 4095": [
        (png(whole(4095), 16, 0), RAMP * 4095 / 257),
        (png(whole(4095) & 0xFFF0, 16, 0, (b"sBIT", b"\x0c")), RAMP * 4095 / 257),
    ],
    "16 bits with a sign, none negative, one above 255": [
        (tiff(whole(32767).astype(np.int16), order, form=2, zipped=zipped), GREYS)
        for order in "<>"
        for zipped in (False, True)
    ],
    "16 bits with a sign, 0..255": [(tiff(whole(255).astype(np.int16), form=2), GREYS)],
    "32 bits, 0..255": [
        (tiff(whole(255).astype(np.int32), order, form=2, zipped=zipped), GREYS)
        for order in "<>"
        for zipped in (False, True)
    ],
    "32 bits, 0..65535, one above 255": [
        (tiff(whole(65535).astype(np.int32), form=2), GREYS),
        (tiff(whole(65535).astype(np.uint32)), GREYS),
    ],
    "floats, 0..1": [
        *((tiff(F32, order, form=3, zipped=zipped), GREYS) for order in "<>" for zipped in (False, True)),
        (tiff(F32, form=3, photometric=0), 255 - GREYS),
        (encoded(Image.fromarray(F32), "ppm"), GREYS),
    ],
    "floats, 0..255, one above 1": [
        *((tiff(F32 * 255, order, form=3, zipped=True), GREYS) for order in "<>"),
        (tiff(F32 * 254.5, form=3), RAMP * 254.5),
    ],
    "floats, with TIFF's (S)MinSampleValue and (S)MaxSampleValue": [
        (tiff(F32 * 8 - 4, form=3, t340=("f", -4), t341=("f", 4)), GREYS),
        (tiff(F32 * 4000, form=3, t280=("H", 0), t281=("H", 4000)), GREYS),
    ],
    "whole numbers of 32 bits or with a sign, with the same": [
        (tiff((whole(65535) - 32768).astype(np.int16), form=2, t340=("h", -32768), t341=("h", 32767)), GREYS),
        (tiff(whole(10**6).astype(np.int32), form=2, t340=("i", 0), t341=("i", 10**6)), GREYS),
    ],
    "other floats and whole numbers": [
        (tiff(F32 * 8 - 4, form=3), "floats from -4 to 4, of which black and white are not known; write 8 bits"),
        (tiff(F32 * 4000, form=3), "floats from 0 to 4000"),
        (tiff((whole(65535) - 32768).astype(np.int16), form=2), "16 bits with a sign from -32768 to 32767"),
        (tiff(whole(10**6).astype(np.int32), form=2), "32 bits from 0 to 1e"),
        (tiff(whole(2**32 - 1).astype(np.uint32)), "32 bits from -"),
    ],
    "NaN or infinity": [
        (tiff(np.where(value_of == RAMP, value, RAMP).astype(np.float32), form=3), "not all finite; replace NaN")
        for value_of, value in ((0, np.nan), (1, np.inf), (0, -np.inf))
    ],
    "RGB of 16 bits, MaxSampleValue 4095, 1023, ...": [
        (
            tiff(stack(*[whole(4095).astype(np.uint16)] * 3), photometric=2, t281=("H", 4095, 4095, 4095)),
            "4095 is white",
        )
    ],
    "alpha below 255, of any kind": [
        *((encoded(Image.fromarray(stack(GREYS, ALPHA)), form), LAID) for form in ("png", "tiff")),
        *((encoded(stack(GREYS, GREYS, GREYS, ALPHA), form), LAID) for form in ("png", "tiff", "jpeg2000", "tga")),
        (encoded(stack(GREYS, GREYS, GREYS, ALPHA), "webp", lossless=True, exact=True), LAID),
        (tiff(stack(*[GREYS * (ALPHA / 255)] * 3, ALPHA).astype(np.uint8), photometric=2, t338=("H", 1)), LAID),
        (tiff(stack(GREYS * (ALPHA / 255), ALPHA).astype(np.uint8), t338=("H", 1)), LAID),
        (encoded(palette(), "png", transparency=ALPHA.tobytes()), LAID),
        (encoded(palette(), "png", transparency=1), KEYED),
        (encoded(palette(), "gif", transparency=1), KEYED),
        (encoded(GREYS, "png", transparency=15), KEYED),
        (encoded(stack(GREYS, GREYS, GREYS), "png", transparency=(15, 15, 15)), KEYED),
        *((png(whole(2**bits - 1), bits, 0, (b"tRNS", b"\0\1")), keyed(bits)) for bits in (1, 2, 4)),
    ],
    "alpha of 255 everywhere": [
        (encoded(stack(COLOURS[..., 0], COLOURS[..., 1], COLOURS[..., 2], WHITE)), COLOURS),
        (encoded(palette(), "png", transparency=b"\xff" * 18), GREYS),
    ],
    "alpha of 0 everywhere": [(encoded(stack(GREYS, GREYS, GREYS, ALPHA * 0)), GREYS * 0 + 255)],
    "the same in TGA": [(encoded(stack(GREYS, GREYS, GREYS, ALPHA * 0), "tga"), GREYS)],
    "a profile that means sRGB": [
        (encoded(COLOURS, form, icc_profile=PLAIN_SRGB), COLOURS) for form in ("png", "tiff", "jpeg2000")
    ],
    "another RGB or grey profile": [
        *(tagged(ADOBE, 2.19921875, form) for form in ("png", "tiff")),
        tagged(ADOBE, 2.19921875, "jpeg", **BEST),
        tagged(ADOBE, 2.19921875, "webp", lossless=True),
        tagged(P3, 2.19921875, "png"),
        tagged(D50_SRGB, 1.0, "png"),
        (encoded(GREYS, icc_profile=grey_profile(1.0)), LINEAR),
        (encoded(GREYS, "jpeg", icc_profile=grey_profile(1.0), quality=100), LINEAR),
        (encoded(GREYS, icc_profile=rgb_profile(D50_SRGB, 1.0)), LINEAR),
    ],
    "a profile that is damaged, or of another space": [
        (encoded(COLOURS, icc_profile=b"no profile"), COLOURS),
        (encoded(COLOURS, icc_profile=PLAIN_SRGB[:200]), COLOURS),
        (encoded(COLOURS, icc_profile=grey_profile(1.0)), COLOURS),
        (encoded(GREYS, icc_profile=cmyk_profile()), GREYS),
    ],
    "PNG with gAMA other than 1 / 2.2, without sRGB or a profile": [
        (png(GREYS, 8, 0, (b"gAMA", (100_000).to_bytes(4))), LINEAR),
        (png(COLOURS, 8, 2, (b"gAMA", (100_000).to_bytes(4))), srgb(COLOURS / 255)),
    ],
    "PNG with gAMA of about 1 / 2.2, or beside sRGB": [
        (png(GREYS, 8, 0, (b"gAMA", (45_455).to_bytes(4))), GREYS),
        (png(GREYS, 8, 0, (b"gAMA", (100_000).to_bytes(4)), (b"sRGB", b"\0")), GREYS),
    ],
    "CMYK: TIFF; JPEG with Adobe's marker, also YCCK": [
        (encoded(inked(GREYS), "tiff"), GREYS),
        (encoded(inked(GREYS), "jpeg", **BEST), GREYS),
        (ycck(GREYS), GREYS),
    ],
    "CMYK: JPEG without the marker": [
        (without(encoded(Image.fromarray(stack(WHITE, WHITE, WHITE, GREYS), "CMYK"), "jpeg", **BEST), b"Adobe"), GREYS)
    ],
    "CMYK with a profile for CMYK": [
        (encoded(inked(GREYS), "tiff", icc_profile=cmyk_profile()), srgb(LAB_LIGHT)),
        (encoded(inked(GREYS), "jpeg", icc_profile=cmyk_profile(), **BEST), srgb(LAB_LIGHT)),
    ],
    "CIE Lab": [(tiff(stack(GREYS, GREYS * 0, GREYS * 0), photometric=8), srgb(LAB_LIGHT))],
    "EXIF's orientation, in EXIF or XMP": [
        *(turned(form) for form in ("png", "tiff")),
        turned("tiff", compression="tiff_adobe_deflate"),
        turned("webp", lossless=True),
        turned("jpeg", **BEST),
        turned("avif", quality=100),
        (encoded(np.rot90(GREYS), "jpeg", xmp=b'<x tiff:Orientation="6"/>', **BEST), GREYS),
    ],
    "EXIF that is damaged": [(encoded(COLOURS, exif=b"Exif\0\0no TIFF at all"), COLOURS)],
    "animations and files of several pages": [
        several("gif"),
        several("png"),
        several("tiff"),
        several("webp", lossless=True),
        several("avif", quality=100),
    ],
    "EPS": [(encoded(COLOURS, "eps"), "EPS, which is a program")],
    "more than 67 million pixels, or none": [
        (encoded(Image.new("1", (20_000, 3_400))), "20000 x 3400 pixels are more than 67108864; scale it down"),
        (encoded(Image.new("1", (20_000, 20_000))), "more than 67108864 pixels; scale it down"),
        (b"P5 0 5 255 ", "no image of any kind"),
    ],
    "damaged or cut short": [
        *((cut(NOISE, form), "damaged: ") for form in ("png", "gif", "bmp", "ppm", "qoi", "webp", "tiff")),
        (b"no image", "no image of any kind that Pillow reads; write it as PNG or JPEG"),
        *((b"\0\0\0\x18ftyp" + brand + bytes(40), "HEIC by its content, and so no") for brand in (b"heic", b"mif1")),
        (b"\x1f\x8b\x08\x00", "packed by gzip; unpack it"),
        *((start + b"><p>404", "a web page, .*; fetch it again") for start in (b"<!DOCTYPE html", b"\n<html")),
        (b"<htmlx>", "no image of any kind"),
        (bytes(128) + b"DICM", "DICOM by its content, and so no image of any kind that Pillow reads"),
        *((start + bytes(20), "no image of any kind") for start in (b"II*\0", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08")),
        *((data[: len(data) // 2] + end, "damaged: .*remature end") for data in JPEGS for end in (b"", b"\xff\xd9")),
    ],
}


LOSSY = (b"\xff\xd8", b"\0\0\0")  # how JPEG and AVIF begin


def of(kinds) -> list:
    return [
        pytest.param(data, held, id=f"{row} {number}")
        for row, cases in CASES.items()
        for number, (data, held) in enumerate(cases)
        if isinstance(held, kinds)
    ]


@pytest.mark.parametrize(("data", "held"), of(np.ndarray))
def test_what_is_in_the_file_comes_out(data, held):
    expected = held if held.ndim == 3 else stack(held, held, held)
    made = decoded(data).permute(1, 2, 0).numpy()
    assert made.dtype == np.uint8
    assert made.shape == expected.shape
    assert np.abs(made - np.rint(expected)).max() <= (3 if data.startswith(LOSSY) else 1)


@pytest.mark.parametrize(("data", "words"), of(str))
def test_what_is_not_understood_is_refused(data, words):
    with pytest.raises(ValueError, match=words):
        decode(data)


@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_turned_as_pillow_turns_it(orientation):
    data = encoded(COLOURS, exif=TURNED.replace(b"\1\0\0\0\6", b"\1\0\0\0" + bytes([orientation])))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(decoded(data).permute(1, 2, 0), expected)


def said(data: bytes) -> str:
    try:
        return examine(data) or ""
    except ValueError:
        return "refused"


def test_the_table_in_the_docs_is_what_is_done():
    docs = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    section = docs.partition("## Pixels\n")[2].partition("\n## ")[0]
    table = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")][1:]
    assert {row[0].strip(): row[2].strip() for row in table} == {
        row: " / ".join(sorted({said(data) for data, _ in cases})) for row, cases in CASES.items()
    }


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"quality": 30}),
        ("RGB", {"quality": 95, "subsampling": 0}),
        ("RGB", {"progressive": True}),
        ("L", {"quality": 80}),
        ("RGB", {"quality": 80, "comment": b"tiff:Orientation"}),  # which looks as if it were turned
    ],
)
def test_jpegs_have_the_pixels_that_pillow_gives_them(mode, options):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (37, 53, 3), dtype=np.uint8)).convert(mode)
    data = encoded(noise, "jpeg", **options)
    expected = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decoded(data).permute(1, 2, 0).numpy(), expected)


def test_a_jpeg_turned_by_exif_is_turned_back():
    image = Image.new("RGB", (32, 16))
    image.paste((255, 255, 255), (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    made = decoded(encoded(image, "jpeg", exif=exif, quality=95))
    assert made.shape == (3, 32, 16)
    assert made[:, 4, 12].min() > 240
    assert made[:, 4, 4].max() < 20


@pytest.mark.parametrize(
    "options",
    [
        {"icc_profile": rgb_profile(ADOBE, 2.2)},
        {"icc_profile": PLAIN_SRGB * 150},  # in two chunks
        {"exif": TURNED},
        {"xmp": b'<x tiff:Orientation="6"/>'},
        {"mode": "CMYK"},
    ],
)
def test_jpegs_that_need_more_leave_the_fast_path(monkeypatch, options):
    image = Image.fromarray(NOISE).convert(options.pop("mode", "RGB"))
    seen = []
    monkeypatch.setattr(module, "_by_pillow", lambda data: seen.append(data) or (NOISE, None))
    for more in ({}, options) if image.mode == "RGB" else (options,):
        decode(encoded(image, "jpeg", **more))
    assert len(seen) == 1


def test_a_jpeg_with_a_profile_for_srgb_stays_on_it(monkeypatch):
    plain = decode(encoded(NOISE, "jpeg"))
    monkeypatch.setattr(module, "_by_pillow", None)
    assert torch.equal(decode(encoded(NOISE, "jpeg", icc_profile=PLAIN_SRGB)), plain)


def test_more_than_one_rule_may_hold_for_an_image():
    keyed = png(I16, 16, 0, (b"tRNS", int(I16[0, 1]).to_bytes(2)), (b"gAMA", (100_000).to_bytes(4)))
    expected = on_white(LINEAR, np.where(I16[0, 1] == I16, 0, 255))
    assert np.abs(decoded(keyed).numpy() - np.rint(expected)).max() <= 1
    assert examine(keyed) == "more than 8 bits scaled to 8, a gamma converted to sRGB, transparent, laid on white"
    colours = png(stack(I16, I16, I16), 16, 2, (b"tRNS", np.repeat(I16[0, 1], 3).astype(">u2").tobytes()))
    assert np.abs(decoded(colours).numpy() - on_white(GREYS, np.where(GREYS == 15, 0, 255))).max() <= 1


def test_linear_light_of_16_bits_keeps_its_shadows():
    dark = np.array([[0, 20, 50, 100, 200, 65535]], np.uint16)
    made = decoded(png(dark, 16, 0, (b"gAMA", (100_000).to_bytes(4))))
    assert made[0].tolist() == np.rint(srgb(dark / 65535)).tolist()


def header(width: int, height: int) -> bytes:
    """A PNG that says it is so large, and holds next to nothing."""
    data = png(np.zeros((1, 1), int), 8, 2)
    ihdr = b"IHDR" + width.to_bytes(4) + height.to_bytes(4) + data[24:29]
    return data[:12] + ihdr + zlib.crc32(ihdr).to_bytes(4) + data[33:]


LARGE_TILE = tiff(GREYS, t322=("I", 2**15), t323=("I", 2**15), t324=("I", 8), t325=("I", 18))
LARGE_JPEG = re.sub(b"\xff\xc0\0\x11\x08....", b"\xff\xc0\0\x11\x08\xff\xff\xff\xff", JPEGS[0])
LARGE_ICON = encoded(Image.new("1", (20_000, 4_000)))
ICON_OF_16 = b"\0\0\1\0\1\0\x10\x10\0\0\1\0\x20\0" + len(LARGE_ICON).to_bytes(4, "little") + b"\x16\0\0\0"
LIES = {
    "PNG": (header(60_000, 60_000), "more than 67108864 pixels"),
    "PNG, within Pillow's own bound": (header(10_000, 10_000), "10000 x 10000 pixels are more than 67108864"),
    "PNG of nothing": (header(0, 5), "no image of any kind"),
    "GIF": (b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;", "more than 67108864 pixels"),
    "PGM": (b"P5 60000 60000 255\n", "more than 67108864 pixels"),
    "TIFF's tile": (LARGE_TILE, "32768 x 32768 pixels are more than"),
    "JPEG": (LARGE_JPEG, "more than 67108864 pixels"),
    "text": (png(GREYS, 8, 0, (b"zTXt", b"a\0\0" + zlib.compress(bytes(2**26)))), "Decompressed data too large"),
    "profile": (png(GREYS, 8, 0, (b"iCCP", b"a\0\0" + zlib.compress(bytes(2**26)))), "Decompressed data too large"),
    "icon": (ICON_OF_16 + LARGE_ICON, "20000 x 4000 pixels are more than"),
}


@pytest.mark.parametrize("name", LIES)
def test_what_claims_to_be_large_allocates_nothing(name):
    data, words = LIES[name]
    with at_most(2**28), pytest.raises(ValueError, match=words):
        decode(data)


@contextlib.contextmanager
def at_most(size: int):
    """So many bytes of address space more than there are now, or MemoryError."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (used + size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


SEEDS = [
    *(encoded(COLOURS, form) for form in ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm", "jpeg2000", "avif")),
    *(encoded(stack(GREYS, GREYS, GREYS, ALPHA), form) for form in ("png", "ico", "tga", "tiff")),
    *(encoded(COLOURS, form, exif=TURNED, icc_profile=PLAIN_SRGB) for form in ("png", "jpeg", "tiff", "webp")),
    several("gif")[0],
    tiff(F32, form=3, zipped=True, t341=("f", 1)),
    encoded(palette(), transparency=bytes(18)),
]


@hypothesis.settings(max_examples=400, deadline=None, derandomize=True)
@hypothesis.given(st.data())
def test_damaged_bytes_make_an_image_or_a_value_error_and_no_large_allocation(data):
    damaged = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with at_most(2**31):
        try:
            made = decode(bytes(damaged))
        except ValueError:
            return
    assert made.dtype == torch.uint8
    assert made.ndim == 3
    assert made.shape[0] == 3


@pytest.mark.parametrize(
    "error", [SyntaxError("odd"), struct.error("odd"), RecursionError(), KeyError(5), AssertionError(), OSError("odd")]
)
def test_whatever_pillow_raises_is_one_error(monkeypatch, error):
    def fail(*_):
        raise error

    data = encoded(COLOURS, exif=TURNED)
    monkeypatch.setattr(Image.Image, "getexif", fail)
    assert examine(data) == "EXIF that is damaged passed over"
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(ValueError, match=r"damaged: (odd|5|RecursionError|AssertionError)"):
        decode(data)


def test_where_memory_ends_no_image_is_blamed(monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(MemoryError):
        decode(encoded(COLOURS))


def test_what_pillow_finds_odd_is_not_printed():
    odd = tiff(GREYS, t33550=("f", *range(9)))
    odd = odd.replace(b"\x0b\0\x09\0\0\0", b"\x0b\0\xff\xff\xff\0")  # a tag longer than the file
    many = tiff(GREYS, t277=("H", 127))
    script = f"""
from emc2dist.data.decode import decode
for data in ({header(10_000, 10_000)!r}, {odd!r}, {many!r}, {encoded(palette(), transparency=bytes(18))!r}):
    try:
        decode(data)
    except ValueError:
        pass
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
