"""Each augmentation against torchvision's function of the same name, with the same parameters: at most 1 of 255 off."""

import numpy as np
import pytest
import torch

from emc2dist.towers import augment
from emc2dist.towers._torchvision import v2

F = v2.functional
SIZES = [1, 2, 8, 33, 96]


def pixels(height: int, width: int) -> np.ndarray:
    """Noise, in which the three channels, or two, are alike here and there, and black and white are not rare."""
    draw = np.random.default_rng(height * 1000 + width)
    image = draw.integers(-40, 296, (3, height, width)).clip(0, 255).astype(np.uint8)
    image[1] = np.where(draw.random((height, width)) < 0.3, image[0], image[1])
    image[2] = np.where(draw.random((height, width)) < 0.3, image[1], image[2])
    return image


def assert_alike(made: np.ndarray, expected: torch.Tensor, *, share: float = 0.03) -> None:
    """Off by 1 at most, and by anything in no more than `share` of all values."""
    off = np.abs(made.astype(int) - expected.numpy().astype(int))
    assert off.max() <= 1
    assert (off > 0).mean() <= share


@pytest.mark.parametrize("size", [2, 8, 33, 96])  # torch 2.13 itself fails where a uint8 image becomes a single pixel
@pytest.mark.parametrize("shape", [(1, 1), (1, 60), (60, 1), (8, 8), (33, 32), (96, 96), (7, 500), (150, 224)])
def test_crop_and_resize(shape, size):
    image = pixels(*shape)
    made = np.empty((3, size, size), np.uint8)
    for part in (1.0, 0.6):
        height, width = (max(1, round(part * side)) for side in shape)
        box = (shape[0] - height, (shape[1] - width) // 2, height, width)
        expected = F.resized_crop(torch.from_numpy(image), *box, [size, size], antialias=True)
        augment.resize(image, *box, False, made)
        assert_alike(made, expected)
        augment.resize(image, *box, True, made)
        assert_alike(made, F.horizontal_flip(expected))


@pytest.mark.parametrize("angle", [-170.0, -15.0, 3.3, 45.0, 90.0])
@pytest.mark.parametrize("size", SIZES)
def test_rotate(size, angle):
    image = pixels(size, size)
    made = np.empty_like(image)
    augment.rotate(image, angle, made)
    bilinear = v2.InterpolationMode.BILINEAR
    assert_alike(made, F.rotate(torch.from_numpy(image), angle, interpolation=bilinear, fill=0), share=0.001)


@pytest.mark.parametrize("factor", [0.0, 0.3, 0.999, 1.0, 1.7, 40.0])
@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("size", SIZES)
def test_brightness_contrast_saturation(size, which, factor):
    image = pixels(size, size)
    adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)[which]
    expected = adjust(torch.from_numpy(image.copy()), factor)
    factors = np.array([1.0, 1.0, 1.0, 0.0])
    factors[which] = factor
    augment.jitter(image, np.arange(4), factors)
    assert_alike(image, expected, share=0.01)


@pytest.mark.parametrize("shift", [-0.5, -0.17, 0.0, 0.03, 0.25, 0.5])
@pytest.mark.parametrize("size", SIZES)
def test_hue(size, shift):
    image = pixels(size, size)
    expected = F.adjust_hue(torch.from_numpy(image.copy()), shift)
    augment.jitter(image, np.arange(4), np.array([1.0, 1.0, 1.0, shift]))
    assert_alike(image, expected, share=0.01)


def test_the_hue_of_every_colour():
    levels = np.arange(0, 256, 5, dtype=np.uint8)
    image = np.stack(np.meshgrid(levels, levels, levels)).reshape(3, 52, -1)
    for shift in (-0.31, 0.07):
        made = image.copy()
        augment.jitter(made, np.arange(4), np.array([1.0, 1.0, 1.0, shift]))
        assert_alike(made, F.adjust_hue(torch.from_numpy(image), shift), share=0.001)


def test_the_jitter_keeps_its_order():
    adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    factors, made = np.array([1.6, 0.4, 1.5, 0.1]), []
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]):
        image = pixels(20, 20)
        expected = torch.from_numpy(image.copy())
        for which in order:
            expected = adjust[which](expected, factors[which])
        augment.jitter(image, np.array(order), factors)
        assert np.abs(image.astype(int) - expected.numpy()).mean() < 0.01
        made.append(image)
    assert not (made[0] == made[1]).all()


@pytest.mark.parametrize("size", SIZES)
def test_grey(size):
    image = pixels(size, size)
    expected = F.rgb_to_grayscale(torch.from_numpy(image.copy()), 3)
    augment.grey(image)
    assert_alike(image, expected, share=0.001)


@pytest.mark.parametrize("size", SIZES)
def test_solarisation(size):
    image = pixels(size, size)
    expected = F.solarize(torch.from_numpy(image.copy()), 128)
    augment.solarise(image)
    assert (image == expected.numpy()).all()


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
@pytest.mark.parametrize(("size", "taps"), [(2, 3), (8, 3), (8, 9), (33, 3), (33, 23), (96, 9)])
def test_blur(size, taps, sigma):
    image = pixels(size, size)
    made = np.empty_like(image)
    augment.blur(image, sigma, taps, made)
    assert_alike(made, F.gaussian_blur(torch.from_numpy(image), [taps, taps], [sigma, sigma]), share=0.001)


def test_a_view_of_one_pixel_is_not_blurred():
    image, made = np.full((3, 1, 1), 77, np.uint8), np.zeros((3, 1, 1), np.uint8)
    augment.blur(image, 1.0, 3, made)
    assert (made == 77).all()
