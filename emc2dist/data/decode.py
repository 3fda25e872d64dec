"""From the bytes of an image file to pixels: plain JPEG by libjpeg-turbo directly, all else by Pillow.

Pillow uses the same library, to the same pixels, but takes five times as long over a small image: most of it is spent
in Python, finding out what the file is.

What Pillow opens goes through the steps of `_STEPS`: greys of more than 8 bits to 8, further channels and alpha apart,
colours to sRGB, transparent ground to white, upright. Each leaves ordinary images as they are, and notes in words what
it did to the values of others. The rules stand in docs/data.md, "Pixels".
"""

import io
import logging
import re
import struct
import warnings
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageCms, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

if TYPE_CHECKING:
    from torch import Tensor

MAX_PIXELS = 2**26
"""Width times height above which an image is refused before it is unpacked: 67 million, 200 MB of pixels."""

_JPEG = b"\xff\xd8\xff"
_ICC = b"ICC_PROFILE\0"
_ONLY_CHUNK = b"\x01\x01"  # the first of one: profiles of more than 64 KiB are cut into several
_MAY_BE_TURNED = (b"Exif\0\0", b"tiff:Orientation")  # EXIF, and the same in XMP
_SEGMENT = struct.Struct(">HH")  # marker, and the length of what follows
_LEAST_MARKER, _START_OF_SCAN, _APP1, _APP2, _FILL = 0xFFC0, 0xFFDA, 0xFFE1, 0xFFE2, 0xFFFF
_BROKEN = re.compile("premature end|bad huffman|instead of rst", re.IGNORECASE)  # libjpeg, of pixels that are lost
_UNREAD = {b"ftyphe": "HEIC", b"ftypmif1": "HEIC", b"ftypmsf1": "HEIC", b"ftypavi": "AVIF", b"DICM": "DICOM"}
_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html)\b", re.IGNORECASE)
_GZIP = b"\x1f\x8b"
_ORIENTATION = 0x0112  # EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What Pillow finds odd, and reads all the same. Not catch_warnings around each image: threads would undo each other's.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())


def decode(encoded: bytes) -> "Tensor":
    """Any image file that Pillow reads -> RGB uint8 [3, H, W] (a view of [H, W, 3]), turned as EXIF says.

    The values are sRGB, whatever the file's depth and colours; a transparent picture is laid on white; of several
    pictures the first is taken.

    Raises:
        ValueError: no image, a damaged one, one of more than `MAX_PIXELS`, or one whose black and white are not known.
    """
    import torch  # late: the processes of an ingest, which only examine images, do without

    return torch.from_numpy(_decoded(encoded)[0]).permute(2, 0, 1)


def examine(encoded: bytes) -> str | None:
    """What `decode` does to the values of an image, in words; None where they are those of the file. Raises as it."""
    return _decoded(encoded)[1]


class _Refused(ValueError):
    """An image that must not be taken, and why."""


def _decoded(encoded: bytes) -> tuple[NDArray[np.uint8], str | None]:
    """Pixels [H, W, 3], and what was done to their values."""
    try:
        pixels = _by_libjpeg(encoded) if encoded.startswith(_JPEG) and _plain(encoded) else None
        return _by_pillow(encoded) if pixels is None else (pixels, None)
    except (MemoryError, _Refused):
        raise
    except UnidentifiedImageError:  # whose message is an address in memory
        raise ValueError(_unread(encoded)) from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"more than {MAX_PIXELS} pixels; scale it down") from error
    except Exception as error:  # Pillow's plugins raise whatever they like on damaged bytes
        raise ValueError(f"damaged: {str(error) or type(error).__name__}") from error


def _unread(encoded: bytes) -> str:
    """What it is that Pillow does not read, and what to do."""
    if channels := _channels(encoded):
        return f"a TIFF of {channels}, which Pillow does not read; write one or three of its channels as PNG"
    if _PAGE.match(encoded):
        return "a web page, as is sent in place of an image that is not there; fetch it again"
    if encoded.startswith(_GZIP):
        return "packed by gzip; unpack it, as with gunzip"
    found = next((kind for mark, kind in _UNREAD.items() if mark in encoded[:132]), None)
    what = f"{found} by its content, and so " if found else ""
    return f"{what}no image of any kind that Pillow reads; write it as PNG or JPEG"


