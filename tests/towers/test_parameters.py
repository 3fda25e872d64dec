"""Parameters of views: those of torchvision's transforms in distribution, and each of its own stream."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, ks_2samp

from emc2dist.config import Views
from emc2dist.towers._torchvision import v2
from emc2dist.towers.parameters import BRIGHTNESS, HUE, draw

COUNT = 4000
STREAMS = np.random.default_rng(0).integers(0, 2**63, COUNT)


def drawn(config: Views, height: int = 32, width: int = 32) -> np.ndarray:
    return draw(config, STREAMS, np.full(COUNT, height), np.full(COUNT, width))


def theirs(transform: v2.Transform, height: int = 32, width: int = 32) -> list[dict]:
    torch.manual_seed(0)
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    return [transform.make_params([image]) for _ in range(COUNT)]


def assert_alike(ours: np.ndarray, expected: list[float]) -> None:
    assert ks_2samp(ours, np.array(expected)).pvalue > 0.001


@pytest.mark.parametrize("shape", [(32, 32), (375, 500), (96, 31), (9, 40), (40, 9), (1, 7)])
@pytest.mark.parametrize(("crop", "aspect"), [((0.08, 1.0), (0.75, 4 / 3)), ((0.5, 1.5), (0.4, 1.1))])
def test_crop(shape, crop, aspect):
    ours = drawn(Views(crop=crop, aspect=aspect), *shape)
    expected = theirs(v2.RandomResizedCrop(8, crop, aspect), *shape)
    for name in ("top", "left", "height", "width"):
        assert_alike(ours[name], [one[name] for one in expected])
    for of in (np.multiply, np.divide):  # area and aspect
        assert_alike(of(ours["width"], ours["height"]), [of(one["width"], one["height"]) for one in expected])
    assert ((ours["top"] >= 0) & (ours["top"] + ours["height"] <= shape[0])).all()
    assert ((ours["left"] >= 0) & (ours["left"] + ours["width"] <= shape[1])).all()


def test_where_no_crop_fits_it_is_the_middle_as_far_as_the_aspect_allows():
    for shape, box in (((10, 100), (0, 40, 10, 20)), ((101, 10), (40, 0, 20, 10)), ((1, 1), (0, 0, 1, 1))):
        ours = drawn(Views(crop=(1.0, 1.0), aspect=(0.5, 2.0)), *shape)
        for name, value in zip(("top", "left", "height", "width"), box, strict=True):
            assert (ours[name] == value).all()
    thin = drawn(Views(crop=(1.0, 1.0), aspect=(0.01, 0.02)), 5, 5)
    assert (thin["width"] == 1).all()


def test_angle():
    ours = drawn(Views(rotate=25.0))["angle"]
    assert_alike(ours, [one["angle"] for one in theirs(v2.RandomRotation(25.0))])
    assert not drawn(Views(rotate=0.0))["angle"].any()


def test_jitter():
    strengths = (0.4, 1.5, 0.8, 0.1)
    ours = drawn(Views(jitter=strengths, jitter_probability=1.0))
    expected = theirs(v2.ColorJitter(*strengths))
    for which, name in enumerate(("brightness", "contrast", "saturation", "hue")):
        assert_alike(ours["factors"][:, which], [one[f"{name}_factor"] for one in expected])
    _, counts = np.unique(ours["order"], axis=0, return_counts=True)
    assert len(counts) == 24
    assert chisquare(counts).pvalue > 0.001


def test_a_jitter_that_is_left_out_or_of_no_strength_changes_nothing():
    neutral = [1, 1, 1, 0]
    assert (drawn(Views(jitter_probability=0.0))["factors"] == neutral).all()
    some = drawn(Views(jitter=(0.0, 0.4, 0.4, 0.1), jitter_probability=0.7))["factors"]
    assert (some[:, BRIGHTNESS] == 1).all()
    without = (some == neutral).all(1)
    assert abs(without.mean() - 0.3) < 0.03
    assert (some[~without, HUE] != 0).all()


def test_sigma():
    ours = drawn(Views(blur=1.0))["sigma"]
    assert_alike(ours, [one["sigma"][0] for one in theirs(v2.GaussianBlur(3, (0.1, 2.0)))])


@pytest.mark.parametrize(
    ("key", "name"), [("flip", "flip"), ("grey", "grey"), ("blur", "sigma"), ("solarise", "solarise")]
)
def test_probabilities(key, name):
    for probability in (0.0, 0.2, 1.0):
        assert abs((drawn(Views(**{key: probability}))[name] != 0).mean() - probability) < 0.025


def test_the_parameters_are_unrelated():
    ours = drawn(Views(rotate=10.0, grey=0.5, blur=1.0, solarise=0.5, jitter_probability=1.0))
    parts = [ours[name] for name in ("flip", "angle", "grey", "sigma", "solarise", "width")]
    parts += [*ours["factors"].T, ours["order"][:, 0], (ours["top"] + 0.5) / (33 - ours["height"])]
    related = np.corrcoef(np.stack([part.astype(float) for part in parts]))
    assert np.abs(related - np.eye(len(parts))).max() < 4.5 / COUNT**0.5


def test_a_view_has_its_parameters_in_any_batch():
    config = Views(rotate=10.0, blur=0.5, grey=0.5)
    sides = np.random.default_rng(1).integers(1, 300, (2, COUNT))
    together = draw(config, STREAMS, *sides)
    for start, stop in ((0, 1), (7, 8), (100, 103), (200, 1000)):
        assert (draw(config, STREAMS[start:stop], *sides[:, start:stop]) == together[start:stop]).all()
    assert len(np.unique(together)) == COUNT


def test_a_transform_that_is_left_out_leaves_the_others_their_numbers():
    every, few = (
        drawn(Views(rotate=10.0, blur=0.5, grey=0.5)),
        drawn(Views(rotate=0.0, flip=0.0, jitter_probability=0.0)),
    )
    for name in ("top", "left", "height", "width"):
        assert (every[name] == few[name]).all()
