"""Every kind of image file becomes RGB, upright; what cannot be decoded says so."""

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from emc2dist.data.decode import decode


def encoded(image: Image.Image, form: str = "png", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return decode(data)


def flat(image: torch.Tensor) -> list[int]:
    assert image.dtype == torch.uint8
    return image[:, 0, 0].tolist()


def test_every_kind_of_image_becomes_rgb():
    red = Image.new("RGB", (3, 2), (200, 30, 40))
    assert decoded(encoded(red)).shape == (3, 2, 3)
    assert flat(decoded(encoded(Image.new("L", (2, 2), 77)))) == [77, 77, 77]
    assert flat(decoded(encoded(Image.new("1", (2, 2), 1)))) == [255, 255, 255]
    assert flat(decoded(encoded(red.convert("RGBA")))) == [200, 30, 40]
    assert flat(decoded(encoded(Image.new("LA", (2, 2), (9, 128))))) == [9, 9, 9]
    assert flat(decoded(encoded(red.quantize(4)))) == [200, 30, 40]
    assert flat(decoded(encoded(red.quantize(4), transparency=b"\x10\x20"))) == [200, 30, 40]


def test_cmyk_becomes_rgb():
    image = Image.new("RGB", (16, 16), (200, 30, 40)).convert("CMYK")
    assert flat(decoded(encoded(image, "jpeg", quality=100))) == pytest.approx([200, 30, 40], abs=6)


@pytest.mark.parametrize("value", [0, 257, 128 * 257, 65535])
def test_greys_of_16_bits_are_scaled_not_clipped(value):
    image = Image.fromarray(np.full((2, 2), value, dtype=np.uint16))
    for form in ("png", "tiff"):
        assert flat(decoded(encoded(image, form))) == [value // 257] * 3


def test_exif_rotation_is_applied():
    image = Image.new("RGB", (4, 2))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    made = decoded(encoded(image, exif=exif))
    assert made.shape == (3, 4, 2)
    assert made[:, 0, 1].tolist() == [255, 255, 255]


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new("RGB", (2, 2), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    for form in ("gif", "webp"):
        options = {"lossless": True} if form == "webp" else {}
        made = decoded(encoded(frames[0], form, save_all=True, append_images=frames[1:], **options))
        assert flat(made) == [255, 0, 0]


@pytest.mark.parametrize("size", [(20_000, 20_000), (20_000, 3_400)])
def test_a_bomb_is_refused_before_it_is_unpacked(size):
    with pytest.raises((ValueError, Image.DecompressionBombError), match="pixels"):
        decode(encoded(Image.new("1", size)))


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


def test_half_a_jpeg_is_no_image():
    data = encoded(Image.effect_noise((64, 64), 50).convert("RGB"), "jpeg")
    with pytest.raises(OSError, match="truncated"):
        decode(data[: len(data) // 2])