def _channels(encoded: bytes) -> str | None:
    """How many channels a TIFF has, and of which depth; None where that cannot be told, or it is none."""
    try:
        tags = ImageFileDirectory_v2(encoded[:_HEADER])
        stream = io.BytesIO(encoded)
        stream.seek(tags.next)
        tags.load(stream)
        return f"{tags[_SAMPLES_OF_PIXEL]} channels of {max(tags[_BITS])} bits"
    except Exception:  # whatever Pillow raises on damaged tags
        return None


def _plain(jpeg: bytes) -> bool:
    """Whether nothing that stands before a JPEG's pixels bears on what they mean: neither orientation nor profile."""
    place = 2
    while place + 4 <= len(jpeg):
        marker, length = _SEGMENT.unpack_from(jpeg, place)
        if marker == _START_OF_SCAN:
            return True
        if marker in (_APP1, _APP2) and not _harmless(jpeg[place + 4 : place + 2 + length]):
            return False
        if not _LEAST_MARKER <= marker < _FILL:  # libjpeg will find where it goes on
            return False
        place += 2 + length
    return False


def _harmless(content: bytes) -> bool:
    if not content.startswith(_ICC):
        return not any(mark in content for mark in _MAY_BE_TURNED)
    start = len(_ICC) + len(_ONLY_CHUNK)
    return content[len(_ICC) : start] == _ONLY_CHUNK and _to_srgb(content[start:]) == _SRGB


def _by_libjpeg(jpeg: bytes) -> NDArray[np.uint8] | None:
    """Pixels [H, W, 3] of a JPEG that is grey or YCbCr, None of another.

    Raises where some are lost, for Pillow would make those grey and say nothing.
    """
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(jpeg)
        _check_size(width, height)
        if space in ("YCbCr", "Gray"):
            return simplejpeg.decode_jpeg(jpeg)
        any_space = "RGB" if space == "RGB" else "CMYK"
        simplejpeg.decode_jpeg(jpeg, any_space, min_height=1, min_width=1, min_factor=8)
    except ValueError as error:
        if isinstance(error, _Refused) or _BROKEN.search(str(error)):
            raise
    return None


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise _Refused(f"{width} x {height} pixels are more than {MAX_PIXELS}; scale it down")


@dataclass
class _Picture:
    """An image on its way to upright sRGB of 8 bits."""

    encoded: bytes
    image: Image.Image
    """As it is by now."""
    opened: Image.Image
    """As it was opened; tells the kind of file, and what stands beside the pixels."""
    raw: str
    """Pillow's "raw mode": how the samples lie in the file."""
    alpha: Image.Image | None = None
    done: list[str] = field(default_factory=list)
    """What was done to the values, in words."""

    @property
    def grey(self) -> bool:
        """Whether the file is."""
        return self.opened.mode in ("1", "L", "LA", "La", "I", "F") or self.raw.startswith(("I;16", "LA"))

    def tag(self, *numbers: int) -> Any:
        """The first value of the first of these tags that a TIFF has; None of any other file."""
        tags = self.opened.tag_v2 if isinstance(self.opened, TiffImageFile) else {}
        held = next((tags[number] for number in numbers if number in tags), None)
        return held[0] if isinstance(held, tuple) and held else held


def _by_pillow(encoded: bytes) -> tuple[NDArray[np.uint8], str | None]:
    with Image.open(io.BytesIO(encoded)) as opened:
        _check_size(*opened.size)
        if opened.format == "EPS":  # Pillow would run it
            raise _Refused("EPS, which is a program; write it as PNG")
        raw = _raw_mode(opened)
        pixels = _by_libjpeg(encoded) if opened.format in ("JPEG", "MPO") else None
        image = _loaded(opened) if pixels is None else Image.fromarray(pixels)
        if raw in ("RGB", "L") and opened.format == "PNG" and _MAY_TELL.isdisjoint(opened.info):
            return np.array(image if raw == "RGB" else image.convert("RGB")), None
        picture = _Picture(encoded, image, opened, raw)
        for step in _STEPS:
            step(picture)
        if opened.format in _MOVING and getattr(opened, "is_animated", False):
            picture.done.append("the first of several pictures")
        return np.array(picture.image), ", ".join(picture.done) or None


def _loaded(opened: Image.Image) -> Image.Image:
    if isinstance(opened, TiffImageFile):  # a tile may be larger than its image
        _check_size(opened.tag_v2.get(_TILE_WIDTH, 1), opened.tag_v2.get(_TILE_LENGTH, 1))
    opened.load()
    return opened


# What may stand beside a PNG's pixels and bear on them. Most have nothing of it, and are so small that steps cost time.
_MAY_TELL = {"transparency", "icc_profile", "gamma", "exif", "xmp", "Raw profile type exif", "loop"}
_MOVING = ("GIF", "WEBP", "PNG", "AVIF", "TIFF")


def _raw_mode(opened: Image.Image) -> str:
    tiles = getattr(opened, "tile", [])
    match tiles[0].args if tiles else None:
        case str(raw) | (str(raw),):
            return raw
        case (str(raw), int(maxval)) if opened.format == "PPM":
            return f"{raw};16" if maxval > 255 else raw
        case (str(raw), *_):
            return raw
    return ""


_HEADER = 8  # bytes of a TIFF before all else
_BITS, _COMPRESSION, _PHOTOMETRIC, _TILE_WIDTH, _TILE_LENGTH = 258, 259, 262, 322, 323  # tags of TIFF
_SAMPLES_OF_PIXEL, _EXTRA_SAMPLES, _ALPHA = 277, 338, (1, 2)
_COLOURS_OF = {0: 1, 1: 1, 2: 3, 6: 3}  # channels that are colours, by TIFF's photometric interpretation
_WITHOUT_ALPHA = {"RGBA": "RGB", "LA": "L"}
_BLACKS, _WHITES = (340, 280), (341, 281)  # smallest and largest value, of any type, and of whole numbers
_RAW, _WHITE_IS_ZERO = 1, 0
_SWAPPED = {"F;32BF": "f4", "I;32BS": "i4", "I;16BS": "i2"}  # by libtiff already, and Pillow swaps them again
_OTHER_WHITES = [2**bits - 1 for bits in range(8, 16)]
_DEEP = "more than 8 bits scaled to 8"
_MAY_HAVE_WHITE = {"floats": (1, 255), "16 bits with a sign": (255, 32767), "32 bits": (255, 65535)}


def _to_8_bits(picture: _Picture) -> None:
    """Greys of more than 8 bits: black to 0, white to 255. Of colours Pillow has taken the upper 8 bits already."""
    if not picture.image.mode.startswith(("I", "F")):
        if ";16" in picture.raw and not picture.raw.startswith("BGR"):  # which are 16 bits for all three
            _check_white(picture)
            picture.done.append(_DEEP)
        return
    levels = _values(picture).astype(np.float32)
    key = picture.opened.info.get("transparency")
    if isinstance(key, int):
        picture.alpha = Image.fromarray(np.where(levels == key, 0, 255).astype(np.uint8))
    black, white = _black_and_white(picture, levels)
    levels -= black
    levels /= white - black
    if picture.tag(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # which Pillow heeds up to 8 bits
        np.subtract(1, levels, out=levels)
    if gamma := _take_gamma(picture):
        levels = _from_gamma(levels, gamma)
    levels *= 255
    picture.image = Image.fromarray(np.rint(levels, out=levels).astype(np.uint8))


def _values(picture: _Picture) -> NDArray[Any]:
    values, swapped = np.asarray(picture.image), _SWAPPED.get(picture.raw)
    if swapped and picture.tag(_COMPRESSION) != _RAW:
        return values.astype(swapped).byteswap()
    return values


def _black_and_white(picture: _Picture, levels: NDArray[np.float32]) -> tuple[float, float]:
    """The values that are black and white; says how they are known.

    What a file states is taken where it can be true. Its size in bits is next, and else the values are left to guess.
    """
    kind, low, high = _kind(picture), float(levels.min()), float(levels.max())
    if kind == "16 bits":
        return 0, _unsigned_white(picture, levels, high)
    if not np.isfinite([low, high]).all():
        raise _Refused(f"{kind} that are not all finite; replace NaN and infinity")
    black, white = picture.tag(*_BLACKS) or 0, picture.tag(*_WHITES) or 0
    if black <= low <= high <= white and black < white:
        picture.done.append(f"{kind}, scaled by the range that the file states")
        return black, white
    guessed = next((white for white in _MAY_HAVE_WHITE[kind] if low >= 0 and high <= white), None)
    if guessed is None:
        raise _Refused(
            f"{kind} from {low:g} to {high:g}, of which black and white are not known; write 8 bits, or 16 unsigned"
        )
    picture.done.append(f"{kind}, taken for 0..{guessed}")
    return 0, guessed


def _kind(picture: _Picture) -> str:
    mode, form = picture.image.mode, picture.opened.format
    if mode == "F":
        return "floats"
    if mode != "I" or form in ("PNG", "PPM"):  # which older releases of Pillow, and PGM, have as 16 bits in 32
        return "16 bits"
    return "16 bits with a sign" if picture.tag(_BITS) == 16 else "32 bits"


def _unsigned_white(picture: _Picture, levels: NDArray[np.float32], high: float) -> float:
    if picture.opened.format not in ("PNG", "PPM", "JPEG2000", "TIFF"):  # FITS, for one: whose zero is elsewhere
        raise _Refused(f"more than 8 bits in {picture.opened.format}; write it as PNG")
    white = 2 ** (picture.tag(_BITS) or 16) - 1
    stated = picture.tag(*_WHITES) or _white_of_png(picture.encoded, levels)
    if stated in _OTHER_WHITES and high <= stated:  # else it is the largest of the picture
        white = stated
    dark = white == 65535 and 0 < high < 4096
    picture.done.append(_DEEP + (", nearly black: no value is above 4095, as if white were there" if dark else ""))
    return white


def _white_of_png(encoded: bytes, levels: NDArray[np.float32]) -> int:
    """What sBIT says, where the values were not scaled up to 16 bits, as PNG wants it: they have odd lowest bits."""
    place = encoded.find(b"sBIT", 0, max(0, encoded.find(b"IDAT")))
    bits = encoded[place + 4] if place >= 0 else 16
    return 2**bits - 1 if bits < 16 and (levels % 2 ** (16 - bits)).any() else 2**16 - 1


def _check_white(picture: _Picture) -> None:
    """Of colours the upper 8 bits of 16 are left."""
    if (stated := picture.tag(*_WHITES)) in _OTHER_WHITES:
        raise _Refused(
            f"colours of 16 bits, of which {stated} is white; write them with 8 bits, or with white at 65535"
        )


def _further_channels(picture: _Picture) -> None:
    """Channels of a TIFF beyond its colours, but for an alpha that the file calls so."""
    colours = _COLOURS_OF.get(picture.tag(_PHOTOMETRIC) or 0, 0)
    further = (picture.tag(_SAMPLES_OF_PIXEL) or 1) - colours
    if not colours or further < 1:
        return
    if picture.tag(_EXTRA_SAMPLES) in _ALPHA:
        further -= 1
    elif picture.image.mode in _WITHOUT_ALPHA:
        picture.image = picture.image.convert(_WITHOUT_ALPHA[picture.image.mode])
    if further:
        picture.done.append("further channels passed over")


def _take_alpha(picture: _Picture) -> None:
    """The alpha apart from the colours, whatever way the file has it."""
    image = picture.image
    if picture.alpha is not None or not image.has_transparency_data:
        return
    if (key := image.info.get("transparency")) is not None:
        image.info["transparency"] = _in_8_bits(key, picture.raw)
    whole = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    picture.alpha, picture.image = whole.getchannel("A"), whole.convert("RGB")


def _in_8_bits(key: Any, raw: str) -> Any:
    """The colour that is transparent, which PNG states in the file's own bits."""
    if isinstance(key, tuple):
        return tuple(value >> 8 for value in key) if ";16" in raw else key
    return key * {"L;2": 85, "L;4": 17}.get(raw, 1) if isinstance(key, int) else key


_SRGB: tuple[str, None] = ("RGB", None)
_SAMPLES = np.stack(np.meshgrid(*[np.arange(0, 256, 15, dtype=np.uint8)] * 3), -1).reshape(-1, 18, 3)
_SAME = 2  # of 255: by so much differ the many profiles that mean sRGB
_SAME_GAMMA = 0.05  # of 1 / 2.2
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_MAY_BE = {"RGB": ("RGB",), "L": ("L", "RGB"), "CMYK": ("CMYK",)}  # profiles for what stands in the file


@lru_cache(maxsize=16)
def _to_srgb(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """The mode that a colour profile is for, and the way from there to sRGB, None where it alters nothing.

    The mode is empty where the profile cannot be used.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODES[source.profile.xcolor_space.strip()]
        transform = _transform(source, mode)
    except (ImageCms.PyCMSError, OSError, KeyError):
        return "", None
    if mode == "CMYK":
        return mode, transform
    samples = Image.fromarray(_SAMPLES).convert(mode)
    change = np.array(transform.apply(samples), np.int16) - np.array(samples.convert("RGB"))
    return mode, None if np.abs(change).max() <= _SAME else transform


def _transform(source: ImageCms.ImageCmsProfile, mode: str) -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(
        source,
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )


def _to_rgb(picture: _Picture) -> None:
    """Colours to sRGB: by a profile that fits, by PNG's gamma, and else as their space is defined."""
    _check_ink(picture)
    mode, transform = _profile(picture)
    if transform:
        picture.image = transform.apply(picture.image.convert(mode))
    if picture.image.mode != "RGB":
        picture.image = picture.image.convert("RGB")
    if gamma := _take_gamma(picture):
        levels = _from_gamma(np.linspace(0, 1, 256), gamma)
        picture.image = picture.image.point(np.rint(levels * 255).astype(int).tolist() * 3)


def _check_ink(picture: _Picture) -> None:
    """Pillow takes all JPEGs in CMYK for Adobe's, in which 0 is all of an ink."""
    of_jpeg = picture.opened.format in ("JPEG", "MPO")
    if of_jpeg and picture.image.mode == "CMYK" and "adobe" not in picture.opened.info:
        picture.image = ImageChops.invert(picture.image)
        picture.done.append("CMYK without Adobe's marker, 0 taken for no ink")


def _profile(picture: _Picture) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """The mode to convert to, and the way from there to sRGB; None where Pillow's own will do."""
    mode, profile = picture.image.mode, picture.opened.info.get("icc_profile")
    if mode == "LAB":
        picture.done.append("Lab converted to sRGB")
        return mode, _transform(ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")), mode)
    if profile:
        of, transform = _to_srgb(profile)
        if of in _MAY_BE["CMYK" if mode == "CMYK" else "L" if picture.grey else "RGB"]:
            picture.done += ["a colour profile converted to sRGB"] if transform else []
            return of, transform
        picture.done.append("a colour profile that does not fit passed over")
    picture.done += ["CMYK converted without a profile"] if mode == "CMYK" else []
    return "", None


def _take_gamma(picture: _Picture) -> float | None:
    """PNG's gAMA, once, where nothing that says more stands beside it, and where it is not about sRGB's."""
    info = picture.opened.info
    gamma = info.pop("gamma", 0)
    if gamma <= 0 or abs(gamma * 2.2 - 1) <= _SAME_GAMMA or "srgb" in info or "icc_profile" in info:
        return None
    picture.done.append("a gamma converted to sRGB")
    return gamma


def _from_gamma(levels: NDArray[Any], gamma: float) -> NDArray[Any]:
    """0..1 that are light ** gamma -> 0..1 as sRGB has it (IEC 61966-2-1)."""
    light = levels ** (1 / gamma)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def _on_white(picture: _Picture) -> None:
    """What people see of a transparent picture: browsers lay it on a page, and pages are white."""
    least, most = (255, 255) if picture.alpha is None else picture.alpha.getextrema()
    if least == 255:
        return
    if most == 0 and picture.opened.format == "TGA":
        picture.done.append("an alpha of 0 everywhere passed over")  # many programs write it so for none
        return
    ground = Image.new("RGB", picture.image.size, "white")
    ground.paste(picture.image, mask=picture.alpha)
    picture.image = ground
    picture.done.append("transparent, laid on white" if most else "wholly transparent, so white")


def _upright(picture: _Picture) -> None:
    try:
        turn = _TURNS.get(picture.opened.getexif().get(_ORIENTATION, 1))
    except MemoryError:
        raise
    except Exception:  # whatever Pillow raises on damaged EXIF, which is no fault of the pixels
        picture.done.append("EXIF that is damaged passed over")
        return
    if turn is not None:
        picture.image = picture.image.transpose(turn)


_STEPS = (_to_8_bits, _further_channels, _take_alpha, _to_rgb, _on_white, _upright)
